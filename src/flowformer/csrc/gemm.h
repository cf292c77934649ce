// Small matrix products on buffers that lie in the first- and second-level cache, by tiles held in registers.
//
// C[i][j] (+)= Σ_k A(i, k) B[k][j] with A(i, k) = a[i·row + k·step]; the columns of B and C are padded to whole vectors.
// A product with a triangle of A takes exactly its terms: a zero times a NaN of the future would be a NaN of the present.
//
// The factors are numbers of the arithmetic, or, of a product without a triangle, pairs of bfloat16 (narrow.h): then k counts
// pairs, each two terms of the sum.
#pragma once

#include "simd.h"

namespace flowformer::FF_ISA {

enum class Shape {
  full,
  lower,  // the sum runs over k <= i
  upper,  // the sum runs over k >= i
};

#if FF_BYTES == 64
constexpr int TILE_ROWS = 6, TILE_VECTORS = 4;  // 24 of 32 registers accumulate
#elif FF_BYTES == 32
constexpr int TILE_ROWS = 6, TILE_VECTORS = 2;  // 12 of 16
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;  // 8 of 16
#endif

// Rows of memory that are read or written next. A core waits for a few dozen lines at a time: it stalls when all are asked for
// at once, and works on when each tile of a product asks for some.
struct Ahead {
  const char* from;
  ptrdiff_t stride;
  int rows, bytes;  // of a row
  const Ahead* next = nullptr;
  FF_INLINE void fetch() {
    constexpr int some = 2 * TILE_ROWS * TILE_VECTORS * FF_BYTES;  // twice the bytes of a tile
    if (rows <= 0 && next) *this = *next;
    for (int fetched = 0; fetched < some && rows > 0; fetched += bytes, --rows, from += stride)
      for (int line = 0; line < bytes; line += 64) __builtin_prefetch(from + line);
  }
};

template <class F> struct Factor {
  using Sum = F;
  static constexpr int terms = 1;
};
template <class F> using Sum = typename Factor<F>::Sum;

template <class F> struct Left {
  const F* data;
  ptrdiff_t row, step;
};

template <class T> FF_INLINE void add_terms(Vec<T>& sum, T factor, Vec<T> columns) { sum += factor * columns; }

template <class F, int MR, int NR, int FIRST, int LAST>
FF_INLINE void accumulate(Vec<Sum<F>> (&sum)[MR][NR], const F* a, ptrdiff_t row, const F* b) {
  constexpr int W = Simd<F>::W;
  Vec<F> columns[NR];
#pragma GCC unroll 12
  for (int j = 0; j < NR; ++j) columns[j] = load(b + j * W);
#pragma GCC unroll 12
  for (int i = FIRST; i < LAST; ++i) {
    const F factor = a[i * row];
#pragma GCC unroll 12
    for (int j = 0; j < NR; ++j) add_terms(sum[i][j], factor, columns[j]);
  }
}

// The triangle of A on the diagonal of this tile, its terms k = i0 … i0 + MR - 1.
template <class F, int MR, int NR, Shape SHAPE, size_t... K>
FF_INLINE void accumulate_diagonal(Vec<Sum<F>> (&sum)[MR][NR], const F* a, Left<F> left, const F* b, ptrdiff_t b_stride,
                                   std::index_sequence<K...>) {
  (accumulate<F, MR, NR, (SHAPE == Shape::lower ? int(K) : 0), (SHAPE == Shape::lower ? MR : int(K) + 1)>(
       sum, a + ptrdiff_t(K) * left.step, left.row, b + ptrdiff_t(K) * b_stride),
   ...);
}

template <class F, int MR, int NR, bool ADD, Shape SHAPE>
FF_INLINE void tile(int i0, int depth, Left<F> left, const F* b, ptrdiff_t b_stride, Sum<F>* c, ptrdiff_t c_stride) {
  constexpr int W = Simd<F>::W;
  static_assert(SHAPE == Shape::full || Factor<F>::terms == 1);
  Vec<Sum<F>> sum[MR][NR];
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < NR; ++j) sum[i][j] = ADD ? load(c + i * c_stride + j * W) : Vec<Sum<F>>{};
  const F* a = left.data + i0 * left.row;
  int k = 0, end = depth;
  if constexpr (SHAPE == Shape::upper) {
    accumulate_diagonal<F, MR, NR, SHAPE>(sum, a + i0 * left.step, left, b + i0 * b_stride, b_stride,
                                          std::make_index_sequence<MR>{});
    k = i0 + MR;
  } else if constexpr (SHAPE == Shape::lower) {
    end = i0;
  }
  const F* a_k = a + k * left.step;
  const F* b_k = b + k * b_stride;
  for (; k < end; ++k, a_k += left.step, b_k += b_stride) accumulate<F, MR, NR, 0, MR>(sum, a_k, left.row, b_k);
  if constexpr (SHAPE == Shape::lower)
    accumulate_diagonal<F, MR, NR, SHAPE>(sum, a + i0 * left.step, left, b + i0 * b_stride, b_stride,
                                          std::make_index_sequence<MR>{});
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < NR; ++j) store(c + i * c_stride + j * W, sum[i][j]);
}

// One panel of NR vectors of columns.
template <class F, int NR, bool ADD, Shape SHAPE, int MR>
FF_INLINE void last_rows(int i, int count, int depth, Left<F> left, const F* b, ptrdiff_t b_stride, Sum<F>* c,
                         ptrdiff_t c_stride) {
  if constexpr (MR > 0) {
    if (count == MR)
      tile<F, MR, NR, ADD, SHAPE>(i, depth, left, b, b_stride, c + i * c_stride, c_stride);
    else
      last_rows<F, NR, ADD, SHAPE, MR - 1>(i, count, depth, left, b, b_stride, c, c_stride);
  }
}

// Of pairs two vectors of columns are too few sums for the latency of their products: their tiles have twice the rows.
template <class F, int NR, bool ADD, Shape SHAPE>
__attribute__((noinline)) void panel(int rows, int depth, Left<F> left, const F* b, ptrdiff_t b_stride, Sum<F>* c,
                                     ptrdiff_t c_stride, Ahead* ahead = nullptr) {
  constexpr int ROWS = Factor<F>::terms == 2 && SHAPE == Shape::full && NR <= TILE_VECTORS / 2 ? 2 * TILE_ROWS : TILE_ROWS;
  int i = 0;
  for (; i + ROWS <= rows; i += ROWS) {
    if (ahead) ahead->fetch();
    tile<F, ROWS, NR, ADD, SHAPE>(i, depth, left, b, b_stride, c + i * c_stride, c_stride);
  }
  last_rows<F, NR, ADD, SHAPE, ROWS - 1>(i, rows - i, depth, left, b, b_stride, c, c_stride);
}

template <class F, int NR, bool ADD, Shape SHAPE>
FF_INLINE void last_panel(int vectors, int rows, int depth, Left<F> left, const F* b, ptrdiff_t b_stride, Sum<F>* c,
                          ptrdiff_t c_stride) {
  if constexpr (NR > 0) {
    if (vectors == NR)
      panel<F, NR, ADD, SHAPE>(rows, depth, left, b, b_stride, c, c_stride);
    else
      last_panel<F, NR - 1, ADD, SHAPE>(vectors, rows, depth, left, b, b_stride, c, c_stride);
  }
}

// A triangular product is square: depth = rows. Meanwhile what lies `ahead` is fetched.
template <class F, bool ADD, Shape SHAPE = Shape::full>
inline void multiply(int rows, int columns, int depth, Left<F> left, const F* b, ptrdiff_t b_stride, Sum<F>* c,
                     ptrdiff_t c_stride, Ahead* ahead = nullptr) {
  constexpr int STEP = TILE_VECTORS * Simd<F>::W;
  int j = 0;
  for (; j + STEP <= columns; j += STEP)
    panel<F, TILE_VECTORS, ADD, SHAPE>(rows, depth, left, b + j, b_stride, c + j, c_stride, ahead);
  last_panel<F, TILE_VECTORS - 1, ADD, SHAPE>((columns - j) / Simd<F>::W, rows, depth, left, b + j, b_stride, c + j,
                                              c_stride);
}

// The lower triangle of C (+)= A B, square, by strips of rows; entries right of the diagonal are whatever they are (no product
// reads them). Strips of one tile take the fewest terms; with two terms an instruction, fewer and wider panels are faster.
template <class F, bool ADD = false>
inline void multiply_to_lower(int rows, int depth, Left<F> left, const F* b, ptrdiff_t b_stride, Sum<F>* c,
                              ptrdiff_t c_stride) {
  constexpr int W = Simd<F>::W, STRIP = Factor<F>::terms == 1 ? TILE_ROWS : 2 * W;
  for (int i = 0; i < rows; i += STRIP) {
    const int count = rows - i < STRIP ? rows - i : STRIP;
    const Left<F> part{left.data + i * left.row, left.row, left.step};
    multiply<F, ADD>(count, (i + count + W - 1) / W * W, depth, part, b, b_stride, c + i * c_stride, c_stride);
  }
}

}  // namespace flowformer::FF_ISA
