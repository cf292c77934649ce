// Small matrix products on buffers that lie in the first- and second-level cache, by tiles held in registers.
//
// C[i][j] (+)= Σ_k A(i, k) B[k][j] with A(i, k) = a[i·row + k·step]; the columns of B and C are padded to whole vectors.
// A product with a triangle of A takes exactly its terms: a zero times a NaN of the future would be a NaN of the present.
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

template <class T> struct Left {
  const T* data;
  ptrdiff_t row, step;
};

template <class T, int MR, int NR, int FIRST, int LAST>
FF_INLINE void accumulate(Vec<T> (&sum)[MR][NR], const T* a, ptrdiff_t row, const T* b) {
  constexpr int W = Simd<T>::W;
  Vec<T> columns[NR];
#pragma GCC unroll 8
  for (int j = 0; j < NR; ++j) columns[j] = load(b + j * W);
#pragma GCC unroll 8
  for (int i = FIRST; i < LAST; ++i) {
    const T factor = a[i * row];
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) sum[i][j] += factor * columns[j];
  }
}

// The triangle of A on the diagonal of this tile, its terms k = i0 … i0 + MR - 1.
template <class T, int MR, int NR, Shape SHAPE, size_t... K>
FF_INLINE void accumulate_diagonal(Vec<T> (&sum)[MR][NR], const T* a, Left<T> left, const T* b, ptrdiff_t b_stride,
                                   std::index_sequence<K...>) {
  (accumulate<T, MR, NR, (SHAPE == Shape::lower ? int(K) : 0), (SHAPE == Shape::lower ? MR : int(K) + 1)>(
       sum, a + ptrdiff_t(K) * left.step, left.row, b + ptrdiff_t(K) * b_stride),
   ...);
}

template <class T, int MR, int NR, bool ADD, Shape SHAPE>
FF_INLINE void tile(int i0, int depth, Left<T> left, const T* b, ptrdiff_t b_stride, T* c, ptrdiff_t c_stride) {
  constexpr int W = Simd<T>::W;
  Vec<T> sum[MR][NR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) sum[i][j] = ADD ? load(c + i * c_stride + j * W) : Vec<T>{};
  const T* a = left.data + i0 * left.row;
  int k = 0, end = depth;
  if constexpr (SHAPE == Shape::upper) {
    accumulate_diagonal<T, MR, NR, SHAPE>(sum, a + i0 * left.step, left, b + i0 * b_stride, b_stride,
                                          std::make_index_sequence<MR>{});
    k = i0 + MR;
  } else if constexpr (SHAPE == Shape::lower) {
    end = i0;
  }
  const T* a_k = a + k * left.step;
  const T* b_k = b + k * b_stride;
  for (; k < end; ++k, a_k += left.step, b_k += b_stride) accumulate<T, MR, NR, 0, MR>(sum, a_k, left.row, b_k);
  if constexpr (SHAPE == Shape::lower)
    accumulate_diagonal<T, MR, NR, SHAPE>(sum, a + i0 * left.step, left, b + i0 * b_stride, b_stride,
                                          std::make_index_sequence<MR>{});
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) store(c + i * c_stride + j * W, sum[i][j]);
}

// One panel of NR vectors of columns.
template <class T, int NR, bool ADD, Shape SHAPE, int MR>
FF_INLINE void last_rows(int i, int count, int depth, Left<T> left, const T* b, ptrdiff_t b_stride, T* c,
                         ptrdiff_t c_stride) {
  if constexpr (MR > 0) {
    if (count == MR)
      tile<T, MR, NR, ADD, SHAPE>(i, depth, left, b, b_stride, c + i * c_stride, c_stride);
    else
      last_rows<T, NR, ADD, SHAPE, MR - 1>(i, count, depth, left, b, b_stride, c, c_stride);
  }
}

template <class T, int NR, bool ADD, Shape SHAPE>
__attribute__((noinline)) void panel(int rows, int depth, Left<T> left, const T* b, ptrdiff_t b_stride, T* c,
                                     ptrdiff_t c_stride, Ahead* ahead = nullptr) {
  int i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS) {
    if (ahead) ahead->fetch();
    tile<T, TILE_ROWS, NR, ADD, SHAPE>(i, depth, left, b, b_stride, c + i * c_stride, c_stride);
  }
  last_rows<T, NR, ADD, SHAPE, TILE_ROWS - 1>(i, rows - i, depth, left, b, b_stride, c, c_stride);
}

template <class T, int NR, bool ADD, Shape SHAPE>
FF_INLINE void last_panel(int vectors, int rows, int depth, Left<T> left, const T* b, ptrdiff_t b_stride, T* c,
                          ptrdiff_t c_stride) {
  if constexpr (NR > 0) {
    if (vectors == NR)
      panel<T, NR, ADD, SHAPE>(rows, depth, left, b, b_stride, c, c_stride);
    else
      last_panel<T, NR - 1, ADD, SHAPE>(vectors, rows, depth, left, b, b_stride, c, c_stride);
  }
}

// A triangular product is square: depth = rows. Meanwhile what lies `ahead` is fetched.
template <class T, bool ADD, Shape SHAPE = Shape::full>
inline void multiply(int rows, int columns, int depth, Left<T> left, const T* b, ptrdiff_t b_stride, T* c,
                     ptrdiff_t c_stride, Ahead* ahead = nullptr) {
  constexpr int STEP = TILE_VECTORS * Simd<T>::W;
  int j = 0;
  for (; j + STEP <= columns; j += STEP)
    panel<T, TILE_VECTORS, ADD, SHAPE>(rows, depth, left, b + j, b_stride, c + j, c_stride, ahead);
  last_panel<T, TILE_VECTORS - 1, ADD, SHAPE>((columns - j) / Simd<T>::W, rows, depth, left, b + j, b_stride, c + j,
                                              c_stride);
}

// The lower triangle of C = A B, square; entries right of the diagonal are whatever they are (no product reads them).
template <class T>
inline void multiply_to_lower(int rows, int depth, Left<T> left, const T* b, ptrdiff_t b_stride, T* c,
                              ptrdiff_t c_stride) {
  constexpr int W = Simd<T>::W;
  constexpr int STEP = TILE_VECTORS * W;
  for (int i = 0; i < rows; i += TILE_ROWS) {
    const int count = rows - i < TILE_ROWS ? rows - i : TILE_ROWS;
    const Left<T> part{left.data + i * left.row, left.row, left.step};
    const int columns = (i + count + W - 1) / W * W;
    int j = 0;
    for (; j + STEP <= columns; j += STEP)
      panel<T, TILE_VECTORS, false, Shape::full>(count, depth, part, b + j, b_stride, c + i * c_stride + j, c_stride);
    last_panel<T, TILE_VECTORS - 1, false, Shape::full>((columns - j) / W, count, depth, part, b + j, b_stride,
                                                        c + i * c_stride + j, c_stride);
  }
}

}  // namespace flowformer::FF_ISA
