// What a row carries from token to token: its State on the way through the row, and what is kept of it for the backward.
#pragma once

#include "flows.h"
#include "gemm.h"
#include "rows.h"

namespace flowformer::FF_ISA {

enum Level { SUMS = 1, FLOWS, COMPETITION, KEY_VALUE, OUTPUT };

// The rows of a chunk, or so many, at token t, as far as there are any.
inline Ahead chunk_ahead(const Call& call, const View& view, const Row& row, const Side& side, int64_t t, int width,
                         int rows = CHUNK) {
  const int64_t size = bytes_of_number(call), left = side.trimmed - t;
  return {static_cast<const char*>(view.data) + row.offset(view, side, t) * size, ptrdiff_t(view.token * size),
          int(left < rows ? left : rows), int(width * size)};
}

// With a bound, exp(±bound) times any number of tokens is in range; above it, or without one, a running maximum is kept.
constexpr double LARGEST_EXPONENT = 50;
inline bool is_bounded(const Call& call) { return call.clamp <= LARGEST_EXPONENT; }

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
  // Row `at` of a state; null vectors are zero, a null matrix is left as it is.
  template <class T> void read(const CausalSizes<T>& s, const State& state, int64_t at) {
    read_vectors(s, state, at);
    if (!state.key_value) return;
    if (!s.whole()) std::memset(key_value, 0, size_t(s.matrix) * sizeof(double));
    restore_rows(s.d, s.m, s.mp, state.key_value + at * s.d * s.m, key_value);
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

  // Where flows decay: what is left of all but the matrix.
  void fade(int64_t vectors, double log_decay, bool bounded) {
    const double left = __builtin_exp(log_decay);
    tokens *= left;
    for (int64_t i = 0; i < vectors; ++i) key_sum[i] *= left;  // and the three behind it
    if (bounded)
      total *= left;
    else
      shift += log_decay;
  }
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
inline bool is_token(const Call& call, const Row& row) {
  return row.key.length == 1 && row.key.trimmed == 1 && call.after.key_value;
}

inline bool flows_decay(const Call& call) { return call.log_decay && call.feature_map != IDENTITY; }
inline double tokens_before(const Call& call, const Row& row) {
  const void* tokens = call.before.tokens;
  if (!tokens) return 0;
  return flows_decay(call) ? static_cast<const double*>(tokens)[row.index] : double(static_cast<const int64_t*>(tokens)[row.sequence]);
}

template <class T> inline void read_state(const Call& call, const Row& row, Carry& carry) {
  const State& state = call.before;
  const CausalSizes<T> s(call);
  if (is_token(call, row))
    carry.read_vectors(s, state, row.index);
  else
    carry.read(s, state, row.index);
  const bool bounded = is_bounded(call);
  carry.tokens = tokens_before(call, row);
  const double log_total = state.competition ? state.competition[row.index] : -__builtin_inf();
  carry.shift = bounded ? 0 : log_total;
  carry.total = bounded ? __builtin_exp(log_total) : double(log_total > -__builtin_inf());
}

template <class T> inline void write_state(const Call& call, const Row& row, const Carry& carry) {
  const State& state = call.after;
  carry.write(CausalSizes<T>(call), state, row.index);
  if (state.tokens && flows_decay(call))
    static_cast<double*>(state.tokens)[row.index] = carry.tokens;
  else if (state.tokens && row.head == 0)
    static_cast<int64_t*>(state.tokens)[row.sequence] = int64_t(carry.tokens);
  if (state.competition) state.competition[row.index] = carry.shift + __builtin_log(carry.total);
}

// What the backward needs: five numbers a token (incoming, outgoing, allocation, odds, conserved source), and rounded sums
// before chunks. The odds are those against a token, Σ_{s<t} w_s / w_t: its share p = c / n and 1 - p both follow
// from them, whereas 1 - p of a rounded p is wrong where one token outweighs all before it.
enum CausalStat { INCOMING, OUTGOING, ALLOCATION, ODDS, SOURCE, CAUSAL_STATS };

// How many sums before the chunks of so many tokens are kept, and which of them is a row's first. Those before the first chunk
// are the state that the row began with. Sequences of a pack follow each other: none has more than its tokens fill.
inline int64_t all_kept(const Call& call, bool packed, int64_t tokens) {
  return packed ? call.keys / tokens : call.batch * ((call.keys - 1) / tokens);
}
inline int64_t first_kept(const Call& call, const Row& row, int64_t tokens) {
  return row.packed ? row.key.start / tokens : row.sequence * ((call.keys - 1) / tokens);
}

// The kept sums of the flows before a chunk, four vectors; the first chunk and linear attention have none.
template <class T> inline T* kept_vectors(const Call& call, const Row& row, int64_t chunk) {
  if (!call.sums || chunk == 0 || call.feature_map == IDENTITY) return nullptr;
  return static_cast<T*>(call.sums) + ((first_kept(call, row, CHUNK) + chunk - 1) * call.heads + row.head) * 4 * call.key_width;
}

// The kept keyᵀ value before a chunk that is a multiple of the spacing.
template <class T> inline T* kept_matrix(const Call& call, const Row& row, int64_t chunk) {
  if (!call.sums || chunk == 0 || chunk % call.spacing) return nullptr;
  const int64_t vectors = call.feature_map == IDENTITY ? 0 : all_kept(call, row.packed, CHUNK) * call.heads * 4 * call.key_width;
  const int64_t at = (first_kept(call, row, CHUNK * call.spacing) + chunk / call.spacing - 1) * call.heads + row.head;
  return static_cast<T*>(call.sums) + vectors + at * call.key_width * call.value_width;
}

inline int64_t chunks_of(const Row& row) { return (row.key.trimmed + CHUNK - 1) / CHUNK; }

// The turn of one stretch of a row in its two parts that follow those of the stretch before; alone, it need not wait.
struct Turn {
  Turns* turns = nullptr;
  int64_t row = 0, index = 0;
  bool alone() const { return turns == nullptr; }
  void wait(int part) const {
    if (turns) turns->wait(2 * row + part, index);
  }
  void pass(int part) const {
    if (turns) turns->pass(2 * row + part);
  }
};

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
    if (is_bounded(call)) {
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

}  // namespace flowformer::FF_ISA
