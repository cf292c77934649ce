// The gradients of the bidirectional form, in five levels; the names are those of causal_backward.h, the sums over all tokens.
//
//   queries   dq = r T,  ρ,  dÎ = ρ (1 - a) L/S:  Σ q (r g)ᵀ,  e = Σ dÎ (q + ε)
//   keys      dk = K u,  dv = c Kᵀ k (K the sum above),  γ:  Σ γ
//   keys      dÔ = γ - p Σ γ:  f = Σ dÔ (k + ε);  dO = -(k·e)/O²:  Σ dO (k + ε)
//   queries   dI = -ρ/I - (q·f)/I²:  Σ dI (q + ε);  dq is complete
//   keys      dk is complete
//
// Linear attention is the first two, with r as it was given: its gradient is q·T. Mobile-Attention (mobile_backward.h) is the
// first three, which leave ρ and dÔ.
//
// Where scores are cheaper (see bidirectional.h), the first two levels are one: with g uᵀ and the scores, both of one
// chunk, dq = r (g uᵀ) k,  dk = (g uᵀ)ᵀ r q,  dv = c scoresᵀ r g.
#pragma once

#include "bidirectional.h"
#include "causal_backward.h"

namespace flowformer::FF_ISA {

enum BidirectionalLevel { QUERY_OUTER = 1, KEY_OUTER, KEY_FLOWS, QUERY_FLOWS, KEY_SUMS };

inline BidirectionalLevel last_level(const Call& call) {
  return call.feature_map == IDENTITY ? KEY_OUTER : call.flows == OVER_HEADS ? KEY_FLOWS : KEY_SUMS;
}

template <class T> struct BidirectionalBackward : RowFeatures<T> {
  using RowFeatures<T>::call;
  using RowFeatures<T>::s;
  using RowFeatures<T>::eps;
  using RowFeatures<T>::partial;
  using RowFeatures<T>::buffer;
  T *vectors[4], *key_value, *turned, *inside, *g, *v, *u, *scaled, *grad, *flow, *columns, *products, *scores;
  T dots[CHUNK], weight[CHUNK], scale[CHUNK], key_weight[CHUNK];
  const bool flows, sums;
  bool alone = false;  // the queries are one chunk, and one pass follows the other in this memory
  // ρ [queries] and γ [keys] of this row; over heads also Σ γ [keys] of this sequence.
  T *rho = nullptr, *gamma = nullptr, *gamma_sum = nullptr;

  BidirectionalBackward(const Call& c, Arena& arena, const Cache& cache)
      : RowFeatures<T>(c, arena, cache), flows(c.feature_map != IDENTITY), sums(sums_flows(c)) {
    for (T*& vector : vectors) vector = arena.take_unset<T>(s.dp);
    flow = arena.take_unset<T>(s.dp);
    for (T** matrix : {&key_value, &inside}) *matrix = take_matrix<T>(arena, s);
    turned = arena.take_unset<T>(s.matrix);
    for (T** rows : {&g, &v, &u}) *rows = arena.take_unset<T>(CHUNK * s.mp);
    for (T** rows : {&scaled, &grad}) *rows = arena.take_unset<T>(CHUNK * s.dp);
    columns = arena.take_unset<T>(CHUNK * (s.dp > s.mp ? s.dp : s.mp));
    for (T** square : {&products, &scores}) *square = arena.take_unset<T>(CHUNK * CHUNK);
  }

  void pass(const Row& row, Range queries, Range keys, BidirectionalLevel level, const BackCarry& totals,
            BackCarry& added) {
    for (int i = 0; sums && i < 4; ++i) {
      const T* kept = row_vectors<T>(call, row) + i * s.d;
      for (int j = 0; j < s.d; ++j) vectors[i][j] = kept[j] + eps[j];
      for (int j = s.d; j < s.dp; ++j) vectors[i][j] = 0;
    }
    if (level <= KEY_OUTER && has_cheap_scores(s, row, 0)) {
      if (level == KEY_OUTER && queries.first < queries.last) both_outer(row, added);
    } else if (level == QUERY_OUTER) {
      find_key_value(row);
      transpose(s.dp, s.mp, key_value, s.mp, turned, s.dp);
      for_chunks(queries, [&](int64_t t, int n) { query_outer(row, queries, t, n, added); });
    } else if (level == KEY_OUTER) {
      if (alone)
        std::swap(key_value, inside);
      else
        round_to(int(s.matrix), totals.key_value, key_value);
      transpose(s.dp, s.mp, key_value, s.mp, turned, s.dp);
      for_chunks(keys, [&](int64_t t, int n) { key_outer(row, t, n, added); });
    } else if (level == KEY_FLOWS && !sums) {
      for_chunks(keys, [&](int64_t t, int n) {
        source_gradients(row, t, n, totals);
        std::memcpy(gamma + t, weight, n * sizeof(T));
      });
    } else if (level == KEY_FLOWS) {
      round_to(s.dp, totals.key_flow, flow);
      for_chunks(keys, [&](int64_t t, int n) { key_flows(row, t, n, totals, added); });
    } else if (level == QUERY_FLOWS) {
      round_to(s.dp, totals.query_flow, flow);
      round_to(s.dp, totals.query_sum, key_value);
      for_chunks(queries, [&](int64_t t, int n) { query_flows(row, t, n, added); });
    } else {
      round_to(s.dp, totals.key_sum, flow);
      for_chunks(keys, [&](int64_t t, int n) { key_sums(row, t, n); });
    }
  }

  // All levels of a row that is for one thread.
  void whole(const Row& row, BackCarry& totals) {
    alone = row.query.trimmed > 0 && row.query.trimmed <= CHUNK;
    std::memset(totals.key_sum, 0, size_t(alone ? s.vectors : s.sums()) * sizeof(double));
    totals.late = 0;
    for (int level = QUERY_OUTER; level <= last_level(call); ++level)
      pass(row, part_of(row.query, 0, 1), part_of(row.key, 0, 1), BidirectionalLevel(level), totals, totals);
    zero_gradient_padding<T>(call, row);
  }

  // Gradients of features rest in the place of the gradient until they are complete.
  void put(const View& view, const Row& row, const Side& side, int64_t t, int n) const {
    T* const to = row.at<T>(view, side, t);
    for (int i = 0; i < n; ++i) std::memcpy(to + i * view.token, grad + i * s.dp, s.d * sizeof(T));
  }
  void get(const View& view, const Row& row, const Side& side, int64_t t, int n) const {
    const T* const from = row.at<T>(view, side, t);
    for (int i = 0; i < n; ++i) std::memcpy(grad + i * s.dp, from + i * view.token, s.d * sizeof(T));
  }

  void both_outer(const Row& row, BackCarry& added) {
    const int n = int(row.query.trimmed), keys = int(row.key.trimmed), columns_of_keys = Widths<T>::padded(keys);
    const T* k = this->features(row, 1, 0, keys, true);
    weigh_values(row, 0, keys);
    transpose(columns_of_keys, s.mp, u, s.mp, columns, CHUNK);
    read_values<T>(call, call.grad_out, row, row.query, 0, n, s.m, g);
    multiply<T, false>(n, columns_of_keys, s.m, {g, s.mp, 1}, columns, CHUNK, products, CHUNK);
    multiply<T, false>(n, s.dp, keys, {products, CHUNK, 1}, k, s.dp, grad, s.dp);
    transpose(columns_of_keys, s.dp, k, s.dp, columns, CHUNK);
    finish_queries(row, 0, n, this->features(row, 0, 0, n, true), added);
    multiply<T, false>(n, columns_of_keys, s.d, {scaled, s.dp, 1}, columns, CHUNK, scores, CHUNK);
    multiply<T, false>(keys, s.dp, n, {products, 1, CHUNK}, scaled, s.dp, grad, s.dp);
    finish_keys(row, 0, keys, k);
    multiply<T, false>(keys, s.mp, n, {scores, 1, CHUNK}, g, s.mp, u, s.mp);
    finish_values(row, 0, keys, added);
  }

  void find_key_value(const Row& row) {
    if (const T* kept = row_matrix<T>(call, row)) return restore_rows(s.d, s.m, s.mp, kept, key_value);
    const int n = int(row.key.trimmed);
    read_features<T>(call, call.key, row, row.key, 0, n, buffer);  // of all segments of the row: not theirs alone
    weigh_values(row, 0, n);
    multiply<T, false>(s.d, s.mp, n, {buffer, 1, s.dp}, u, s.mp, key_value, s.mp);
  }

  void query_outer(const Row& row, Range queries, int64_t t, int n, BackCarry& added) {
    const T* q = this->features(row, 0, t, n, true);
    read_values<T>(call, call.grad_out, row, row.query, t, n, s.m, g);
    multiply<T, false>(n, s.dp, s.m, {g, s.mp, 1}, turned, s.dp, grad, s.dp);
    finish_queries(row, t, n, q, added);
    if (alone)
      multiply<T, false>(s.d, s.mp, n, {scaled, 1, s.dp}, g, s.mp, inside, s.mp);
    else
      sum_chunks<T>(s, false, queries, t, n, {scaled, 1, s.dp}, g, inside, added.key_value, nullptr);
  }

  // From T in `grad`: dq but for the sums, ρ, and r q in `scaled`.
  void finish_queries(const Row& row, int64_t t, int n, const T* q, BackCarry& added) {
    this->find_scale(row, t, n, scale);
    if (T* to = flows || !call.grad_row_scale ? nullptr : row.scalars<T>(call.grad_row_scale, call, t)) {
      row_dots(n, s.dp, q, grad, partial, dots);
      for (int i = 0; i < n; ++i) to[i * call.heads] = row.query.real(t + i) ? dots[i] : T(0);
    }
    scale_rows(n, s.dp, grad, scale, grad);
    scale_rows(n, s.dp, q, scale, scaled);
    if (!flows) return write_feature_gradient<T>(call, call.grad_query, row, row.query, t, n, q, grad);
    row_dots(n, s.dp, q, grad, partial, dots);
    std::memcpy(rho + t, dots, n * sizeof(T));
    if (!sums) return put(call.grad_query, row, row.query, t, n);
    const T* allocation = this->query_stat(row, SINK_ALLOCATION) + t;
    const T ratio = BidirectionalForward<T>::sinks_to_sources(row);
    for (int i = 0; i < n; ++i) weight[i] = call.allocation ? dots[i] * (T(1) - allocation[i]) * ratio : T(0);
    add_rows(n, s.dp, weight, vectors[2], grad);
    put(call.grad_query, row, row.query, t, n);
    weighted_sum(n, s.dp, q, weight, eps, added.key_flow);
  }

  void key_outer(const Row& row, int64_t t, int n, BackCarry& added) {
    const T* k = this->features(row, 1, t, n, true);
    weigh_values(row, t, n);
    multiply<T, false>(n, s.dp, s.m, {u, s.mp, 1}, turned, s.dp, grad, s.dp);
    finish_keys(row, t, n, k);
    multiply<T, false>(n, s.mp, s.d, {k, s.dp, 1}, key_value, s.mp, u, s.mp);
    finish_values(row, t, n, added);
  }

  // From K u in `grad`: dk but for the sums.
  void finish_keys(const Row& row, int64_t t, int n, const T* k) {
    if (flows)
      put(call.grad_key, row, row.key, t, n);
    else
      write_feature_gradient<T>(call, call.grad_key, row, row.key, t, n, k, grad);
  }

  // v, c in `key_weight`, u = c v
  void weigh_values(const Row& row, int64_t t, int n) {
    read_values<T>(call, call.value, row, row.key, t, n, s.m, v);
    const bool competes = call.competition != NO_COMPETITION;
    const T unit = this->weight_of_share(row);
    const T* share = competes ? this->key_stat(row, SOURCE_SHARE) + t : nullptr;
    for (int i = 0; i < n; ++i) key_weight[i] = competes ? unit * share[i] : unit;
    scale_rows(n, s.mp, v, key_weight, u);
  }

  // From dv / c in `u`: dv and γ.
  void finish_values(const Row& row, int64_t t, int n, BackCarry& added) {
    scale_rows(n, s.mp, u, key_weight, u);
    if (call.competition != NO_COMPETITION) {
      row_dots(n, s.mp, u, v, partial, dots);
      for (int i = 0; i < n; ++i) added.late += dots[i];
      std::memcpy(gamma + t, dots, n * sizeof(T));
    }
    T* to = row.at<T>(call.grad_value, row.key, t);
    for (int i = 0; i < n; ++i, to += call.grad_value.token) {
      if (row.key.real(t + i))
        std::memcpy(to, u + i * s.mp, s.m * sizeof(T));
      else
        std::memset(to, 0, s.m * sizeof(T));
    }
  }

  // dÔ, in `weight`.
  void source_gradients(const Row& row, int64_t t, int n, const BackCarry& totals) {
    const T *share = this->key_stat(row, SOURCE_SHARE) + t, *source = this->key_stat(row, CONSERVED_SOURCE) + t;
    if (call.competition == NO_COMPETITION) return (void)std::memset(weight, 0, n * sizeof(T));
    const T bound = T(call.clamp), late = T(totals.late);
    const T* of_heads = call.competition == HEADS ? gamma_sum + t : nullptr;
    for (int i = 0; i < n; ++i) {
      const T gradient = gamma[t + i] - share[i] * (of_heads ? of_heads[i] : late);
      weight[i] = source[i] >= -bound && source[i] <= bound ? gradient : T(0);
    }
    for (int i = 0; row.key.mask && i < n; ++i)
      if (!row.key.real(t + i)) weight[i] = 0;
  }

  void key_flows(const Row& row, int64_t t, int n, const BackCarry& totals, BackCarry& added) {
    const T* k = this->features(row, 1, t, n, false);
    const T* outgoing = this->key_stat(row, SOURCE_OUTGOING) + t;
    get(call.grad_key, row, row.key, t, n);
    if (call.competition != NO_COMPETITION) {
      source_gradients(row, t, n, totals);
      add_rows(n, s.dp, weight, vectors[3], grad);
      weighted_sum(n, s.dp, k, weight, eps, added.query_flow);
    }
    for (int i = 0; i < n; ++i) weight[i] = T(1) / outgoing[i];
    add_rows(n, s.dp, weight, flow, grad);
    no_eps_dots(n, k);
    for (int i = 0; i < n; ++i) weight[i] = -dots[i] * weight[i] * weight[i];
    add_rows(n, s.dp, weight, vectors[1], grad);
    weighted_sum(n, s.dp, k, weight, eps, added.query_sum);
    put(call.grad_key, row, row.key, t, n);
  }

  // dots[t] = x_t·flow
  void no_eps_dots(int n, const T* x) {
    constexpr int W = Simd<T>::W;
    for (int t = 0; t < n; ++t) {
      Vec<T> dot = {};
      for (int j = 0; j < s.dp; j += W) dot += load(x + t * s.dp + j) * load(flow + j);
      store(partial + t * W, dot);
    }
    sum_lanes(n, partial, dots);
  }

  void query_flows(const Row& row, int64_t t, int n, BackCarry& added) {
    const T* q = this->features(row, 0, t, n, false);
    const T* incoming = this->query_stat(row, SINK_INCOMING) + t;
    get(call.grad_query, row, row.query, t, n);
    for (int i = 0; i < n; ++i) weight[i] = T(1) / incoming[i];
    add_rows(n, s.dp, weight, flow, grad);
    no_eps_dots(n, q);
    for (int i = 0; i < n; ++i) weight[i] = -(rho[t + i] + dots[i] * weight[i]) * weight[i];
    add_rows(n, s.dp, weight, vectors[0], grad);
    add_rows<T>(n, s.dp, nullptr, key_value, grad);
    weighted_sum(n, s.dp, q, weight, eps, added.key_sum);
    write_feature_gradient<T>(call, call.grad_query, row, row.query, t, n, q, grad);
  }

  void key_sums(const Row& row, int64_t t, int n) {
    get(call.grad_key, row, row.key, t, n);
    add_rows<T>(n, s.dp, nullptr, flow, grad);
    write_feature_gradient<T>(call, call.grad_key, row, row.key, t, n, this->features(row, 1, t, n, false), grad);
  }
};

template <class T> inline void add_totals(const CausalSizes<T>& s, const BackCarry& added, BackCarry& total) {
  for (int64_t i = 0; i < s.sums(); ++i) total.key_sum[i] += added.key_sum[i];
  total.late += added.late;
}

// ρ and γ of all rows, [b, h, t], are wanted where they are given, and otherwise as long as their row is at work.
template <class T> int bidirectional_gradients(const Call& call, T* given_rhos, T* given_gammas) {
  const CausalSizes<T> s(call);
  const int64_t rows = call.batch * call.heads, segments = bidirectional_segments(call);
  const bool together = segments == 1 && call.competition != HEADS;
  const Cache features(call, s.dp * int64_t(sizeof(T))), none, &cache = together ? features : none;
  Arena counted(nullptr);
  BidirectionalBackward<T>(call, counted, cache);
  counted.take<double>(s.sums());
  counted.take<T>(call.queries + call.keys);
  Team team(call.threads, counted.used());
  if (together) {
    return !parallel_for(team, rows, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      BidirectionalBackward<T> backward(call, arena, cache);
      const Row row(call, task);
      BackCarry totals;
      totals.place(s, arena.take_unset<double>(s.sums()));
      T* flows = arena.take_unset<T>(call.queries + call.keys);
      backward.rho = given_rhos ? row.stats<T>(given_rhos, call, row.query, call.queries, 1, 0) : flows;
      backward.gamma = given_gammas ? row.stats<T>(given_gammas, call, row.key, call.keys, 1, 0) : flows + call.queries;
      backward.whole(row, totals);
    });
  }

  const int64_t batch = call.query_offsets ? 1 : call.batch;
  const int64_t query_numbers = batch * call.heads * call.queries, key_numbers = batch * call.heads * call.keys;
  const Carries<T, BackCarry> memory(s, rows * (segments + 1));
  const CutRows<T> cut(s, features, segments > 1 ? rows : 0);
  const Memory<T> flows(query_numbers + key_numbers + batch * call.keys);
  if (!memory.whole() || !flows.data()) return 1;
  BackCarry *totals = memory.data(), *added = totals + rows;
  T *rhos = flows.data(), *gammas = rhos + query_numbers, *gamma_sums = gammas + key_numbers;
  if (given_rhos) rhos = given_rhos, gammas = given_gammas;
  bool done = true;
  for (int level = QUERY_OUTER; done && level <= last_level(call); ++level) {
    done = parallel_for(team, rows * segments, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      BidirectionalBackward<T> backward(call, arena, cache);
      const Row row(call, task / segments);
      const int64_t segment = task % segments;
      cut.give(row, backward);
      backward.rho = row.stats<T>(rhos, call, row.query, call.queries, 1, 0);
      backward.gamma = row.stats<T>(gammas, call, row.key, call.keys, 1, 0);
      backward.gamma_sum = gamma_sums + row.batch() * call.keys + row.key.start;
      added[task].clear(s);
      added[task].late = 0;
      backward.pass(row, part_of(row.query, segment, segments), part_of(row.key, segment, segments),
                    BidirectionalLevel(level), totals[row.index], added[task]);
      if (level == last_level(call) && segment == 0) zero_gradient_padding<T>(call, row);
    });
    for (int64_t i = 0; done && i < rows * segments; ++i) add_totals(s, added[i], totals[i / segments]);
    for (int64_t i = 0; done && level == KEY_OUTER && call.competition == HEADS && i < batch * call.heads; ++i)
      for (int64_t t = 0; t < call.keys; ++t) gamma_sums[i / call.heads * call.keys + t] += gammas[i * call.keys + t];
  }
  return !done;
}

template <class T> int bidirectional_backward(const Call& call) {
  return bidirectional_gradients<T>(call, nullptr, nullptr);
}

}  // namespace flowformer::FF_ISA
