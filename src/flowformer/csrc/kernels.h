// The kernels of one instruction set, in both precisions; where it multiplies pairs of bfloat16, of bfloat16 alone.
#pragma once

#include "bidirectional_backward.h"
#include "causal_backward.h"
#include "convolution.h"
#include "mobile_backward.h"

namespace flowformer {
namespace FF_ISA {

// A sleeping thread costs tens of microseconds to wake and to wait for: each is to have a hundred of work.
constexpr double OPERATIONS_PER_THREAD = 2e7;
constexpr double CONVOLVED_PER_THREAD = 4e5;  // numbers, which take their way through memory

template <class Any> Any with_at_most(double threads, Any call) {
  const int64_t worth = int64_t(threads);
  call.threads = call.threads < worth ? call.threads : worth > 1 ? worth : 1;
  return call;
}

inline Call with_threads_that_pay(const Call& call) {
  const double tokens = double(call.query_offsets ? 1 : call.batch) * double(call.queries > call.keys ? call.queries : call.keys);
  const double width = double(call.key_width), value_width = double(call.value_width);
  const double operations = tokens * double(call.heads) * (4 * width * value_width + 2 * CHUNK * (width + value_width));
  return with_at_most(operations / OPERATIONS_PER_THREAD, call);
}
inline Convolution with_threads_that_pay(const Convolution& call) {
  const double tokens = double(call.offsets ? 1 : call.batch) * double(call.tokens);
  return with_at_most(tokens * double(call.heads) * double(call.width) / CONVOLVED_PER_THREAD, call);
}

// The flows of a bidirectional call run between tokens, or between the heads of one.
template <class T> int forward(const Call& call) {
  return call.flows == OVER_HEADS ? mobile_forward<T>(call) : bidirectional_forward<T>(call);
}
template <class T> int backward(const Call& call) {
  return call.flows == OVER_HEADS ? mobile_backward<T>(call) : bidirectional_backward<T>(call);
}

#ifdef FF_PAIRS
template <class Any, int (*NARROW)(const Any&), int (*Kernels::*OTHER)(const Any&)> int of_dtype(const Any& call) {
  return call.dtype == BFLOAT16 ? NARROW(with_threads_that_pay(call)) : (kernels_avx512.*OTHER)(call);
}
#define FF_KERNEL(any, function, name) FF_ISA::of_dtype<any, FF_ISA::function<float>, &Kernels::name>
#else
template <class Any, int (*NARROW)(const Any&), int (*WIDE)(const Any&)> int of_dtype(const Any& call) {
  return (call.dtype == FLOAT64 ? WIDE : NARROW)(with_threads_that_pay(call));
}
#define FF_KERNEL(any, function, name) FF_ISA::of_dtype<any, FF_ISA::function<float>, FF_ISA::function<double>>
#endif

}  // namespace FF_ISA

#define FF_JOIN(a, b) a##b
#define FF_TABLE(isa) FF_JOIN(kernels_, isa)
extern const Kernels FF_TABLE(FF_ISA) = {
    FF_KERNEL(Call, forward, bidirectional_forward),
    FF_KERNEL(Call, backward, bidirectional_backward),
    FF_KERNEL(Call, causal_forward, causal_forward),
    FF_KERNEL(Call, causal_backward, causal_backward),
    FF_KERNEL(Convolution, convolution_forward, convolution_forward),
    FF_KERNEL(Convolution, convolution_backward, convolution_backward),
};

}  // namespace flowformer
