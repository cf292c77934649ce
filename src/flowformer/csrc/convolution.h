// The short convolution before recurrent mixers, of every channel by itself, and its gradients.
//
//   z_t = b + Σ_i w_i x_{t - taps + 1 + i + ahead}      y_t = z_t, or silu(z_t)
//
// over the real tokens of a sequence, by number: padding is stepped over. Before the first stand those of the state, or zeros,
// and zeros behind the last.
//
// A block of tokens at a time, vector by vector along the rows of a piece of the channels: a row comes from memory once, and is
// read from the first-level cache for every output that it is part of, of which four are added up in registers. Nothing but
// the outputs is written. The backward goes the same way, and computes z again. The gradients of the z of a block, and of the
// taps - 1 before it, stay in the cache, where the weights in the other order slide over them; so x and the gradient of y are
// read once and that of x is written once. Sums over tokens, which are the gradients of weight and bias, are carried in float64
// from block to block.
//
// NaN or infinity in a token reaches the outputs that see it, and no gradient: neither has one, and 0 · NaN would be one. A
// block in which there is any is found while its rows are in the cache, and read from a copy without it.
//
// A thread takes pieces of the channels, through all sequences: no number depends on how many threads there are.
#pragma once

#include "flows.h"
#include "rows.h"

namespace flowformer::FF_ISA {

constexpr int ROWS = 16;    // tokens of a block
constexpr int OUTPUTS = 4;  // of them in registers
constexpr int64_t LARGEST_PIECE = 512, SMALLEST_PIECE = 32;  // channels: as many as the cache holds, and a line of the narrowest

// Channels that lie side by side in every tensor.
struct Piece {
  int64_t head, first;  // the first of them, of a head
  int64_t channel;      // the same, of all
  int width;
  ptrdiff_t in(const View& view) const { return head * view.head + first; }
};

// The pieces of a row of all heads, where these follow each other in memory, and otherwise of each head's.
class Pieces {
 public:
  explicit Pieces(const Convolution& call) {
    bool joined = true;
    for (const View* view : {&call.x, &call.y, &call.grad_y, &call.grad_x})
      joined &= view->data == nullptr || view->head == call.width;
    rows_ = joined ? 1 : call.heads;
    width_ = joined ? call.heads * call.width : call.width;
    const int64_t wanted = (call.threads + rows_ - 1) / rows_;  // of a row
    const int64_t share = (width_ + wanted * SMALLEST_PIECE - 1) / (wanted * SMALLEST_PIECE) * SMALLEST_PIECE;
    size_ = share < LARGEST_PIECE ? share : LARGEST_PIECE;
    of_row_ = (width_ + size_ - 1) / size_;
  }
  int64_t count() const { return rows_ * of_row_; }
  Piece operator[](int64_t index) const {  // the first is a largest one
    const int64_t head = index / of_row_, first = index % of_row_ * size_, left = width_ - first;
    return {head, first, head * width_ + first, int(left < size_ ? left : size_)};
  }

 private:
  int64_t rows_, width_, size_, of_row_;
};

// The real tokens of a sequence.
struct Tokens {
  int64_t row, start, count;
  const int32_t* places;  // null: there is no padding
  ptrdiff_t offset(const View& view, int64_t number) const {
    return row * view.batch + (start + (places ? places[number] : number)) * view.token;
  }
};

class Sequences {
 public:
  explicit Sequences(const Convolution& call)
      : call_(call), places_(call.mask ? call.batch * call.tokens + 1 : 0), counts_(call.mask ? call.batch + 1 : 0) {
    if (!call.mask || !whole()) return;
    const uint8_t* mask = call.mask;
    for (int64_t s = 0; s < call.batch; ++s, mask += call.tokens) {
      int64_t& count = counts_.data()[s];
      for (int64_t t = 0; t < call.tokens; ++t)
        if (mask[t]) places_.data()[s * call.tokens + count++] = int32_t(t);
    }
  }
  bool whole() const { return !call_.mask || (places_.data() && counts_.data()); }
  Tokens operator[](int64_t s) const {
    if (call_.mask) return {s, 0, counts_.data()[s], places_.data() + s * call_.tokens};
    if (call_.offsets) return {0, call_.offsets[s], call_.offsets[s + 1] - call_.offsets[s], nullptr};
    return {s, 0, call_.tokens, nullptr};
  }

 private:
  const Convolution& call_;
  Memory<int32_t> places_;
  Memory<int64_t> counts_;
};

// A vector of a row of which `left` numbers are there, the rest zero; and back.
template <class T, class In> FF_INLINE Vec<T> take(const In* from, int left) {
  return left >= Simd<T>::W ? read<T>(from) : read_tail<T>(from, left);
}
template <class T, class Out> FF_INLINE void put(Out* to, Vec<T> x, int left) {
  left >= Simd<T>::W ? write(to, x) : write_tail<T>(to, x, left);
}

// task(c, left) for each vector of a row; `left` is known to the compiler but for the last.
template <class T, class Task> FF_INLINE void each_vector(int width, const Task& task) {
  constexpr int W = Simd<T>::W;
  int c = 0;
  for (; c + W <= width; c += W) task(c, W);
  if (c < width) task(c, width - c);
}

// use(j, c, left, z) with z = bias + Σ_i weight_i rows[j + i], for the first `count` of ROWS outputs and each vector of them.
template <class T, class In, class Use>
FF_INLINE void slide_taps(int taps, int width, int count, const In* const* rows, const T* weight, const T* bias, const Use& use) {
  const int stride = Widths<T>::padded(width);
  for (int j = 0; j < count; j += OUTPUTS)
    each_vector<T>(width, [&](int c, int left) FF_LAMBDA {
      Vec<T> z[OUTPUTS];
#pragma GCC unroll 4
      for (int u = 0; u < OUTPUTS; ++u) z[u] = load(bias + c);
#pragma GCC unroll 4
      for (int i = 0; i < taps; ++i) {
        const Vec<T> w = load(weight + i * stride + c);
#pragma GCC unroll 4
        for (int u = 0; u < OUTPUTS; ++u) z[u] += w * take<T>(rows[j + i + u] + c, left);
      }
#pragma GCC unroll 4
      for (int u = 0; u < OUTPUTS; ++u)
        if (j + u < count) use(j + u, c, left, z[u]);
    });
}

template <class T, class In, class Use>
inline void slide(int taps, int width, int count, const In* const* rows, const T* weight, const T* bias, const Use& use) {
  if (taps == 4)  // as nearly all have it: each number is read once for four outputs
    slide_taps<T>(4, width, count, rows, weight, bias, use);
  else
    slide_taps<T>(taps, width, count, rows, weight, bias, use);
}

// A piece on its way through the sequences: its weights, and the rows of x that the outputs of a block see.
template <class T, class In> class PieceForward {
 public:
  PieceForward(const Convolution& c, const Sequences& all, const Piece& p, Arena& arena)
      : call(c), sequences(all), piece(p), taps(int(c.taps)), width(p.width), padded(Widths<T>::padded(p.width)) {
    weight = arena.take<T>(int64_t(taps) * padded);
    bias = arena.take<T>(padded);
    zeros = arena.take<In>(padded);
    before = arena.take<In>(int64_t(taps - 1) * padded);
    rows = arena.take_unset<const In*>(ROWS + taps - 1 + SPARE);
    if (!arena.holds_memory()) return;
    const T* from = static_cast<const T*>(call.weight) + piece.channel * taps;
    for (int i = 0; i < taps; ++i)
      for (int j = 0; j < width; ++j) weight[i * padded + j] = from[int64_t(j) * taps + i];
    if (call.bias) std::memcpy(bias, static_cast<const T*>(call.bias) + piece.channel, width * sizeof(T));
  }

  // y, and the last tokens.
  void forward() {
    In* out = static_cast<In*>(call.y.data) + piece.in(call.y);
    In* to[ROWS];
    for (int64_t s = 0; s < call.batch; ++s) {
      enter(s);
      for (int64_t t = 0; t < tokens.count; t += ROWS) {
        look(t);
        const int count = of_block(t);
        for (int j = 0; j < count; ++j) to[j] = out + tokens.offset(call.y, t + j);
        slide<T>(taps, width, count, rows, weight, bias, [&](int j, int c, int left, Vec<T> z) FF_LAMBDA {
          put<T>(to[j] + c, call.activates ? z * sigmoid<T>(z) : z, left);
        });
      }
      if (call.after) leave(s);
    }
    clear_padding(call.y, out);
  }

 protected:
  static constexpr int SPARE = OUTPUTS - 1;  // rows behind the last, of which nothing is used

  // Takes up a sequence, with the tokens before its first.
  void enter(int64_t s) {
    tokens = sequences[s];
    constexpr int W = Simd<T>::W;
    for (int i = 0; call.before && i < taps - 1; ++i) {
      const double* from = of_state(call.before, s, i);
      for (int c = 0; c < width; c += W) {
        Vec<T> x = {};
        for (int j = 0; j < W && c + j < width; ++j) x[j] = T(from[c + j]);
        write(before + i * padded + c, x);
      }
    }
  }

  // Writes the last tokens.
  void leave(int64_t s) const {
    for (int i = 0; i < taps - 1; ++i) {
      const In* from = row(tokens.count - taps + 1 + i);
      double* to = of_state(call.after, s, i);
      each_vector<T>(width, [&](int c, int left) FF_LAMBDA {
        const Vec<T> x = take<T>(from + c, left);
        for (int j = 0; j < left; ++j) to[c + j] = x[j];
      });
    }
  }

  // Finds what the outputs of a block see, that of number t + j from rows[j] on.
  void look(int64_t t) {
    for (int j = 0; j < ROWS + taps - 1 + SPARE; ++j) rows[j] = row(t + call.ahead - taps + 1 + j);
  }
  const In* row(int64_t number) const {
    if (number < 0) return before + (taps - 1 + number) * padded;
    if (number >= tokens.count) return zeros;
    return static_cast<const In*>(call.x.data) + tokens.offset(call.x, number) + piece.in(call.x);
  }
  int of_block(int64_t t) const {
    const int64_t left = tokens.count - t;
    return int(left < 0 ? 0 : left < ROWS ? left : ROWS);
  }

  template <class Number> Number* of_state(Number* data, int64_t s, int64_t i) const {
    return data + (s * (taps - 1) + i) * call.heads * call.width + piece.channel;
  }

  // `out` is the first row's piece.
  void clear_padding(const View& view, In* out) const {
    for (int64_t i = 0; call.mask && i < call.batch * call.tokens; ++i)
      if (!call.mask[i])
        std::memset(static_cast<void*>(out + i / call.tokens * view.batch + i % call.tokens * view.token), 0, width * sizeof(In));
  }

  const Convolution& call;
  const Sequences& sequences;
  const Piece piece;
  const int taps, width, padded;
  T *weight, *bias;  // [taps, padded], [padded]
  In *zeros, *before;
  const In** rows;
  Tokens tokens = {};
};

template <class T, class In> class PieceBackward : PieceForward<T, In> {
  using Base = PieceForward<T, In>;
  using Base::bias, Base::call, Base::padded, Base::piece, Base::rows, Base::taps, Base::tokens, Base::weight, Base::width;

 public:
  PieceBackward(const Convolution& c, const Sequences& all, const Piece& p, Arena& arena) : Base(c, all, p, arena) {
    const int held = ROWS + taps - 1;
    turned = arena.take_unset<T>(int64_t(taps) * padded);
    nothing = arena.take<T>(padded);
    ring = arena.take_unset<T>(int64_t(held) * padded);
    grads = arena.take_unset<T*>(held);
    sums = arena.take<double>(int64_t(taps + 1) * padded);
    clean = arena.take_unset<In>(int64_t(held) * padded);
    for (int i = 0; arena.holds_memory() && i < taps; ++i)
      std::memcpy(turned + i * padded, weight + (taps - 1 - i) * padded, padded * sizeof(T));
  }

  void backward() {
    In* to = static_cast<In*>(call.grad_x.data) + piece.in(call.grad_x);
    for (int64_t s = 0; s < call.batch; ++s) {
      this->enter(s);
      // An x is seen by outputs up to so many later ones: from there on its gradient is whole.
      const int64_t later = taps - 1 - call.ahead, end = tokens.count + later;
      for (int64_t t = 0; t < end; t += ROWS) {
        this->look(t);
        const int count = this->of_block(t);
        find_gradients(t, count);
        if (!is_finite(count + taps - 1)) contain(count);
        add_sums(count);
        write_gradients(s, t - later, int(end - t < ROWS ? end - t : ROWS), to);
      }
    }
    this->clear_padding(call.grad_x, to);
    write_sums();
  }

 private:
  // Those of z, of a block and the tokens before it: of number t + j in grads[taps - 1 + j].
  void find_gradients(int64_t t, int count) {
    const int held = ROWS + taps - 1;
    for (int j = 0; j < held; ++j) {
      const int64_t number = t - taps + 1 + j;
      grads[j] = number < 0 || number >= tokens.count ? nothing : ring + number % held * padded;
    }
    const In* from[ROWS];
    for (int j = 0; j < count; ++j)
      from[j] = static_cast<const In*>(call.grad_y.data) + tokens.offset(call.grad_y, t + j) + piece.in(call.grad_y);
    T* const* to = grads + taps - 1;
    if (call.activates)
      return slide<T>(taps, width, count, rows, weight, bias, [&](int j, int c, int left, Vec<T> z) FF_LAMBDA {
        const Vec<T> s = sigmoid<T>(z);
        store(to[j] + c, take<T>(from[j] + c, left) * (s * (z * (T(1) - s) + T(1))));
      });
    for (int j = 0; j < count; ++j)
      each_vector<T>(width, [&](int c, int left) FF_LAMBDA { store(to[j] + c, take<T>(from[j] + c, left)); });
  }

  bool is_finite(int seen) const {
    Vec<T> unfit = {};  // NaN, if any number is: ±0 times all others is zero
    each_vector<T>(width, [&](int c, int left) FF_LAMBDA {
      Vec<T> found = {};
      for (int j = 0; j < seen; ++j) found += take<T>(rows[j] + c, left) * T(0);
      unfit += found;
    });
    return sum<T>(unfit) == 0;
  }

  // Lets the rows be zero where they are not finite, and the gradients of the z that see it.
  void contain(int count) {
    for (int j = 0; j < count + taps - 1; ++j) {
      In* to = clean + j * padded;
      each_vector<T>(width, [&](int c, int left) FF_LAMBDA {
        const Vec<T> zero = {}, x = take<T>(rows[j] + c, left), off = x * T(0);
        put<T>(to + c, off == zero ? x : zero, left);
        for (int of = j < taps ? 0 : j - taps + 1; of <= j && of < count; ++of) {
          T* grad = grads[taps - 1 + of] + c;
          store(grad, off == zero ? load(grad) : zero);
        }
      });
      rows[j] = to;
    }
  }

  // Σ_t x_{t - taps + 1 + i + ahead} ∂z_t of a block, and Σ_t ∂z_t.
  void add_sums(int count) {
    T* const* of_z = grads + taps - 1;
    each_vector<T>(width, [&](int c, int left) FF_LAMBDA {
      Vec<T> of_bias = {};
      for (int i = 0; i < taps; i += OUTPUTS) {
        Vec<T> total[OUTPUTS] = {};
        for (int j = 0; j < count; ++j) {
          const Vec<T> grad = load(of_z[j] + c);
          if (i == 0) of_bias += grad;
#pragma GCC unroll 4
          for (int u = 0; u < OUTPUTS; ++u) total[u] += grad * take<T>(rows[j + i + u] + c, left);
        }
#pragma GCC unroll 4
        for (int u = 0; u < OUTPUTS; ++u)
          if (i + u < taps) add_to<T>(sums + (i + u) * padded + c, total[u]);
      }
      add_to<T>(sums + taps * padded + c, of_bias);
    });
  }

  // Those of x from a number on, which may be of the tokens before the first.
  void write_gradients(int64_t s, int64_t first, int count, In* out) {
    In* to[ROWS];
    for (int j = 0; j < count; ++j) to[j] = first + j < 0 ? nullptr : out + tokens.offset(call.grad_x, first + j);
    slide<T>(taps, width, count, grads, turned, nothing, [&](int j, int c, int left, Vec<T> x) FF_LAMBDA {
      if (to[j]) return put<T>(to[j] + c, x, left);
      if (!call.grad_before) return;
      double* early = this->of_state(call.grad_before, s, taps - 1 + first + j) + c;
      for (int i = 0; i < left; ++i) early[i] = x[i];
    });
  }

  void write_sums() const {
    T* to = static_cast<T*>(call.grad_weight) + piece.channel * taps;
    for (int c = 0; c < width; ++c)
      for (int i = 0; i < taps; ++i) *to++ = T(sums[i * padded + c]);
    T* of_bias = static_cast<T*>(call.grad_bias);
    for (int c = 0; of_bias && c < width; ++c) of_bias[piece.channel + c] = T(sums[taps * padded + c]);
  }

  T *turned, *nothing, *ring, **grads;
  double* sums;  // [taps + 1, padded], the bias's last
  In* clean;
};

// task(pass) of every piece, on all threads.
template <class Pass, class Task> inline int over_pieces(const Convolution& call, const Task& task) {
  const Sequences sequences(call);
  if (!sequences.whole()) return 1;
  const Pieces pieces(call);
  Arena counted(nullptr);
  Pass(call, sequences, pieces[0], counted);
  Team team(call.threads, counted.used());
  return !parallel_for(team, pieces.count(), [&](char* scratch, int64_t index) {
    Arena arena(scratch);
    Pass pass(call, sequences, pieces[index], arena);
    task(pass);
  });
}

template <class T, class In> int convolve(const Convolution& call) {
  return over_pieces<PieceForward<T, In>>(call, [](auto& pass) { pass.forward(); });
}
template <class T, class In> int convolve_backward(const Convolution& call) {
  return over_pieces<PieceBackward<T, In>>(call, [](auto& pass) { pass.backward(); });
}

template <class T> int convolution_forward(const Convolution& call) {
  if constexpr (sizeof(T) == 8) return convolve<T, T>(call);
  else if (is_of(call, FLOAT32)) return convolve<T, float>(call);
  else if (is_of(call, FLOAT16)) return convolve<T, Half>(call);
  else return convolve<T, Brain>(call);
}
template <class T> int convolution_backward(const Convolution& call) {
  if constexpr (sizeof(T) == 8) return convolve_backward<T, T>(call);
  else if (is_of(call, FLOAT32)) return convolve_backward<T, float>(call);
  else if (is_of(call, FLOAT16)) return convolve_backward<T, Half>(call);
  else return convolve_backward<T, Brain>(call);
}

}  // namespace flowformer::FF_ISA
