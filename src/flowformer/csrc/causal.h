// The causal form: one pass over a row, chunk after chunk, in three parts.
//
//   flows        the scale a / I and the weight c of each token, from the sums of all tokens before the chunk
//   keyᵀ value   what each half of a chunk adds to it, and then what it is before each half
//   output       scale · (q · (keyᵀ value before the half) + (the half's triangle of q c kᵀ) · v)
//
// Where linear attention forgets, the triangle, what comes before it and what is added to it shrink as decay.h says.
//
// Triangles are of half a chunk where the matrices are small: the half that is left out of a whole one's costs more than to add
// up one matrix more. What is carried, in float64, is added up chunk by chunk.
//
// Threads that share a row take stretches of a few chunks: the flows, and the adding of keyᵀ value, wait for the stretch before,
// and everything else goes on side by side. A stretch stays in the second-level cache from part to part, a single chunk (where a
// thread has the row for itself) mostly in the first. The numbers do not depend on who does what.
#pragma once

#include "carry.h"
#include "decay.h"
#include "narrow.h"

namespace flowformer::FF_ISA {

constexpr int HALF = CHUNK / 2;
constexpr int LONGEST_STRETCH = 8;  // chunks

// w = exp(clamp(Ô)), the running Σ w, p_t = w_t / Σ_{s≤t} w_s and the odds against it. Those of no weight are infinite.
template <class T>
inline void compete(const Call& call, int n, const uint8_t* mask, const T* source, Carry& carry, T* share, T* odds) {
  constexpr int W = Simd<T>::W;
  const T bound = T(call.clamp);
  if (is_bounded(call)) {
    T weight[CHUNK], past[CHUNK], total[CHUNK];
    for (int t = 0; t < n; t += W) {
      Vec<T> x = load(source + t);
      x = x < -bound ? Vec<T>{} - bound : x;
      x = x > bound ? Vec<T>{} + bound : x;
      store(weight + t, exponential<T>(x));
    }
    for (int t = 0; t < n; ++t) {
      if (mask && !mask[t]) weight[t] = 0;
      past[t] = T(carry.total);
      carry.total += weight[t];
      total[t] = T(carry.total);
    }
    for (int t = 0; t < n; ++t) {
      share[t] = total[t] == T(0) ? T(0) : weight[t] / total[t];
      odds[t] = weight[t] == T(0) ? T(__builtin_inf()) : past[t] / weight[t];
    }
    return;
  }
  for (int t = 0; t < n; ++t) {
    share[t] = 0;
    odds[t] = T(__builtin_inf());
    if (mask && !mask[t]) continue;
    double x = source[t];
    x = x < -call.clamp ? -call.clamp : x > call.clamp ? call.clamp : x;
    if (x > carry.shift) {
      const double past = carry.total * __builtin_exp(carry.shift - x);
      carry.total = past + 1;
      carry.shift = x;
      share[t] = T(1 / carry.total);
      odds[t] = T(past);
    } else {
      const double weight = __builtin_exp(x - carry.shift), past = carry.total;
      carry.total += weight;
      share[t] = T(weight / carry.total);
      odds[t] = T(past / weight);
    }
  }
}

// The scale of linear attention: what was given, or one; at masked tokens one.
template <class T> inline void given_scale(const Call& call, const Row& row, int64_t t, int n, T* scale) {
  const T* given = static_cast<const T*>(call.row_scale);
  if (given) given += (row.batch() * call.queries + row.query.start + t) * call.heads + row.head;
  for (int i = 0; i < n; ++i) scale[i] = given && row.query.real(t + i) ? given[i * call.heads] : T(1);
}

// More threads than this would wait for one another: the flows, of which one stretch follows the other, take a quarter of the time.
constexpr int64_t THREADS_PER_ROW = 4;

// Runs a pass over all rows: each by one thread, or, where that would leave threads idle, its stretches by several.
template <class Pass> bool over_rows(const Call& call) {
  using Carried = typename Pass::Carried;
  const int64_t rows = call.batch * call.heads;
  const int64_t threads = call.threads < rows * THREADS_PER_ROW ? call.threads : rows * THREADS_PER_ROW;
  const int64_t most = (rows + threads - 1) / threads;  // of a thread that takes whole rows
  const bool shared = 8 * most * threads > 9 * rows && call.keys > CHUNK;
  Arena counted(nullptr);
  const Pass sizes(call, shared, counted);
  counted.take<double>(sizes.s.sums());
  Team team(threads, counted.used());
  const auto stretches = [&](const Row& row) {
    const int64_t length = sizes.chunks * CHUNK, count = (row.key.trimmed + length - 1) / length;
    return count > 1 ? count : 1;
  };
  if (!shared)
    return parallel_for(team, rows, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      Pass pass(call, false, arena);
      Carried carry;
      carry.place(pass.s, arena.take_unset<double>(pass.s.sums()));
      const Row row(call, task);
      pass.begin(row, carry);
      for (int64_t index = 0, count = stretches(row); index < count; ++index) pass.pass(row, index, carry, {});
      pass.end(row, carry);
    });

  const Carries<typename Pass::Number, Carried> carries(sizes.s, rows);
  const Memory<Row> memory(rows);
  Turns turns(2 * rows);
  if (!carries.whole() || !memory.data() || !turns.whole()) return false;
  int64_t longest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    memory.data()[i] = Row(call, i);
    const int64_t count = stretches(memory.data()[i]);
    longest = count > longest ? count : longest;
  }
  return parallel_for(team, rows * longest, [&](char* scratch, int64_t task) {
    const Row& row = memory.data()[task % rows];
    const int64_t index = task / rows, count = stretches(row);
    if (index >= count) return;
    Arena arena(scratch);
    Pass pass(call, true, arena);
    Carried& carry = carries.data()[row.index];
    if (index == 0) pass.begin(row, carry);
    pass.pass(row, index, carry, {&turns, row.index, index});
    if (index == count - 1) pass.end(row, carry);
  });
}

// A chunk of n tokens on the way of a matrix Σ xᵀ y through its row: the half of it that the way leads through first begins at
// `first`; nothing came before the chunk (empty), something comes after it (followed). It is split where that saves time: where
// the matrix between the halves stays in the first-level cache, and there is one.
struct Halves {
  int n, first;
  bool empty, followed, small;
  bool split() const { return small && !empty && n > HALF; }
};
constexpr int64_t SMALL = 32 << 10;  // bytes

// xᵀ y of the first half in to[1] and of the second in to[2], as far as they are needed; in to[2] that of an undivided chunk.
template <class T>
inline void products_of_halves(const CausalSizes<T>& s, bool narrow, const Halves& chunk, const T* x, const T* y,
                               T* const* to, Ahead* ahead) {
  const auto product = [&](int from, T* sum) {
    const int count = chunk.split() ? (from ? chunk.n - HALF : HALF) : chunk.n;
    multiply_narrow<T, false>(narrow, s.d, s.mp, count, {x + from * s.dp, 1, s.dp}, y + from * s.mp, s.mp, sum, s.mp, ahead);
  };
  if (chunk.split()) product(chunk.first, to[1]);
  if (chunk.followed) product(chunk.split() ? HALF - chunk.first : 0, to[2]);
}

// With states[0] what is carried to the chunk: what is carried to its second half in states[1], and to the next chunk in [2].
// What comes in shrinks by factors[0] in the first half, or an undivided chunk, and by factors[1] in the second.
template <class T>
inline void add_fading_halves(const CausalSizes<T>& s, const Halves& chunk, T* const* states, double* carried,
                              const double* factors) {
  const T* before = states[0];
  T *half = states[1], *after = states[2];
  const int size = s.d * s.mp;
  const double both = factors[0] * factors[1];
  const T first = T(factors[0]), second = T(factors[1]);
  if (!chunk.followed) {
    for (int i = 0; chunk.split() && i < size; ++i) half[i] += first * before[i];
  } else if (chunk.empty) {
    for (int i = 0; i < size; ++i) carried[i] = after[i];
  } else if (!chunk.split()) {
    for (int i = 0; i < size; ++i) after[i] = T(carried[i] = carried[i] * factors[0] + after[i]);
  } else {
    for (int i = 0; i < size; ++i) {
      const T added = half[i] * second + after[i];
      half[i] += first * before[i];
      after[i] = T(carried[i] = carried[i] * both + added);
    }
  }
}

// The same without a decay.
template <class T>
inline void add_halves(const CausalSizes<T>& s, const Halves& chunk, T* const* states, double* carried) {
  const T* before = states[0];
  T *half = states[1], *after = states[2];
  const int size = s.d * s.mp;
  if (!chunk.followed) {
    for (int i = 0; chunk.split() && i < size; ++i) half[i] += before[i];
  } else if (chunk.empty) {
    for (int i = 0; i < size; ++i) carried[i] = after[i];
  } else if (!chunk.split()) {
    fold(size, after, carried, after);
  } else {
    for (int i = 0; i < size; ++i) {
      const T added = half[i] + after[i];
      half[i] += before[i];
      carried[i] += added;
      after[i] = T(carried[i]);
    }
  }
}

template <class T> struct CausalForward {
  using Number = T;
  using Carried = Carry;
  const Call& call;
  const CausalSizes<T> s;
  const int chunks;  // of a stretch
  T *q, *k, *v, *scale, *weight;   // of a stretch
  bool narrow[LONGEST_STRETCH];    // whether the features of a chunk may be rounded
  T *logs, *since, *until;         // its decays, see decay.h
  double factors[2 * LONGEST_STRETCH];  // what is left after each half, or after an undivided chunk
  T *k_columns, *scores, *out, *partial;
  T *key_sum, *query_sum, *key_flow, *query_flow, *eps;
  T* states[2 * LONGEST_STRETCH + 1];  // keyᵀ value before each half; what a half adds, at first
  bool rounded = false;                // states[0] is what is carried
  T count[CHUNK], incoming[CHUNK], outgoing[CHUNK], key_share[CHUNK], query_share[CHUNK], sink[CHUNK], source[CHUNK],
      allocation[CHUNK], share[CHUNK], odds[CHUNK];

  CausalForward(const Call& c, bool shared, Arena& arena) : call(c), s(c), chunks(shared ? stretch(s) : 1) {
    for (T** rows : {&q, &k}) *rows = arena.take_unset<T>(chunks * CHUNK * s.dp);
    v = arena.take_unset<T>(chunks * CHUNK * s.mp);
    for (T** numbers : {&scale, &weight, &logs, &since, &until}) *numbers = arena.take_unset<T>(chunks * CHUNK);
    k_columns = arena.take_unset<T>(CHUNK * s.dp);
    out = arena.take_unset<T>(CHUNK * s.mp);
    scores = arena.take_unset<T>(CHUNK * CHUNK);
    partial = arena.take_unset<T>(CHUNK * Simd<T>::W);
    for (T** vector : {&key_sum, &query_sum, &key_flow, &query_flow, &eps}) *vector = arena.take<T>(s.dp);
    for (int i = 0; i <= 2 * chunks; ++i) states[i] = arena.take_unset<T>(s.matrix);
    for (int j = 0; arena.holds_memory() && j < s.d; ++j) eps[j] = T(call.eps);
  }

  // As many chunks as have some tens of microseconds of work: to take the carry from another core costs one or two.
  static int stretch(const CausalSizes<T>& s) {
    const int64_t wanted = 4 * 64 * 64 / s.matrix;
    return int(wanted < 1 ? 1 : wanted > LONGEST_STRETCH ? LONGEST_STRETCH : wanted);
  }

  void begin(const Row& row, Carry& carry) {
    if (call.after.key_value && (s.whole() || is_token(call, row))) carry.key_value = matrix_of(call.after, row);  // in place
    read_state<T>(call, row, carry);
  }

  void end(const Row& row, Carry& carry) {
    if (row.key.trimmed == 0 && !call.before.key_value)
      for (int64_t i = 0; call.after.key_value && i < s.matrix; ++i) carry.key_value[i] = 0;
    write_padding<T>(call, row);
    write_state<T>(call, row, carry);
  }

  // Stretch `index` of a row.
  void pass(const Row& row, int64_t index, Carry& carry, const Turn& turn) {
    if (is_token(call, row)) return token(row, carry);
    const int64_t from = index * chunks * CHUNK, left = row.key.trimmed - from;
    const int all = int(left < chunks * CHUNK ? left : chunks * CHUNK);
    const auto each_chunk = [&](auto&& part) {
      for (int i = 0; i < all; i += CHUNK) part(from + i, i, all - i < CHUNK ? all - i : CHUNK);
    };
    const bool flows = call.feature_map != IDENTITY;
    read_features<T>(call, call.key, row, row.key, from, all, k);
    read_features<T>(call, call.query, row, row.query, from, all, q);
    if (call.log_decay) each_chunk([&](int64_t t, int i, int n) { find_decays(row, t, i, n); });
    turn.wait(0);
    if (flows)
      each_chunk([&](int64_t t, int i, int n) {
        narrow[i / CHUNK] = conserve(row, t, n, q + i * s.dp, k + i * s.dp, scale + i, weight + i, carry);
      });
    turn.pass(0);
    if (!flows) given_scale(call, row, from, all, scale);
    for (int i = 0; !flows && i < chunks; ++i) narrow[i] = false;
    read_values<T>(call, call.value, row, row.key, from, all, s.m, v, false);
    if (flows && call.competition != NO_COMPETITION) scale_rows(all, s.dp, k, weight, k);  // values stay as exact as they come
    each_chunk([&](int64_t t, int i, int n) {
      Ahead ahead = chunk_ahead(call, call.value, row, row.key, t + CHUNK, s.m);
      const T* keys = k + i * s.dp;
      if (call.log_decay) scale_rows(n, s.dp, keys, until + i, k_columns), keys = k_columns;
      products_of_halves(s, narrow[i / CHUNK] && !call.sums, halves(row, t, n), keys, v + i * s.mp, states + i / HALF, &ahead);
    });
    turn.wait(1);
    if (!rounded && !is_empty(from)) round_to(int(s.matrix), carry.key_value, states[0]);
    each_chunk([&](int64_t t, int i, int n) {
      T* const* chunk_states = states + i / HALF;
      if (call.log_decay)
        add_fading_halves(s, halves(row, t, n), chunk_states, carry.key_value, factors + i / HALF);
      else
        add_halves(s, halves(row, t, n), chunk_states, carry.key_value);
    });
    turn.pass(1);
    each_chunk([&](int64_t t, int i, int n) { output(row, t, i, n); });
    if (turn.alone()) {
      T* const before = states[0];
      states[0] = states[2 * chunks];
      states[2 * chunks] = before;
      rounded = true;
    }
  }

  // A decoding step; in it flows may decay too: all that is carried, before the token is added.
  void token(const Row& row, Carry& carry) {
    read_features<T>(call, call.key, row, row.key, 0, 1, k);
    read_features<T>(call, call.query, row, row.query, 0, 1, q);
    read_values<T>(call, call.value, row, row.key, 0, 1, s.m, v, false);
    double left = 1;
    if (call.log_decay) read_decays<T>(call, row, 0, 1, logs), left = __builtin_exp(double(logs[0]));
    if (flows_decay(call)) carry.fade(s.vectors, double(logs[0]), is_bounded(call));
    if (call.feature_map == IDENTITY)
      given_scale(call, row, 0, 1, scale);
    else
      conserve(row, 0, 1, q, k, scale, weight, carry);
    if (call.feature_map != IDENTITY && call.competition != NO_COMPETITION) scale_rows(1, s.dp, k, weight, k);
    const double* before = call.before.key_value ? matrix_of(call.before, row) : nullptr;
    double* after = matrix_of(call.after, row);
    for (int j = 0; j < s.m; ++j) out[j] = 0;
    for (int i = 0; i < s.d; ++i, after += s.m) {
      const double share = k[i];
      for (int j = 0; j < s.m; ++j) after[j] = (before ? left * before[int64_t(i) * s.m + j] : 0.) + share * v[j];
      for (int j = 0; j < s.m; ++j) out[j] += q[i] * T(after[j]);
    }
    write_output<T>(call, row, 0, 1, out, scale);
  }

  double* matrix_of(const State& state, const Row& row) const { return state.key_value + row.index * s.d * s.m; }
  bool is_empty(int64_t t) const { return t == 0 && !call.before.key_value; }
  Halves halves(const Row& row, int64_t t, int n) const {
    return {n, 0, is_empty(t), t + n < row.key.trimmed || call.after.key_value, s.matrix * int64_t(sizeof(T)) <= SMALL};
  }

  // The decays of the chunk at token t, in place `at` of the stretch.
  void find_decays(const Row& row, int64_t t, int at, int n) {
    read_decays<T>(call, row, t, n, logs + at);
    const int step = halves(row, t, n).split() ? HALF : CHUNK;
    for (int i = at; i < at + n; i += step) {
      const int left = at + n - i;
      factors[i / HALF] = decays_of_block(left < step ? left : step, logs + i, since + i, until + i);
    }
  }

  // The chunk at token t, in place `at` of the stretch.
  void output(const Row& row, int64_t t, int at, int n) {
    const bool rounds = narrow[at / CHUNK];
    T* const* before = states + at / HALF;
    const int step = halves(row, t, n).split() ? HALF : CHUNK;
    for (int i = 0; i < n; i += step) {
      const int rows = n - i < step ? n - i : step;
      const T *x = q + (at + i) * s.dp, *values = v + (at + i) * s.mp;
      T* to = out + i * s.mp;
      // Rows from n on are of an earlier chunk: their columns of the scores are never read.
      transpose(Widths<T>::padded(rows), s.dp, k + (at + i) * s.dp, s.dp, k_columns, CHUNK);
      multiply_narrow_to_lower<T>(rounds, rows, s.d, {x, s.dp, 1}, k_columns, CHUNK, scores, CHUNK);
      if (call.log_decay) fade_triangle(rows, logs + at + i, scores);
      if (is_empty(t)) {
        multiply<T, false, Shape::lower>(rows, s.mp, rows, {scores, CHUNK, 1}, values, s.mp, to, s.mp);
      } else {
        Ahead ahead = chunk_ahead(call, call.out, row, row.query, t + i, s.m, step);
        multiply_narrow<T, false>(rounds, rows, s.mp, s.d, {x, s.dp, 1}, before[i / HALF], s.mp, to, s.mp, &ahead);
        if (call.log_decay) scale_rows(rows, s.mp, to, since + at + i, to);
        multiply<T, true, Shape::lower>(rows, s.mp, rows, {scores, CHUNK, 1}, values, s.mp, to, s.mp);
      }
    }
    write_output<T>(call, row, t, n, out, scale + at);
    if (T* kept = kept_matrix<T>(call, row, t / CHUNK)) save_rows(s.d, s.m, s.mp, before[0], kept);
  }

  // The flows of a chunk: scale = a / I and weight = c. Whether its features may be rounded.
  bool conserve(const Row& row, int64_t t, int n, const T* q, const T* k, T* scale, T* weight, Carry& carry) {
    constexpr int W = Simd<T>::W;
    const uint8_t* mask = row.key.mask_at(t);
    const struct {
      const double* from;
      T* to;
    } vectors[] = {{carry.key_sum, key_sum},
                   {carry.query_sum, query_sum},
                   {carry.key_flow, key_flow},
                   {carry.query_flow, query_flow}};
    T* sums = kept_vectors<T>(call, row, t / CHUNK);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < s.d; ++j) vectors[i].to[j] = T(vectors[i].from[j]) + eps[j];
      if (sums) std::memcpy(sums + i * s.d, vectors[i].to, s.d * sizeof(T));
    }
    for (int i = 0; i < n; ++i) {
      if (!mask || mask[i]) carry.tokens += 1;
      count[i] = carry.tokens > 1 ? T(carry.tokens) : T(1);  // before the first real token nothing is kept
    }
    prefix_flow<T, false>(n, s.dp, q, k, nullptr, key_sum, eps, partial, incoming, carry.key_sum);
    prefix_flow<T, false>(n, s.dp, k, q, nullptr, query_sum, eps, partial, outgoing, carry.query_sum);
    const bool many = are_many(call, n, mask, incoming, carry.key_sum) && are_many(call, n, mask, outgoing, carry.query_sum);
    for (int i = 0; mask && i < n; ++i)
      if (!mask[i]) incoming[i] = outgoing[i] = 1;  // of order ε², and only ever divides zero
    for (int i = 0; i < n; i += W) {
      store(key_share + i, load(count + i) / load(outgoing + i));
      store(query_share + i, load(count + i) / load(incoming + i));
    }
    prefix_flow<T, true>(n, s.dp, q, k, key_share, key_flow, eps, partial, sink, carry.key_flow);
    prefix_flow<T, true>(n, s.dp, k, q, query_share, query_flow, eps, partial, source, carry.query_flow);
    for (int i = 0; i < n; i += W) {
      store(source + i, load(source + i) / load(count + i));
      const Vec<T> a = call.allocation ? sigmoid<T>(load(sink + i) / load(count + i)) : Vec<T>{} + T(1);
      store(allocation + i, a);
      store(scale + i, a / load(incoming + i));
    }
    if (call.competition != NO_COMPETITION) compete(call, n, mask, source, carry, share, odds);
    for (int i = 0; i < n; ++i) weight[i] = call.competition != NO_COMPETITION ? count[i] * share[i] : T(1);
    const struct {
      CausalStat stat;
      const T* from;
    } kept[] = {{INCOMING, incoming}, {OUTGOING, outgoing}, {ALLOCATION, allocation}, {ODDS, odds}, {SOURCE, source}};
    for (const auto& each : kept)
      if (call.query_stats)
        std::memcpy(row.stats<T>(call.query_stats, call, row.query, call.queries, CAUSAL_STATS, each.stat) + t, each.from,
                    n * sizeof(T));
    return many;
  }
};

template <class T> int causal_forward(const Call& call) {
  if (any_grows<T>(call)) return 2;
  return !over_rows<CausalForward<T>>(call);
}

}  // namespace flowformer::FF_ISA
