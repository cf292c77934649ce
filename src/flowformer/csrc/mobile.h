// Mobile-Attention: flows that the heads of one token exchange; all else is the bidirectional form.
//
//   I_h = (q_h + ε)·(Σ_g k_g + ε)        O_h = (k_h + ε)·(Σ_g q_g + ε)
//   Î_h = (q_h + ε)·(Σ_g k_g/O_g + ε)    Ô_h = (k_h + ε)·(Σ_g q_g/I_g + ε)
//
// No flow needs another token: one pass over the tokens leaves them where the first levels of bidirectional.h leave theirs,
// and its last three follow, head by head. The pass takes a few tokens at a time, whose heads lie side by side in memory, and
// which stay in the first-level cache for the four sums over heads. Where a thread has short sequences of its own, their
// features are computed once; else again where the product needs them, which is faster than to write them to memory.
#pragma once

#include "bidirectional.h"

namespace flowformer::FF_ISA {

constexpr int FEW = 8;  // tokens

// Bytes of the features of a sequence that stay in a second-level cache.
constexpr int64_t CACHED_SEQUENCE = 1 << 20;

// Numbers of the heads of a few tokens are [head][FEW]; the rows of their features are `stride` apart from head to head.
struct Heads {
  int count, tokens, dp;
  ptrdiff_t stride;

  template <class Task> FF_INLINE void each(int t, const Task& task) const {
    ptrdiff_t row = ptrdiff_t(t) * dp;
    for (int at = t; at < count * FEW; at += FEW, row += stride) task(at, row);
  }
};

template <class T, bool WEIGHTED, int U>
FF_INLINE void head_flow_block(const Heads& heads, const T* x, const T* y, const T* weight, const T* eps, bool first,
                               T* partial) {
  constexpr int W = Simd<T>::W;
  Vec<T> e[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) e[u] = load(eps + u * W);
  for (int t = 0; t < heads.tokens; ++t) {
    Vec<T> total[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) total[u] = e[u];
    heads.each(t, [&](int at, ptrdiff_t row) FF_LAMBDA {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        if constexpr (WEIGHTED)
          total[u] += weight[at] * load(y + row + u * W);
        else
          total[u] += load(y + row + u * W);
      }
    });
    heads.each(t, [&](int at, ptrdiff_t row) FF_LAMBDA {
      Vec<T> dot = first ? Vec<T>{} : load(partial + at * W);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) dot += (load(x + row + u * W) + e[u]) * total[u];
      store(partial + at * W, dot);
    });
  }
}

// dots = (x + ε)·(Σ_g w_g y_g + ε); no weight: w = 1.
template <class T, bool WEIGHTED>
inline void head_flow(const Heads& heads, const T* x, const T* y, const T* weight, const T* eps, T* partial, T* dots) {
  constexpr int W = Simd<T>::W;
  int j = 0;
  for (; j + BLOCK * W <= heads.dp; j += BLOCK * W)
    head_flow_block<T, WEIGHTED, BLOCK>(heads, x + j, y + j, weight, eps + j, j == 0, partial);
  for (; j < heads.dp; j += W) head_flow_block<T, WEIGHTED, 1>(heads, x + j, y + j, weight, eps + j, j == 0, partial);
  sum_lanes(Widths<T>::padded(heads.count * FEW), partial, dots);
}

// The features of a sequence, [head][token][dp] of each side, or of a few of its tokens where those of all do not fit.
template <class T> struct HeadFeatures {
  const Call& call;
  const Widths<T> s;
  const int heads;
  const bool whole;
  const int64_t stride;
  T* side[2];  // queries, keys

  HeadFeatures(const Call& c, Arena& arena, bool caches)
      : call(c), s(c), heads(int(c.heads)), whole(caches), stride((caches ? longest(c) + CHUNK : FEW) * s.dp) {
    for (T*& features : side) features = arena.take_unset<T>(heads * stride);
  }

  static int64_t longest(const Call& call) { return Cache::longest(call.query_offsets, call.batch, call.queries); }
  static bool fits(const Call& call) {
    return 2 * (longest(call) + CHUNK) * call.heads * Widths<T>(call).dp * int64_t(sizeof(T)) <= CACHED_SEQUENCE;
  }

  Heads of(int n) const { return {heads, n, s.dp, ptrdiff_t(stride)}; }
  T* at(int which, int64_t t) const { return side[which] + (whole ? t * s.dp : 0); }

  // Where those of a head are, for the levels that follow; nowhere if they are to be computed again.
  void lend(RowFeatures<T>& to, int64_t head) const {
    for (int which = 0; whole && which < 2; ++which) to.cached[which] = side[which] + head * stride;
  }

  template <class Task> void for_heads(Row& row, const Task& task) const {
    for (int h = 0; h < heads; ++h) {
      row.index += h - row.head;
      row.head = h;
      task(h);
    }
  }

  void read(Row& row, int64_t t, int n) const {
    for_heads(row, [&](int h) {
      read_features<T>(call, call.query, row, row.query, t, n, at(0, t) + h * stride);
      read_features<T>(call, call.key, row, row.key, t, n, at(1, t) + h * stride);
    });
  }
};

template <class T> struct HeadFlows : HeadFeatures<T> {
  using HeadFeatures<T>::call;
  using HeadFeatures<T>::s;
  using HeadFeatures<T>::heads;
  const int numbers;
  T *eps, *partial, *incoming, *outgoing, *dots;  // the flows, and then what is divided by them

  HeadFlows(const Call& c, Arena& arena, bool caches)
      : HeadFeatures<T>(c, arena, caches), numbers(Widths<T>::padded(heads * FEW)) {
    eps = arena.take<T>(s.dp);
    partial = arena.take<T>(int64_t(numbers) * Simd<T>::W);  // zero where there are no tokens
    for (T** each : {&incoming, &outgoing, &dots}) *each = arena.take<T>(numbers);
    for (int j = 0; arena.holds_memory() && j < s.d; ++j) eps[j] = T(call.eps);
  }

  T* query_stat(const Row& row, QueryStat stat, int64_t t) const {
    return row.stats<T>(call.query_stats, call, row.query, call.queries, QUERY_STATS, stat) + t;
  }
  T* key_stat(const Row& row, KeyStat stat, int64_t t) const {
    return row.stats<T>(call.key_stats, call, row.key, call.keys, KEY_STATS, stat) + t;
  }

  void pass(Row& row, int64_t t, int n) {
    this->read(row, t, n);
    const Heads few = this->of(n);
    const T *q = this->at(0, t), *k = this->at(1, t);
    head_flow<T, false>(few, q, k, nullptr, eps, partial, incoming);
    head_flow<T, false>(few, k, q, nullptr, eps, partial, outgoing);
    this->for_heads(row, [&](int h) {
      keep(row, t, n, incoming + h * FEW, query_stat(row, SINK_INCOMING, t));
      keep(row, t, n, outgoing + h * FEW, key_stat(row, SOURCE_OUTGOING, t));
    });
    for (int i = 0; i < numbers; ++i) dots[i] = 1;
    if (call.allocation) {
      constexpr int W = Simd<T>::W;
      head_flow<T, true>(few, q, k, outgoing, eps, partial, dots);
      for (int i = 0; i < numbers; i += W) store(dots + i, sigmoid<T>(load(dots + i)));
    }
    this->for_heads(row, [&](int h) { std::memcpy(query_stat(row, SINK_ALLOCATION, t), dots + h * FEW, n * sizeof(T)); });
    if (call.competition == NO_COMPETITION) return;
    head_flow<T, true>(few, k, q, incoming, eps, partial, dots);
    this->for_heads(row, [&](int h) { std::memcpy(key_stat(row, CONSERVED_SOURCE, t), dots + h * FEW, n * sizeof(T)); });
  }

  // I or O into what is kept, and its inverse in its place.
  static void keep(const Row& row, int64_t t, int n, T* flow, T* stat) {
    for (int i = 0; row.query.mask && i < n; ++i)
      if (!row.query.real(t + i)) flow[i] = 1;  // of order ε², and only ever divides zero
    std::memcpy(stat, flow, n * sizeof(T));
    for (int i = 0; i < n; ++i) flow[i] = T(1) / flow[i];
  }
};

template <class Task> inline void for_few(Range range, const Task& task) {
  for (int64_t t = range.first; t < range.last; t += FEW) task(t, int(range.last - t < FEW ? range.last - t : FEW));
}

// Whether each thread has sequences of its own, from their flows to their output.
template <class T> inline bool by_sequence(const Call& call) {
  return call.threads <= call.batch && HeadFeatures<T>::fits(call);
}

// task(pass, row, range) for parts of the tokens of all sequences, on all threads.
template <class Pass, class Task> inline bool for_parts(const Call& call, const Task& task) {
  Arena counted(nullptr);
  Pass(call, counted, false);
  Team team(call.threads, counted.used());
  const int64_t wanted = (2 * call.threads + call.batch - 1) / call.batch, most = call.queries / CHUNK;
  const int64_t parts = call.threads == 1 || most < 1 ? 1 : wanted < most ? wanted : most;
  return parallel_for(team, call.batch * parts, [&](char* scratch, int64_t at) {
    Arena arena(scratch);
    Pass pass(call, arena, false);
    Row row(call, at / parts * call.heads);
    task(pass, row, part_of(row.query, at % parts, parts));
  });
}

template <class T> int mobile_forward(const Call& call) {
  const auto find_flows = [](HeadFlows<T>& flows, Row& row, Range range) {
    for_few(range, [&](int64_t t, int n) { flows.pass(row, t, n); });
  };
  if (!by_sequence<T>(call)) return !for_parts<HeadFlows<T>>(call, find_flows) || bidirectional_forward<T>(call);

  const CausalSizes<T> s(call);
  Arena counted(nullptr);
  HeadFlows<T>(call, counted, true);
  BidirectionalForward<T>(call, counted, Cache());
  counted.take<double>(s.sums());
  Team team(call.threads, counted.used());
  return !parallel_for(team, call.batch, [&](char* scratch, int64_t sequence) {
    Arena arena(scratch);
    HeadFlows<T> flows(call, arena, true);
    BidirectionalForward<T> forward(call, arena, Cache());
    Carry totals;
    totals.place(s, arena.take_unset<double>(s.sums()));
    Row row(call, sequence * call.heads);
    find_flows(flows, row, part_of(row.query, 0, 1));
    flows.for_heads(row, [&](int h) {
      flows.lend(forward, h);
      forward.whole(row, totals);
    });
  });
}

}  // namespace flowformer::FF_ISA
