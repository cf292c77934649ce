// The bidirectional form: five levels, each a pass over the tokens that needs the totals of the levels below. Linear attention
// is the last two of them, with scales that were given; Mobile-Attention (mobile.h) the last three, with flows that are known.
//
// A row that several threads share is cut into segments, whose partial totals are added up between the levels. Where the keys
// of a row are one chunk, their keyᵀ value is the product itself, and is not summed up in float64; where queries and keys are
// one chunk each and it is cheaper, (query keyᵀ) value takes the place of query (keyᵀ value).
#pragma once

#include "row_features.h"

namespace flowformer::FF_ISA {

// A product of so many tokens is summed up in the dtype of the arithmetic, and only then added to the float64 sum of the row: its
// matrix takes twice the memory, and would drive all else out of the first-level cache.
constexpr int64_t FOLDED = 4 * CHUNK;

// sum += Σ_t x_tᵀ y_t of the n tokens from t on, by way of `inside`, where the product of some chunks is.
template <class T>
inline void sum_chunks(const CausalSizes<T>& s, bool narrow, Range range, int64_t t, int n, Left<T> x, const T* y, T* inside,
                       double* sum, Ahead* ahead) {
  if ((t - range.first) % FOLDED)
    multiply_narrow<T, true>(narrow, s.d, s.mp, n, x, y, s.mp, inside, s.mp, ahead);
  else
    multiply_narrow<T, false>(narrow, s.d, s.mp, n, x, y, s.mp, inside, s.mp, ahead);
  if (t + n == range.last || (t + n - range.first) % FOLDED == 0) fold<T>(int(s.matrix), inside, sum, nullptr);
}

template <class T> inline void clear(const CausalSizes<T>& s, const Call& call, Carry& carry, bool vectors_alone = false) {
  std::memset(carry.key_sum, 0, size_t(vectors_alone ? s.vectors : s.sums()) * sizeof(double));
  carry.tokens = carry.total = 0;
  carry.shift = is_bounded(call) ? 0 : -__builtin_inf();
}

template <class T> struct BidirectionalForward : RowFeatures<T> {
  using RowFeatures<T>::call;
  using RowFeatures<T>::s;
  using RowFeatures<T>::eps;
  using RowFeatures<T>::partial;
  T *key_sum, *query_sum, *key_flow, *query_flow, *key_value, *inside, *v, *out, *k_columns, *scores;
  T dots[CHUNK], weight[CHUNK];
  bool alone = false;  // the keys are one chunk, and one pass follows the other in this memory
  bool narrow_keys;    // the features of that chunk may be rounded

  BidirectionalForward(const Call& c, Arena& arena, const Cache& cache) : RowFeatures<T>(c, arena, cache) {
    for (T** vector : {&key_sum, &query_sum, &key_flow, &query_flow}) *vector = arena.take_unset<T>(s.dp);
    for (T** matrix : {&key_value, &inside}) *matrix = take_matrix<T>(arena, s);
    for (T** rows : {&v, &out}) *rows = arena.take_unset<T>(CHUNK * s.mp);
    k_columns = arena.take_unset<T>(CHUNK * s.dp);
    scores = arena.take_unset<T>(CHUNK * CHUNK);
  }

  // What the tokens of these ranges add to the field of a level. One object may be both, the totals and the added.
  void pass(const Row& row, Range queries, Range keys, Level level, const Carry& totals, Carry& added) {
    const bool fresh = level == SUMS;
    if (level == SUMS) {
      if (alone) fetch_rows(chunk_ahead(call, call.value, row, row.key, 0, s.m));
      for_chunks(queries, [&](int64_t t, int n) {
        weighted_sum<T>(n, s.dp, this->features(row, 0, t, n, fresh), nullptr, nullptr, added.query_sum);
      });
      for_chunks(keys, [&](int64_t t, int n) {
        weighted_sum<T>(n, s.dp, this->features(row, 1, t, n, fresh), nullptr, nullptr, added.key_sum);
      });
    } else if (level == FLOWS) {
      this->with_eps(totals.key_sum, key_sum);
      this->with_eps(totals.query_sum, query_sum);
      for_chunks(queries, [&](int64_t t, int n) {
        const T* q = this->features(row, 0, t, n, fresh);
        flow(row.query, t, n, q, key_sum, this->query_stat(row, SINK_INCOMING) + t);
        weighted_sum<T>(n, s.dp, q, weight, nullptr, added.query_flow);
      });
      for_chunks(keys, [&](int64_t t, int n) {
        const T* k = this->features(row, 1, t, n, fresh);
        flow(row.key, t, n, k, query_sum, this->key_stat(row, SOURCE_OUTGOING) + t);
        weighted_sum<T>(n, s.dp, k, weight, nullptr, added.key_flow);
      });
    } else if (level == COMPETITION) {
      if (alone) fetch_rows(chunk_ahead(call, call.out, row, row.query, 0, s.m));
      this->with_eps(totals.key_flow, key_flow);
      this->with_eps(totals.query_flow, query_flow);
      if (sums_flows(call)) for_chunks(queries, [&](int64_t t, int n) { allocate(row, t, n); });
      for_chunks(keys, [&](int64_t t, int n) { conserve_source(row, t, n, added); });
    } else if (level == KEY_VALUE) {
      if (!has_cheap_scores(s, row))
        for_chunks(keys, [&](int64_t t, int n) { add_key_value(row, keys, t, n, totals, added); });
    } else {
      if (has_cheap_scores(s, row))
        for_chunks(keys, [&](int64_t t, int n) { turn_keys(row, t, n, totals); });
      else if (!alone)
        round_to(int(s.matrix), totals.key_value, key_value);
      for_chunks(queries, [&](int64_t t, int n) { write(row, t, n, totals); });
    }
  }

  // Rows that no earlier chunk has asked for.
  static void fetch_rows(Ahead ahead) {
    while (ahead.rows > 0) ahead.fetch();
  }

  // I or O, kept, and its inverse in `weight`.
  void flow(const Side& side, int64_t t, int n, const T* x, const T* base, T* stat) {
    constexpr int W = Simd<T>::W;
    flow_dots(n, s.dp, x, base, eps, partial, dots);
    for (int i = 0; side.mask && i < n; ++i)
      if (!side.real(t + i)) dots[i] = 1;  // of order ε², and only ever divides zero
    std::memcpy(stat, dots, n * sizeof(T));
    for (int i = 0; i < n; i += W) store(weight + i, T(1) / load(dots + i));
  }

  void allocate(const Row& row, int64_t t, int n) {
    constexpr int W = Simd<T>::W;
    T* stat = this->query_stat(row, SINK_ALLOCATION) + t;
    if (!call.allocation) {
      for (int i = 0; i < n; ++i) stat[i] = 1;
      return;
    }
    flow_dots(n, s.dp, this->features(row, 0, t, n, false), key_flow, eps, partial, dots);
    const T ratio = sinks_to_sources(row);
    for (int i = 0; i < n; i += W) store(dots + i, sigmoid<T>(load(dots + i) * ratio));
    std::memcpy(stat, dots, n * sizeof(T));
  }

  static T sinks_to_sources(const Row& row) {
    const double sources = double(row.key.tokens);
    return T(double(row.query.tokens) / (sources > 1 ? sources : 1));
  }

  T clamped(T x) const {
    const T bound = T(call.clamp);
    return x < -bound ? -bound : x > bound ? bound : x;
  }

  void conserve_source(const Row& row, int64_t t, int n, Carry& added) {
    if (call.competition == NO_COMPETITION) return;
    T* source = this->key_stat(row, CONSERVED_SOURCE) + t;
    if (sums_flows(call)) {
      flow_dots(n, s.dp, this->features(row, 1, t, n, false), query_flow, eps, partial, dots);
      std::memcpy(source, dots, n * sizeof(T));
    } else {
      std::memcpy(dots, source, n * sizeof(T));
    }
    double highest = added.shift;
    const bool bounded = is_bounded(call);
    for (int i = 0; !bounded && i < n; ++i)
      if (row.key.real(t + i) && clamped(dots[i]) > highest) highest = clamped(dots[i]);
    if (highest > added.shift) {
      added.total *= __builtin_exp(added.shift - highest);
      added.shift = highest;
    }
    exponentials(n, added.shift, dots, weight);
    for (int i = 0; i < n; ++i)
      if (row.key.real(t + i)) added.total += weight[i];
  }

  // exp(clamp(x) - shift)
  void exponentials(int n, double shift, const T* x, T* to) const {
    constexpr int W = Simd<T>::W;
    T logits[CHUNK];
    for (int i = 0; i < n; ++i) logits[i] = clamped(x[i]) - (shift > -__builtin_inf() ? T(shift) : T(0));
    for (int i = 0; i < n; i += W) store(to + i, exponential<T>(load(logits + i)));
  }

  // k = c k, for the last time that these features are asked for, and v; no weights in linear attention. Whether they may be
  // rounded.
  bool weigh(const Row& row, int64_t t, int n, T* k, const Carry& totals) {
    read_values<T>(call, call.value, row, row.key, t, n, s.m, v, false);
    if (call.feature_map == IDENTITY) return false;
    const T unit = this->weight_of_share(row);
    if (call.competition != NO_COMPETITION) {
      T* share = this->key_stat(row, SOURCE_SHARE) + t;
      if (call.competition == SOURCES) {
        exponentials(n, totals.shift, this->key_stat(row, CONSERVED_SOURCE) + t, weight);
        const double inverse = totals.total != 0 ? 1 / totals.total : 0;
        for (int i = 0; i < n; ++i) share[i] = T(weight[i] * inverse);
        for (int i = 0; row.key.mask && i < n; ++i)
          if (!row.key.real(t + i)) share[i] = 0;
      }
      for (int i = 0; i < n; ++i) weight[i] = unit * share[i];
      scale_rows(n, s.dp, k, weight, k);
    } else if (unit != T(1)) {
      for (int i = 0; i < n; ++i) weight[i] = unit;
      scale_rows(n, s.dp, k, weight, k);
    }
    return sums_flows(call) && are_many(call, n, row.key.mask_at(t), this->key_stat(row, SOURCE_OUTGOING) + t, totals.query_sum);
  }

  void turn_keys(const Row& row, int64_t t, int n, const Carry& totals) {
    T* k = this->features(row, 1, t, n, false);
    narrow_keys = weigh(row, t, n, k, totals);
    transpose(Widths<T>::padded(n), s.dp, k, s.dp, k_columns, CHUNK);
  }

  void add_key_value(const Row& row, Range keys, int64_t t, int n, const Carry& totals, Carry& added) {
    const bool linear = call.feature_map == IDENTITY;
    T* k = linear ? nullptr : this->features(row, 1, t, n, false);
    const bool narrow = weigh(row, t, n, k, totals) && !call.sums;
    const auto [keys_from, token, feature] = linear ? this->left(row, 1, t, n) : Left<T>{k, s.dp, 1};
    const Ahead next = chunk_ahead(call, call.value, row, row.key, t + CHUNK, s.m);
    Ahead ahead = this->left_ahead(row, 1, t);
    ahead.next = &next;
    if (alone)
      multiply_narrow<T, false>(narrow, s.d, s.mp, n, {keys_from, feature, token}, v, s.mp, key_value, s.mp);
    else
      sum_chunks<T>(s, narrow, keys, t, n, {keys_from, feature, token}, v, inside, added.key_value, &ahead);
  }

  void write(const Row& row, int64_t t, int n, const Carry& totals) {
    const Left<T> q = this->left(row, 0, t, n);
    this->find_scale(row, t, n, weight);
    const bool narrow = sums_flows(call) &&
                        are_many(call, n, row.query.mask_at(t), this->query_stat(row, SINK_INCOMING) + t, totals.key_sum);
    if (has_cheap_scores(s, row)) {
      const int keys = int(row.key.trimmed);
      multiply_narrow<T, false>(narrow && narrow_keys, n, Widths<T>::padded(keys), s.d, q, k_columns, CHUNK, scores, CHUNK);
      multiply<T, false>(n, s.mp, keys, {scores, CHUNK, 1}, v, s.mp, out, s.mp);
    } else {
      const Ahead next = this->left_ahead(row, 0, t);
      Ahead ahead = chunk_ahead(call, call.out, row, row.query, t, s.m);
      ahead.next = &next;
      multiply_narrow<T, false>(narrow, n, s.mp, s.d, q, key_value, s.mp, out, s.mp, &ahead);
    }
    write_output<T>(call, row, t, n, out, weight);
  }

  // All levels of a row that is for one thread.
  void whole(const Row& row, Carry& totals) {
    alone = has_one_chunk(row);
    clear(s, call, totals, alone);
    for (int level = first_level(call); level <= OUTPUT; ++level)
      pass(row, part_of(row.query, 0, 1), part_of(row.key, 0, 1), Level(level), totals, totals);
    write_padding<T>(call, row);
    save(row, totals);
  }

  // The rounded totals, for the backward, which needs no keyᵀ value where it goes by scores.
  void save(const Row& row, const Carry& totals) {
    if (!call.sums) return;
    const double* fields[] = {totals.key_sum, totals.query_sum, totals.key_flow, totals.query_flow};
    for (int i = 0; sums_flows(call) && i < 4; ++i) round_to(s.d, fields[i], row_vectors<T>(call, row) + i * s.d);
    if (T* matrix = row_matrix<T>(call, row)) save_rows(s.d, s.m, s.mp, key_value, matrix);
  }
};

// The softmax over heads of each source, as the published long-range-arena code has it.
template <class T> inline void compete_over_heads(const Call& call, const Row& first) {
  const auto stat = [&](int64_t head, KeyStat which) {
    return static_cast<T*>(call.key_stats) + ((first.batch() * call.heads + head) * KEY_STATS + which) * call.keys +
           first.key.start;
  };
  const auto clamped = [&](T x) {
    const T bound = T(call.clamp);
    return x < -bound ? -bound : x > bound ? bound : x;
  };
  for (int64_t t = 0; t < first.key.trimmed; ++t) {
    T highest = -T(__builtin_inf());
    for (int64_t h = 0; h < call.heads; ++h) {
      const T x = clamped(stat(h, CONSERVED_SOURCE)[t]);
      highest = x > highest ? x : highest;
    }
    double total = 0;
    for (int64_t h = 0; h < call.heads; ++h) total += __builtin_exp(clamped(stat(h, CONSERVED_SOURCE)[t]) - highest);
    for (int64_t h = 0; h < call.heads; ++h)
      stat(h, SOURCE_SHARE)[t] = first.key.real(t)
                                     ? T(__builtin_exp(clamped(stat(h, CONSERVED_SOURCE)[t]) - highest) / total)
                                     : T(0);
  }
}

// Into how many segments each row is cut: one where there are rows for all threads; else as many as give each thread one, but
// none that has less than four chunks of the longer side.
inline int64_t bidirectional_segments(const Call& call) {
  const int64_t rows = call.batch * call.heads, longer = call.keys > call.queries ? call.keys : call.queries;
  if (rows >= call.threads) return 1;
  const int64_t wanted = (call.threads + rows - 1) / rows, most = longer / (4 * CHUNK);
  return wanted < most ? wanted : most > 1 ? most : 1;
}

template <class T> int bidirectional_forward(const Call& call) {
  const CausalSizes<T> s(call);
  const int64_t rows = call.batch * call.heads, segments = bidirectional_segments(call);
  const bool together = segments == 1 && call.competition != HEADS;
  const Cache features(call, s.dp * int64_t(sizeof(T))), none, &cache = together ? features : none;
  Arena counted(nullptr);
  BidirectionalForward<T>(call, counted, cache);
  counted.take<double>(s.sums());
  Team team(call.threads, counted.used());
  if (together) {
    return !parallel_for(team, rows, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      BidirectionalForward<T> forward(call, arena, cache);
      Carry totals;
      totals.place(s, arena.take_unset<double>(s.sums()));
      forward.whole(Row(call, task), totals);
    });
  }

  const int64_t carries = rows * (segments + 1);
  const Carries<T, Carry> memory(s, carries);
  const CutRows<T> cut(s, features, segments > 1 ? rows : 0);
  if (!memory.whole()) return 1;
  Carry *totals = memory.data(), *added = totals + rows;
  for (int64_t i = 0; i < carries; ++i) clear(s, call, totals[i]);
  bool done = true;
  for (int level = first_level(call); done && level <= OUTPUT; ++level) {
    done = parallel_for(team, rows * segments, [&](char* scratch, int64_t task) {
      Arena arena(scratch);
      BidirectionalForward<T> forward(call, arena, cache);
      const Row row(call, task / segments);
      const int64_t segment = task % segments;
      cut.give(row, forward);
      forward.pass(row, part_of(row.query, segment, segments), part_of(row.key, segment, segments), Level(level),
                   totals[row.index], added[task]);
      if (level != OUTPUT || segment > 0) return;
      write_padding<T>(call, row);
      forward.save(row, totals[row.index]);
    });
    // Level and field by field; those of other levels are zero in what was added, or not read any more.
    for (int64_t i = 0; done && level < OUTPUT && i < rows * segments; ++i)
      add_segment<T>(call, Level(level), added[i], totals[i / segments], totals[i / segments]);
    if (done && level == COMPETITION && call.competition == HEADS)
      done = parallel_for(team, call.batch, [&](char*, int64_t sequence) {
        compete_over_heads<T>(call, Row(call, sequence * call.heads));
      });
  }
  return !done;
}

}  // namespace flowformer::FF_ISA
