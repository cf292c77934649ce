// The gradients of the causal form: one pass back over the chunks of a row, from what the forward kept. keyᵀ value is kept before
// every so many chunks; from there those before the chunks that follow are computed again, once for all of them.
//
// With g the gradient of the output, r = a / I, T_t = Σ_{s≤t} k_s (u_s·g_t), R_s = Σ_{t≥s} r_t q_t g_tᵀ:
//
//   second half   dq = r T,  dk = R u,  du = Rᵀ k,  dv = c du
//   scale         ρ = r q·T  (= r · dL/dr),  dÎ = ρ (1 - a),  dI = -ρ / I
//   competition   γ = v·dv,  dÔ_t = γ_t (1 - p_t) - p_t (H_t - γ_t) within the clamp,  H_t = γ_t + (1 - p_{t+1}) H_{t+1}
//   flows         e_s = Σ_{t≥s} dÎ_t/n_t (q_t + ε):  dk += n/O e,  dO = -(k·e) n/O²;   likewise f from dÔ, for dq and dI
//                 dq += dÎ/n (Σ n k/O + ε),  dk += dÔ/n (Σ n q/I + ε)
//   sums          dk += Σ_{t≥s} dI_t (q_t + ε),  dq += dI (Σ k + ε);   likewise from dO
//
// H is G_t = Σ_{s≥t} γ_s / Σ_{r≤s} w_r times its own denominator, which keeps it in range without a bound on Ô.
#pragma once

#include "causal.h"

namespace flowformer::FF_ISA {

enum BackwardLevel { OUTER = 1, HEAVY, BACK_FLOWS, BACK_SUMS, GRADIENT };

// The gradients of the sums on their way back; that of key_value is R. `late` is (1 - p_{t+1}) H_{t+1}, `kept` the product
// of 1 - p since the segment's end.
struct BackCarry : Sums {
  double late, kept;
};

template <class T> inline void read_state_gradient(const Call& call, const Row& row, BackCarry& carry) {
  const State& grad = call.grad_after;
  carry.read(CausalSizes<T>(call), grad, row.index);
  carry.late = grad.competition ? -grad.competition[row.index] : 0;
  carry.kept = 1;
}

template <class T> inline void write_state_gradient(const Call& call, const Row& row, const BackCarry& carry) {
  const State& grad = call.grad_before;
  carry.write(CausalSizes<T>(call), grad, row.index);
  if (grad.competition) grad.competition[row.index] = -carry.late;
}

template <class T> struct CausalBackward {
  const Call& call;
  const CausalSizes<T> s;
  T *q, *k, *v, *u, *g, *scaled, *columns, *dq, *dk, *du, *products, *scores, *partial;
  T *states, *key_value, *turned, *outer, *inside, *eps;  // states: keyᵀ value before each chunk from one that is kept on
  int64_t computed = -1;                                  // the kept one that `states` begins with
  T* between = nullptr;   // ρ and γ of this row, [2, tokens], from one level to the next where a row is cut into segments
  bool empty, alone;       // no past, no future
  T *base[4], *after[4];  // sums before the chunk, with ε; gradients of the sums after it
  T incoming[CHUNK], outgoing[CHUNK], allocation[CHUNK], odds[CHUNK], source[CHUNK], count[CHUNK], weight[CHUNK],
      scale[CHUNK], rho[CHUNK], gamma[CHUNK], key_share[CHUNK], query_share[CHUNK], d_sink[CHUNK], d_source[CHUNK],
      d_incoming[CHUNK], d_outgoing[CHUNK], dots[CHUNK];

  CausalBackward(const Call& c, Arena& arena) : call(c), s(c) {
    for (T** rows : {&q, &k, &scaled, &dq, &dk}) *rows = arena.take_unset<T>(CHUNK * s.dp);
    for (T** rows : {&v, &u, &g, &du}) *rows = arena.take_unset<T>(CHUNK * s.mp);
    columns = arena.take_unset<T>(CHUNK * (s.dp > s.mp ? s.dp : s.mp));
    for (T** square : {&products, &scores}) *square = arena.take_unset<T>(CHUNK * CHUNK);
    partial = arena.take_unset<T>(CHUNK * Simd<T>::W);
    const int64_t kept = call.spacing * s.matrix;
    states = s.whole() ? arena.take_unset<T>(kept) : arena.take<T>(kept);  // padded lanes are never written
    for (T** matrix : {&outer, &inside, &turned}) *matrix = arena.take_unset<T>(s.matrix);
    eps = arena.take<T>(s.dp);
    for (T*& vector : base) vector = arena.take<T>(s.dp);
    for (T*& vector : after) vector = arena.take<T>(s.dp);
  }

  // From the chunk before `last` back to `first`.
  void pass(const Row& row, int64_t first, int64_t last, BackwardLevel level, BackCarry& carry) {
    for (int j = 0; j < s.d; ++j) eps[j] = T(call.eps);
    round_to(int(s.matrix), carry.key_value, outer);
    double tokens = call.before.tokens ? double(call.before.tokens[row.sequence]) : 0;
    if (call.feature_map != IDENTITY) tokens += double(row.key.count(0, last * CHUNK < row.key.trimmed ? last * CHUNK : row.key.trimmed));
    for (int64_t chunk = last - 1; chunk >= first; --chunk) {
      const int64_t t = chunk * CHUNK;
      const int n = int(row.key.trimmed - t < CHUNK ? row.key.trimmed - t : CHUNK);
      // Nothing after the last chunk, nothing before the first: their products with zero are left out.
      alone = chunk + 1 == chunks_of(row) && !call.grad_after.key_value;
      empty = chunk == 0 && !call.before.tokens && call.feature_map != IDENTITY;
      step(row, chunk, t, n, level, tokens, carry);
      if (level == BACK_FLOWS || level == BACK_SUMS) continue;
      if (level == GRADIENT && chunk == first && !call.grad_before.key_value) continue;
      multiply<T, false>(s.d, s.mp, n, {scaled, 1, s.dp}, g, s.mp, inside, s.mp);
      fold(int(s.matrix), inside, carry.key_value, outer);
    }
  }

  void step(const Row& row, int64_t chunk, int64_t t, int n, BackwardLevel level, double& tokens, BackCarry& carry) {
    const bool flows = call.feature_map != IDENTITY;
    if (level == HEAVY || level == GRADIENT) find_key_value(row, chunk, t + n, tokens);
    read_features<T>(call, call.query, row, row.query, t, n, q);
    if (level > OUTER) read_features<T>(call, call.key, row, row.key, t, n, k);
    if (flows)
      recall(row, t, n, tokens);
    else
      given_scale(row, t, n);
    scale_rows(n, s.dp, q, scale, scaled);
    if (level == OUTER || level == HEAVY || level == GRADIENT)
      read_values<T>(call, call.grad_out, row, row.query, t, n, s.m, g);
    if (level == HEAVY || level == GRADIENT) second_half(row, t, n);
    if (level == OUTER) return;
    if (flows) {
      if (!flow_gradients(row, chunk, t, n, level, carry)) return;
    } else if (call.grad_row_scale) {
      T* to = row.dense<T>(call.grad_row_scale, call, row.query, call.queries, t, 1);
      for (int i = 0; i < n; ++i) to[i * call.heads] = row.key.real(t + i) ? rho[i] : T(0);
    }
    const ptrdiff_t stride = call.heads * s.d;
    write_feature_gradient<T>(call, row.query, t, n, q, dq, row.dense<T>(call.grad_query, call, row.query, call.queries, t, s.d), stride);
    write_feature_gradient<T>(call, row.key, t, n, k, dk, row.dense<T>(call.grad_key, call, row.key, call.keys, t, s.d), stride);
  }

  // keyᵀ value before a chunk; `tokens` are the real ones before `end`, where the chunk ends.
  void find_key_value(const Row& row, int64_t chunk, int64_t end, double tokens) {
    const int64_t first = chunk / call.spacing * call.spacing;
    key_value = states + (chunk - first) * s.matrix;
    if (first == computed) return;
    computed = first;
    restore_rows(s.d, s.m, s.mp, kept_matrix<T>(call, row, first), states);
    tokens -= double(row.key.count(first * CHUNK, end));
    for (int64_t t = first * CHUNK; t < chunk * CHUNK; t += CHUNK) {
      const T* before = states + (t / CHUNK - first) * s.matrix;
      read_features<T>(call, call.key, row, row.key, t, CHUNK, k);
      read_values<T>(call, call.value, row, row.key, t, CHUNK, s.m, u);
      if (call.feature_map != IDENTITY && call.competition != NO_COMPETITION) {
        const T* against = row.stats<T>(call.query_stats, call, row.query, call.queries, CAUSAL_STATS, ODDS) + t;
        for (int i = 0; i < CHUNK; ++i) {
          tokens += row.key.real(t + i);
          weight[i] = (tokens > 1 ? T(tokens) : T(1)) / (against[i] + T(1));
        }
        scale_rows(CHUNK, s.mp, u, weight, u);
      }
      multiply<T, false>(s.d, s.mp, CHUNK, {k, 1, s.dp}, u, s.mp, inside, s.mp);
      T* after = states + (t / CHUNK - first + 1) * s.matrix;
      for (int i = 0; i < s.d * s.mp; ++i) after[i] = before[i] + inside[i];
    }
  }

  // The numbers of the forward.
  void recall(const Row& row, int64_t t, int n, double& tokens) {
    constexpr int W = Simd<T>::W;
    const struct {
      CausalStat stat;
      T* to;
    } kept[] = {{INCOMING, incoming}, {OUTGOING, outgoing}, {ALLOCATION, allocation}, {ODDS, odds}, {SOURCE, source}};
    for (const auto& each : kept)
      std::memcpy(each.to, row.stats<T>(call.query_stats, call, row.query, call.queries, CAUSAL_STATS, each.stat) + t,
                  n * sizeof(T));
    for (int i = n - 1; i >= 0; --i) {
      count[i] = tokens > 1 ? T(tokens) : T(1);
      if (row.key.real(t + i)) tokens -= 1;
    }
    for (int i = 0; i < n; i += W) {
      store(key_share + i, load(count + i) / load(outgoing + i));
      store(query_share + i, load(count + i) / load(incoming + i));
      store(scale + i, load(allocation + i) / load(incoming + i));
      store(weight + i,
            call.competition != NO_COMPETITION ? load(count + i) / (load(odds + i) + T(1)) : Vec<T>{} + T(1));
    }
  }

  void given_scale(const Row& row, int64_t t, int n) {
    const T* given = static_cast<const T*>(call.row_scale);
    if (given) given += (row.batch() * call.queries + row.query.start + t) * call.heads + row.head;
    for (int i = 0; i < n; ++i) scale[i] = given ? given[i * call.heads] : T(1);
  }

  // dq, dk, du, and with them dv, ρ (for a given scale: its gradient) and γ.
  void second_half(const Row& row, int64_t t, int n) {
    const bool weighted = call.feature_map != IDENTITY && call.competition != NO_COMPETITION;
    const int np = Widths<T>::padded(n);
    read_values<T>(call, call.value, row, row.key, t, n, s.m, v);
    const T* values = v;
    if (weighted) scale_rows(n, s.mp, v, weight, u), values = u;
    transpose(np, s.mp, values, s.mp, columns, CHUNK);
    multiply_to_lower<T>(n, s.m, {g, s.mp, 1}, columns, CHUNK, products, CHUNK);
    if (empty) {
      multiply<T, false, Shape::lower>(n, s.dp, n, {products, CHUNK, 1}, k, s.dp, dq, s.dp);
    } else {
      transpose(s.dp, s.mp, key_value, s.mp, turned, s.dp);
      multiply<T, false>(n, s.dp, s.m, {g, s.mp, 1}, turned, s.dp, dq, s.dp);
      multiply<T, true, Shape::lower>(n, s.dp, n, {products, CHUNK, 1}, k, s.dp, dq, s.dp);
    }
    row_dots(n, s.dp, q, dq, partial, rho);
    if (call.feature_map != IDENTITY)
      for (int i = 0; i < n; ++i) rho[i] *= scale[i];
    scale_rows(n, s.dp, dq, scale, dq);

    if (alone) {
      multiply<T, false, Shape::upper>(n, s.dp, n, {products, 1, CHUNK}, scaled, s.dp, dk, s.dp);
    } else {
      transpose(s.dp, s.mp, outer, s.mp, turned, s.dp);
      multiply<T, false>(n, s.dp, s.m, {values, s.mp, 1}, turned, s.dp, dk, s.dp);
      multiply<T, true, Shape::upper>(n, s.dp, n, {products, 1, CHUNK}, scaled, s.dp, dk, s.dp);
    }

    transpose(np, s.dp, k, s.dp, columns, CHUNK);
    multiply_to_lower<T>(n, s.d, {scaled, s.dp, 1}, columns, CHUNK, scores, CHUNK);
    if (alone) {
      multiply<T, false, Shape::upper>(n, s.mp, n, {scores, 1, CHUNK}, g, s.mp, du, s.mp);
    } else {
      multiply<T, false>(n, s.mp, s.d, {k, s.dp, 1}, outer, s.mp, du, s.mp);
      multiply<T, true, Shape::upper>(n, s.mp, n, {scores, 1, CHUNK}, g, s.mp, du, s.mp);
    }
    if (weighted) {
      scale_rows(n, s.mp, du, weight, du);
      row_dots(n, s.mp, du, v, partial, gamma);
    }
    T* to = row.dense<T>(call.grad_value, call, row.key, call.keys, t, s.m);
    for (int i = 0; i < n; ++i, to += call.heads * s.m) {
      if (row.key.real(t + i))
        std::memcpy(to, du + i * s.mp, s.m * sizeof(T));
      else
        std::memset(to, 0, s.m * sizeof(T));
    }
  }

  // False when the level is reached.
  bool flow_gradients(const Row& row, int64_t chunk, int64_t t, int n, BackwardLevel level, BackCarry& carry) {
    const bool competes = call.competition != NO_COMPETITION;
    const T* sums = kept_vectors<T>(call, row, chunk);
    for (int i = 0; i < 4; ++i) std::memcpy(base[i], sums + i * s.d, s.d * sizeof(T));
    if (between && level == HEAVY) {
      std::memcpy(between + t, rho, n * sizeof(T));
      std::memcpy(between + call.queries + t, gamma, n * sizeof(T));
    } else if (between && level != GRADIENT) {
      std::memcpy(rho, between + t, n * sizeof(T));
      std::memcpy(gamma, between + call.queries + t, n * sizeof(T));
    }
    for (int i = n - 1; i >= 0; --i) {
      d_sink[i] = call.allocation ? rho[i] * (T(1) - allocation[i]) / count[i] : T(0);
      d_source[i] = 0;
      if (!competes) continue;
      const double against = odds[i], share = 1 / (1 + against), rest = against > 1 ? 1 - share : against * share;
      const bool free = source[i] >= -T(call.clamp) && source[i] <= T(call.clamp);
      if (free) d_source[i] = T(gamma[i] * rest - share * carry.late) / count[i];
      carry.late = (gamma[i] + carry.late) * rest;
      carry.kept *= rest;
    }
    if (level == HEAVY) return false;
    const double* carried[] = {carry.key_sum, carry.query_sum, carry.key_flow, carry.query_flow};
    for (int i = 0; i < 4; ++i) round_to(s.dp, carried[i], after[i]);

    suffix_flow<T, true>(n, s.dp, q, d_sink, k, key_share, after[2], eps, partial, dk, dots, carry.key_flow);
    for (int i = 0; i < n; ++i) d_outgoing[i] = -dots[i] * key_share[i] / outgoing[i];
    suffix_flow<T, true>(n, s.dp, k, d_source, q, query_share, after[3], eps, partial, dq, dots, carry.query_flow);
    for (int i = 0; i < n; ++i) d_incoming[i] = -(rho[i] + dots[i] * query_share[i]) / incoming[i];
    if (level == BACK_FLOWS) return false;
    suffix_flow<T, false>(n, s.dp, q, d_incoming, nullptr, nullptr, after[0], eps, partial, dk, dots, carry.key_sum);
    suffix_flow<T, false>(n, s.dp, k, d_outgoing, nullptr, nullptr, after[1], eps, partial, dq, dots, carry.query_sum);
    if (level == BACK_SUMS) return false;
    prefix_gradient(n, s.dp, k, key_share, d_incoming, base[0], d_sink, base[2], dq);
    prefix_gradient(n, s.dp, q, query_share, d_outgoing, base[1], d_source, base[3], dk);
    return true;
  }
};

template <class T>
inline void add_segment_gradient(const Call& call, BackwardLevel level, const BackCarry& added, const BackCarry& start,
                                 BackCarry& next) {
  const CausalSizes<T> s(call);
  const auto add = [](int64_t count, const double* a, const double* b, double* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = a[i] + b[i];
  };
  if (level == OUTER) {
    add(s.matrix, start.key_value, added.key_value, next.key_value);
  } else if (level == HEAVY) {
    next.late = added.late + added.kept * start.late;
  } else if (level == BACK_FLOWS) {
    add(2 * s.dp, start.key_flow, added.key_flow, next.key_flow);
  } else {
    add(2 * s.dp, start.key_sum, added.key_sum, next.key_sum);
  }
}

template <class T>
inline void copy_gradient_below(const Call& call, BackwardLevel level, const BackCarry& start, BackCarry& work) {
  const CausalSizes<T> s(call);
  work.copy(s, start);
  work.late = level <= HEAVY ? 0 : start.late;
  work.kept = 1;
  if (level <= OUTER) std::memset(work.key_value, 0, size_t(s.matrix) * sizeof(double));
  if (level <= BACK_FLOWS) std::memset(work.key_flow, 0, 2 * s.dp * sizeof(double));
  if (level <= BACK_SUMS) std::memset(work.key_sum, 0, 2 * s.dp * sizeof(double));
}

template <class T> inline void zero_gradient_padding(const Call& call, const Row& row) {
  zero_padding<T>(call.grad_query, call, row, row.query, call.queries, int(call.key_width));
  zero_padding<T>(call.grad_key, call, row, row.key, call.keys, int(call.key_width));
  zero_padding<T>(call.grad_value, call, row, row.key, call.keys, int(call.value_width));
  if (call.grad_row_scale) zero_padding<T>(call.grad_row_scale, call, row, row.query, call.queries, 1);
}

template <class T> int causal_backward(const Call& call) {
  const CausalSizes<T> s(call);
  const int64_t rows = call.batch * call.heads;
  Arena counted(nullptr);
  CausalBackward<T>(call, counted);
  counted.take<double>(s.sums());
  Team team(call.threads, counted.used());

  const int64_t segments = segments_of(call, (call.keys + CHUNK - 1) / CHUNK);
  if (segments == 1) {
    return !parallel_for(team, rows, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      CausalBackward<T> backward(call, arena);
      BackCarry carry;
      carry.place(s, arena.take_unset<double>(s.sums()));
      const Row row(call, task);
      read_state_gradient<T>(call, row, carry);
      backward.pass(row, 0, chunks_of(row), GRADIENT, carry);
      zero_gradient_padding<T>(call, row);
      write_state_gradient<T>(call, row, carry);
    });
  }

  // The segments from the last to the first: starts[row][0] is where the last one begins, at the end of the row.
  const int64_t carries = rows * (segments + 1), batch = call.query_offsets ? 1 : call.batch;
  const Carries<T, BackCarry> memory(s, 2 * carries);
  const Memory<T> flows(batch * call.heads * 2 * call.queries);
  if (!memory.whole() || !flows.data()) return 1;
  BackCarry *starts = memory.data(), *added = starts + carries;
  for (int64_t i = 0; i < rows; ++i) read_state_gradient<T>(call, Row(call, i), starts[i * (segments + 1)]);
  bool done = true;
  for (int level = OUTER; done && level <= GRADIENT; ++level) {
    if (call.feature_map == IDENTITY && level != OUTER && level != GRADIENT) continue;
    done = parallel_for(team, rows * segments, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      CausalBackward<T> backward(call, arena);
      const Row row(call, task / segments);
      const int64_t segment = task % segments, chunks = chunks_of(row), at = row.index * (segments + 1) + segment;
      backward.between = row.stats<T>(flows.data(), call, row.query, call.queries, 2, 0);
      BackCarry& work = added[at];
      copy_gradient_below<T>(call, BackwardLevel(level), starts[at], work);
      backward.pass(row, chunks * (segments - 1 - segment) / segments, chunks * (segments - segment) / segments,
                    BackwardLevel(level), work);
      if (level == GRADIENT && segment == 0) zero_gradient_padding<T>(call, row);
      if (level == GRADIENT && segment == segments - 1) write_state_gradient<T>(call, row, work);
    });
    for (int64_t i = 0; level < GRADIENT && i < rows; ++i)
      for (int64_t j = i * (segments + 1), end = j + segments; j < end; ++j)
        add_segment_gradient<T>(call, BackwardLevel(level), added[j], starts[j], starts[j + 1]);
  }
  return !done;
}

}  // namespace flowformer::FF_ISA
