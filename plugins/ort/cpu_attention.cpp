// Liger attention on a CPU, token by token. Compiled once per instruction set, into a namespace of that name.
//
// One thread computes a key/value head. The head's state is read and written once per token for all its query heads, in
// blocks of columns whose sums stay in registers.
//
// Equations: docs/reference/model.md, "Attention" (arXiv 2503.01496, equations 5 to 8; arXiv 2404.07904 for hgrn2).

#include "cpu_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vectors.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t MEMBERS = 4;  // query heads whose sums are kept in registers together

// scale * softmax(values) in place; `count` is a multiple of 8.
LIGER_INLINE void softmax(float* values, int64_t count, float scale) {
  Floats peaks = load(values);
  for (int64_t at = WIDTH; at < count; at += WIDTH) peaks = larger(peaks, load(values + at));
  float peak = peaks[0];
  for (int lane = 1; lane < WIDTH; ++lane) peak = std::max(peak, peaks[lane]);
  Floats total{};
  for (int64_t at = 0; at < count; at += WIDTH) {
    const Floats powers = exponential(load(values + at) - peak);
    store(values + at, powers);
    total += powers;
  }
  const float factor = scale / sum(total);
  for (int64_t at = 0; at < count; at += WIDTH) store(values + at, load(values + at) * factor);
}

// The key's features and its head's decays, [D] each.
LIGER_INLINE void key_features(const Sizes& sizes, const float* key, float* features, float* decays) {
  const int64_t head_dim = sizes.head_dim;
  if (sizes.mixer == Mixer::hgrn2) {
    for (int64_t at = 0; at < head_dim; at += WIDTH) {
      const Floats gate = load(key + at);
      store(decays + at, 1.0f / (exponential(-gate) + 1.0f));
      store(features + at, 1.0f / (exponential(gate) + 1.0f));
    }
    return;
  }
  for (int64_t at = 0; at < head_dim; at += WIDTH) {
    const Floats gate = load(key + at), magnitude = larger(gate, -gate);
    const Floats log_sigmoid = smaller(gate, all(0)) - log_of_one_plus(exponential(-magnitude));
    store(decays + at, exponential(log_sigmoid / sizes.gate_normalizer));
  }
  std::memcpy(features, key, head_dim * sizeof(float));
  softmax(features, head_dim, 1);
}

// Rotary embedding in Llama's half-split order.
LIGER_INLINE void rotate(const float* from, const float* cos, const float* sin, float* to, int64_t head_dim, float scale) {
  const int64_t half = head_dim / 2;
  for (int64_t at = 0; at < half; ++at) {
    const float first = from[at], second = from[at + half];
    to[at] = (first * cos[at] - second * sin[at]) * scale;
    to[at + half] = (second * cos[at] + first * sin[at]) * scale;
  }
}

// state = diag(decays) state + features added^T if `added` is given; sums[m] += weights[m]^T state for `members` heads.
template <int members, int blocks>
LIGER_INLINE void read_columns(float* matrix, int64_t rows, int64_t columns, const float* weights, int64_t weight_stride,
                               float* sums, int64_t sum_stride, const float* decays, const float* features,
                               const float* added) {
  Floats total[members][blocks], addend[blocks];
  for (int block = 0; block < blocks; ++block) {
    if (added) addend[block] = load(added + block * WIDTH);
    for (int member = 0; member < members; ++member) {
      total[member][block] = load(sums + member * sum_stride + block * WIDTH);
    }
  }
  for (int64_t row = 0; row < rows; ++row, matrix += columns) {
    for (int block = 0; block < blocks; ++block) {
      Floats values = load(matrix + block * WIDTH);
      if (added) {
        values = values * decays[row] + addend[block] * features[row];
        store(matrix + block * WIDTH, values);
      }
      for (int member = 0; member < members; ++member) {
        total[member][block] += values * weights[member * weight_stride + row];
      }
    }
  }
  for (int block = 0; block < blocks; ++block) {
    for (int member = 0; member < members; ++member) {
      store(sums + member * sum_stride + block * WIDTH, total[member][block]);
    }
  }
}

template <int members>
LIGER_INLINE void read_members(float* matrix, int64_t rows, int64_t columns, const float* weights, int64_t weight_stride,
                               float* sums, const float* decays, const float* features, const float* added) {
  int64_t at = 0;
  for (; at + 2 * WIDTH <= columns; at += 2 * WIDTH) {
    read_columns<members, 2>(matrix + at, rows, columns, weights, weight_stride, sums + at, columns, decays, features,
                             added ? added + at : nullptr);
  }
  if (at < columns) {
    read_columns<members, 1>(matrix + at, rows, columns, weights, weight_stride, sums + at, columns, decays, features,
                             added ? added + at : nullptr);
  }
}

// Adds weighted rows of a matrix [rows, columns] to sums [heads, columns], with weights [heads, weight_stride], after
// updating the matrix if `added` is given.
LIGER_INLINE void read_out(float* matrix, int64_t rows, int64_t columns, const float* weights, int64_t weight_stride,
                           float* sums, int64_t heads, const float* decays, const float* features, const float* added) {
  for (int64_t head = 0; head < heads; head += MEMBERS) {
    const float* of_head = weights + head * weight_stride;
    float* to = sums + head * columns;
    switch (std::min(MEMBERS, heads - head)) {
      case 4: read_members<4>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added); break;
      case 3: read_members<3>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added); break;
      case 2: read_members<2>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added); break;
      default: read_members<1>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added);
    }
    added = nullptr;  // the first heads have updated the matrix
  }
}

// scores[head, row] = queries[head] . keys[row] for `members` heads.
template <int members>
LIGER_INLINE void score_members(const float* keys, int64_t rows, const float* queries, int64_t head_dim, float* scores,
                                int64_t score_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    Floats products[members] = {};
    for (int64_t at = 0; at < head_dim; at += WIDTH) {
      const Floats key = load(keys + row * head_dim + at);
      for (int member = 0; member < members; ++member) products[member] += key * load(queries + member * head_dim + at);
    }
    for (int member = 0; member < members; ++member) scores[member * score_stride + row] = sum(products[member]);
  }
}

LIGER_INLINE void score_rows(const float* keys, int64_t rows, const float* queries, int64_t heads, int64_t head_dim,
                             float* scores, int64_t score_stride) {
  for (int64_t head = 0; head < heads; head += MEMBERS) {
    const float* of_head = queries + head * head_dim;
    float* to = scores + head * score_stride;
    switch (std::min(MEMBERS, heads - head)) {
      case 4: score_members<4>(keys, rows, of_head, head_dim, to, score_stride); break;
      case 3: score_members<3>(keys, rows, of_head, head_dim, to, score_stride); break;
      case 2: score_members<2>(keys, rows, of_head, head_dim, to, score_stride); break;
      default: score_members<1>(keys, rows, of_head, head_dim, to, score_stride);
    }
  }
}

// Pieces of a head's memory, taken in order, each rounded up to 8 floats.
class Scratch {
 public:
  explicit Scratch(float* memory) : next_(memory) {}

  float* take(int64_t floats) {
    float* piece = next_;
    next_ += rounded(floats);
    return piece;
  }
  static int64_t rounded(int64_t floats) { return (floats + WIDTH - 1) / WIDTH * WIDTH; }

 private:
  float* next_;
};

// The window's rows as contiguous floats, oldest first, to which the call's tokens are appended.
template <class Element>
class Span {
 public:
  Span(const Sizes& sizes, const Call<Element>& call, int64_t head, int64_t seen, float* keys, float* values)
      : window_(sizes.window), head_dim_(sizes.head_dim), rows_(std::min(seen, sizes.window)), keys_(keys), values_(values) {
    const int64_t start = head * window_ * head_dim_;
    read(call.window_key + start, keys_, rows_ * head_dim_);
    read(call.window_value + start, values_, rows_ * head_dim_);
  }

  // Keys are rounded to their stored dtype, so that results do not depend on how a text is split into calls.
  void append(const float* key, const float* value, Element* rounded) {
    write(key, rounded, head_dim_);
    read(rounded, keys_ + rows_ * head_dim_, head_dim_);
    std::memcpy(values_ + rows_ * head_dim_, value, head_dim_ * sizeof(float));
    ++rows_;
  }

  int64_t visible() const { return std::min(rows_, window_); }
  const float* keys() const { return keys_ + (rows_ - visible()) * head_dim_; }
  float* values() const { return values_ + (rows_ - visible()) * head_dim_; }

  void leave(const Call<Element>& call, int64_t head) const {
    const int64_t start = head * window_ * head_dim_, filled = visible() * head_dim_, size = window_ * head_dim_;
    write(keys(), call.next_window_key + start, filled);
    write(values(), call.next_window_value + start, filled);
    std::memset(call.next_window_key + start + filled, 0, (size - filled) * sizeof(Element));
    std::memset(call.next_window_value + start + filled, 0, (size - filled) * sizeof(Element));
  }

 private:
  int64_t window_, head_dim_, rows_;
  float *keys_, *values_;
};

// The window for a call of one token, shifted in place without a copy.
class Slide {
 public:
  Slide(const Sizes& sizes, const Call<float>& call, int64_t head, int64_t seen)
      : window_(sizes.window), head_dim_(sizes.head_dim), held_(std::min(seen, sizes.window)) {
    const int64_t start = head * window_ * head_dim_;
    keys_ = moved(call.window_key + start, call.next_window_key + start);
    values_ = moved(call.window_value + start, call.next_window_value + start);
  }

  void append(const float* key, const float* value, float*) {
    const int64_t row = std::min(held_, window_ - 1) * head_dim_;
    std::memcpy(keys_ + row, key, head_dim_ * sizeof(float));
    std::memcpy(values_ + row, value, head_dim_ * sizeof(float));
  }

  int64_t visible() const { return std::min(held_ + 1, window_); }
  const float* keys() const { return keys_; }
  float* values() const { return values_; }
  void leave(const Call<float>&, int64_t) const {}

 private:
  float* moved(const float* from, float* to) const {
    const int64_t dropped = held_ == window_ ? 1 : 0, kept = held_ - dropped;
    if (dropped || from != to) std::memmove(to, from + dropped * head_dim_, kept * head_dim_ * sizeof(float));
    std::memset(to + kept * head_dim_, 0, (window_ - kept) * head_dim_ * sizeof(float));
    return to;
  }

  int64_t window_, head_dim_, held_;
  float *keys_, *values_;
};

// Scratch memory of a token.
struct TokenMemory {
  float *query, *key, *value, *features, *decays, *rotated_query, *rotated_key, *scores, *output;
  int64_t score_stride;

  TokenMemory(const Sizes& sizes, Scratch& scratch) {
    const int64_t heads = sizes.num_queries_per_kv * sizes.head_dim;
    score_stride = Scratch::rounded(sizes.window);
    for (float** piece : {&query, &rotated_query, &output}) *piece = scratch.take(heads);
    for (float** piece : {&key, &value, &features, &decays, &rotated_key}) *piece = scratch.take(sizes.head_dim);
    scores = scratch.take(sizes.num_queries_per_kv * score_stride);
  }

  static int64_t floats(const Sizes& sizes) {
    const int64_t heads = sizes.num_queries_per_kv * sizes.head_dim;
    return 3 * heads + 5 * sizes.head_dim + sizes.num_queries_per_kv * Scratch::rounded(sizes.window);
  }
};

// Adds window_weight * softmax(q . k) v over the visible rows to memory.output.
template <class Window>
LIGER_INLINE void attend_window(const Sizes& sizes, Window& window, TokenMemory& memory) {
  const int64_t rows = window.visible(), padded = Scratch::rounded(rows);
  score_rows(window.keys(), rows, memory.rotated_query, sizes.num_queries_per_kv, sizes.head_dim, memory.scores,
             memory.score_stride);
  for (int64_t head = 0; head < sizes.num_queries_per_kv; ++head) {
    float* scores = memory.scores + head * memory.score_stride;
    std::fill(scores + rows, scores + padded, -INFINITY);
    softmax(scores, padded, 1 - sizes.recurrent_weight);
  }
  read_out(window.values(), rows, sizes.head_dim, memory.scores, memory.score_stride, memory.output,
           sizes.num_queries_per_kv, nullptr, nullptr, nullptr);
}

template <class Element, class Window>
LIGER_INLINE void attend_token(const Sizes& sizes, const Call<Element>& call, int64_t sequence, int64_t kv_head,
                               int64_t token, Window& window, TokenMemory& memory) {
  const int64_t head_dim = sizes.head_dim, heads = sizes.num_queries_per_kv * head_dim;
  const int64_t row = sequence * call.length + token;
  read(call.query + row * call.query_stride + kv_head * heads, memory.query, heads);
  read(call.key + row * call.key_stride + kv_head * head_dim, memory.key, head_dim);
  read(call.value + row * call.value_stride + kv_head * head_dim, memory.value, head_dim);

  const float *cos = call.cos + row * (head_dim / 2), *sin = call.sin + row * (head_dim / 2);
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  for (int64_t at = 0; at < heads; at += head_dim) {
    rotate(memory.query + at, cos, sin, memory.rotated_query + at, head_dim, scale);
  }
  rotate(memory.key, cos, sin, memory.rotated_key, head_dim, 1);

  key_features(sizes, memory.key, memory.features, memory.decays);
  for (int64_t at = 0; at < heads; at += head_dim) softmax(memory.query + at, head_dim, sizes.recurrent_weight);
  std::memset(memory.output, 0, heads * sizeof(float));
  float* state = call.next_state + (sequence * sizes.num_key_value_heads + kv_head) * head_dim * head_dim;
  read_out(state, head_dim, head_dim, memory.query, head_dim, memory.output, sizes.num_queries_per_kv, memory.decays,
           memory.features, memory.value);

  Element* output = call.output + row * sizes.num_key_value_heads * heads + kv_head * heads;
  window.append(memory.rotated_key, memory.value, output);
  attend_window(sizes, window, memory);
  write(memory.output, output, heads);
}

template <class Element, class Window>
LIGER_INLINE void attend_tokens(const Sizes& sizes, const Call<Element>& call, int64_t head, Window window,
                                TokenMemory& memory) {
  const int64_t sequence = head / sizes.num_key_value_heads, kv_head = head % sizes.num_key_value_heads;
  const int64_t size = sizes.head_dim * sizes.head_dim;
  if (call.state != call.next_state) {
    std::memcpy(call.next_state + head * size, call.state + head * size, size * sizeof(float));
  }
  for (int64_t token = 0; token < call.length; ++token) {
    if (call.position_ids[sequence * call.length + token] < 0) {
      const int64_t heads = sizes.num_queries_per_kv * sizes.head_dim;
      const int64_t row = (sequence * call.length + token) * sizes.num_key_value_heads * heads + kv_head * heads;
      std::memset(call.output + row, 0, heads * sizeof(Element));
    } else {
      attend_token(sizes, call, sequence, kv_head, token, window, memory);
    }
  }
  window.leave(call, head);
}

// Floats of the window and a call's tokens.
int64_t span_of(const Sizes& sizes, int64_t length) { return (sizes.window + length) * sizes.head_dim; }

int64_t memory_of_head(const Sizes& sizes, int64_t length) {
  return TokenMemory::floats(sizes) + 2 * span_of(sizes, length);
}

template <class Element>
void attend(const Sizes& sizes, const Call<Element>& call, int64_t head, float* pieces) {
  const int64_t first = call.position_ids[head / sizes.num_key_value_heads * call.length];
  const int64_t span = span_of(sizes, call.length);
  Scratch scratch(pieces);
  TokenMemory memory(sizes, scratch);
  if constexpr (std::is_same_v<Element, float>) {
    if (call.length == 1 && first >= 0) {
      attend_tokens(sizes, call, head, Slide(sizes, call, head, first), memory);
      return;
    }
  }
  float *keys = scratch.take(span), *values = scratch.take(span);
  // A call without a token leaves the window unchanged, so all of its rows count as filled.
  const int64_t seen = first >= 0 ? first : sizes.window;
  attend_tokens(sizes, call, head, Span<Element>(sizes, call, head, seen, keys, values), memory);
}

template <class Element>
void gated_silu(const Element* gate, const Element* up, Element* output, int64_t count) {
  float gates[WIDTH], ups[WIDTH];
  for (int64_t at = 0; at < count; at += WIDTH) {
    read(gate + at, gates, WIDTH);
    read(up + at, ups, WIDTH);
    const Floats x = load(gates);
    store(gates, x / (exponential(-x) + 1.0f) * load(ups));
    write(gates, output + at, WIDTH);
  }
}

int64_t argmax(const float* values, int64_t count) {
  Floats peaks = all(-INFINITY);
  Ints are_nan{};
  int64_t at = 0;
  for (; at + WIDTH <= count; at += WIDTH) {
    const Floats piece = load(values + at);
    peaks = larger(piece, peaks);
    are_nan |= piece != piece;
  }
  float peak = -INFINITY;
  bool has_nan = false;
  for (int lane = 0; lane < WIDTH; ++lane) {
    peak = std::max(peak, peaks[lane]);
    has_nan |= are_nan[lane] != 0;
  }
  for (; at < count; ++at) {
    peak = values[at] > peak ? values[at] : peak;
    has_nan |= values[at] != values[at];
  }
  if (has_nan || !std::isfinite(peak)) return -1;
  return std::find(values, values + count, peak) - values;
}

double sum_of_weights(const float* values, int64_t count, float largest, float temperature) {
  constexpr int64_t PIECE = 1024;  // added up in float32
  double total = 0;
  for (int64_t start = 0; start < count; start += PIECE) {
    const int64_t stop = std::min(start + PIECE, count);
    Floats weights = all(0);
    int64_t at = start;
    for (; at + WIDTH <= stop; at += WIDTH) weights += exponential((load(values + at) - largest) / temperature);
    total += sum(weights);
    for (; at < stop; ++at) total += std::exp((values[at] - largest) / temperature);
  }
  return total;
}

}  // namespace

extern const CpuKernels kernels;
const CpuKernels kernels = {attend<float>,    attend<Half>, memory_of_head, gated_silu<float>,
                            gated_silu<Half>, argmax,       sum_of_weights};

}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
