// The C interface: plain pointers and numbers, so that no torch is needed to build it and any torch can call it.
//
// `Call` mirrors that of ops/backends/cpu/call.py, field by field, and `Convolution` that of cpu/convolution.py; FLOWFORMER_ABI
// changes whenever they do, and with every function that is new.
#pragma once

#include <cstdint>

#define FLOWFORMER_ABI 8

namespace flowformer {

enum Dtype : int32_t { FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2, BFLOAT16 = 3 };
enum FeatureMap : int32_t { SIGMOID = 0, RELU = 1, IDENTITY = 2 };  // identity: linear attention, without flows
enum Flows : int32_t { OVER_TOKENS = 0, OVER_HEADS = 1 };  // over heads: Mobile-Attention
enum Competition : int32_t { NO_COMPETITION = 0, SOURCES = 1, HEADS = 2 };

// Tokens cut into chunks: the states before each of them are what a causal forward leaves for its backward.
constexpr int CHUNK = 64;

// A tensor [batch, token, head, feature]: strides in elements, the feature's is 1. One that is read from its last token to its
// first has that token's address and a token stride below zero.
struct View {
  void* data;
  int64_t batch, token, head;
};

// The state of each row (sequence, head), float64 and contiguous; a null pointer is a zero (an empty past).
struct State {
  void* tokens;         // int64 [b]; where flows decay what is left of them, double [b, h]
  double* key_sum;      // [b, h, d]
  double* query_sum;    // [b, h, d]
  double* key_flow;     // [b, h, d]
  double* query_flow;   // [b, h, d]
  double* competition;  // [b, h], log Σ exp Ô
  double* key_value;    // [b, h, d, m]
};

// One call. `real` below is float for narrow inputs, double for float64 ones.
struct Call {
  int32_t dtype;  // of query, key, value, out and grad_out
  int32_t feature_map;
  int32_t competition;
  int32_t allocation;
  double clamp;  // infinity: none
  double eps;
  int64_t batch, heads, key_width, value_width;
  int64_t queries, keys;  // tokens of a row of the batch; of all packed sequences together
  int64_t threads;
  int64_t spacing;  // causal: chunks from one kept keyᵀ value to the next
  View query, key, value, out, grad_out;
  View grad_query, grad_key, grad_value;  // real
  const uint8_t* query_mask;     // [b, queries], or null
  const uint8_t* key_mask;       // [b, keys]; the one mask of a causal call
  const int64_t* query_offsets;  // [b + 1] of packed sequences, or null
  const int64_t* key_offsets;
  const void* row_scale;  // linear attention: real [b, queries, h], or null
  const void* log_decay;  // causal: real [b, queries, h], at most 0, or null; of flows in decoding steps alone
  State before, after;
  State grad_before, grad_after;
  // What the backward needs of the forward, or null: five (causal) or two and three numbers a token, and the sums of the
  // flows and of keyᵀ value, of each row; of a causal call those of the flows before each chunk, and behind them those of
  // keyᵀ value before every `spacing` chunks, from which the backward computes the others again. Before the first chunk they
  // are those of the past.
  void* query_stats;  // real [b, h, 5 or 2, queries]; packed [h, …, queries]
  void* key_stats;    // real [b, h, 3, keys]
  void* sums;         // real [b, h, 4·d], then [rows of more than a chunk, h, d·m]; causal: [chunks, h, 4·d], then
                      // [chunks / spacing, h, d·m]; of linear attention the latter alone
  void* grad_row_scale;  // real [b, queries, h]
  void* grad_log_decay;  // likewise
  int32_t flows;
  int32_t normalize;  // over heads: whether the output is divided by the number of sources
};

// One call of the short convolution, see convolution.h. Views have channels [heads, width]; all else is contiguous.
struct Convolution {
  int32_t dtype;      // of x, y and their gradients
  int32_t activates;  // whether silu follows
  int64_t batch, heads, width;
  int64_t tokens;  // of a row of the batch; of all packed sequences together
  int64_t taps;    // tokens that an output sees
  int64_t ahead;   // of them after its own
  int64_t threads;
  View x, y, grad_y, grad_x;
  const uint8_t* mask;     // [b, tokens], or null
  const int64_t* offsets;  // [b + 1] of packed sequences, or null
  const void* weight;      // real [h, d, taps], the oldest token's first
  const void* bias;        // real [h, d], or null
  const double* before;    // [b, taps - 1, h, d], the real tokens before these; null: zeros
  double* after;           // likewise, the last of all, or null; it may be `before`
  double* grad_before;     // likewise, or null
  void* grad_weight;
  void* grad_bias;  // or null
};

// Each returns 0, or 1 when memory ran out; a causal forward 2 when a decay is above zero.
struct Kernels {
  int (*bidirectional_forward)(const Call&);
  int (*bidirectional_backward)(const Call&);
  int (*causal_forward)(const Call&);
  int (*causal_backward)(const Call&);
  int (*convolution_forward)(const Convolution&);
  int (*convolution_backward)(const Convolution&);
};

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_avx512bf16;

}  // namespace flowformer
