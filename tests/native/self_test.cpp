// The library against the equations of docs/attention/math.md written plainly, without Python: for processors that only an emulator has.
// `make native-check` runs it for Arm where qemu is; anything but exit code 0 is a failure, and what differs is printed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "../../src/flowformer/csrc/api.h"

extern "C" {
const char* flowformer_isa(void);
int flowformer_bidirectional_forward(const flowformer::Call*);
int flowformer_bidirectional_backward(const flowformer::Call*);
int flowformer_causal_forward(const flowformer::Call*);
int flowformer_causal_backward(const flowformer::Call*);
}

namespace {

using Numbers = std::vector<double>;
constexpr double EPS = 1e-6;

enum Form { BIDIRECTIONAL, CAUSAL, MOBILE };
const char* const NAMES[] = {"bidirectional", "causal", "mobile"};

struct Sizes {
  int64_t tokens, heads, d, m;
  Form form;
  // [token, head, feature], of one sequence
  const double* row(const Numbers& x, int64_t t, int64_t h, int64_t width) const { return &x[(t * heads + h) * width]; }
};

struct Inputs {
  Numbers query, key, value;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// (x + ε) · (sum + ε)
double flow(const double* x, const Numbers& sum) {
  double total = 0;
  for (size_t i = 0; i < sum.size(); ++i) total += (x[i] + EPS) * (sum[i] + EPS);
  return total;
}

void add(Numbers& sum, const double* x, double scale) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += scale * x[i];
}

// Of the tokens of one head.
struct Flows {
  Numbers incoming, allocation, conserved;
};

// In the causal form every sum runs to the token itself, in the bidirectional one over all tokens.
int64_t last(const Sizes& s, int64_t t) { return s.form == CAUSAL ? t : s.tokens - 1; }

Flows between_tokens(const Sizes& s, const Numbers& q, const Numbers& k, int64_t h) {
  const int64_t n = s.tokens;
  Flows flows{Numbers(n), Numbers(n), Numbers(n)};
  Numbers outgoing(n);
  const auto seen = [&](int64_t t) { return s.form == CAUSAL ? double(t + 1) : 1.; };
  for (int64_t t = 0; t < n; ++t) {
    Numbers keys(s.d), queries(s.d);
    for (int64_t j = 0; j <= last(s, t); ++j) add(keys, s.row(k, j, h, s.d), 1), add(queries, s.row(q, j, h, s.d), 1);
    flows.incoming[t] = flow(s.row(q, t, h, s.d), keys);
    outgoing[t] = flow(s.row(k, t, h, s.d), queries);
  }
  for (int64_t t = 0; t < n; ++t) {
    Numbers keys(s.d), queries(s.d);
    for (int64_t j = 0; j <= last(s, t); ++j) {
      add(keys, s.row(k, j, h, s.d), seen(j) / outgoing[j]);
      add(queries, s.row(q, j, h, s.d), seen(j) / flows.incoming[j]);
    }
    flows.allocation[t] = sigmoid(flow(s.row(q, t, h, s.d), keys) / seen(t));
    flows.conserved[t] = flow(s.row(k, t, h, s.d), queries) / seen(t);
  }
  return flows;
}

// Mobile-Attention: every sum runs over the heads of the token.
Flows between_heads(const Sizes& s, const Numbers& q, const Numbers& k, int64_t h) {
  const int64_t n = s.tokens;
  Flows flows{Numbers(n), Numbers(n), Numbers(n)};
  for (int64_t t = 0; t < n; ++t) {
    Numbers keys(s.d), queries(s.d), key_flow(s.d), query_flow(s.d);
    for (int64_t g = 0; g < s.heads; ++g) add(keys, s.row(k, t, g, s.d), 1), add(queries, s.row(q, t, g, s.d), 1);
    for (int64_t g = 0; g < s.heads; ++g) {
      add(key_flow, s.row(k, t, g, s.d), 1 / flow(s.row(k, t, g, s.d), queries));
      add(query_flow, s.row(q, t, g, s.d), 1 / flow(s.row(q, t, g, s.d), keys));
    }
    flows.incoming[t] = flow(s.row(q, t, h, s.d), keys);
    flows.allocation[t] = sigmoid(flow(s.row(q, t, h, s.d), key_flow));
    flows.conserved[t] = flow(s.row(k, t, h, s.d), query_flow);
  }
  return flows;
}

// One head.
void attend(const Sizes& s, const Numbers& q, const Numbers& k, const Numbers& value, int64_t h, Numbers& out) {
  const Flows flows = s.form == MOBILE ? between_heads(s, q, k, h) : between_tokens(s, q, k, h);
  for (int64_t t = 0; t < s.tokens; ++t) {
    Numbers sum(s.m);
    for (int64_t j = 0; j <= last(s, t); ++j) {
      double normalizer = 0, product = 0;
      for (int64_t i = 0; i <= last(s, j); ++i) normalizer += std::exp(flows.conserved[i] - flows.conserved[j]);
      for (int64_t i = 0; i < s.d; ++i) product += s.row(q, t, h, s.d)[i] * s.row(k, j, h, s.d)[i];
      add(sum, s.row(value, j, h, s.m), product * double(last(s, j) + 1) / normalizer);
    }
    const double scale = flows.allocation[t] / flows.incoming[t];
    for (int64_t i = 0; i < s.m; ++i) out[(t * s.heads + h) * s.m + i] = scale * sum[i];
  }
}

Numbers attend(const Sizes& s, const Inputs& inputs) {
  Numbers q = inputs.query, k = inputs.key, out(s.tokens * s.heads * s.m);
  for (double& x : q) x = sigmoid(x);
  for (double& x : k) x = sigmoid(x);
  for (int64_t h = 0; h < s.heads; ++h) attend(s, q, k, inputs.value, h, out);
  return out;
}

// The library: the output and the gradients of Σ grad_out · out.
template <class T> Numbers call_library(const Sizes& s, const Inputs& inputs, const Numbers& grad, Inputs& gradients) {
  using Room = std::vector<T>;
  const auto narrow = [](const Numbers& x) { return Room(x.begin(), x.end()); };
  Room query = narrow(inputs.query), key = narrow(inputs.key), value = narrow(inputs.value), grad_out = narrow(grad);
  Room out(grad.size()), grad_query(query.size()), grad_key(key.size()), grad_value(value.size());
  const int64_t rows = s.form == CAUSAL ? (s.tokens + flowformer::CHUNK - 1) / flowformer::CHUNK : 1;
  Room query_stats(s.heads * 5 * s.tokens), key_stats(s.heads * 3 * s.tokens), sums(rows * s.heads * s.d * (4 + s.m));
  const auto view = [&s](Room& x, int64_t width) {
    return flowformer::View{x.data(), s.tokens * s.heads * width, s.heads * width, width};
  };
  flowformer::Call call{};
  call.dtype = std::is_same_v<T, float> ? flowformer::FLOAT32 : flowformer::FLOAT64;
  call.feature_map = flowformer::SIGMOID;
  call.competition = flowformer::SOURCES;
  call.allocation = 1;
  call.clamp = std::numeric_limits<double>::infinity();
  call.eps = EPS;
  call.batch = 1, call.heads = s.heads, call.key_width = s.d, call.value_width = s.m;
  call.queries = call.keys = s.tokens;
  call.threads = 3, call.spacing = 2;
  call.query = view(query, s.d), call.key = view(key, s.d), call.value = view(value, s.m);
  call.out = view(out, s.m), call.grad_out = view(grad_out, s.m);
  call.query_stats = query_stats.data(), call.key_stats = key_stats.data(), call.sums = sums.data();
  call.grad_query = grad_query.data(), call.grad_key = grad_key.data(), call.grad_value = grad_value.data();
  call.flows = s.form == MOBILE ? flowformer::OVER_HEADS : flowformer::OVER_TOKENS;
  const int failed = s.form == CAUSAL ? flowformer_causal_forward(&call) || flowformer_causal_backward(&call)
                              : flowformer_bidirectional_forward(&call) || flowformer_bidirectional_backward(&call);
  if (failed) std::puts("the library ran out of memory");
  const auto widen = [](const Room& x) { return Numbers(x.begin(), x.end()); };
  gradients = {widen(grad_query), widen(grad_key), widen(grad_value)};
  return failed ? Numbers(out.size(), NAN) : widen(out);
}

double dot(const Numbers& x, const Numbers& y) {
  double total = 0;
  for (size_t i = 0; i < x.size(); ++i) total += x[i] * y[i];
  return total;
}

template <class T> bool agrees(const Sizes& s, double tolerance) {
  std::mt19937 generator(7);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t width) {
    Numbers x(s.tokens * s.heads * width);
    for (double& number : x) number = T(normal(generator));
    return x;
  };
  const Inputs inputs{draw(s.d), draw(s.d), draw(s.m)}, direction{draw(s.d), draw(s.d), draw(s.m)};
  const Numbers grad = draw(s.m);

  Inputs gradients;
  const Numbers out = call_library<T>(s, inputs, grad, gradients), expected = attend(s, inputs);
  double error = 0, size = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double difference = std::abs(out[i] - expected[i]);
    error = difference > error || std::isnan(difference) ? difference : error;
    size = std::max(size, std::abs(expected[i]));
  }
  // The gradients along one direction, against the slope of the equations.
  const double step = 1e-5;
  const auto moved = [&](double by) {
    Inputs x = inputs;
    add(x.query, direction.query.data(), by), add(x.key, direction.key.data(), by);
    add(x.value, direction.value.data(), by);
    return dot(attend(s, x), grad);
  };
  const double expected_slope = (moved(step) - moved(-step)) / (2 * step);
  const double slope = dot(gradients.query, direction.query) + dot(gradients.key, direction.key) +
                       dot(gradients.value, direction.value);
  const double slope_error = std::abs(slope - expected_slope) / (1 + std::abs(expected_slope));

  const bool good = error <= tolerance * size && slope_error <= std::max(10 * tolerance, 1e-6);
  if (!good)
    std::printf("%s %s, %d tokens, widths %d and %d: output off by %.1e, gradients by %.1e\n",
                std::is_same_v<T, float> ? "float" : "double", NAMES[s.form], int(s.tokens),
                int(s.d), int(s.m), error / size, slope_error);
  return good;
}

}  // namespace

int main() {
  int cases = 0, failures = 0;
  for (const Form form : {BIDIRECTIONAL, CAUSAL, MOBILE})
    for (const int64_t tokens : {1, 63, 64, 130})
      for (const int64_t width : {5, 32, 64}) {
        const Sizes sizes{tokens, 2, width, width == 5 ? 3 : width, form};
        failures += !agrees<float>(sizes, 2e-5) + !agrees<double>(sizes, 1e-12);
        cases += 2;
      }
  std::printf("%s: %d of %d cases agree with the equations\n", flowformer_isa(), cases - failures, cases);
  return failures != 0;
}
