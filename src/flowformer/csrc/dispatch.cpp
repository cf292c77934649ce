// The exported functions, and the choice of the instruction set: once, at the first call.
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "api.h"

namespace flowformer {
namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
};

#if defined(__x86_64__)
// What the processor has and the system saves. __builtin_cpu_supports says it too, but needs a runtime that not every compiler has.
struct Processor {
  bool avx2, avx512, avx512bf16;
};

Processor ask_processor() {
  Processor has{};
  unsigned a, b, c, d, saved, none;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return has;
  constexpr unsigned YMM = 0x06, ZMM = 0xe6, WITH_AVX2 = bit_FMA | bit_F16C;
  constexpr unsigned EACH = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  const bool with_avx2 = (c & WITH_AVX2) == WITH_AVX2;
  __asm__("xgetbv" : "=a"(saved), "=d"(none) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return has;
  has.avx2 = with_avx2 && (b & bit_AVX2) && (saved & YMM) == YMM;
  has.avx512 = has.avx2 && (b & EACH) == EACH && (saved & ZMM) == ZMM;
  has.avx512bf16 = has.avx512 && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16);
  return has;
}
#endif

// The best that the machine has, or the one that FLOWFORMER_ISA names, if it has that; whoever loads the library compares.
Choice choose() {
  const char* wanted = std::getenv("FLOWFORMER_ISA");
  Choice available[4];
  int count = 0;
#if defined(__x86_64__)
  const Processor has = ask_processor();
  if (has.avx512bf16) available[count++] = {"avx512bf16", &kernels_avx512bf16};
  if (has.avx512) available[count++] = {"avx512", &kernels_avx512};
  if (has.avx2) available[count++] = {"avx2", &kernels_avx2};
#endif
  available[count++] = {"portable", &kernels_portable};
  for (int i = 0; wanted && i < count; ++i)
    if (std::strcmp(wanted, available[i].name) == 0) return available[i];
  return available[0];
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

// Large results come from the system as fresh pages: taken 4 KiB at a time they are a fifth of the time of a long call.
constexpr int64_t LARGE = 8 << 20, HUGE_PAGE = 2 << 20;

void take_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < LARGE) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / HUGE_PAGE * HUGE_PAGE;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: it may fail
#else
  (void)data, (void)bytes;
#endif
}

int64_t bytes_of(int32_t dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

void prepare_results(const Call& call) {
  const int64_t real = call.dtype == FLOAT64 ? 8 : 4, batch = call.query_offsets ? 1 : call.batch;
  const auto prepare = [&](const View& result, int64_t tokens, int64_t width, int64_t size) {
    const int64_t before = result.token < 0 ? (tokens - 1) * result.token * size : 0;  // in memory, of the first token read
    if (result.data) take_huge_pages(static_cast<char*>(result.data) + before, batch * tokens * call.heads * width * size);
  };
  if (!call.grad_query.data)
    prepare(call.out, call.queries, call.value_width, bytes_of(call.dtype));
  prepare(call.grad_query, call.queries, call.key_width, real);
  prepare(call.grad_key, call.keys, call.key_width, real);
  prepare(call.grad_value, call.keys, call.value_width, real);
}

void prepare_results(const Convolution& call) {
  const int64_t numbers = (call.offsets ? 1 : call.batch) * call.tokens * call.heads * call.width;
  take_huge_pages(call.grad_x.data ? call.grad_x.data : call.y.data, numbers * bytes_of(call.dtype));
}

// In whole numbers, and without a branch: so it is vectorised.
template <class Bits> bool has_no_exponent_of(Bits ones, const void* data, int64_t count) {
  constexpr int64_t BLOCK = 4096;
  const char* from = static_cast<const char*>(data);
  for (int64_t at = 0; at < count; at += BLOCK) {
    Bits found = 0;
    for (int64_t i = at; i < (count - at < BLOCK ? count : at + BLOCK); ++i) {
      Bits bits;
      std::memcpy(&bits, from + i * int64_t(sizeof bits), sizeof bits);
      found |= Bits((bits & ones) == ones);
    }
    if (found) return false;
  }
  return true;
}

}  // namespace
}  // namespace flowformer

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int flowformer_abi_version(void) { return FLOWFORMER_ABI; }
EXPORT const char* flowformer_isa(void) { return flowformer::chosen().name; }

// Whether so many numbers, side by side, are finite: on this thread alone, where torch's look at them would wake its own.
EXPORT int flowformer_is_finite(int32_t dtype, const void* data, int64_t count) {
  using namespace flowformer;
  if (dtype == FLOAT64) return has_no_exponent_of<uint64_t>(0x7ff0000000000000u, data, count);
  if (dtype == FLOAT32) return has_no_exponent_of<uint32_t>(0x7f800000u, data, count);
  return has_no_exponent_of<uint16_t>(dtype == FLOAT16 ? 0x7c00u : 0x7f80u, data, count);
}

#define EXPORT_KERNEL(any, name)                             \
  EXPORT int flowformer_##name(const flowformer::any* call) { \
    flowformer::prepare_results(*call);                       \
    return flowformer::chosen().kernels->name(*call);         \
  }

EXPORT_KERNEL(Call, bidirectional_forward)
EXPORT_KERNEL(Call, bidirectional_backward)
EXPORT_KERNEL(Call, causal_forward)
EXPORT_KERNEL(Call, causal_backward)
EXPORT_KERNEL(Convolution, convolution_forward)
EXPORT_KERNEL(Convolution, convolution_backward)
