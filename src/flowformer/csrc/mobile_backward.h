// The gradients of Mobile-Attention: the outer levels of bidirectional_backward.h, then one pass over the tokens.
//
// The outer levels leave, for each token and head, ρ = q·dq, dÔ, and dq and dk but for what comes through the flows:
//
//   dÎ = ρ (1 - a)
//   dq += dÎ (Σ k/O + ε) + D/I,  D = Σ_g dÔ_g (k_g + ε)      dI = -ρ/I - (q·D)/I²
//   dk += dÔ (Σ q/I + ε) + E/O,  E = Σ_g dÎ_g (q_g + ε)      dO =      - (k·E)/O²
//   dq += dI (Σ k + ε) + Σ_g dO_g (k_g + ε)
//   dk += dO (Σ q + ε) + Σ_g dI_g (q_g + ε)
//
// The features and what there is of their gradients are read once, for all heads of a few tokens, which then meet in the cache.
#pragma once

#include "bidirectional_backward.h"
#include "mobile.h"

namespace flowformer::FF_ISA {

template <class T> struct HeadWeights {
  const T *sum, *flow, *own, *total;
};

template <class T, bool WEIGHTED, int U>
FF_INLINE void head_gradient_block(int n, int heads, int dp, const T* x, const T* y, HeadWeights<T> w, const T* eps,
                                   bool first, T* grad, T* partial) {
  constexpr int W = Simd<T>::W;
  Vec<T> e[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) e[u] = load(eps + u * W);
  for (int t = 0; t < n; ++t) {
    Vec<T> sum[U], total[U] = {};
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) sum[u] = e[u];
    for (int row = t; row < heads * FEW; row += FEW)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const Vec<T> share = load(y + ptrdiff_t(row) * dp + u * W);
        if constexpr (WEIGHTED)
          sum[u] += w.sum[row] * share;
        else
          sum[u] += share;
        total[u] += w.flow[row] * (share + e[u]);
      }
    for (int row = t; row < heads * FEW; row += FEW) {
      Vec<T> dot = first || !WEIGHTED ? Vec<T>{} : load(partial + row * W);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const ptrdiff_t at = ptrdiff_t(row) * dp + u * W;
        if constexpr (WEIGHTED) {
          dot += load(x + at) * total[u];
          store(grad + at, load(grad + at) + w.own[row] * sum[u] + w.total[row] * total[u]);
        } else {
          store(grad + at, load(grad + at) + w.own[row] * sum[u] + total[u]);
        }
      }
      if constexpr (WEIGHTED) store(partial + row * W, dot);
    }
  }
}

// With F = Σ_g sum_g y_g + ε and D = Σ_g flow_g (y_g + ε): grad += own F + total D, dots = x·D. Not weighted: sum and total
// are 1, and no dots are wanted.
template <class T, bool WEIGHTED>
inline void head_gradient(int n, int heads, int dp, const T* x, const T* y, HeadWeights<T> w, const T* eps, T* grad,
                          T* partial, T* dots) {
  constexpr int W = Simd<T>::W;
  int j = 0;
  for (; j + BLOCK * W <= dp; j += BLOCK * W)
    head_gradient_block<T, WEIGHTED, BLOCK>(n, heads, dp, x + j, y + j, w, eps + j, j == 0, grad + j, partial);
  for (; j < dp; j += W)
    head_gradient_block<T, WEIGHTED, 1>(n, heads, dp, x + j, y + j, w, eps + j, j == 0, grad + j, partial);
  if constexpr (WEIGHTED) sum_lanes(Widths<T>::padded(heads * FEW), partial, dots);
}

template <class T> struct HeadGradients : HeadsOfTokens<T> {
  using HeadsOfTokens<T>::call;
  using HeadsOfTokens<T>::s;
  using HeadsOfTokens<T>::heads;
  using HeadsOfTokens<T>::numbers;
  using HeadsOfTokens<T>::eps;
  using HeadsOfTokens<T>::q;
  using HeadsOfTokens<T>::k;
  using HeadsOfTokens<T>::partial;
  using HeadsOfTokens<T>::one_over_incoming;
  using HeadsOfTokens<T>::one_over_outgoing;
  using HeadsOfTokens<T>::dots;
  T *grad_q, *grad_k, *rho, *sink, *source, *key_dots;

  HeadGradients(const Call& c, Arena& arena) : HeadsOfTokens<T>(c, arena) {
    for (T** rows : {&grad_q, &grad_k}) *rows = arena.take_unset<T>(int64_t(heads) * FEW * s.dp);
    for (T** each : {&rho, &sink, &source, &key_dots}) *each = arena.take_unset<T>(numbers);
  }

  void pass(Row& row, int64_t t, int n, T* rhos, T* sources) {
    this->read(row, t, n);
    this->for_heads(row, [&](int at) { get(row, t, n, at, rhos, sources); });
    head_gradient<T, true>(n, heads, s.dp, q, k, {one_over_outgoing, source, sink, one_over_incoming}, eps, grad_q, partial,
                           dots);
    head_gradient<T, true>(n, heads, s.dp, k, q, {one_over_incoming, sink, source, one_over_outgoing}, eps, grad_k, partial,
                           key_dots);
    for (int i = 0; i < numbers; ++i) {
      const T x = one_over_incoming[i], y = one_over_outgoing[i];
      dots[i] = -(rho[i] + dots[i] * x) * x;
      key_dots[i] = -key_dots[i] * y * y;
    }
    head_gradient<T, false>(n, heads, s.dp, q, k, {nullptr, key_dots, dots, nullptr}, eps, grad_q, nullptr, nullptr);
    head_gradient<T, false>(n, heads, s.dp, k, q, {nullptr, dots, key_dots, nullptr}, eps, grad_k, nullptr, nullptr);
    this->for_heads(row, [&](int at) {
      const ptrdiff_t first = ptrdiff_t(at) * s.dp;
      write_feature_gradient<T>(call, row.query, t, n, q + first, grad_q + first, dense_query(row, t), call.heads * s.d);
      write_feature_gradient<T>(call, row.key, t, n, k + first, grad_k + first, dense_key(row, t), call.heads * s.d);
    });
  }

  T* dense_query(const Row& row, int64_t t) const {
    return row.dense<T>(call.grad_query, call, row.query, call.queries, t, s.d);
  }
  T* dense_key(const Row& row, int64_t t) const { return row.dense<T>(call.grad_key, call, row.key, call.keys, t, s.d); }

  void get(const Row& row, int64_t t, int n, int at, T* rhos, T* sources) {
    const T *from_q = dense_query(row, t), *from_k = dense_key(row, t);
    for (int i = 0; i < n; ++i) {
      std::memcpy(grad_q + ptrdiff_t(at + i) * s.dp, from_q + i * call.heads * s.d, s.d * sizeof(T));
      std::memcpy(grad_k + ptrdiff_t(at + i) * s.dp, from_k + i * call.heads * s.d, s.d * sizeof(T));
    }
    const T* given_rho = row.stats<T>(rhos, call, row.query, call.queries, 1, 0) + t;
    const T* given_source = row.stats<T>(sources, call, row.key, call.keys, 1, 0) + t;
    const T* incoming = this->query_stat(row, SINK_INCOMING, t);
    const T* allocation = this->query_stat(row, SINK_ALLOCATION, t);
    const T* outgoing = this->key_stat(row, SOURCE_OUTGOING, t);
    for (int i = 0; i < n; ++i) {
      rho[at + i] = given_rho[i];
      sink[at + i] = call.allocation ? given_rho[i] * (T(1) - allocation[i]) : T(0);
      source[at + i] = given_source[i];
      one_over_incoming[at + i] = T(1) / incoming[i];
      one_over_outgoing[at + i] = T(1) / outgoing[i];
    }
  }
};

template <class T> int mobile_backward(const Call& call) {
  const int64_t tokens = (call.query_offsets ? 1 : call.batch) * call.heads * call.queries;
  const Memory<T> flows(2 * tokens);
  if (!flows.data()) return 1;
  T *rhos = flows.data(), *sources = rhos + tokens;
  if (bidirectional_gradients<T>(call, KEY_FLOWS, rhos, sources)) return 1;
  return !for_tokens<T, HeadGradients<T>>(call, [=](HeadGradients<T>& heads, Row& row, int64_t t, int n) {
    heads.pass(row, t, n, rhos, sources);
  });
}

}  // namespace flowformer::FF_ISA
