// The window of a key/value head during a call.

#pragma once

#include <algorithm>
#include <cstring>

#include "vectors.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

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

  // The key and the value that the next token drives out of the window; null if it has room.
  const float* leaving_key() const { return leaves() ? keys_ + (rows_ - window_) * head_dim_ : nullptr; }
  const float* leaving_value() const { return leaves() ? values_ + (rows_ - window_) * head_dim_ : nullptr; }

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
  bool leaves() const { return rows_ >= window_; }

  int64_t window_, head_dim_, rows_;
  float *keys_, *values_;
};

// The window for a call of one token, shifted in place without a copy. The members are those of Span.
class Slide {
 public:
  Slide(const Sizes& sizes, const Call<float>& call, int64_t head, int64_t seen)
      : window_(sizes.window), head_dim_(sizes.head_dim), held_(std::min(seen, sizes.window)) {
    const int64_t start = head * window_ * head_dim_;
    past_keys_ = call.window_key + start;
    past_values_ = call.window_value + start;
    keys_ = call.next_window_key + start;
    values_ = call.next_window_value + start;
  }

  const float* leaving_key() const { return held_ == window_ ? past_keys_ : nullptr; }
  const float* leaving_value() const { return held_ == window_ ? past_values_ : nullptr; }

  void append(const float* key, const float* value, float*) {
    move(past_keys_, keys_);
    move(past_values_, values_);
    const int64_t row = std::min(held_, window_ - 1) * head_dim_;
    std::memcpy(keys_ + row, key, head_dim_ * sizeof(float));
    std::memcpy(values_ + row, value, head_dim_ * sizeof(float));
  }

  int64_t visible() const { return std::min(held_ + 1, window_); }
  const float* keys() const { return keys_; }
  float* values() const { return values_; }
  void leave(const Call<float>&, int64_t) const {}

 private:
  void move(const float* from, float* to) const {
    const int64_t dropped = held_ == window_ ? 1 : 0, kept = held_ - dropped;
    if (dropped || from != to) std::memmove(to, from + dropped * head_dim_, kept * head_dim_ * sizeof(float));
    std::memset(to + kept * head_dim_, 0, (window_ - kept) * head_dim_ * sizeof(float));
  }

  int64_t window_, head_dim_, held_;
  const float *past_keys_, *past_values_;
  float *keys_, *values_;
};

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
