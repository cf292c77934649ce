// The vector part of a chunk: sums over tokens that each token meets, forwards and backwards in time; and sums over all tokens,
// which the bidirectional form has.
//
// Rows have `dp` numbers, whole vectors; `eps` is ε in real lanes and 0 in padded ones, so that padding adds nothing. Inside
// a chunk sums run in the dtype of the arithmetic from zero; what came before is added to them, and is itself float64.
#pragma once

#include "simd.h"

namespace flowformer::FF_ISA {

constexpr int BLOCK = 4;  // vectors of a row that stay in registers while time passes

// dots[t] = Σ over the lanes of partial[t]
template <class T> inline void sum_lanes(int n, const T* partial, T* dots) {
  constexpr int W = Simd<T>::W;
  for (int t = 0; t < n; t += W) {
    Vec<T> block[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) block[i] = load(partial + (t + i) * W);
    transpose_block<T>(block);
    Vec<T> total = block[0];
#pragma GCC unroll 16
    for (int i = 1; i < W; ++i) total += block[i];
    store(dots + t, total);
  }
}

template <class T> FF_INLINE void add_to(double* total, Vec<T> x) {
  for (int i = 0; i < Simd<T>::W; ++i) total[i] += x[i];
}

template <class T, bool WEIGHTED, int U>
FF_INLINE void prefix_flow_block(int n, int dp, const T* x, const T* y, const T* weight, const T* base, const T* eps,
                                 bool first, T* partial, double* total) {
  constexpr int W = Simd<T>::W;
  Vec<T> before[U], e[U], inside[U] = {};
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) e[u] = load(eps + u * W), before[u] = load(base + u * W);
  for (int t = 0; t < n; ++t, x += dp, y += dp) {
    Vec<T> dot = first ? Vec<T>{} : load(partial + t * W);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const Vec<T> share = load(y + u * W);
      if constexpr (WEIGHTED)
        inside[u] += weight[t] * share;
      else
        inside[u] += share;
      dot += (load(x + u * W) + e[u]) * (before[u] + inside[u]);
    }
    store(partial + t * W, dot);
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) add_to<T>(total + u * W, inside[u]);
}

// dots[t] = (x_t + ε)·(base + Σ_{s≤t} w_s y_s), base with its ε; total += Σ w_s y_s. No weight: w = 1.
template <class T, bool WEIGHTED>
inline void prefix_flow(int n, int dp, const T* x, const T* y, const T* weight, const T* base, const T* eps, T* partial,
                        T* dots, double* total) {
  constexpr int W = Simd<T>::W;
  int j = 0;
  for (; j + BLOCK * W <= dp; j += BLOCK * W)
    prefix_flow_block<T, WEIGHTED, BLOCK>(n, dp, x + j, y + j, weight, base + j, eps + j, j == 0, partial, total + j);
  for (; j < dp; j += W)
    prefix_flow_block<T, WEIGHTED, 1>(n, dp, x + j, y + j, weight, base + j, eps + j, j == 0, partial, total + j);
  sum_lanes(n, partial, dots);
}

// grad_t += a_t (base_a + Σ_{s≤t} y_s) + b_t (base_b + Σ_{s≤t} w_s y_s): the gradient that reaches x through two flows.
template <class T>
inline void prefix_gradient(int n, int dp, const T* y, const T* weight, const T* a, const T* base_a, const T* b,
                            const T* base_b, T* grad) {
  constexpr int W = Simd<T>::W;
  for (int j = 0; j < dp; j += W) {
    Vec<T> plain = load(base_a + j), weighted = load(base_b + j), inside = {}, inside_weighted = {};
    for (int t = 0; t < n; ++t) {
      const Vec<T> share = load(y + t * dp + j);
      inside += share;
      inside_weighted += weight[t] * share;
      T* to = grad + t * dp + j;
      store(to, load(to) + a[t] * (plain + inside) + b[t] * (weighted + inside_weighted));
    }
  }
}

// The sums run back from the end: f_t = base + Σ_{s≥t} c_s (x_s + ε).
// grad_t += w_t f_t (no weight: f_t), dots[t] = y_t·f_t (unless null), total += Σ c_s (x_s + ε).
template <class T, bool WEIGHTED, int U>
FF_INLINE void suffix_flow_block(int n, int dp, const T* x, const T* coefficient, const T* y, const T* weight,
                                 const T* base, const T* eps, bool first, T* partial, T* grad, double* total) {
  constexpr int W = Simd<T>::W;
  Vec<T> after[U], e[U], inside[U] = {};
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) e[u] = load(eps + u * W), after[u] = load(base + u * W);
  for (int t = n - 1; t >= 0; --t) {
    Vec<T> dot = first || !WEIGHTED ? Vec<T>{} : load(partial + t * W);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const ptrdiff_t at = ptrdiff_t(t) * dp + u * W;
      inside[u] += coefficient[t] * (load(x + at) + e[u]);
      const Vec<T> flow = after[u] + inside[u];
      if constexpr (WEIGHTED) {
        dot += load(y + at) * flow;
        store(grad + at, load(grad + at) + weight[t] * flow);
      } else {
        store(grad + at, load(grad + at) + flow);
      }
    }
    if constexpr (WEIGHTED) store(partial + t * W, dot);
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) add_to<T>(total + u * W, inside[u]);
}

template <class T, bool WEIGHTED>
inline void suffix_flow(int n, int dp, const T* x, const T* coefficient, const T* y, const T* weight, const T* base,
                        const T* eps, T* partial, T* grad, T* dots, double* total) {
  constexpr int W = Simd<T>::W;
  int j = 0;
  for (; j + BLOCK * W <= dp; j += BLOCK * W)
    suffix_flow_block<T, WEIGHTED, BLOCK>(n, dp, x + j, coefficient, WEIGHTED ? y + j : nullptr, weight, base + j,
                                          eps + j, j == 0, partial, grad + j, total + j);
  for (; j < dp; j += W)
    suffix_flow_block<T, WEIGHTED, 1>(n, dp, x + j, coefficient, WEIGHTED ? y + j : nullptr, weight, base + j, eps + j,
                                      j == 0, partial, grad + j, total + j);
  if constexpr (WEIGHTED) sum_lanes(n, partial, dots);
}

// dots[t] = (x_t + ε)·base
template <class T>
inline void flow_dots(int n, int dp, const T* x, const T* base, const T* eps, T* partial, T* dots) {
  constexpr int W = Simd<T>::W;
  for (int t = 0; t < n; ++t) {
    Vec<T> dot = {};
    for (int j = 0; j < dp; j += W) dot += (load(x + t * dp + j) + load(eps + j)) * load(base + j);
    store(partial + t * W, dot);
  }
  sum_lanes(n, partial, dots);
}

template <class T, int U>
FF_INLINE void weighted_sum_block(int n, int dp, const T* x, const T* weight, const T* eps, double* total) {
  constexpr int W = Simd<T>::W;
  Vec<T> e[U] = {}, inside[U] = {};
#pragma GCC unroll 4
  for (int u = 0; eps && u < U; ++u) e[u] = load(eps + u * W);
  for (int t = 0; t < n; ++t, x += dp)
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const Vec<T> row = load(x + u * W) + e[u];
      inside[u] += weight ? weight[t] * row : row;
    }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) add_to<T>(total + u * W, inside[u]);
}

// total += Σ_t w_t (x_t + ε); no weight: w = 1; no eps: ε = 0.
template <class T>
inline void weighted_sum(int n, int dp, const T* x, const T* weight, const T* eps, double* total) {
  constexpr int W = Simd<T>::W;
  int j = 0;
  for (; j + BLOCK * W <= dp; j += BLOCK * W)
    weighted_sum_block<T, BLOCK>(n, dp, x + j, weight, eps ? eps + j : nullptr, total + j);
  for (; j < dp; j += W) weighted_sum_block<T, 1>(n, dp, x + j, weight, eps ? eps + j : nullptr, total + j);
}

// rows_t += w_t · vector; no weight: w = 1.
template <class T> inline void add_rows(int n, int dp, const T* weight, const T* vector, T* rows) {
  constexpr int W = Simd<T>::W;
  for (int t = 0; t < n; ++t)
    for (int j = 0; j < dp; j += W) {
      const Vec<T> x = load(vector + j);
      store(rows + t * dp + j, load(rows + t * dp + j) + (weight ? weight[t] * x : x));
    }
}

// dots[t] = x_t·y_t
template <class T> inline void row_dots(int n, int width, const T* x, const T* y, T* partial, T* dots) {
  constexpr int W = Simd<T>::W;
  for (int t = 0; t < n; ++t) {
    Vec<T> dot = {};
    for (int j = 0; j < width; j += W) dot += load(x + t * width + j) * load(y + t * width + j);
    store(partial + t * W, dot);
  }
  sum_lanes(n, partial, dots);
}

// to_t = c_t x_t
template <class T> inline void scale_rows(int n, int width, const T* x, const T* c, T* to) {
  constexpr int W = Simd<T>::W;
  for (int t = 0; t < n; ++t)
    for (int j = 0; j < width; j += W) store(to + t * width + j, c[t] * load(x + t * width + j));
}

// carried += inside; work = carried, in the dtype of the arithmetic, unless it is null.
template <class T> inline void fold(int count, const T* inside, double* carried, T* work) {
  for (int i = 0; !work && i < count; ++i) carried[i] += inside[i];
  if (!work) return;
  for (int i = 0; i < count; ++i) {
    carried[i] += inside[i];
    work[i] = T(carried[i]);
  }
}

template <class T> inline void round_to(int count, const double* from, T* to) {
  for (int i = 0; i < count; ++i) to[i] = T(from[i]);
}

}  // namespace flowformer::FF_ISA
