// The kernels of one instruction set, in both precisions; where it multiplies pairs of bfloat16, of bfloat16 alone.
#pragma once

#include "bidirectional_backward.h"
#include "causal_backward.h"
#include "mobile_backward.h"

namespace flowformer {
namespace FF_ISA {

// A sleeping thread costs tens of microseconds to wake and to wait for: each is to have a hundred of work.
constexpr double OPERATIONS_PER_THREAD = 2e7;

inline Call with_threads_that_pay(const Call& given) {
  Call call = given;
  const double tokens = double(call.query_offsets ? 1 : call.batch) * double(call.queries > call.keys ? call.queries : call.keys);
  const double width = double(call.key_width), value_width = double(call.value_width);
  const double operations = tokens * double(call.heads) * (4 * width * value_width + 2 * CHUNK * (width + value_width));
  const int64_t worth = int64_t(operations / OPERATIONS_PER_THREAD);
  call.threads = call.threads < worth ? call.threads : worth > 1 ? worth : 1;
  return call;
}

// The flows of a bidirectional call run between tokens, or between the heads of one.
template <class T> int forward(const Call& call) {
  return call.flows == OVER_HEADS ? mobile_forward<T>(call) : bidirectional_forward<T>(call);
}
template <class T> int backward(const Call& call) {
  return call.flows == OVER_HEADS ? mobile_backward<T>(call) : bidirectional_backward<T>(call);
}

#ifdef FF_PAIRS
template <int (*NARROW)(const Call&), int (*Kernels::*OTHER)(const Call&)> int of_dtype(const Call& call) {
  return call.dtype == BFLOAT16 ? NARROW(with_threads_that_pay(call)) : (kernels_avx512.*OTHER)(call);
}
#define FF_KERNEL(function, name) FF_ISA::of_dtype<FF_ISA::function<float>, &Kernels::name>
#else
template <int (*NARROW)(const Call&), int (*WIDE)(const Call&)> int of_dtype(const Call& call) {
  return (call.dtype == FLOAT64 ? WIDE : NARROW)(with_threads_that_pay(call));
}
#define FF_KERNEL(function, name) FF_ISA::of_dtype<FF_ISA::function<float>, FF_ISA::function<double>>
#endif

}  // namespace FF_ISA

#define FF_JOIN(a, b) a##b
#define FF_TABLE(isa) FF_JOIN(kernels_, isa)
extern const Kernels FF_TABLE(FF_ISA) = {
    FF_KERNEL(forward, bidirectional_forward),
    FF_KERNEL(backward, bidirectional_backward),
    FF_KERNEL(causal_forward, causal_forward),
    FF_KERNEL(causal_backward, causal_backward),
};

}  // namespace flowformer
