// The library against its equations (of docs/attention/math.md, and of the short convolution) written plainly, and against golden
// values, without Python: for processors that only an emulator has, and systems that are too old for PyTorch. `make native-check` and
// `make wheels` run it.
// usage: self_test [FILE.safetensors]...   Anything but exit code 0 is a failure, and what differs is printed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "../../src/flowformer/csrc/api.h"

extern "C" {
const char* flowformer_isa(void);
int flowformer_bidirectional_forward(const flowformer::Call*);
int flowformer_bidirectional_backward(const flowformer::Call*);
int flowformer_causal_forward(const flowformer::Call*);
int flowformer_causal_backward(const flowformer::Call*);
int flowformer_convolution_forward(const flowformer::Convolution*);
int flowformer_convolution_backward(const flowformer::Convolution*);
}

namespace {

using Numbers = std::vector<double>;
constexpr double EPS = 1e-6;

enum Form { BIDIRECTIONAL, CAUSAL, MOBILE };
const char* const NAMES[] = {"bidirectional", "causal", "mobile"};

struct Sizes {
  int64_t tokens, heads, d, m;
  Form form;
  double clamp = std::numeric_limits<double>::infinity();
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
  call.clamp = s.clamp;
  call.eps = EPS;
  call.batch = 1, call.heads = s.heads, call.key_width = s.d, call.value_width = s.m;
  call.queries = call.keys = s.tokens;
  call.threads = 3, call.spacing = 2;
  call.query = view(query, s.d), call.key = view(key, s.d), call.value = view(value, s.m);
  call.out = view(out, s.m), call.grad_out = view(grad_out, s.m);
  call.query_stats = query_stats.data(), call.key_stats = key_stats.data(), call.sums = sums.data();
  call.grad_query = view(grad_query, s.d), call.grad_key = view(grad_key, s.d), call.grad_value = view(grad_value, s.m);
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

// ---- the short convolution of one sequence, with silu, after the tokens of a state

struct Taps {
  int64_t tokens, channels, taps;
};

struct Convolved {
  Numbers x, weight, bias, before;
};

Numbers convolve(const Taps& s, const Convolved& in) {
  Numbers out(s.tokens * s.channels);
  for (int64_t t = 0; t < s.tokens; ++t)
    for (int64_t c = 0; c < s.channels; ++c) {
      double z = in.bias[c];
      for (int64_t i = 0; i < s.taps; ++i) {
        const int64_t from = t - s.taps + 1 + i;
        const double x = from < 0 ? in.before[(s.taps - 1 + from) * s.channels + c] : in.x[from * s.channels + c];
        z += in.weight[c * s.taps + i] * x;
      }
      out[t * s.channels + c] = z * sigmoid(z);
    }
  return out;
}

template <class T> Numbers call_convolution(const Taps& s, const Convolved& in, const Numbers& grad, Convolved& gradients) {
  using Room = std::vector<T>;
  const auto narrow = [](const Numbers& x) { return Room(x.begin(), x.end()); };
  Room x = narrow(in.x), weight = narrow(in.weight), bias = narrow(in.bias), grad_y = narrow(grad);
  Room y(x.size()), grad_x(x.size()), grad_weight(weight.size()), grad_bias(bias.size());
  gradients.before.resize(in.before.size());
  const auto view = [&s](Room& tensor) { return flowformer::View{tensor.data(), s.tokens * s.channels, s.channels, s.channels}; };
  flowformer::Convolution call{};
  call.dtype = std::is_same_v<T, float> ? flowformer::FLOAT32 : flowformer::FLOAT64;
  call.activates = 1;
  call.batch = call.heads = 1, call.width = s.channels, call.tokens = s.tokens, call.taps = s.taps, call.threads = 3;
  call.x = view(x), call.weight = weight.data(), call.bias = bias.data(), call.before = in.before.data();
  flowformer::Convolution forward = call, backward = call;
  forward.y = view(y);
  backward.grad_y = view(grad_y), backward.grad_x = view(grad_x), backward.grad_before = gradients.before.data();
  backward.grad_weight = grad_weight.data(), backward.grad_bias = grad_bias.data();
  if (flowformer_convolution_forward(&forward) || flowformer_convolution_backward(&backward))
    std::puts("the library ran out of memory");
  const auto widen = [](const Room& tensor) { return Numbers(tensor.begin(), tensor.end()); };
  gradients.x = widen(grad_x), gradients.weight = widen(grad_weight), gradients.bias = widen(grad_bias);
  return widen(y);
}

Numbers draw(std::mt19937& generator, int64_t count, bool narrow) {
  std::normal_distribution<double> normal;
  Numbers x(count);
  for (double& number : x) number = normal(generator), number = narrow ? float(number) : number;
  return x;
}

// The largest difference, relative to the largest number.
double difference(const Numbers& got, const Numbers& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double off = std::abs(got[i] - expected[i]);
    error = off > error || std::isnan(off) ? off : error;
    size = std::max(size, std::abs(expected[i]));
  }
  return error / size;
}

// An output against the equations', and the slope of the gradients along one direction against theirs.
bool agree(const std::string& what, const Numbers& out, const Numbers& expected, double slope, double expected_slope, double tolerance) {
  const double error = difference(out, expected);
  const double slope_error = std::abs(slope - expected_slope) / (1 + std::abs(expected_slope));
  const bool good = error <= tolerance && slope_error <= std::max(10 * tolerance, 1e-6);
  if (!good) std::printf("%s: output off by %.1e, gradients by %.1e\n", what.c_str(), error, slope_error);
  return good;
}

constexpr double STEP = 1e-5;  // along the direction

template <class T> bool attends(const Sizes& s, double tolerance) {
  std::mt19937 generator(7);
  const bool narrow = std::is_same_v<T, float>;
  const auto drawn = [&](int64_t width) { return draw(generator, s.tokens * s.heads * width, narrow); };
  const Inputs inputs{drawn(s.d), drawn(s.d), drawn(s.m)}, direction{drawn(s.d), drawn(s.d), drawn(s.m)};
  const Numbers grad = drawn(s.m);
  Inputs gradients;
  const Numbers out = call_library<T>(s, inputs, grad, gradients);
  const auto moved = [&](double by) {
    Inputs x = inputs;
    add(x.query, direction.query.data(), by), add(x.key, direction.key.data(), by);
    add(x.value, direction.value.data(), by);
    return dot(attend(s, x), grad);
  };
  const double slope = dot(gradients.query, direction.query) + dot(gradients.key, direction.key) +
                       dot(gradients.value, direction.value);
  const std::string what = std::string(narrow ? "float " : "double ") + NAMES[s.form] + ", " + std::to_string(s.tokens) +
                           " tokens, widths " + std::to_string(s.d) + " and " + std::to_string(s.m);
  return agree(what, out, attend(s, inputs), slope, (moved(STEP) - moved(-STEP)) / (2 * STEP), tolerance);
}

template <class T> bool convolves(const Taps& s, double tolerance) {
  std::mt19937 generator(7);
  const bool narrow = std::is_same_v<T, float>;
  const auto drawn = [&] {
    const auto some = [&](int64_t count) { return draw(generator, count, narrow); };
    return Convolved{some(s.tokens * s.channels), some(s.channels * s.taps), some(s.channels), some((s.taps - 1) * s.channels)};
  };
  const Convolved inputs = drawn(), direction = drawn();
  const Numbers grad = draw(generator, s.tokens * s.channels, narrow);
  Convolved gradients;
  const Numbers y = call_convolution<T>(s, inputs, grad, gradients);
  const auto moved = [&](double by) {
    Convolved in = inputs;
    add(in.x, direction.x.data(), by), add(in.weight, direction.weight.data(), by);
    add(in.bias, direction.bias.data(), by), add(in.before, direction.before.data(), by);
    return dot(convolve(s, in), grad);
  };
  const double slope = dot(gradients.x, direction.x) + dot(gradients.weight, direction.weight) +
                       dot(gradients.bias, direction.bias) + dot(gradients.before, direction.before);
  const std::string what = std::string(narrow ? "float" : "double") + " convolution, " + std::to_string(s.tokens) + " tokens, " +
                           std::to_string(s.channels) + " channels, " + std::to_string(s.taps) + " taps";
  return agree(what, y, convolve(s, inputs), slope, (moved(STEP) - moved(-STEP)) / (2 * STEP), tolerance);
}

// tests/golden: what the published code computes, in float64. One sequence, as many queries as keys.
struct Golden {
  Sizes sizes;
  Inputs inputs, gradients;
  Numbers out, grad;
};

// A tensor of a file of safetensors: how long the header is, the header in JSON, the numbers. `shape` is four sizes.
Numbers read_tensor(const std::string& file, const char* name, int64_t* shape) {
  uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof header);
  const size_t at = file.find("\"" + std::string(name) + "\":");
  long long sizes[4], first, last;
  if (at == std::string::npos ||
      std::sscanf(file.c_str() + at + std::strlen(name) + 3, R"({"dtype":"F64","shape":[%lld,%lld,%lld,%lld],"data_offsets":[%lld,%lld)",
                  sizes, sizes + 1, sizes + 2, sizes + 3, &first, &last) != 6 ||
      sizeof header + header + last > file.size())
    return {};
  std::copy(sizes, sizes + 4, shape);
  Numbers numbers((last - first) / sizeof(double));
  std::memcpy(numbers.data(), file.data() + sizeof header + header + first, last - first);
  return numbers;
}

bool read_golden(const std::string& path, Golden& golden) {
  std::ifstream stream(path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (file.size() < sizeof(uint64_t)) return false;
  int64_t of_query[4]{}, of_key[4]{}, shape[4]{};
  golden.inputs = {read_tensor(file, "q", of_query), read_tensor(file, "k", of_key), read_tensor(file, "v", shape)};
  golden.gradients = {read_tensor(file, "dq", shape), read_tensor(file, "dk", shape), read_tensor(file, "dv", shape)};
  golden.out = read_tensor(file, "out", shape), golden.grad = read_tensor(file, "w", shape);
  const std::string name = path.substr(path.rfind('/') + 1);
  const Form form = name[0] == 'c' ? CAUSAL : name[0] == 'm' ? MOBILE : BIDIRECTIONAL;
  golden.sizes = {of_query[1], of_query[2], of_query[3], of_query[3], form, 1};
  return of_query[0] == 1 && of_key[1] == of_query[1] && golden.grad.size() == golden.inputs.query.size();
}

template <class T> bool reproduces(const std::string& path, double tolerance) {
  Golden golden;
  if (!read_golden(path, golden)) {
    std::printf("%s holds no golden values of one sequence\n", path.c_str());
    return false;
  }
  Inputs gradients;
  double error = difference(call_library<T>(golden.sizes, golden.inputs, golden.grad, gradients), golden.out);
  error += difference(gradients.value, golden.gradients.value);  // the sum: a NaN stays one
  // Those of a single token cancel to the order of epsilon.
  if (golden.sizes.tokens > 1 || std::is_same_v<T, double>)
    error += difference(gradients.query, golden.gradients.query) + difference(gradients.key, golden.gradients.key);
  if (!(error <= tolerance))
    std::printf("%s as %s: off by %.1e\n", path.c_str(), std::is_same_v<T, float> ? "float" : "double", error);
  return error <= tolerance;
}

}  // namespace

int main(int arguments, char** files) {
  int cases = 0, failures = 0;
  const auto count = [&](bool narrow, bool wide) { cases += 2, failures += !narrow + !wide; };
  for (const Form form : {BIDIRECTIONAL, CAUSAL, MOBILE})
    for (const int64_t tokens : {1, 63, 64, 130})
      for (const int64_t width : {5, 32, 64}) {
        const Sizes sizes{tokens, 2, width, width == 5 ? 3 : width, form};
        count(attends<float>(sizes, 2e-5), attends<double>(sizes, 1e-12));
      }
  for (const int64_t tokens : {1, 3, 40})
    for (const int64_t channels : {5, 64, 1030})
      for (const int64_t taps : {1, 4, 7}) {
        const Taps sizes{tokens, channels, taps};
        count(convolves<float>(sizes, 2e-5), convolves<double>(sizes, 1e-12));
      }
  for (int i = 1; i < arguments; ++i) count(reproduces<float>(files[i], 1e-5), reproduces<double>(files[i], 1e-9));
  std::printf("%s: %d of %d cases agree with the equations%s\n", flowformer_isa(), cases - failures, cases,
              arguments > 1 ? " and the golden values" : "");
  return failures != 0;
}
