// The kernels of one instruction set, in both precisions.
#pragma once

#include "bidirectional_backward.h"
#include "causal_backward.h"
#include "mobile_backward.h"

namespace flowformer {
namespace FF_ISA {

// A thread costs some forty microseconds to start and to join: each is to have a hundred of work.
constexpr double OPERATIONS_PER_THREAD = 2e7;

template <int (*NARROW)(const Call&), int (*WIDE)(const Call&)> int either(const Call& given) {
  Call call = given;
  const double tokens = double(call.query_offsets ? 1 : call.batch) * double(call.queries > call.keys ? call.queries : call.keys);
  const double width = double(call.key_width), value_width = double(call.value_width);
  const double operations = tokens * double(call.heads) * (4 * width * value_width + 2 * CHUNK * (width + value_width));
  const int64_t worth = int64_t(operations / OPERATIONS_PER_THREAD);
  call.threads = call.threads < worth ? call.threads : worth > 1 ? worth : 1;
  return call.dtype == FLOAT64 ? WIDE(call) : NARROW(call);
}

// The flows of a bidirectional call run between tokens, or between the heads of one.
template <class T> int forward(const Call& call) {
  return call.flows == OVER_HEADS ? mobile_forward<T>(call) : bidirectional_forward<T>(call);
}
template <class T> int backward(const Call& call) {
  return call.flows == OVER_HEADS ? mobile_backward<T>(call) : bidirectional_backward<T>(call);
}

}  // namespace FF_ISA

#define FF_JOIN(a, b) a##b
#define FF_TABLE(isa) FF_JOIN(kernels_, isa)
extern const Kernels FF_TABLE(FF_ISA) = {
    FF_ISA::either<FF_ISA::forward<float>, FF_ISA::forward<double>>,
    FF_ISA::either<FF_ISA::backward<float>, FF_ISA::backward<double>>,
    FF_ISA::either<FF_ISA::causal_forward<float>, FF_ISA::causal_forward<double>>,
    FF_ISA::either<FF_ISA::causal_backward<float>, FF_ISA::causal_backward<double>>,
};

}  // namespace flowformer
