// The gradients of the causal form: one pass back over the chunks of a row, from what the forward kept. keyᵀ value is kept before
// every so many chunks; from there those before the chunks that follow are computed again, once for all of them. Threads that share
// a row take a chunk each: the adding of R and the flows wait for the chunk after it.
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
//
// Where linear attention forgets, T and R shrink on their way as the forward's sums do, and chunks are undivided; see decay.h.
#pragma once

#include "causal.h"

namespace flowformer::FF_ISA {

// The gradients of the sums on their way back; that of key_value is R. `late` is (1 - p_{t+1}) H_{t+1}; `tokens` are the real
// ones up to there.
struct BackCarry : Sums {
  double late, tokens;
};

template <class T> inline void zero_gradient_padding(const Call& call, const Row& row) {
  zero_padding<T>(call.grad_query, row, row.query, call.key_width);
  zero_padding<T>(call.grad_key, row, row.key, call.key_width);
  zero_padding<T>(call.grad_value, row, row.key, call.value_width);
  for (void* grad : {call.grad_row_scale, call.grad_log_decay})
    for (int64_t t = row.query.trimmed; grad && t < row.query.length; ++t) *row.scalars<T>(grad, call, t) = 0;
}

template <class T> struct CausalBackward {
  using Number = T;
  using Carried = BackCarry;
  const Call& call;
  const CausalSizes<T> s;
  static constexpr int chunks = 1;  // of a stretch
  T *q, *k, *v, *u, *g, *scaled, *columns, *dq, *dk, *du, *products, *scores, *partial;
  T* outer[3];              // R after a chunk, after its first half, before it
  bool rounded = false;     // outer[0] is what is carried
  T *states, *turned, *inside, *eps;  // states: keyᵀ value before each chunk from one that is kept on
  const T *kept, *key_value;          // the first of them, and the one before this chunk
  int64_t computed = -1;              // the chunk of the first
  double tokens;                      // real ones up to the end of this chunk
  T* left = nullptr;                  // D of this chunk, see decay.h
  double factor = 1;                  // what is left after it of what was before it
  T *base[4], *after[4];  // sums before the chunk, with ε; gradients of the sums after it
  T incoming[CHUNK], outgoing[CHUNK], allocation[CHUNK], odds[CHUNK], source[CHUNK], count[CHUNK], weight[CHUNK],
      scale[CHUNK], rho[CHUNK], gamma[CHUNK], key_share[CHUNK], query_share[CHUNK], d_sink[CHUNK], d_source[CHUNK],
      d_incoming[CHUNK], d_outgoing[CHUNK], dots[CHUNK], logs[CHUNK], since[CHUNK], until[CHUNK], sinks[CHUNK], sources[CHUNK],
      decay_gradient[CHUNK];

  CausalBackward(const Call& c, bool, Arena& arena) : call(c), s(c) {
    for (T** rows : {&q, &k, &scaled, &dq, &dk}) *rows = arena.take_unset<T>(CHUNK * s.dp);
    for (T** rows : {&v, &u, &g, &du}) *rows = arena.take_unset<T>(CHUNK * s.mp);
    columns = arena.take_unset<T>(CHUNK * (s.dp > s.mp ? s.dp : s.mp));
    for (T** square : {&products, &scores}) *square = arena.take_unset<T>(CHUNK * CHUNK);
    if (call.log_decay) left = arena.take_unset<T>(CHUNK * CHUNK);
    partial = arena.take_unset<T>(CHUNK * Simd<T>::W);
    const int64_t all = call.spacing * s.matrix;
    states = s.whole() ? arena.take_unset<T>(all) : arena.take<T>(all);  // padded lanes are never written
    for (T*& matrix : outer) matrix = take_matrix<T>(arena, s);
    for (T** matrix : {&inside, &turned}) *matrix = arena.take_unset<T>(s.matrix);
    eps = arena.take<T>(s.dp);
    for (T*& vector : base) vector = arena.take<T>(s.dp);
    for (T*& vector : after) vector = arena.take<T>(s.dp);
    for (int j = 0; arena.holds_memory() && j < s.d; ++j) eps[j] = T(call.eps);
  }

  void begin(const Row& row, BackCarry& carry) {
    const State& grad = call.grad_after;
    if (call.grad_before.key_value && s.whole()) carry.key_value = call.grad_before.key_value + row.index * s.matrix;  // in place
    carry.read(s, grad, row.index);
    carry.late = grad.competition ? -grad.competition[row.index] : 0;
    carry.tokens = double(row.key.tokens) + tokens_before(call, row);
  }

  void end(const Row& row, BackCarry& carry) {
    const State& grad = call.grad_before;
    if (row.key.trimmed == 0 && !call.grad_after.key_value)
      for (int64_t i = 0; grad.key_value && i < s.matrix; ++i) carry.key_value[i] = 0;
    carry.write(s, grad, row.index);
    if (grad.competition) grad.competition[row.index] = -carry.late;
    zero_gradient_padding<T>(call, row);
  }

  // Chunk `index` of a row, counted from its last.
  void pass(const Row& row, int64_t index, BackCarry& carry, const Turn& turn) {
    const int64_t chunk = chunks_of(row) - 1 - index, t = chunk * CHUNK;
    if (chunk < 0) return;
    const int n = int(row.key.trimmed - t < CHUNK ? row.key.trimmed - t : CHUNK);
    const bool flows = call.feature_map != IDENTITY;
    const Halves halves{n, HALF, index == 0 && !call.grad_after.key_value, chunk > 0 || call.grad_before.key_value,
                        !call.log_decay && s.matrix * int64_t(sizeof(T)) <= SMALL};
    read_features<T>(call, call.query, row, row.query, t, n, q, false);
    if (flows)
      recall(row, t, n);
    else
      given_scale(call, row, t, n, scale);
    scale_rows(n, s.dp, q, scale, scaled);
    read_values<T>(call, call.grad_out, row, row.query, t, n, s.m, g, false);
    Ahead ahead = earlier(row, call.query, row.query, t, s.d);
    const T* queries = scaled;
    if (call.log_decay) {
      read_decays<T>(call, row, t, n, logs);
      factor = decays_of_block(n, logs, since, until);
      scale_rows(n, s.dp, scaled, since, columns);
      queries = columns;
    }
    products_of_halves(s, false, halves, queries, g, outer, &ahead);
    turn.wait(0);
    if (!rounded && !halves.empty) round_to(int(s.matrix), carry.key_value, outer[0]);
    if (call.log_decay) {
      const double factors[] = {factor, 1};
      add_fading_halves(s, halves, outer, carry.key_value, factors);
    } else {
      add_halves(s, halves, outer, carry.key_value);
    }
    tokens = carry.tokens;
    carry.tokens -= double(row.key.count(t, t + n));
    turn.pass(0);

    find_key_value(row, chunk, t + n);
    read_features<T>(call, call.key, row, row.key, t, n, k, false);
    if (flows) count_tokens(row, t, n);
    second_half(row, t, n, halves);
    turn.wait(1);
    if (flows) flow_gradients(row, chunk, n, carry);
    turn.pass(1);
    if (flows) {
      prefix_gradient(n, s.dp, k, key_share, d_incoming, base[0], d_sink, base[2], dq);
      prefix_gradient(n, s.dp, q, query_share, d_outgoing, base[1], d_source, base[3], dk);
    } else if (call.grad_row_scale) {
      write_numbers(call.grad_row_scale, row, t, n, rho);
    }
    if (call.grad_log_decay) write_numbers(call.grad_log_decay, row, t, n, decay_gradient);
    write_feature_gradient<T>(call, call.grad_query, row, row.query, t, n, q, dq);
    write_feature_gradient<T>(call, call.grad_key, row, row.key, t, n, k, dk);
    if (turn.alone()) {
      T* const before = outer[0];
      outer[0] = outer[2];
      outer[2] = before;
      rounded = true;
    }
  }

  // A number for each token, zero at padded ones.
  void write_numbers(void* data, const Row& row, int64_t t, int n, const T* numbers) const {
    T* to = row.scalars<T>(data, call, t);
    for (int i = 0; i < n; ++i) to[i * call.heads] = row.key.real(t + i) ? numbers[i] : T(0);
  }

  // The rows of the chunk before t, which is the next.
  Ahead earlier(const Row& row, const View& view, const Side& side, int64_t t, int width) const {
    return chunk_ahead(call, view, row, side, t - CHUNK, width, t > 0 ? CHUNK : 0);
  }
  // Those of a gradient that n tokens get.
  Ahead written(const Row& row, const View& to, const Side& side, int64_t t, int n, int width) const {
    return {reinterpret_cast<const char*>(row.at<T>(to, side, t)), ptrdiff_t(to.token * sizeof(T)), n, int(width * sizeof(T))};
  }

  // keyᵀ value before a chunk that ends at `end`.
  void find_key_value(const Row& row, int64_t chunk, int64_t end) {
    const int64_t first = chunk / call.spacing * call.spacing;
    const auto state = [&](int64_t i) { return i == first ? kept : states + (i - first) * s.matrix; };
    if (first != computed) {
      computed = first;
      kept = states;
      if (const T* from = kept_matrix<T>(call, row, first)) {
        kept = s.whole() ? from : states;
        if (!s.whole()) restore_rows(s.d, s.m, s.mp, from, states);
      } else if (const double* past = call.before.key_value) {
        past += row.index * s.d * s.m;
        for (int i = 0; i < s.d; ++i) round_to(s.m, past + int64_t(i) * s.m, states + int64_t(i) * s.mp);
      } else if (chunk > first) {
        std::memset(states, 0, size_t(s.matrix) * sizeof(T));
      }
      double seen = tokens - double(row.key.count(first * CHUNK, end));
      for (int64_t i = first; i < chunk; ++i) add_chunk(row, i * CHUNK, seen, state(i), states + (i + 1 - first) * s.matrix);
    }
    key_value = state(chunk);
  }

  // after = before + keyᵀ value of a chunk; `seen` are the real tokens before it.
  void add_chunk(const Row& row, int64_t t, double& seen, const T* before, T* sum) {
    read_features<T>(call, call.key, row, row.key, t, CHUNK, k);
    read_values<T>(call, call.value, row, row.key, t, CHUNK, s.m, u);
    if (call.feature_map != IDENTITY && call.competition != NO_COMPETITION) {
      const T* against = row.stats<T>(call.query_stats, call, row.query, call.queries, CAUSAL_STATS, ODDS) + t;
      for (int i = 0; i < CHUNK; ++i) {
        seen += row.key.real(t + i);
        weight[i] = (seen > 1 ? T(seen) : T(1)) / (against[i] + T(1));
      }
      scale_rows(CHUNK, s.mp, u, weight, u);
    }
    T factor = 1;
    if (call.log_decay) {
      T logs[CHUNK], since[CHUNK], until[CHUNK];
      read_decays<T>(call, row, t, CHUNK, logs);
      factor = T(decays_of_block(CHUNK, logs, since, until));
      scale_rows(CHUNK, s.dp, k, until, k);
    }
    multiply<T, false>(s.d, s.mp, CHUNK, {k, 1, s.dp}, u, s.mp, inside, s.mp);
    for (int i = 0; i < s.d * s.mp; ++i) sum[i] = factor * before[i] + inside[i];
  }

  // The numbers of the forward.
  void recall(const Row& row, int64_t t, int n) {
    constexpr int W = Simd<T>::W;
    const struct {
      CausalStat stat;
      T* to;
    } stats[] = {{INCOMING, incoming}, {OUTGOING, outgoing}, {ALLOCATION, allocation}, {ODDS, odds}, {SOURCE, source}};
    for (const auto& each : stats)
      std::memcpy(each.to, row.stats<T>(call.query_stats, call, row.query, call.queries, CAUSAL_STATS, each.stat) + t,
                  n * sizeof(T));
    for (int i = 0; i < n; i += W) store(scale + i, load(allocation + i) / load(incoming + i));
  }

  void count_tokens(const Row& row, int64_t t, int n) {
    constexpr int W = Simd<T>::W;
    double seen = tokens;
    for (int i = n - 1; i >= 0; --i) {
      count[i] = seen > 1 ? T(seen) : T(1);
      if (row.key.real(t + i)) seen -= 1;
    }
    for (int i = 0; i < n; i += W) {
      store(key_share + i, load(count + i) / load(outgoing + i));
      store(query_share + i, load(count + i) / load(incoming + i));
      store(weight + i,
            call.competition != NO_COMPETITION ? load(count + i) / (load(odds + i) + T(1)) : Vec<T>{} + T(1));
    }
  }

  // dq, dk, du, and with them dv, ρ (for a given scale: its gradient) and γ.
  void second_half(const Row& row, int64_t t, int n, const Halves& halves) {
    const bool weighted = call.feature_map != IDENTITY && call.competition != NO_COMPETITION;
    read_values<T>(call, call.value, row, row.key, t, n, s.m, v, false);
    const T* values = v;
    if (weighted) scale_rows(n, s.mp, v, weight, u), values = u;
    transpose(Widths<T>::padded(n), s.mp, values, s.mp, columns, CHUNK);
    multiply_to_lower<T>(n, s.m, {g, s.mp, 1}, columns, CHUNK, products, CHUNK);
    if (call.log_decay) {
      each_decay(n, logs, [&](int i, int j, Vec<T> decay) FF_LAMBDA {
        store(left + i * CHUNK + j, decay);
        store(products + i * CHUNK + j, load(products + i * CHUNK + j) * decay);
      });
      std::memset(sinks, 0, sizeof sinks);
      std::memset(sources, 0, sizeof sources);
    }
    const bool first = t == 0 && !call.before.key_value;
    if (first) {
      multiply<T, false, Shape::lower>(n, s.dp, n, {products, CHUNK, 1}, k, s.dp, dq, s.dp);
    } else {
      transpose(s.dp, s.mp, key_value, s.mp, turned, s.dp);
      Ahead ahead = written(row, call.grad_query, row.query, t, n, s.d);
      multiply<T, false>(n, s.dp, s.m, {g, s.mp, 1}, turned, s.dp, dq, s.dp, &ahead);
      if (call.log_decay) {
        scale_rows(n, s.dp, dq, since, dq);
        row_dots(n, s.dp, q, dq, partial, sinks);
        for (int i = 0; i < n; ++i) sinks[i] *= scale[i];
      }
      Ahead values_ahead = earlier(row, call.value, row.key, t, s.m);
      multiply<T, true, Shape::lower>(n, s.dp, n, {products, CHUNK, 1}, k, s.dp, dq, s.dp, &values_ahead);
    }
    row_dots(n, s.dp, q, dq, partial, rho);
    if (call.feature_map != IDENTITY)
      for (int i = 0; i < n; ++i) rho[i] *= scale[i];
    scale_rows(n, s.dp, dq, scale, dq);

    Ahead ahead[] = {written(row, call.grad_key, row.key, t, n, s.d),
                     written(row, call.grad_value, row.key, t, n, s.m),
                     earlier(row, call.grad_out, row.query, t, s.m), earlier(row, call.key, row.key, t, s.d)};
    if (halves.split()) {
      source_gradients(HALF, n - HALF, values, outer[0], ahead, ahead + 1);
      source_gradients(0, HALF, values, outer[1], ahead + 2, ahead + 3);
    } else {
      source_gradients(0, n, values, halves.empty ? nullptr : outer[0], ahead, ahead + 1);
    }
    if (call.log_decay) {
      const double through = first || halves.empty ? 0 : factor * inner_product(s.d, s.mp, key_value, outer[0]);
      add_outer_terms(n, sinks, sources, through, decay_gradient);
    }
    if (weighted) {
      scale_rows(n, s.mp, du, weight, du);
      row_dots(n, s.mp, du, v, partial, gamma);
    }
    T* to = row.at<T>(call.grad_value, row.key, t);
    for (int i = 0; i < n; ++i, to += call.grad_value.token) {
      if (row.key.real(t + i))
        std::memcpy(to, du + i * s.mp, s.m * sizeof(T));
      else
        std::memset(to, 0, s.m * sizeof(T));
    }
  }

  // dk and du of n tokens of the chunk, with R after them; none: zero.
  void source_gradients(int first, int n, const T* values, const T* late, Ahead* ahead, Ahead* further) {
    const T *keys = k + first * s.dp, *queries = scaled + first * s.dp, *grad = g + first * s.mp;
    const T* triangle = products + first * (CHUNK + 1);
    T *to_keys = dk + first * s.dp, *to_values = du + first * s.mp;
    transpose(Widths<T>::padded(n), s.dp, keys, s.dp, columns, CHUNK);
    multiply_to_lower<T>(n, s.d, {queries, s.dp, 1}, columns, CHUNK, scores, CHUNK);
    if (call.log_decay) {
      decay_gradients(n, scores, products, partial, decay_gradient);
      multiply_triangle(n, left, scores);
    }
    if (late) {
      transpose(s.dp, s.mp, late, s.mp, turned, s.dp);
      multiply<T, false>(n, s.dp, s.m, {values + first * s.mp, s.mp, 1}, turned, s.dp, to_keys, s.dp, ahead);
      multiply<T, false>(n, s.mp, s.d, {keys, s.dp, 1}, late, s.mp, to_values, s.mp, further);
      if (call.log_decay) {
        scale_rows(n, s.dp, to_keys, until, to_keys);
        scale_rows(n, s.mp, to_values, until, to_values);
        row_dots(n, s.dp, keys, to_keys, partial, sources);
      }
      multiply<T, true, Shape::upper>(n, s.dp, n, {triangle, 1, CHUNK}, queries, s.dp, to_keys, s.dp);
      multiply<T, true, Shape::upper>(n, s.mp, n, {scores, 1, CHUNK}, grad, s.mp, to_values, s.mp);
    } else {
      multiply<T, false, Shape::upper>(n, s.dp, n, {triangle, 1, CHUNK}, queries, s.dp, to_keys, s.dp);
      multiply<T, false, Shape::upper>(n, s.mp, n, {scores, 1, CHUNK}, grad, s.mp, to_values, s.mp);
    }
  }

  // What reaches dq and dk from later tokens, and the coefficients of what does from earlier ones.
  void flow_gradients(const Row& row, int64_t chunk, int n, BackCarry& carry) {
    const bool competes = call.competition != NO_COMPETITION;
    recall_sums(row, chunk);
    for (int i = n - 1; i >= 0; --i) {
      d_sink[i] = call.allocation ? rho[i] * (T(1) - allocation[i]) / count[i] : T(0);
      d_source[i] = 0;
      if (!competes) continue;
      const double against = odds[i], share = 1 / (1 + against), rest = against > 1 ? 1 - share : against * share;
      const bool free = source[i] >= -T(call.clamp) && source[i] <= T(call.clamp);
      if (free) d_source[i] = T(gamma[i] * rest - share * carry.late) / count[i];
      carry.late = (gamma[i] + carry.late) * rest;
    }
    const double* carried[] = {carry.key_sum, carry.query_sum, carry.key_flow, carry.query_flow};
    for (int i = 0; i < 4; ++i) round_to(s.dp, carried[i], after[i]);

    suffix_flow<T, true>(n, s.dp, q, d_sink, k, key_share, after[2], eps, partial, dk, dots, carry.key_flow);
    for (int i = 0; i < n; ++i) d_outgoing[i] = -dots[i] * key_share[i] / outgoing[i];
    suffix_flow<T, true>(n, s.dp, k, d_source, q, query_share, after[3], eps, partial, dq, dots, carry.query_flow);
    for (int i = 0; i < n; ++i) d_incoming[i] = -(rho[i] + dots[i] * query_share[i]) / incoming[i];
    suffix_flow<T, false>(n, s.dp, q, d_incoming, nullptr, nullptr, after[0], eps, partial, dk, dots, carry.key_sum);
    suffix_flow<T, false>(n, s.dp, k, d_outgoing, nullptr, nullptr, after[1], eps, partial, dq, dots, carry.query_sum);
  }

  // The sums of the flows before a chunk, with ε: those that were kept, or those that the row began with.
  void recall_sums(const Row& row, int64_t chunk) {
    const T* sums = kept_vectors<T>(call, row, chunk);
    const State& past = call.before;
    const double* fields[] = {past.key_sum, past.query_sum, past.key_flow, past.query_flow};
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < s.d; ++j)
        base[i][j] = sums ? sums[i * s.d + j] : fields[i] ? T(fields[i][row.index * s.d + j]) + eps[j] : eps[j];
  }
};

template <class T> int causal_backward(const Call& call) { return !over_rows<CausalBackward<T>>(call); }

}  // namespace flowformer::FF_ISA
