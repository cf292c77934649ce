// The gradients of Mobile-Attention: the first three levels of bidirectional_backward.h, then one pass over the tokens.
//
// Those levels leave of each token and head ρ, dÔ, and dq and dk but for what comes through the flows. Of that the heads of a
// token get, with the sums of mobile.h,
//
//   dÎ = ρ (1 - a)                             D = Σ_g dÔ_g (k_g + ε)      E = Σ_g dÎ_g (q_g + ε)
//   dq += dÎ (Σ_g k_g/O_g + ε) + D/I           dI = -ρ/I - (q·D)/I²
//   dk += dÔ (Σ_g q_g/I_g + ε) + E/O           dO =      - (k·E)/O²
//   dq += dI (Σ_g k_g + ε) + Σ_g dO_g (k_g + ε)
//   dk += dO (Σ_g q_g + ε) + Σ_g dI_g (q_g + ε)
//
// which is twice the same sums. A few tokens at a time, all of a token's heads are in the first-level cache meanwhile.
#pragma once

#include "bidirectional_backward.h"
#include "mobile.h"

namespace flowformer::FF_ISA {

// Of each head: the weights of its y in F, of its y + ε in D, and those of F and of D in its own gradient.
template <class T> struct HeadWeights {
  const T *in_f, *in_d, *of_f, *of_d;
};

template <class T, bool WEIGHTED, int U>
FF_INLINE void head_gradient_block(const Heads& heads, const T* x, const T* y, HeadWeights<T> w, const T* eps, bool first,
                                   T* grad, T* partial) {
  constexpr int W = Simd<T>::W;
  Vec<T> e[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) e[u] = load(eps + u * W);
  for (int t = 0; t < heads.tokens; ++t) {
    Vec<T> f[U], d[U] = {};
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) f[u] = e[u];
    heads.each(t, [&](int at, ptrdiff_t row) FF_LAMBDA {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const Vec<T> other = load(y + row + u * W);
        if constexpr (WEIGHTED)
          f[u] += w.in_f[at] * other;
        else
          f[u] += other;
        d[u] += w.in_d[at] * (other + e[u]);
      }
    });
    heads.each(t, [&](int at, ptrdiff_t row) FF_LAMBDA {
      T* to = grad + at * heads.dp;
      Vec<T> dot = first || !WEIGHTED ? Vec<T>{} : load(partial + at * W);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        if constexpr (WEIGHTED) {
          dot += load(x + row + u * W) * d[u];
          store(to + u * W, load(to + u * W) + w.of_f[at] * f[u] + w.of_d[at] * d[u]);
        } else {
          store(to + u * W, load(to + u * W) + w.of_f[at] * f[u] + d[u]);
        }
      }
      if constexpr (WEIGHTED) store(partial + at * W, dot);
    });
  }
}

// F = Σ_g w_g y_g + ε, D = Σ_g w'_g (y_g + ε): grad += w F + w' D, dots = x·D. Not weighted: those of F and of D in the
// gradient are 1, and no dots are wanted.
template <class T, bool WEIGHTED>
inline void head_gradient(const Heads& heads, const T* x, const T* y, HeadWeights<T> w, const T* eps, T* grad, T* partial,
                          T* dots) {
  constexpr int W = Simd<T>::W;
  int j = 0;
  for (; j + BLOCK * W <= heads.dp; j += BLOCK * W)
    head_gradient_block<T, WEIGHTED, BLOCK>(heads, x + j, y + j, w, eps + j, j == 0, grad + j, partial);
  for (; j < heads.dp; j += W)
    head_gradient_block<T, WEIGHTED, 1>(heads, x + j, y + j, w, eps + j, j == 0, grad + j, partial);
  if constexpr (WEIGHTED) sum_lanes(Widths<T>::padded(heads.count * FEW), partial, dots);
}

template <class T> struct HeadGradients : HeadFlows<T> {
  using HeadFlows<T>::call;
  using HeadFlows<T>::s;
  using HeadFlows<T>::heads;
  using HeadFlows<T>::numbers;
  using HeadFlows<T>::eps;
  using HeadFlows<T>::partial;
  using HeadFlows<T>::incoming;
  using HeadFlows<T>::outgoing;
  using HeadFlows<T>::dots;
  T *grad_q, *grad_k, *rho, *sink, *source, *key_dots;

  HeadGradients(const Call& c, Arena& arena, bool caches) : HeadFlows<T>(c, arena, caches) {
    for (T** rows : {&grad_q, &grad_k}) *rows = arena.take<T>(int64_t(heads) * FEW * s.dp);
    for (T** each : {&rho, &sink, &source, &key_dots}) *each = arena.take<T>(numbers);
  }

  // ρ and dÔ as of all rows, [b, h, t].
  void pass(Row& row, int64_t t, int n, T* rhos, T* sources) {
    if (!this->whole) this->read(row, t, n);
    this->for_heads(row, [&](int h) { get(row, t, n, h, rhos, sources); });
    const Heads few = this->of(n);
    const T *q = this->at(0, t), *k = this->at(1, t);
    head_gradient<T, true>(few, q, k, {outgoing, source, sink, incoming}, eps, grad_q, partial, dots);
    head_gradient<T, true>(few, k, q, {incoming, sink, source, outgoing}, eps, grad_k, partial, key_dots);
    for (int i = 0; i < numbers; ++i) {
      dots[i] = -(rho[i] + dots[i] * incoming[i]) * incoming[i];
      key_dots[i] = -key_dots[i] * outgoing[i] * outgoing[i];
    }
    head_gradient<T, false>(few, q, k, {nullptr, key_dots, dots, nullptr}, eps, grad_q, nullptr, nullptr);
    head_gradient<T, false>(few, k, q, {nullptr, dots, key_dots, nullptr}, eps, grad_k, nullptr, nullptr);
    this->for_heads(row, [&](int h) {
      const ptrdiff_t from = ptrdiff_t(h) * FEW * s.dp, at = h * this->stride;
      write_feature_gradient<T>(call, call.grad_query, row, row.query, t, n, q + at, grad_q + from);
      write_feature_gradient<T>(call, call.grad_key, row, row.key, t, n, k + at, grad_k + from);
    });
  }

  void get(const Row& row, int64_t t, int n, int h, T* rhos, T* sources) {
    const auto read = [&](const View& view, const Side& side, T* to) {
      const T* const from = row.at<T>(view, side, t);
      read_rows<T>(from, view.token, n, s.d, nullptr, to, false, [](Vec<T> x) FF_LAMBDA { return x; });
    };
    const ptrdiff_t to = ptrdiff_t(h) * FEW * s.dp;
    read(call.grad_query, row.query, grad_q + to);
    read(call.grad_key, row.key, grad_k + to);
    const T* given_rho = row.stats<T>(rhos, call, row.query, call.queries, 1, 0) + t;
    const T* given_source = row.stats<T>(sources, call, row.key, call.keys, 1, 0) + t;
    const T *allocation = this->query_stat(row, SINK_ALLOCATION, t), *sinks = this->query_stat(row, SINK_INCOMING, t);
    const T* outflows = this->key_stat(row, SOURCE_OUTGOING, t);
    for (int i = 0; i < n; ++i) {
      const int at = h * FEW + i;
      rho[at] = given_rho[i];
      sink[at] = call.allocation ? given_rho[i] * (T(1) - allocation[i]) : T(0);
      source[at] = given_source[i];
      incoming[at] = T(1) / sinks[i];
      outgoing[at] = T(1) / outflows[i];
    }
  }
};

template <class T> int mobile_backward(const Call& call) {
  const int64_t flows = (call.query_offsets ? 1 : call.batch) * call.heads * call.queries;
  const Memory<T> memory(2 * flows);
  if (!memory.data()) return 1;
  T *rhos = memory.data(), *sources = rhos + flows;
  const auto complete = [=](HeadGradients<T>& gradients, Row& row, Range range) {
    for_few(range, [&](int64_t t, int n) { gradients.pass(row, t, n, rhos, sources); });
  };
  if (!by_sequence<T>(call))
    return bidirectional_gradients<T>(call, rhos, sources) || !for_parts<HeadGradients<T>>(call, complete);

  const CausalSizes<T> s(call);
  Arena counted(nullptr);
  HeadGradients<T>(call, counted, true);
  BidirectionalBackward<T>(call, counted, Cache());
  counted.take<double>(s.sums());
  Team team(call.threads, counted.used());
  return !parallel_for(team, call.batch, [&](char* scratch, int64_t sequence) {
    Arena arena(scratch);
    HeadGradients<T> gradients(call, arena, true);
    BidirectionalBackward<T> backward(call, arena, Cache());
    BackCarry totals;
    totals.place(s, arena.take_unset<double>(s.sums()));
    Row row(call, sequence * call.heads);
    gradients.for_heads(row, [&](int h) {
      gradients.lend(backward, h);
      backward.rho = row.stats<T>(rhos, call, row.query, call.queries, 1, 0);
      backward.gamma = row.stats<T>(sources, call, row.key, call.keys, 1, 0);
      backward.whole(row, totals);
    });
    complete(gradients, row, part_of(row.query, 0, 1));
  });
}

}  // namespace flowformer::FF_ISA
