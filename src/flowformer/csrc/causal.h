// The causal form: one pass over the chunks of a row, forwards; one, backwards, for the gradients.
//
// A row that several threads share is cut into segments. The carried fields depend on one another in four levels (sums,
// flows, competition, keyᵀ value), so a pass that stops at a level tells what each segment adds to that field; once those are
// summed up over the segments, all start from their true state. The last level writes the output.
#pragma once

#include "flows.h"
#include "gemm.h"
#include "rows.h"

namespace flowformer::FF_ISA {

enum Level { SUMS = 1, FLOWS, COMPETITION, KEY_VALUE, OUTPUT };

// The rows of a chunk at token t, as far as there are any.
inline Ahead chunk_ahead(const Call& call, const View& view, const Row& row, const Side& side, int64_t t, int width) {
  const int64_t size = bytes_of_number(call), left = side.trimmed - t;
  return {static_cast<const char*>(view.data) + row.offset(view, side, t) * size, ptrdiff_t(view.token * size),
          int(left < CHUNK ? left : CHUNK), int(width * size)};
}

// With a bound, exp(±bound) times any number of tokens is in range; above it, or without one, a running maximum is kept.
constexpr double LARGEST_EXPONENT = 50;

template <class T> struct CausalSizes : Widths<T> {
  int64_t vectors, matrix;  // numbers of Sums
  explicit CausalSizes(const Call& call)
      : Widths<T>(call), vectors(4 * this->dp), matrix(int64_t(this->dp) * this->mp) {}
  int64_t sums() const { return vectors + matrix; }
  bool whole() const { return this->d == this->dp && this->m == this->mp; }  // nothing is padded
};

// The sums of a State, or their gradients, on their way through a row: one piece of memory, widths padded.
struct Sums {
  double *key_sum, *query_sum, *key_flow, *query_flow, *key_value;

  template <class T> void place(const CausalSizes<T>& sizes, double* memory) {
    for (double** field : {&key_sum, &query_sum, &key_flow, &query_flow, &key_value}) {
      *field = memory;
      memory += sizes.dp;
    }
  }
  template <class T> void clear(const CausalSizes<T>& sizes) {
    std::memset(key_sum, 0, size_t(sizes.sums()) * sizeof(double));
  }
  template <class T> void copy(const CausalSizes<T>& sizes, const Sums& from) {
    std::memcpy(key_sum, from.key_sum, size_t(sizes.sums()) * sizeof(double));
  }
  // Row `at` of a state; null fields are zero.
  template <class T> void read(const CausalSizes<T>& s, const State& state, int64_t at) {
    read_vectors(s, state, at);
    if (!state.key_value || !s.whole()) std::memset(key_value, 0, size_t(s.matrix) * sizeof(double));
    if (state.key_value) restore_rows(s.d, s.m, s.mp, state.key_value + at * s.d * s.m, key_value);
  }
  template <class T> void read_vectors(const CausalSizes<T>& s, const State& state, int64_t at) {
    std::memset(key_sum, 0, size_t(s.vectors) * sizeof(double));
    const double* from[] = {state.key_sum, state.query_sum, state.key_flow, state.query_flow};
    double* to[] = {key_sum, query_sum, key_flow, query_flow};
    for (int i = 0; i < 4; ++i)
      if (from[i]) std::memcpy(to[i], from[i] + at * s.d, s.d * sizeof(double));
  }
  template <class T> void write(const CausalSizes<T>& s, const State& state, int64_t at) const {
    double* to[] = {state.key_sum, state.query_sum, state.key_flow, state.query_flow};
    const double* from[] = {key_sum, query_sum, key_flow, query_flow};
    for (int i = 0; i < 4; ++i)
      if (to[i]) std::memcpy(to[i] + at * s.d, from[i], s.d * sizeof(double));
    double* matrix = state.key_value ? state.key_value + at * s.d * s.m : nullptr;
    if (matrix && matrix != key_value) save_rows(s.d, s.m, s.mp, key_value, matrix);
  }
};

// log Σ exp Ô = shift + log(total).
struct Carry : Sums {
  double tokens, shift, total;
};

// Many carries, side by side.
template <class T, class C> class Carries {
 public:
  Carries(const CausalSizes<T>& sizes, int64_t count) : memory_(count * sizes.sums()), carries_(count) {
    for (int64_t i = 0; whole() && i < count; ++i) carries_.data()[i].place(sizes, memory_.data() + i * sizes.sums());
  }
  bool whole() const { return memory_.data() && carries_.data(); }
  C* data() const { return carries_.data(); }

 private:
  Memory<double> memory_;
  Memory<C> carries_;
};

// A decoding step: the matrix of the state is read, used and written in one pass, from where it is to where it goes.
template <class T> inline bool is_token(const Call& call, const CausalSizes<T>& s, const Row& row) {
  return row.key.length == 1 && row.key.trimmed == 1 && call.after.key_value && !call.sums && s.whole();
}

template <class T> inline void read_state(const Call& call, const Row& row, Carry& carry) {
  const State& state = call.before;
  const CausalSizes<T> s(call);
  if (is_token(call, s, row))
    carry.read_vectors(s, state, row.index);
  else
    carry.read(s, state, row.index);
  const bool bounded = call.clamp <= LARGEST_EXPONENT;
  carry.tokens = state.tokens ? double(state.tokens[row.sequence]) : 0;
  const double log_total = state.competition ? state.competition[row.index] : -__builtin_inf();
  carry.shift = bounded ? 0 : log_total;
  carry.total = bounded ? __builtin_exp(log_total) : double(log_total > -__builtin_inf());
}

template <class T> inline void write_state(const Call& call, const Row& row, const Carry& carry) {
  const State& state = call.after;
  carry.write(CausalSizes<T>(call), state, row.index);
  if (state.tokens && row.head == 0) state.tokens[row.sequence] = int64_t(carry.tokens);
  if (state.competition) state.competition[row.index] = carry.shift + __builtin_log(carry.total);
}

// What the backward needs: five numbers a token (incoming, outgoing, allocation, odds, conserved source), and rounded sums
// before chunks. The odds are those against a token, Σ_{s<t} w_s / w_t: its share p = c / n and 1 - p both follow
// from them, whereas 1 - p of a rounded p is wrong where one token outweighs all before it.
enum CausalStat { INCOMING, OUTGOING, ALLOCATION, ODDS, SOURCE, CAUSAL_STATS };

// Which of what is kept is a row's first. Sequences of a pack follow each other: at most one chunk (or `tokens`) each more than
// their tokens fill.
inline int64_t first_kept(const Call& call, const Row& row, int64_t tokens) {
  return row.packed ? row.key.start / tokens + row.sequence : row.sequence * ((call.keys + tokens - 1) / tokens);
}
inline int64_t all_kept(const Call& call, bool packed, int64_t tokens) {
  return packed ? call.keys / tokens + call.batch : call.batch * ((call.keys + tokens - 1) / tokens);
}

// The kept sums of the flows before a chunk, four vectors; linear attention has none.
template <class T> inline T* kept_vectors(const Call& call, const Row& row, int64_t chunk) {
  if (!call.sums || call.feature_map == IDENTITY) return nullptr;
  return static_cast<T*>(call.sums) + ((first_kept(call, row, CHUNK) + chunk) * call.heads + row.head) * 4 * call.key_width;
}

// The kept keyᵀ value before a chunk that is a multiple of the spacing.
template <class T> inline T* kept_matrix(const Call& call, const Row& row, int64_t chunk) {
  if (!call.sums || chunk % call.spacing) return nullptr;
  const int64_t vectors = call.feature_map == IDENTITY ? 0 : all_kept(call, row.packed, CHUNK) * call.heads * 4 * call.key_width;
  const int64_t at = (first_kept(call, row, CHUNK * call.spacing) + chunk / call.spacing) * call.heads + row.head;
  return static_cast<T*>(call.sums) + vectors + at * call.key_width * call.value_width;
}

// w = exp(clamp(Ô)), the running Σ w, p_t = w_t / Σ_{s≤t} w_s and the odds against it. Those of no weight are infinite.
template <class T>
inline void compete(const Call& call, int n, const uint8_t* mask, const T* source, Carry& carry, T* share, T* odds) {
  constexpr int W = Simd<T>::W;
  const T bound = T(call.clamp);
  if (call.clamp <= LARGEST_EXPONENT) {
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

template <class T> struct CausalForward {
  const Call& call;
  const CausalSizes<T> s;
  T *q, *k, *k_columns, *u, *scores, *out, *partial;
  T *key_sum, *query_sum, *key_flow, *query_flow, *key_value, *inside, *eps;
  bool empty;  // key_value is zero: there is no past
  T count[CHUNK], incoming[CHUNK], outgoing[CHUNK], key_share[CHUNK], query_share[CHUNK], sink[CHUNK], source[CHUNK],
      allocation[CHUNK], share[CHUNK], odds[CHUNK], weight[CHUNK], scale[CHUNK];

  CausalForward(const Call& c, Arena& arena) : call(c), s(c) {
    for (T** rows : {&q, &k, &k_columns}) *rows = arena.take_unset<T>(CHUNK * s.dp);
    for (T** rows : {&u, &out}) *rows = arena.take_unset<T>(CHUNK * s.mp);
    scores = arena.take_unset<T>(CHUNK * CHUNK);
    partial = arena.take_unset<T>(CHUNK * Simd<T>::W);
    for (T** vector : {&key_sum, &query_sum, &key_flow, &query_flow, &eps}) *vector = arena.take<T>(s.dp);
    for (T** matrix : {&key_value, &inside}) *matrix = arena.take_unset<T>(s.matrix);
  }

  // From chunk `first` to before `last`, up to a level; see the head of this file.
  void pass(const Row& row, int64_t first, int64_t last, Level level, Carry& carry) {
    for (int j = 0; j < s.d; ++j) eps[j] = T(call.eps);
    round_to(int(s.matrix), carry.key_value, key_value);
    empty = first == 0 && !call.before.key_value;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t t = chunk * CHUNK;
      const int n = int(row.key.trimmed - t < CHUNK ? row.key.trimmed - t : CHUNK);
      step(row, chunk, t, n, level, carry);
      if (level < KEY_VALUE || (level == OUTPUT && chunk + 1 == last && !call.after.key_value)) continue;
      Ahead ahead = chunk_ahead(call, call.value, row, row.key, t + CHUNK, s.m);
      multiply<T, false>(s.d, s.mp, n, {k, 1, s.dp}, u, s.mp, inside, s.mp, &ahead);
      fold(s.d * s.mp, inside, carry.key_value, chunk + 1 < last ? key_value : nullptr);
      empty = false;
    }
  }

  void token(const Row& row, Carry& carry) {
    for (int j = 0; j < s.d; ++j) eps[j] = T(call.eps);
    read_features<T>(call, call.key, row, row.key, 0, 1, k);
    read_features<T>(call, call.query, row, row.query, 0, 1, q);
    weigh(row, 0, 1, OUTPUT, carry, nullptr);
    const double* before = call.before.key_value ? call.before.key_value + row.index * s.matrix : nullptr;
    double* after = call.after.key_value + row.index * s.matrix;
    for (int j = 0; j < s.m; ++j) out[j] = 0;
    for (int i = 0; i < s.d; ++i, after += s.m) {
      const double share = k[i];
      for (int j = 0; j < s.m; ++j) after[j] = (before ? before[int64_t(i) * s.m + j] : 0.) + share * u[j];
      for (int j = 0; j < s.m; ++j) out[j] += q[i] * T(after[j]);
    }
    write_output<T>(call, row, 0, 1, out, scale);
  }

  void step(const Row& row, int64_t chunk, int64_t t, int n, Level level, Carry& carry) {
    const bool flows = call.feature_map != IDENTITY;
    read_features<T>(call, call.key, row, row.key, t, n, k);
    if (level == OUTPUT || flows) read_features<T>(call, call.query, row, row.query, t, n, q);
    if (!weigh(row, t, n, level, carry, level == OUTPUT ? kept_vectors<T>(call, row, chunk) : nullptr)) return;
    if (level == OUTPUT) {
      // Rows n … are of an earlier chunk: their columns of the scores are never read.
      transpose(Widths<T>::padded(n), s.dp, k, s.dp, k_columns, CHUNK);
      multiply_to_lower<T>(n, s.d, {q, s.dp, 1}, k_columns, CHUNK, scores, CHUNK);
      if (empty) {
        multiply<T, false, Shape::lower>(n, s.mp, n, {scores, CHUNK, 1}, u, s.mp, out, s.mp);
      } else {
        Ahead ahead = chunk_ahead(call, call.out, row, row.query, t, s.m);
        multiply<T, false>(n, s.mp, s.d, {q, s.dp, 1}, key_value, s.mp, out, s.mp, &ahead);
        multiply<T, true, Shape::lower>(n, s.mp, n, {scores, CHUNK, 1}, u, s.mp, out, s.mp);
      }
      write_output<T>(call, row, t, n, out, scale);
      if (T* kept = kept_matrix<T>(call, row, chunk)) save_rows(s.d, s.m, s.mp, key_value, kept);
    }
  }

  // scale = a / I, or what was given, and u = c v. False when the level is reached.
  bool weigh(const Row& row, int64_t t, int n, Level level, Carry& carry, T* sums) {
    const bool flows = call.feature_map != IDENTITY;
    if (flows && !conserve(row, t, n, level, carry, sums)) return false;
    if (!flows) {
      const T* given = static_cast<const T*>(call.row_scale);
      if (given) given += (row.batch() * call.queries + row.query.start + t) * call.heads + row.head;
      for (int i = 0; i < n; ++i) scale[i] = given ? given[i * call.heads] : T(1);
    }
    read_values<T>(call, call.value, row, row.key, t, n, s.m, u, false);
    if (flows && call.competition != NO_COMPETITION) scale_rows(n, s.mp, u, weight, u);
    return true;
  }

  // The flows of a chunk: scale and weight = c. False when the level is reached.
  bool conserve(const Row& row, int64_t t, int n, Level level, Carry& carry, T* sums) {
    constexpr int W = Simd<T>::W;
    const uint8_t* mask = row.key.mask_at(t);
    const struct {
      const double* from;
      T* to;
    } vectors[] = {{carry.key_sum, key_sum},
                   {carry.query_sum, query_sum},
                   {carry.key_flow, key_flow},
                   {carry.query_flow, query_flow}};
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
    if (level == SUMS) return false;
    for (int i = 0; mask && i < n; ++i)
      if (!mask[i]) incoming[i] = outgoing[i] = 1;  // of order ε², and only ever divides zero
    for (int i = 0; i < n; i += W) {
      store(key_share + i, load(count + i) / load(outgoing + i));
      store(query_share + i, load(count + i) / load(incoming + i));
    }
    prefix_flow<T, true>(n, s.dp, q, k, key_share, key_flow, eps, partial, sink, carry.key_flow);
    prefix_flow<T, true>(n, s.dp, k, q, query_share, query_flow, eps, partial, source, carry.query_flow);
    if (level == FLOWS) return false;
    for (int i = 0; i < n; i += W) {
      store(source + i, load(source + i) / load(count + i));
      const Vec<T> a = call.allocation ? sigmoid<T>(load(sink + i) / load(count + i)) : Vec<T>{} + T(1);
      store(allocation + i, a);
      store(scale + i, a / load(incoming + i));
    }
    if (call.competition != NO_COMPETITION) compete(call, n, mask, source, carry, share, odds);
    if (level == COMPETITION) return false;
    for (int i = 0; i < n; ++i) weight[i] = call.competition != NO_COMPETITION ? count[i] * share[i] : T(1);
    const struct {
      CausalStat stat;
      const T* from;
    } kept[] = {{INCOMING, incoming}, {OUTGOING, outgoing}, {ALLOCATION, allocation}, {ODDS, odds}, {SOURCE, source}};
    if (level == OUTPUT && call.query_stats)
      for (const auto& each : kept)
        std::memcpy(row.stats<T>(call.query_stats, call, row.query, call.queries, CAUSAL_STATS, each.stat) + t, each.from,
                    n * sizeof(T));
    return true;
  }
};

inline int64_t chunks_of(const Row& row) { return (row.key.trimmed + CHUNK - 1) / CHUNK; }

// Adds what a segment contributed to the field of a level.
template <class T>
inline void add_segment(const Call& call, Level level, const Carry& added, const Carry start, Carry& next) {
  const CausalSizes<T> s(call);
  const auto add = [](int64_t count, const double* a, const double* b, double* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = a[i] + b[i];
  };
  if (level == SUMS) {
    next.tokens = start.tokens + added.tokens;
    add(s.dp, start.key_sum, added.key_sum, next.key_sum);
    add(s.dp, start.query_sum, added.query_sum, next.query_sum);
  } else if (level == FLOWS) {
    add(s.dp, start.key_flow, added.key_flow, next.key_flow);
    add(s.dp, start.query_flow, added.query_flow, next.query_flow);
  } else if (level == COMPETITION) {
    if (call.clamp <= LARGEST_EXPONENT) {
      next.total = start.total + added.total;
    } else {
      next.shift = start.shift > added.shift ? start.shift : added.shift;
      const auto scaled = [&](const Carry& c) {
        return c.total == 0 ? 0. : c.total * __builtin_exp(c.shift - next.shift);
      };
      next.total = scaled(start) + scaled(added);
    }
  } else {
    add(s.matrix, start.key_value, added.key_value, next.key_value);
  }
}

// The start of a segment with the field of a level, and those above it, empty.
template <class T>
inline void copy_below(const Call& call, Level level, const Carry& start, Carry& work) {
  const CausalSizes<T> s(call);
  work.copy(s, start);
  work.tokens = start.tokens;
  work.shift = start.shift;
  work.total = start.total;
  if (level <= SUMS) {
    work.tokens = 0;
    std::memset(work.key_sum, 0, 2 * s.dp * sizeof(double));
  }
  if (level <= FLOWS) std::memset(work.key_flow, 0, 2 * s.dp * sizeof(double));
  if (level <= COMPETITION) {
    work.total = 0;
    work.shift = call.clamp <= LARGEST_EXPONENT ? 0 : -__builtin_inf();
  }
  if (level <= KEY_VALUE) std::memset(work.key_value, 0, size_t(s.matrix) * sizeof(double));
}

// One pass does all the work of a row; segments repeat most of it, and pay from about three threads a row on.
inline int64_t segments_of(const Call& call, int64_t chunks) {
  const int64_t share = call.threads / (call.batch * call.heads);
  if (share < 3) return 1;
  return share < chunks ? share : chunks;
}

template <class T> int causal_forward(const Call& call) {
  const CausalSizes<T> s(call);
  const int64_t rows = call.batch * call.heads;
  Arena counted(nullptr);
  CausalForward<T>(call, counted);
  counted.take<double>(s.sums());
  Team team(call.threads, counted.used());
  const auto chunk_at = [](int64_t chunks, int64_t segment, int64_t segments) { return chunks * segment / segments; };

  const int64_t segments = segments_of(call, (call.keys + CHUNK - 1) / CHUNK);
  if (segments == 1) {
    return !parallel_for(team, rows, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      CausalForward<T> forward(call, arena);
      Carry carry;
      carry.place(s, arena.take_unset<double>(s.sums()));
      const Row row(call, task);
      if (call.after.key_value && s.whole()) carry.key_value = call.after.key_value + row.index * s.matrix;  // in place
      read_state<T>(call, row, carry);
      if (is_token(call, s, row))
        forward.token(row, carry);
      else
        forward.pass(row, 0, chunks_of(row), OUTPUT, carry);
      write_padding<T>(call, row);
      write_state<T>(call, row, carry);
    });
  }

  // starts[row][segment], and one more for the end; added likewise.
  const int64_t carries = rows * (segments + 1);
  const Carries<T, Carry> memory(s, 2 * carries);
  if (!memory.whole()) return 1;
  Carry *starts = memory.data(), *added = starts + carries;
  for (int64_t i = 0; i < rows; ++i) read_state<T>(call, Row(call, i), starts[i * (segments + 1)]);
  bool done = true;
  for (int level = call.feature_map == IDENTITY ? KEY_VALUE : SUMS; done && level <= OUTPUT; ++level) {
    if (level == COMPETITION && call.competition == NO_COMPETITION) continue;
    done = parallel_for(team, rows * segments, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      CausalForward<T> forward(call, arena);
      const Row row(call, task / segments);
      const int64_t segment = task % segments, chunks = chunks_of(row);
      const int64_t at = row.index * (segments + 1) + segment;
      Carry& work = added[at];
      copy_below<T>(call, Level(level), starts[at], work);
      forward.pass(row, chunk_at(chunks, segment, segments), chunk_at(chunks, segment + 1, segments), Level(level), work);
      if (level == OUTPUT && segment == 0) write_padding<T>(call, row);
      if (level == OUTPUT && segment == segments - 1) write_state<T>(call, row, work);
    });
    for (int64_t i = 0; level < OUTPUT && i < rows; ++i)
      for (int64_t j = i * (segments + 1), end = j + segments; j < end; ++j)
        add_segment<T>(call, Level(level), added[j], starts[j], starts[j + 1]);
  }
  return !done;
}

}  // namespace flowformer::FF_ISA
