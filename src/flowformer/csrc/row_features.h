// What both directions of the bidirectional form have of a row, and what is kept of it from one to the other.
//
//   features   computed once where those of the longest row fit into a cache (Cache), else again in every pass; of a row that
//              threads share in memory of them all (CutRows); those of linear attention stay where they are
//   stats      a few numbers of each token, which one pass leaves to the next, and the forward to the backward
//   sums       those of the row that the backward starts from: four vectors of flows, and keyᵀ value unless it is of one chunk
#pragma once

#include "causal.h"

namespace flowformer::FF_ISA {

enum QueryStat { SINK_INCOMING, SINK_ALLOCATION, QUERY_STATS };
enum KeyStat { SOURCE_OUTGOING, SOURCE_SHARE, CONSERVED_SOURCE, KEY_STATS };

// Where a row's features fit into this many bytes they are computed once, else again in every pass.
constexpr int64_t CACHED_FEATURES = 8 << 20;

struct Range {
  int64_t first, last;  // tokens
};

// The part of a side that a segment has: whole chunks.
inline Range part_of(const Side& side, int64_t segment, int64_t segments) {
  const int64_t chunks = (side.trimmed + CHUNK - 1) / CHUNK;
  const int64_t last = chunks * (segment + 1) / segments * CHUNK;
  return {chunks * segment / segments * CHUNK, last < side.trimmed ? last : side.trimmed};
}

template <class Task> FF_INLINE void for_chunks(Range range, const Task& task) {
  for (int64_t t = range.first; t < range.last; t += CHUNK)
    task(t, int(range.last - t < CHUNK ? range.last - t : CHUNK));
}

// The levels that a call has: all, or those from where its flows are known or there are none.
inline Level first_level(const Call& call) {
  return call.feature_map == IDENTITY ? KEY_VALUE : call.flows == OVER_HEADS ? COMPETITION : SUMS;
}
inline bool sums_flows(const Call& call) { return first_level(call) == SUMS; }

// Tokens of the longest row of each side, where its features fit and are used again; else none.
struct Cache {
  int64_t queries = 0, keys = 0;

  Cache() = default;
  Cache(const Call& call, int64_t bytes_of_row) {
    queries = longest(call.query_offsets, call.batch, call.queries);
    keys = longest(call.key_offsets, call.batch, call.keys);
    if (!sums_flows(call) || (queries + keys + 2 * CHUNK) * bytes_of_row > CACHED_FEATURES) queries = keys = 0;
  }
  bool none() const { return queries + keys == 0; }
  int64_t rows() const { return none() ? 0 : queries + keys + 2 * CHUNK; }
  static int64_t longest(const int64_t* offsets, int64_t sequences, int64_t tokens) {
    if (!offsets) return tokens;
    int64_t most = 0;
    for (int64_t i = 0; i < sequences; ++i) {
      const int64_t length = offsets[i + 1] - offsets[i];
      most = length > most ? length : most;
    }
    return most;
  }
};

// The keys of a row in one chunk: nothing is summed over chunks.
inline bool has_one_chunk(const Row& row) { return row.key.trimmed > 0 && row.key.trimmed <= CHUNK; }

// Both sides in one chunk, and about L S (d + m) operations in place of (L + S) d m. `turning`: so many operations of a product
// take as long as to turn one number of the keys, which the backward has to do either way.
template <class T> inline bool has_cheap_scores(const CausalSizes<T>& s, const Row& row, int64_t turning = 20) {
  const int64_t queries = row.query.trimmed, keys = row.key.trimmed;
  if (!has_one_chunk(row) || queries == 0 || queries > CHUNK) return false;
  const int64_t columns = Widths<T>::padded(int(keys));
  return queries * (columns * s.dp + keys * s.mp) + turning * keys * s.dp < (queries + keys) * s.matrix;
}

// The kept sums of the flows of a row, four vectors; where flows are no sums over tokens there are none.
template <class T> inline T* row_vectors(const Call& call, const Row& row) {
  return static_cast<T*>(call.sums) + row.index * 4 * call.key_width;
}

// The kept keyᵀ value of a row, or null: that of one chunk is computed again. Of packed sequences that are longer, each has a
// chunk of its own in which it begins.
template <class T> inline T* row_matrix(const Call& call, const Row& row) {
  if (!call.sums || row.key.length <= CHUNK) return nullptr;
  const int64_t vectors = !sums_flows(call) ? 0 : call.batch * call.heads * 4 * call.key_width;
  const int64_t at = (row.packed ? row.key.start / CHUNK : row.sequence) * call.heads + row.head;
  return static_cast<T*>(call.sums) + vectors + at * call.key_width * call.value_width;
}

// What both directions have of a row: its widths, its features, ε.
template <class T> struct RowFeatures {
  const Call& call;
  const CausalSizes<T> s;
  T *eps, *partial, *buffer, *cached[2] = {nullptr, nullptr};

  RowFeatures(const Call& c, Arena& arena, const Cache& cache) : call(c), s(c) {
    eps = arena.take_unset<T>(s.dp);
    for (int j = 0; arena.holds_memory() && j < s.dp; ++j) eps[j] = j < s.d ? T(call.eps) : T(0);
    partial = arena.take_unset<T>(CHUNK * Simd<T>::W);
    buffer = arena.take_unset<T>(CHUNK * s.dp);
    if (!cache.none()) keep_in(cache, arena.take_unset<T>(cache.rows() * s.dp));
  }

  void keep_in(const Cache& cache, T* memory) {
    cached[0] = memory;
    cached[1] = memory + (cache.queries + CHUNK) * s.dp;
  }

  // Of queries (side 0) or keys (1); `fresh` when this row's are asked for the first time.
  T* features(const Row& row, int side, int64_t t, int n, bool fresh) {
    T* to = cached[side] ? cached[side] + t * s.dp : buffer;
    if (fresh || !cached[side])
      read_features<T>(call, side ? call.key : call.query, row, side ? row.key : row.query, t, n, to);
    return to;
  }

  T* query_stat(const Row& row, QueryStat stat) const {
    return row.stats<T>(call.query_stats, call, row.query, call.queries, QUERY_STATS, stat);
  }
  T* key_stat(const Row& row, KeyStat stat) const {
    return row.stats<T>(call.key_stats, call, row.key, call.keys, KEY_STATS, stat);
  }

  // Queries or keys as the left factor of a product: those of linear attention from where they are, without a copy.
  Left<T> left(const Row& row, int side, int64_t t, int n) {
    const View& view = side ? call.key : call.query;
    const Side& tokens = side ? row.key : row.query;
    if (is_in_place(tokens)) return {static_cast<const T*>(view.data) + row.offset(view, tokens, t), view.token, 1};
    return {features(row, side, t, n, false), s.dp, 1};
  }
  bool is_in_place(const Side& tokens) const {
    return call.feature_map == IDENTITY && !tokens.mask && tokens.length > CHUNK && bytes_of_number(call) == sizeof(T);
  }
  // The next chunk of them, where none of its rows was read before.
  Ahead left_ahead(const Row& row, int side, int64_t t) const {
    const Side& tokens = side ? row.key : row.query;
    const int64_t next = is_in_place(tokens) ? t + CHUNK : tokens.trimmed;
    return chunk_ahead(call, side ? call.key : call.query, row, tokens, next, s.d);
  }

  // a / I, or what was given.
  void find_scale(const Row& row, int64_t t, int n, T* scale) const {
    if (call.feature_map == IDENTITY) return given_scale(call, row, t, n, scale);
    const T *incoming = query_stat(row, SINK_INCOMING) + t, *allocation = query_stat(row, SINK_ALLOCATION) + t;
    for (int i = 0; i < n; ++i) scale[i] = allocation[i] / incoming[i];
  }

  // What a source weighs whose share of the softmax is 1, or of which there is none.
  T weight_of_share(const Row& row) const {
    const double sources = double(row.key.tokens > 1 ? row.key.tokens : 1);
    return T((call.competition == NO_COMPETITION ? 1 : sources) / (call.normalize ? sources : 1));
  }

  void with_eps(const double* from, T* to) const {
    for (int j = 0; j < s.dp; ++j) to[j] = T(from[j]) + eps[j];
  }
};

// The features of rows that are cut, in memory of all threads. A segment computes those of its own tokens, and asks for no others.
template <class T> class CutRows {
 public:
  CutRows(const CausalSizes<T>& sizes, const Cache& cache, int64_t rows)
      : cache_(cache), of_row_(cache.rows() * sizes.dp), memory_(rows * of_row_) {}
  void give(const Row& row, RowFeatures<T>& to) const {
    if (memory_.data()) to.keep_in(cache_, memory_.data() + row.index * of_row_);
  }

 private:
  const Cache& cache_;
  const int64_t of_row_;
  const Room<T> memory_;
};

}  // namespace flowformer::FF_ISA
