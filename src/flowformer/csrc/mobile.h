// Mobile-Attention: flows that the heads of one token exchange; all else is the bidirectional form.
//
//   I_h = (q_h + ε)·(Σ_g k_g + ε)        O_h = (k_h + ε)·(Σ_g q_g + ε)
//   Î_h = (q_h + ε)·(Σ_g k_g/O_g + ε)    Ô_h = (k_h + ε)·(Σ_g q_g/I_g + ε)
//
// No flow needs another token: one pass over the tokens leaves all of them where the first levels of bidirectional.h leave
// theirs, and the softmax over the sources, keyᵀ value and the output follow from there, head by head. The pass takes a few
// tokens at a time, whose heads lie side by side in memory: their features are read once and stay in the first-level cache
// for the four sums over heads.
#pragma once

#include "bidirectional.h"

namespace flowformer::FF_ISA {

constexpr int FEW = 8;  // tokens; the rows of a buffer are [head][FEW]

template <class T, bool WEIGHTED, int U>
FF_INLINE void head_flow_block(int n, int heads, int dp, const T* x, const T* y, const T* weight, const T* eps, bool first,
                               T* partial) {
  constexpr int W = Simd<T>::W;
  Vec<T> e[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) e[u] = load(eps + u * W);
  for (int t = 0; t < n; ++t) {
    Vec<T> total[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) total[u] = e[u];
    for (int row = t; row < heads * FEW; row += FEW)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const Vec<T> share = load(y + ptrdiff_t(row) * dp + u * W);
        if constexpr (WEIGHTED)
          total[u] += weight[row] * share;
        else
          total[u] += share;
      }
    for (int row = t; row < heads * FEW; row += FEW) {
      Vec<T> dot = first ? Vec<T>{} : load(partial + row * W);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) dot += (load(x + ptrdiff_t(row) * dp + u * W) + e[u]) * total[u];
      store(partial + row * W, dot);
    }
  }
}

// Of the heads of n tokens: dots = (x + ε)·(Σ_g w_g y_g + ε); no weight: w = 1.
template <class T, bool WEIGHTED>
inline void head_flow(int n, int heads, int dp, const T* x, const T* y, const T* weight, const T* eps, T* partial, T* dots) {
  constexpr int W = Simd<T>::W;
  int j = 0;
  for (; j + BLOCK * W <= dp; j += BLOCK * W)
    head_flow_block<T, WEIGHTED, BLOCK>(n, heads, dp, x + j, y + j, weight, eps + j, j == 0, partial);
  for (; j < dp; j += W) head_flow_block<T, WEIGHTED, 1>(n, heads, dp, x + j, y + j, weight, eps + j, j == 0, partial);
  sum_lanes(Widths<T>::padded(heads * FEW), partial, dots);
}

// The heads of a few tokens of one sequence: features [head][FEW][dp], numbers [head][FEW].
template <class T> struct HeadsOfTokens {
  const Call& call;
  const Widths<T> s;
  const int heads, numbers;
  T *eps, *q, *k, *partial, *one_over_incoming, *one_over_outgoing, *dots;

  HeadsOfTokens(const Call& c, Arena& arena)
      : call(c), s(c), heads(int(c.heads)), numbers(Widths<T>::padded(heads * FEW)) {
    eps = arena.take<T>(s.dp);
    for (T** features : {&q, &k}) *features = arena.take_unset<T>(int64_t(heads) * FEW * s.dp);
    partial = arena.take<T>(int64_t(numbers) * Simd<T>::W);  // zero, as the last few tokens may be fewer
    for (T** each : {&one_over_incoming, &one_over_outgoing, &dots}) *each = arena.take_unset<T>(numbers);
    for (int j = 0; arena.holds_memory() && j < s.d; ++j) eps[j] = T(call.eps);
  }

  template <class Task> void for_heads(Row& row, const Task& task) const {
    for (int h = 0; h < heads; ++h) {
      row.head = h;
      task(h * FEW);
    }
  }

  T* query_stat(const Row& row, QueryStat stat, int64_t t) const {
    return row.stats<T>(call.query_stats, call, row.query, call.queries, QUERY_STATS, stat) + t;
  }
  T* key_stat(const Row& row, KeyStat stat, int64_t t) const {
    return row.stats<T>(call.key_stats, call, row.key, call.keys, KEY_STATS, stat) + t;
  }

  void read(Row& row, int64_t t, int n) {
    for_heads(row, [&](int at) {
      read_features<T>(call, call.query, row, row.query, t, n, q + ptrdiff_t(at) * s.dp);
      read_features<T>(call, call.key, row, row.key, t, n, k + ptrdiff_t(at) * s.dp);
    });
  }

  void flows(Row& row, int64_t t, int n) {
    read(row, t, n);
    head_flow<T, false>(n, heads, s.dp, q, k, nullptr, eps, partial, one_over_incoming);
    head_flow<T, false>(n, heads, s.dp, k, q, nullptr, eps, partial, one_over_outgoing);
    for_heads(row, [&](int at) {
      keep(row, t, n, one_over_incoming + at, query_stat(row, SINK_INCOMING, t));
      keep(row, t, n, one_over_outgoing + at, key_stat(row, SOURCE_OUTGOING, t));
    });
    if (call.allocation) {
      constexpr int W = Simd<T>::W;
      head_flow<T, true>(n, heads, s.dp, q, k, one_over_outgoing, eps, partial, dots);
      for (int i = 0; i < numbers; i += W) store(dots + i, sigmoid<T>(load(dots + i)));
    } else {
      for (int i = 0; i < numbers; ++i) dots[i] = 1;
    }
    for_heads(row, [&](int at) { std::memcpy(query_stat(row, SINK_ALLOCATION, t), dots + at, n * sizeof(T)); });
    if (call.competition == NO_COMPETITION) return;
    head_flow<T, true>(n, heads, s.dp, k, q, one_over_incoming, eps, partial, dots);
    for_heads(row, [&](int at) { std::memcpy(key_stat(row, CONSERVED_SOURCE, t), dots + at, n * sizeof(T)); });
  }

  // I or O into what is kept, and its inverse in its place.
  static void keep(const Row& row, int64_t t, int n, T* flow, T* stat) {
    for (int i = 0; i < n; ++i) {
      if (!row.query.real(t + i)) flow[i] = 1;  // of order ε², and only ever divides zero
      stat[i] = flow[i];
      flow[i] = T(1) / flow[i];
    }
  }
};

// Tokens of all sequences: task(heads, row, t, n) for each few, by as many threads as there are.
template <class T, class Heads, class Task> inline bool for_tokens(const Call& call, const Task& task) {
  Arena counted(nullptr);
  Heads(call, counted);
  Team team(call.threads, counted.used());
  const int64_t longest = Cache::longest(call.query_offsets, call.batch, call.queries), most = (longest + CHUNK - 1) / CHUNK;
  const int64_t wanted = call.batch < 2 * call.threads ? 2 * call.threads / call.batch : 1;
  const int64_t segments = call.threads == 1 || most < 1 ? 1 : wanted < most ? wanted : most;
  return parallel_for(team, call.batch * segments, [&](char* scratch, int64_t at) {
    Arena arena(scratch);
    Heads heads(call, arena);
    Row row(call, at / segments * call.heads);
    const Range part = part_of(row.query, at % segments, segments);
    for (int64_t t = part.first; t < part.last; t += FEW)
      task(heads, row, t, int(part.last - t < FEW ? part.last - t : FEW));
  });
}

template <class T> int mobile_forward(const Call& call) {
  const bool done = for_tokens<T, HeadsOfTokens<T>>(
      call, [](HeadsOfTokens<T>& heads, Row& row, int64_t t, int n) { heads.flows(row, t, n); });
  return !done || bidirectional_from<T>(call, COMPETITION);
}

}  // namespace flowformer::FF_ISA
