// Vectors as wide as the instruction set's, through the vector extensions of gcc and clang.
//
// Included by one translation unit per instruction set, which defines FF_ISA (a namespace) and FF_BYTES (the width of a
// vector). Nothing here, and in the headers that include it, may be shared between two of them: hence the namespace, and no
// function of the standard library whose code the compiler could merge across units.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#if FF_BYTES > 16
#include <immintrin.h>
#endif

#define FF_INLINE inline __attribute__((always_inline))
#define FF_LAMBDA __attribute__((always_inline))

namespace flowformer::FF_ISA {

template <class T> struct Simd;

template <> struct Simd<float> {
  typedef float Vec __attribute__((vector_size(FF_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(FF_BYTES)));
  static constexpr int W = FF_BYTES / sizeof(float);
  // exp(x) = 2^n e^r, r = x - n ln 2: adding `round` leaves n and the bias of the exponent in the low bits.
  static constexpr float round = 0x1.8p23f + 127;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float lowest = -88.f, highest = 89.f;  // there, 2^n is 0 and infinity
  static constexpr int mantissa = 23;
  // e^r = 1 + r + r² p(r) on |r| <= ln 2 / 2, minimax, relative error 3e-9
  static constexpr float p[] = {0.49999993451708434f, 0.16666520689833019f, 0.041668387361261146f,
                                0.0083687098241711943f, 0.0013814613260779771f};
};

template <> struct Simd<double> {
  typedef double Vec __attribute__((vector_size(FF_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(FF_BYTES)));
  static constexpr int W = FF_BYTES / sizeof(double);
  static constexpr double round = 0x1.8p52 + 1023;
  static constexpr double ln2_high = 0x1.62e42fefap-1, ln2_low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double lowest = -709., highest = 710.;
  static constexpr int mantissa = 52;
  // relative error 7e-17
  static constexpr double p[] = {0.5, 0.16666666666666665761, 0.04166666666666662318, 0.0083333333333356988462,
                                 0.0013888888889021096598, 0.00019841269828545594895, 2.4801586476110046291e-5,
                                 2.7557336554354959291e-6, 2.7559006046137538545e-7, 2.5058818271482046992e-8,
                                 1.9820840553669029138e-9};
};

template <class T> using Vec = typename Simd<T>::Vec;

template <class T> FF_INLINE Vec<T> load(const T* from) {
  Vec<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class T> FF_INLINE void store(T* to, Vec<T> x) { std::memcpy(to, &x, sizeof x); }

// All bits of the first `n` lanes.
template <class T> FF_INLINE typename Simd<T>::Bits lanes_below(int n) {
  typename Simd<T>::Bits lane;
  for (int i = 0; i < Simd<T>::W; ++i) lane[i] = i;
  return (typename Simd<T>::Bits)(lane < typename Simd<T>::Bits{} + n);
}

template <class T> FF_INLINE T sum(Vec<T> x) {
  T total = 0;
  for (int i = 0; i < Simd<T>::W; ++i) total += x[i];
  return total;
}

// NaN stays NaN; below `lowest` the result is 0, above `highest` infinity.
template <class T> FF_INLINE Vec<T> exponential(Vec<T> x) {
  using S = Simd<T>;
  const Vec<T> zero = {};
  x = x < S::lowest ? zero + S::lowest : x;
  x = x > S::highest ? zero + S::highest : x;
  const Vec<T> shifted = x * T(1.4426950408889634074) + S::round;
  const Vec<T> n = shifted - S::round;
  const Vec<T> r = (x - n * S::ln2_high) - n * S::ln2_low;
  constexpr int degree = sizeof(S::p) / sizeof(S::p[0]);
  Vec<T> p = zero + S::p[degree - 1];
  for (int i = degree - 2; i >= 0; --i) p = p * r + S::p[i];
  const Vec<T> power = (Vec<T>)((typename S::Bits)shifted << S::mantissa);
  return ((p * r + T(1)) * r + T(1)) * power;
}

template <class T> FF_INLINE Vec<T> sigmoid(Vec<T> x) {
#ifdef FF_PAIRS
  // exp(-x) = 2^t = 2^⌊t⌋ 2^r, the latter minimax to 3e-6, where the call's numbers are rounded by a thousand times as much.
  constexpr float p[] = {0x1.00002cp+0f, 0x1.62d166p-1f, 0x1.ee798ap-3f, 0x1.aa13f2p-5f, 0x1.bb7cd4p-7f};
  const Vec<T> t = x * T(-1.4426950408889634074), r = (Vec<T>)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF);
  const Vec<T> power = (((p[4] * r + p[3]) * r + p[2]) * r + p[1]) * r + p[0];
  return T(1) / ((Vec<T>)_mm512_maskz_scalef_ps(0xffff, (__m512)power, (__m512)t) + T(1));
#else
  return T(1) / (exponential<T>(-x) + T(1));
#endif
}

// A W × W block transposed in registers: stage s exchanges the off-diagonal blocks of size s.
template <class T, int S, bool ODD, size_t... I>
FF_INLINE Vec<T> exchange(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  constexpr int W = Simd<T>::W;
  return __builtin_shufflevector(a, b, int((I & S) ? I + (ODD ? 0 : -S) + W : I + (ODD ? S : 0))...);
}

template <class T, int S> FF_INLINE void exchange_stage(Vec<T>* rows) {
  constexpr int W = Simd<T>::W;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const Vec<T> a = rows[i], b = rows[i + S];
    rows[i] = exchange<T, S, false>(a, b, std::make_index_sequence<W>{});
    rows[i + S] = exchange<T, S, true>(a, b, std::make_index_sequence<W>{});
  }
}

template <class T> FF_INLINE void transpose_block(Vec<T>* rows) {
  constexpr int W = Simd<T>::W;
  if constexpr (W > 1) exchange_stage<T, 1>(rows);
  if constexpr (W > 2) exchange_stage<T, 2>(rows);
  if constexpr (W > 4) exchange_stage<T, 4>(rows);
  if constexpr (W > 8) exchange_stage<T, 8>(rows);
}

// to[j][i] = from[i][j]; rows and columns are multiples of W (buffers are padded).
template <class T>
inline void transpose(int rows, int columns, const T* from, int from_stride, T* to, int to_stride) {
  constexpr int W = Simd<T>::W;
  for (int i = 0; i < rows; i += W)
    for (int j = 0; j < columns; j += W) {
      Vec<T> block[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) block[r] = load(from + size_t(i + r) * from_stride + j);
      transpose_block<T>(block);
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) store(to + size_t(j + r) * to_stride + i, block[r]);
    }
}

}  // namespace flowformer::FF_ISA
