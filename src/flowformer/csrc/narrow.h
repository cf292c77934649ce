// Products whose factors may be rounded to bfloat16: float32 sums of two terms an instruction, where the instruction set
// multiplies pairs of bfloat16 (FF_PAIRS: calls of bfloat16 alone); elsewhere the products of gemm.h.
//
// Both factors are rounded into blocks on the stack, 16 KiB each, the terms of a sum pair by pair: neighbours in a row of A, or
// in a column where it is read by columns, as B always is. To round a number takes a twentieth of its products with 64 others.
//
// What that costs in precision: the output's error stays below twice that of rounding it, as that of float32 does. Values are
// bfloat16 as they come. What is rounded, features, those of keys with their weights, and keyᵀ value, is summed over the d
// features of a query, which are positive: of d roundings their mean remains, the d^-½ part of one. Two things keep it so.
// Features that are alike would be rounded alike; so each place of a row or column has an offset of its own below the last bit
// that is kept, evenly spread over that bit, is raised by it, and is cut (what is a bfloat16 stays as it is). And where a token
// of a chunk has few features that are not about zero, or the map gives no bound, the chunk is multiplied in float32: features
// of a sigmoid are at most 1, so as many of them count as they add up to (are_many). A product of scores with values, which may
// be that of one source alone, is always in float32; and so is all that a backward starts from, whose sums over signed numbers
// would keep the roundings.
#pragma once

#include "gemm.h"
#include "rows.h"

namespace flowformer::FF_ISA {

#ifdef FF_PAIRS

enum Pair : uint32_t {};  // the first term in the lower half

template <> struct Simd<Pair> {
  typedef uint32_t Vec __attribute__((vector_size(FF_BYTES)));
  static constexpr int W = FF_BYTES / sizeof(Pair);
};

template <> struct Factor<Pair> {
  using Sum = float;
  static constexpr int terms = 2;
};

FF_INLINE void add_terms(Vec<float>& sum, Pair factor, Vec<Pair> columns) {
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)columns, (__m512bh)(Vec<Pair>{} + uint32_t(factor)));
}

constexpr int BLOCK_ROWS = 64, BLOCK_COLUMNS = 64, BLOCK_TERMS = 128, BLOCK_PAIRS = BLOCK_TERMS / 2;

// Offsets below the last bit of lane i: multiples of `step`, an odd part of 2^16, so that any run of places has them evenly.
// Those of the two directions of a block are of the sequence R2 (Roberts), so that its rows and columns have them evenly too.
constexpr uint32_t ALONG = 49471, ACROSS = 37345;
FF_INLINE Vec<Pair> offsets(uint32_t first, uint32_t step) {
  Vec<Pair> lane;
  for (int i = 0; i < Simd<Pair>::W; ++i) lane[i] = i;
  return (lane * step + first) & 0xffffu;
}

// Cut to bfloat16: [x[0] … x[15], y[0] … y[15]], or where they are woven (x[0], y[0]) … (x[15], y[15]).
template <bool WOVEN> FF_INLINE Vec<Pair> cut(Vec<Pair> x, Vec<Pair> y) {
  if constexpr (WOVEN) return x >> 16 | (y & 0xffff0000u);
  typedef uint16_t Halves __attribute__((vector_size(FF_BYTES)));
  return (Vec<Pair>)__builtin_shufflevector((Halves)x, (Halves)y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63);
}

// to[i][k] = (x[i][2k], x[i][2k + 1]); of an odd number of terms the last has none beside it.
inline void pair_rows(int rows, int terms, const float* x, ptrdiff_t stride, Pair* to) {
  constexpr int W = Simd<float>::W;
  for (int k = 0; k < terms; k += 2 * W) {
    const auto lanes = [](int left) { return __mmask16(left >= W ? 0xffffu : left > 0 ? (1u << left) - 1 : 0u); };
    const __mmask16 some = lanes(terms - k), rest = lanes(terms - k - W);
    const Vec<Pair> low = offsets(k * ALONG, ALONG), high = offsets((k + W) * ALONG, ALONG);
    for (int i = 0; i < rows; ++i) {
      const float* from = x + i * stride + k;
      const auto first = (Vec<Pair>)_mm512_maskz_loadu_ps(some, from);
      const auto second = (Vec<Pair>)_mm512_maskz_loadu_ps(rest, from + W);
      store(to + i * BLOCK_PAIRS + k / 2, cut<false>(first + low, second + high));
    }
  }
}

// to[k][j] = (x[2k][j], x[2k + 1][j]), of whole vectors of columns.
inline void pair_columns(int terms, int columns, const float* x, ptrdiff_t stride, Pair* to) {
  constexpr int W = Simd<float>::W;
  for (int j = 0; j < columns; j += W) {
    Vec<Pair> place = offsets(j * ACROSS, ACROSS);  // above 2^16 too
    const float* from = x + j;
    int k = 0;
    for (; k + 1 < terms; k += 2, place += 2 * ALONG, from += 2 * stride) {
      const Vec<Pair> first = (Vec<Pair>)load(from) + (place & 0xffffu);
      const Vec<Pair> second = (Vec<Pair>)load(from + stride) + ((place + ALONG) & 0xffffu);
      store(to + k / 2 * BLOCK_COLUMNS + j, cut<true>(first, second));
    }
    if (k < terms) store(to + k / 2 * BLOCK_COLUMNS + j, cut<true>((Vec<Pair>)load(from) + (place & 0xffffu), Vec<Pair>{}));
  }
}

// A block of a product: so many pairs of terms of some rows and columns, the first ones or more.
struct Block {
  Left<Pair> left;
  const Pair* right;
  int row, rows, column, columns, pairs;
  bool first;
};

template <class Task>
FF_INLINE void for_blocks(int rows, int columns, int terms, Left<float> left, const float* b, ptrdiff_t b_stride,
                          const Task& task) {
  alignas(64) Pair left_block[BLOCK_ROWS * BLOCK_PAIRS], right_block[BLOCK_PAIRS * BLOCK_COLUMNS];
  const auto part = [](int all, int first, int most) { return all - first < most ? all - first : most; };
  for (int k = 0; k < terms; k += BLOCK_TERMS)
    for (int i = 0; i < rows; i += BLOCK_ROWS) {
      const int some = part(terms, k, BLOCK_TERMS), height = part(rows, i, BLOCK_ROWS);
      const float* corner = left.data + i * left.row + k * left.step;
      const bool by_rows = left.step == 1;
      if (by_rows)
        pair_rows(height, some, corner, left.row, left_block);
      else
        pair_columns(some, Widths<float>::padded(height), corner, left.step, left_block);
      const Left<Pair> factor{left_block, by_rows ? BLOCK_PAIRS : 1, by_rows ? 1 : BLOCK_COLUMNS};
      for (int j = 0; j < columns; j += BLOCK_COLUMNS) {
        const int width = part(columns, j, BLOCK_COLUMNS);
        pair_columns(some, width, b + k * b_stride + j, b_stride, right_block);
        task({factor, right_block, i, height, j, width, (some + 1) / 2, k == 0});
      }
    }
}

constexpr int LEAST_NARROW = 8;  // rows and terms from which on the rounding pays

#endif

constexpr double LEAST_FEATURES = 12;

// Whether the features x of each token add up to so many that they may be rounded, by its flow x·sums <= max(sums) Σ x. Only
// those of a sigmoid can.
template <class T>
inline bool are_many(const Call& call, int n, const uint8_t* mask, const T* flow, const double* sums) {
#ifdef FF_PAIRS
  if (call.feature_map != SIGMOID) return false;
  double highest = 0;
  for (int j = 0; j < int(call.key_width); ++j) highest = sums[j] > highest ? sums[j] : highest;
  const T least = T((LEAST_FEATURES + call.key_width * call.eps) * (highest + call.eps));
  bool many = true;
  for (int i = 0; i < n; ++i) many &= (mask && !mask[i]) || flow[i] >= least;
  return many;
#else
  return (void)call, (void)n, (void)mask, (void)flow, (void)sums, false;
#endif
}

// multiply of gemm.h, rounded if it may be.
template <class T, bool ADD>
inline void multiply_narrow(bool narrow, int rows, int columns, int terms, Left<T> left, const T* b, ptrdiff_t b_stride, T* c,
                            ptrdiff_t c_stride, Ahead* ahead = nullptr) {
#ifdef FF_PAIRS
  if (narrow && rows >= LEAST_NARROW && terms >= LEAST_NARROW)
    return for_blocks(rows, columns, terms, left, b, b_stride, [&](const Block& x) FF_LAMBDA {
      float* to = c + x.row * c_stride + x.column;
      if (ADD || !x.first)
        multiply<Pair, true>(x.rows, x.columns, x.pairs, x.left, x.right, BLOCK_COLUMNS, to, c_stride, ahead);
      else
        multiply<Pair, false>(x.rows, x.columns, x.pairs, x.left, x.right, BLOCK_COLUMNS, to, c_stride, ahead);
    });
#endif
  (void)narrow;
  multiply<T, ADD>(rows, columns, terms, left, b, b_stride, c, c_stride, ahead);
}

// multiply_to_lower of gemm.h, likewise, of one chunk.
template <class T>
inline void multiply_narrow_to_lower(bool narrow, int rows, int terms, Left<T> left, const T* b, ptrdiff_t b_stride, T* c,
                                     ptrdiff_t c_stride) {
#ifdef FF_PAIRS
  if (narrow && rows >= LEAST_NARROW && terms >= LEAST_NARROW)
    return for_blocks(rows, Widths<float>::padded(rows), terms, left, b, b_stride, [&](const Block& x) FF_LAMBDA {
      if (x.first)
        multiply_to_lower<Pair>(rows, x.pairs, x.left, x.right, BLOCK_COLUMNS, c, c_stride);
      else
        multiply_to_lower<Pair, true>(rows, x.pairs, x.left, x.right, BLOCK_COLUMNS, c, c_stride);
    });
#endif
  (void)narrow;
  multiply_to_lower<T>(rows, terms, left, b, b_stride, c, c_stride);
}

}  // namespace flowformer::FF_ISA
