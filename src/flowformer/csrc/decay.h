// What is left of earlier tokens where linear attention forgets: at token t, of token s, D_ts = exp Σ_{s<r≤t} g_r.
//
// Every sum in an exponent is taken by itself, down the rows of the triangle: as a difference of two longer ones it would lose
// its digits; and no factor is a quotient. Inside a block of tokens the triangle of q kᵀ is multiplied by that of D, what comes
// in from before shrinks on its way to each token (since), and what each token adds on its way to the end of the block (until).
#pragma once

#include "flows.h"
#include "rows.h"

namespace flowformer::FF_ISA {

// The decays of n tokens; a padded one has none.
template <class T> inline void read_decays(const Call& call, const Row& row, int64_t t, int n, T* logs) {
  const T* from = static_cast<const T*>(call.log_decay) + (row.batch() * call.queries + row.query.start + t) * call.heads + row.head;
  for (int i = 0; i < n; ++i) logs[i] = row.key.real(t + i) ? from[i * call.heads] : T(0);
}

// Whether a real token has a decay above zero, which would be growth.
template <class T> inline bool any_grows(const Call& call) {
  const T* of_token = static_cast<const T*>(call.log_decay);
  const int64_t tokens = of_token ? (call.query_offsets ? 1 : call.batch) * call.queries : 0;
  for (int64_t t = 0; t < tokens; ++t, of_token += call.heads)
    for (int64_t head = 0; head < call.heads; ++head)
      if (of_token[head] > T(0) && (!call.key_mask || call.key_mask[t])) return true;
  return false;
}

template <class T> inline void exponentials(int n, T* x) {
  for (int i = 0; i < n; i += Simd<T>::W) store(x + i, exponential<T>(load(x + i)));
}

// Of a block: since[t] = exp Σ_{r≤t} g_r, until[t] = exp Σ_{r>t} g_r, and what is left of everything before it, which is returned.
// There is room for whole vectors.
template <class T> inline double decays_of_block(int n, const T* logs, T* since, T* until) {
  double total = 0, later = 0;
  for (int i = 0, j = n - 1; i < n; ++i, --j) {
    total += logs[i];
    since[i] = T(total);
    until[j] = T(later);
    later += logs[j];
  }
  for (int i = n; i % Simd<T>::W; ++i) since[i] = until[i] = 0;
  exponentials(n, since);
  exponentials(n, until);
  return __builtin_exp(total);
}

// Calls use(t, s, D_ts) for the lower triangle of a block, a vector of columns s … at a time; lanes right of the diagonal are 1.
template <class T, class Use> inline void each_decay(int n, const T* logs, Use use) {
  constexpr int W = Simd<T>::W;
  T sums[CHUNK] = {};  // Σ_{s<r≤t} g_r, zero for s ≥ t
  for (int t = 0; t < n; ++t) {
    const int last = t / W * W;
    for (int s = 0; s < last; s += W) {
      const Vec<T> sum = load(sums + s) + logs[t];
      store(sums + s, sum);
      use(t, s, exponential<T>(sum));
    }
    const auto earlier = lanes_below<T>(t - last);
    const Vec<T> sum = (Vec<T>)((typename Simd<T>::Bits)(load(sums + last) + logs[t]) & earlier);
    store(sums + last, sum);
    use(t, last, exponential<T>(sum));
  }
}

// The lower triangle of a square, times that of another.
template <class T> inline void multiply_triangle(int n, const T* other, T* square) {
  for (int t = 0; t < n; ++t)
    for (int s = t * CHUNK; s <= t * CHUNK + t; s += Simd<T>::W) store(square + s, load(square + s) * load(other + s));
}

// The same times that of D.
template <class T> inline void fade_triangle(int n, const T* logs, T* square) {
  each_decay(n, logs, [&](int t, int s, Vec<T> left) FF_LAMBDA {
    T* at = square + t * CHUNK + s;
    store(at, load(at) * left);
  });
}

// The gradient of g_t is the sum of what it lets through: of the terms of the loss that tokens i and j have with each other,
// D_ij (q_i·k_j) (u_j·grad_i), for all i ≥ t > j. Of the tokens of a block, from both factors, one of them with D:
template <class T> inline void decay_gradients(int n, const T* scores, const T* products, T* partial, T* grad) {
  constexpr int W = Simd<T>::W;
  T columns[CHUNK] = {};  // Σ_{i≥t} of column j < t
  for (int t = n - 1; t >= 0; --t) {
    Vec<T> total = {};
    for (int j = 0; j <= t; j += W) {
      const Vec<T> term = load(scores + t * CHUNK + j) * load(products + t * CHUNK + j);
      const Vec<T> column = (Vec<T>)((typename Simd<T>::Bits)(load(columns + j) + term) & lanes_below<T>(t - j));
      store(columns + j, column);
      total += column;
    }
    store(partial + t * W, total);
  }
  sum_lanes(n, partial, grad);
}

// And of those with others: each token's terms with all before the block (sinks), with all after it (sources), and the terms of all
// before with all after (through).
template <class T> inline void add_outer_terms(int n, const T* sinks, const T* sources, double through, T* grad) {
  double later = 0;
  for (int t = n - 1; t >= 0; --t) grad[t] += T(later += sinks[t]);
  for (int t = 0; t < n; ++t) {
    grad[t] += T(through);
    through += sources[t];
  }
}

// Σ x y over rows of `width` numbers, whole vectors.
template <class T> inline double inner_product(int rows, int width, const T* x, const T* y) {
  constexpr int W = Simd<T>::W;
  double total = 0;
  for (int i = 0; i < rows; ++i, x += width, y += width) {
    Vec<T> row = {};
    for (int j = 0; j < width; j += W) row += load(x + j) * load(y + j);
    total += sum<T>(row);
  }
  return total;
}

}  // namespace flowformer::FF_ISA
