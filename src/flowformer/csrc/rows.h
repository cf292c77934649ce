// One (sequence, head) of a call: where its tokens lie, and how they are read and written.
#pragma once

#include "api.h"
#include "simd.h"
#include "threads.h"

namespace flowformer::FF_ISA {

template <class Task> inline bool parallel_for(Team& team, int64_t tasks, const Task& task) {
  const auto work = [](const void* context, char* scratch, int64_t i) {
    (*static_cast<const Task*>(context))(scratch, i);
  };
  return team.run(tasks, work, &task);
}

// Hands out pieces of a thread's scratch, each aligned to a vector and zero (padded lanes stay so); without memory it only
// counts what will be needed.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(reinterpret_cast<uintptr_t>(memory)) {}
  template <class T> T* take(int64_t count) {
    T* piece = take_unset<T>(count);
    if (memory_) std::memset(static_cast<void*>(piece), 0, size_t(count) * sizeof(T));
    return piece;
  }
  template <class T> T* take_unset(int64_t count) {
    T* piece = reinterpret_cast<T*>(memory_ + used_);
    used_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }
  bool holds_memory() const { return memory_ != 0; }

 private:
  uintptr_t memory_;
  size_t used_ = 0;
};

// Memory, zero, that goes with its scope; null when there is none to be had.
template <class T> class Memory {
 public:
  explicit Memory(int64_t count) : data_(static_cast<T*>(__builtin_calloc(size_t(count), sizeof(T)))) {}
  ~Memory() { __builtin_free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

// The same, aligned to a vector and not zero.
template <class T> class Room {
 public:
  explicit Room(int64_t count) : memory_(count ? __builtin_malloc(size_t(count) * sizeof(T) + 64) : nullptr) {}
  ~Room() { __builtin_free(memory_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  T* data() const { return memory_ ? reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_) + 63) / 64 * 64) : nullptr; }

 private:
  void* memory_;
};

// Widths, and the same padded to whole vectors.
template <class T> struct Widths {
  int d, m, dp, mp;
  explicit Widths(const Call& call)
      : d(int(call.key_width)), m(int(call.value_width)), dp(padded(d)), mp(padded(m)) {}
  static int padded(int width) { return (width + Simd<T>::W - 1) / Simd<T>::W * Simd<T>::W; }
};

// A matrix [dp, mp] whose rows that are padding are zero. Every matrix that is ever turned, or added up into one that is, comes
// from here (or from take, where its columns are to be zero too): no product writes those rows; turned, they are columns of
// the next product, and so lanes that a dot multiplies by the zeros of padding. What nobody wrote may be NaN there.
template <class T> inline T* take_matrix(Arena& arena, const Widths<T>& s) {
  T* matrix = arena.take_unset<T>(int64_t(s.dp) * s.mp);
  if (arena.holds_memory()) std::memset(matrix + int64_t(s.d) * s.mp, 0, size_t(s.dp - s.d) * s.mp * sizeof(T));
  return matrix;
}

// The tokens of one sequence on one side (queries or keys).
struct Side {
  int64_t start;    // its first token in its row of the batch
  int64_t length;   // its tokens
  int64_t trimmed;  // the same without the padding at the end
  int64_t tokens;   // its real tokens
  const uint8_t* mask;  // true = real, from its first token, or null

  Side(int64_t sequence, int64_t row, const uint8_t* batch_mask, const int64_t* offsets) {
    start = offsets ? offsets[sequence] : 0;
    length = offsets ? offsets[sequence + 1] - start : row;
    mask = batch_mask ? batch_mask + sequence * row : nullptr;
    trimmed = length;
    if (mask)
      while (trimmed > 0 && !mask[trimmed - 1]) --trimmed;
    tokens = count(0, trimmed);
  }
  const uint8_t* mask_at(int64_t t) const { return mask ? mask + t : nullptr; }
  bool real(int64_t t) const { return !mask || mask[t]; }
  int64_t count(int64_t from, int64_t to) const {
    if (!mask) return to - from;
    int64_t n = 0;
    for (int64_t t = from; t < to; ++t) n += mask[t] != 0;
    return n;
  }
};

struct Row {
  int64_t index, sequence, head;
  bool packed;
  Side query, key;

  Row(const Call& call, int64_t task)
      : index(task),
        sequence(task / call.heads),
        head(task % call.heads),
        packed(call.query_offsets != nullptr),
        query(sequence, call.queries, call.query_mask, call.query_offsets),
        key(sequence, call.keys, call.key_mask, call.key_offsets) {}

  int64_t batch() const { return packed ? 0 : sequence; }
  // Of token t of this sequence, in elements.
  ptrdiff_t offset(const View& view, const Side& side, int64_t t) const {
    return batch() * view.batch + (side.start + t) * view.token + head * view.head;
  }
  template <class T> T* at(const View& view, const Side& side, int64_t t) const {
    return static_cast<T*>(view.data) + offset(view, side, t);
  }
  // One number a token, of the queries: a contiguous [b, t, h].
  template <class T> T* scalars(void* data, const Call& call, int64_t t) const {
    return static_cast<T*>(data) + (batch() * call.queries + query.start + t) * call.heads + head;
  }
  // The numbers kept for each token, [b, h, components, tokens].
  template <class T>
  T* stats(void* data, const Call& call, const Side& side, int64_t tokens, int components, int component) const {
    if (!data) return nullptr;
    return static_cast<T*>(data) + ((batch() * call.heads + head) * components + component) * tokens + side.start;
  }
};

// ---- numbers in memory -> numbers of the arithmetic

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

template <class T> FF_INLINE Vec<T> read(const T* from) { return load(from); }

typedef uint16_t Shorts __attribute__((vector_size(FF_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(FF_BYTES)));

FF_INLINE Words widened(const void* from) {
  Shorts x;
  std::memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, Words);
}

template <class T> FF_INLINE Vec<T> read(const Brain* from) { return (Vec<float>)(widened(from) << 16); }

template <class T> FF_INLINE Vec<T> read(const Half* from) {
#if FF_BYTES == 64
  __m256i x;
  std::memcpy(&x, from, sizeof x);
  return (Vec<T>)_mm512_maskz_cvtph_ps(0xffff, x);
#elif FF_BYTES == 32
  __m128i x;
  std::memcpy(&x, from, sizeof x);
  return (Vec<T>)_mm256_cvtph_ps(x);
#else
  const Words x = widened(from);
  const Words magnitude = (x & 0x7fffu) << 13;
  const Words special = magnitude | 0x7f800000u;  // infinity and NaN
  const Words finite = (Words)((Vec<float>)magnitude * 0x1p112f);
  return (Vec<float>)((magnitude >= 0x0f800000u ? special : finite) | (x & 0x8000u) << 16);
#endif
}

template <class T> FF_INLINE void write(T* to, Vec<T> x) { store(to, x); }

FF_INLINE void write_narrow(void* to, Words x) {
  const Shorts narrow = __builtin_convertvector(x, Shorts);
  std::memcpy(to, &narrow, sizeof narrow);
}

// Rounded to the nearest, ties to even; the instruction makes zeros of subnormal numbers.
FF_INLINE void write(Brain* to, Vec<float> value) {
#ifdef FF_PAIRS
  const __m256i narrow = (__m256i)_mm512_cvtneps_pbh((__m512)value);
  std::memcpy(static_cast<void*>(to), &narrow, sizeof narrow);
#else
  const Words x = (Words)value;
  const Words rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
  write_narrow(to, (x & 0x7fffffffu) > 0x7f800000u ? (x >> 16) | 0x40u : rounded);
#endif
}

FF_INLINE void write(Half* to, Vec<float> value) {
#if FF_BYTES == 64
  const __m256i x = _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(static_cast<void*>(to), &x, sizeof x);
#elif FF_BYTES == 32
  const __m128i x = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(static_cast<void*>(to), &x, sizeof x);
#else
  const Words bits = (Words)value, sign = (bits >> 16) & 0x8000u, x = bits & 0x7fffffffu;
  const Words normal = (x - 0x38000000u + 0xfffu + ((x >> 13) & 1u)) >> 13;
  const Words subnormal = (Words)((Vec<float>)x + 0.5f) - 0x3f000000u;  // 0.5 has the spacing of the smallest halves
  Words y = x < 0x38800000u ? subnormal : normal;
  y = x >= 0x477ff000u ? (Words{} + 0x7c00u) : y;  // 65,520 and above
  y = x > 0x7f800000u ? (Words{} + 0x7e00u) : y;
  write_narrow(to, y | sign);
#endif
}

// The last numbers of a row, fewer than a vector's, as a vector with zeros behind them; and back. Masked instructions where
// there are any: a copy of a length that is not known to the compiler stalls the load of the vector that follows it.
template <class T, class In> FF_INLINE Vec<T> read_tail(const In* from, int left) {
#if FF_BYTES == 64
  const uint32_t lanes = (1u << left) - 1;
  if constexpr (sizeof(In) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16(lanes), from);
  if constexpr (sizeof(In) == 8) return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8(lanes), from);
#elif FF_BYTES == 32
  const auto lanes = (__m256i)lanes_below<T>(left);
  if constexpr (sizeof(In) == 4) return (Vec<T>)_mm256_maskload_ps(reinterpret_cast<const float*>(from), lanes);
  if constexpr (sizeof(In) == 8) return (Vec<T>)_mm256_maskload_pd(reinterpret_cast<const double*>(from), lanes);
#endif
  In part[Simd<T>::W] = {};
  std::memcpy(static_cast<void*>(part), from, left * sizeof(In));
  return read<T>(part);
}

template <class T, class Out> FF_INLINE void write_tail(Out* to, Vec<T> x, int left) {
#if FF_BYTES == 64
  const uint32_t lanes = (1u << left) - 1;
  if constexpr (sizeof(Out) == 4) return _mm512_mask_storeu_ps(to, __mmask16(lanes), (__m512)x);
  if constexpr (sizeof(Out) == 8) return _mm512_mask_storeu_pd(to, __mmask8(lanes), (__m512d)x);
#elif FF_BYTES == 32
  const auto lanes = (__m256i)lanes_below<T>(left);
  if constexpr (sizeof(Out) == 4) return _mm256_maskstore_ps(reinterpret_cast<float*>(to), lanes, (__m256)x);
  if constexpr (sizeof(Out) == 8) return _mm256_maskstore_pd(reinterpret_cast<double*>(to), lanes, (__m256d)x);
#endif
  Out part[Simd<T>::W];
  write(part, x);
  std::memcpy(static_cast<void*>(to), part, left * sizeof(Out));
}

// Rows of `width` numbers into rows of whole vectors, the rest zero; masked rows are zero, whatever they hold. `fetch`: the
// rows of the next chunk are on their way meanwhile.
template <class T, class In, class Map>
FF_INLINE void read_rows(const In* from, ptrdiff_t stride, int rows, int width, const uint8_t* mask, T* to, bool fetch,
                         Map map) {
  constexpr int W = Simd<T>::W;
  const int whole = width / W * W, padded = Widths<T>::padded(width);
  for (int t = 0; t < rows; ++t, from += stride, to += padded) {
    for (size_t line = 0; fetch && line < width * sizeof(In); line += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(from + CHUNK * stride) + line);
    if (mask && !mask[t]) {
      std::memset(to, 0, padded * sizeof(T));
      continue;
    }
    for (int j = 0; j < whole; j += W) store(to + j, map(read<T>(from + j)));
    if (const int left = width - whole) {
      const Vec<T> x = map(read_tail<T>(from + whole, left));
      store(to + whole, (Vec<T>)(lanes_below<T>(left) & (typename Simd<T>::Bits)x));  // φ(0) is not 0
    }
  }
}

// Whether a call of narrow inputs has numbers of this dtype; where only bfloat16 comes here, the compiler knows.
template <class Any> inline bool is_of(const Any& call, Dtype dtype) {
#ifdef FF_PAIRS
  return (void)call, dtype == BFLOAT16;
#else
  return call.dtype == dtype;
#endif
}

template <class T, class Map>
inline void read_view(const Call& call, const View& view, const Row& row, const Side& side, int64_t t, int rows,
                      int width, T* to, bool fetch, Map map) {
  const ptrdiff_t offset = row.offset(view, side, t);
  const uint8_t* mask = side.mask_at(t);
  if constexpr (sizeof(T) == 8) {
    read_rows(static_cast<const double*>(view.data) + offset, view.token, rows, width, mask, to, fetch, map);
  } else if (is_of(call, FLOAT32)) {
    read_rows(static_cast<const float*>(view.data) + offset, view.token, rows, width, mask, to, fetch, map);
  } else if (is_of(call, FLOAT16)) {
    read_rows(static_cast<const Half*>(view.data) + offset, view.token, rows, width, mask, to, fetch, map);
  } else {
    read_rows(static_cast<const Brain*>(view.data) + offset, view.token, rows, width, mask, to, fetch, map);
  }
}

template <class T>
inline void read_values(const Call& call, const View& view, const Row& row, const Side& side, int64_t t, int rows,
                        int width, T* to, bool fetch = true) {
  read_view<T>(call, view, row, side, t, rows, width, to, fetch, [](Vec<T> x) FF_LAMBDA { return x; });
}

// φ of queries or keys.
template <class T>
inline void read_features(const Call& call, const View& view, const Row& row, const Side& side, int64_t t, int rows,
                          T* to, bool fetch = true) {
  const int width = int(call.key_width);
  if (call.feature_map == SIGMOID)
    read_view<T>(call, view, row, side, t, rows, width, to, fetch, [](Vec<T> x) FF_LAMBDA { return sigmoid<T>(x); });
  else if (call.feature_map == RELU)  // as published; x < 0 and not x > 0: NaN stays NaN
    read_view<T>(call, view, row, side, t, rows, width, to, fetch,
                 [](Vec<T> x) FF_LAMBDA { return (x < T(0) ? Vec<T>{} : x) + T(1e-6); });
  else
    read_values<T>(call, view, row, side, t, rows, width, to, fetch);
}

// grad · φ'(x), given φ; the derivative of the identity is 1. Exactly zero at masked tokens.
template <class T>
inline void write_feature_gradient(const Call& call, const View& view, const Row& row, const Side& side, int64_t t, int rows,
                                   const T* features, const T* grad) {
  const int d = int(call.key_width), dp = Widths<T>::padded(d);
  T* to = row.at<T>(view, side, t);
  for (int i = 0; i < rows; ++i, features += dp, grad += dp, to += view.token) {
    if (!side.real(t + i)) {
      std::memset(to, 0, d * sizeof(T));
    } else if (call.feature_map == SIGMOID) {
      for (int j = 0; j < d; ++j) to[j] = grad[j] * (features[j] * (T(1) - features[j]));
    } else if (call.feature_map == RELU) {
      for (int j = 0; j < d; ++j) to[j] = features[j] > T(1e-6) ? grad[j] : T(0);
    } else {
      std::memcpy(to, grad, d * sizeof(T));
    }
  }
}

template <class T, class Out>
FF_INLINE void write_rows(Out* to, ptrdiff_t stride, int rows, int width, const uint8_t* mask, const T* from,
                          const T* scale) {
  constexpr int W = Simd<T>::W;
  const int whole = width / W * W, padded = Widths<T>::padded(width);
  for (int t = 0; t < rows; ++t, from += padded, to += stride) {
    if (mask && !mask[t]) {
      std::memset(static_cast<void*>(to), 0, width * sizeof(Out));
      continue;
    }
    for (int j = 0; j < whole; j += W) write(to + j, load(from + j) * scale[t]);
    if (whole < width) write_tail<T>(to + whole, load(from + whole) * scale[t], width - whole);
  }
}

// scale[t] · from[t], in the dtype of the output; zero at masked tokens.
template <class T>
inline void write_output(const Call& call, const Row& row, int64_t t, int rows, const T* from, const T* scale) {
  const View& view = call.out;
  const ptrdiff_t offset = row.offset(view, row.query, t);
  const uint8_t* mask = row.query.mask_at(t);
  const int width = int(call.value_width);
  if constexpr (sizeof(T) == 8) {
    write_rows(static_cast<double*>(view.data) + offset, view.token, rows, width, mask, from, scale);
  } else if (is_of(call, FLOAT32)) {
    write_rows(static_cast<float*>(view.data) + offset, view.token, rows, width, mask, from, scale);
  } else if (is_of(call, FLOAT16)) {
    write_rows(static_cast<Half*>(view.data) + offset, view.token, rows, width, mask, from, scale);
  } else {
    write_rows(static_cast<Brain*>(view.data) + offset, view.token, rows, width, mask, from, scale);
  }
}

// Rows of `width` numbers, and rows of `padded`.
template <class T> inline void save_rows(int rows, int width, int padded, const T* from, T* to) {
  for (int i = 0; i < rows; ++i) std::memcpy(to + int64_t(i) * width, from + int64_t(i) * padded, width * sizeof(T));
}
template <class T> inline void restore_rows(int rows, int width, int padded, const T* from, T* to) {
  for (int i = 0; i < rows; ++i) std::memcpy(to + int64_t(i) * padded, from + int64_t(i) * width, width * sizeof(T));
}

inline int64_t bytes_of_number(const Call& call) { return call.dtype == FLOAT64 ? 8 : call.dtype == FLOAT32 ? 4 : 2; }

// The tokens of padding at the end, which no chunk visits.
template <class T> inline void write_padding(const Call& call, const Row& row) {
  const int64_t size = bytes_of_number(call);
  for (int64_t t = row.query.trimmed; t < row.query.length; ++t)
    std::memset(static_cast<char*>(call.out.data) + row.offset(call.out, row.query, t) * size, 0,
                call.value_width * size);
}

template <class T> inline void zero_padding(const View& view, const Row& row, const Side& side, int64_t width) {
  for (int64_t t = side.trimmed; t < side.length; ++t) std::memset(row.at<T>(view, side, t), 0, width * sizeof(T));
}

}  // namespace flowformer::FF_ISA
