// lolcats: the keys that have left the window have linear weights, under one denominator with those in it.
//
// Equations: docs/reference/model.md, "Attention" (arXiv 2410.10254, section 3.2).

#pragma once

#include "attention_matrices.h"
#include "attention_memory.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr float FEATURE_FLOOR = 1e-12f;

// A learned map [D, F / 2] of some query heads as floats, with rows padded to whole vectors.
template <class Element>
const float* padded_map(const Element* map, int64_t rows, int64_t columns, float* memory) {
  const int64_t padded = Scratch::rounded(columns);
  if constexpr (std::is_same_v<Element, float>) {
    if (padded == columns) return map;
  }
  for (int64_t row = 0; row < rows; ++row) {
    read_any(map + row * columns, memory + row * padded, columns);
    std::fill(memory + row * padded + columns, memory + (row + 1) * padded, 0.0f);
  }
  return memory;
}

// Keys older than the window, for the query heads of a key/value head.
class OlderKeys {
 public:
  OlderKeys(const Sizes& sizes, int64_t features, Scratch& scratch)
      : head_dim_(sizes.head_dim), queries_(sizes.num_queries_per_kv), features_(features),
        stride_(Scratch::rounded(features)), padded_(Scratch::rounded(features / 2)) {
    for (float** piece : {&query_map_, &key_map_}) *piece = scratch.take(queries_ * head_dim_ * padded_);
    near_ = scratch.take(queries_);
    key_features_ = scratch.take(queries_ * stride_);
    value_ = scratch.take(head_dim_);
    ones_ = scratch.take(stride_);
    mapped_ = scratch.take(2 * padded_);
  }

  // Reads the learned tensors of key/value head `kv_head`.
  template <class Element>
  void read_learned(const Call<Element>& call, int64_t kv_head) {
    const int64_t rows = queries_ * head_dim_, columns = features_ / 2, start = kv_head * rows * columns;
    map_of_queries_ = padded_map(call.query_map + start, rows, columns, query_map_);
    map_of_keys_ = padded_map(call.key_map + start, rows, columns, key_map_);
    read_any(call.window_factors + kv_head * queries_, near_, queries_);
    for (int64_t head = 0; head < queries_; ++head) near_[head] = 1 / (std::exp(-near_[head]) + 1);
    std::fill(ones_, ones_ + features_, 1.0f);
  }

  // Takes the row that leaves the window with this token; null if none does.
  void take(const float* key, const float* value) {
    has_left_ = key != nullptr;
    if (!has_left_) return;
    for (int64_t head = 0; head < queries_; ++head) {
      map(key, map_of_keys_ + head * head_dim_ * padded_, 1, key_features_ + head * stride_);
    }
    std::memcpy(value_, value, head_dim_ * sizeof(float));
  }

  // Turns the window's scores into weights, and adds the older keys' share to memory.output, after adding the row that has
  // left to the sums of phi(k) v^T and of phi(k): `sums` [R, F, D] and `masses` [R, F].
  void weigh(float* sums, float* masses, int64_t rows, TokenMemory& memory) {
    const float scale = std::sqrt(static_cast<float>(head_dim_));  // the rotated queries are divided by it
    for (int64_t head = 0; head < queries_; ++head) {
      float* const weights = memory.weights + head * memory.weight_stride;
      float* const scores = memory.scores + head * memory.score_stride;
      const float* const added = has_left_ ? key_features_ + head * stride_ : nullptr;
      map(memory.rotated_query + head * head_dim_, map_of_queries_ + head * head_dim_ * padded_, scale, weights);
      const float of_window = near_[head] * exponentials_of(scores, rows);
      const float mass = of_window + add_mass(masses + head * features_, added, weights);
      multiply(scores, rows, near_[head] / mass);
      multiply(weights, features_, 1 / mass);
      read_out(sums + head * features_ * head_dim_, features_, head_dim_, weights, 0, memory.output + head * head_dim_, 1,
               ones_, added, has_left_ ? value_ : nullptr);
    }
  }

 private:
  // phi(x) = softmax(scale x A) and softmax(-scale x A), at least FEATURE_FLOOR.
  void map(const float* row, const float* map, float scale, float* features) {
    float *const up = mapped_, *const down = mapped_ + padded_;
    const int64_t half = features_ / 2;
    std::fill(up, up + padded_, 0.0f);
    // Only read, because nothing is added.
    read_out(const_cast<float*>(map), head_dim_, padded_, row, 0, up, 1, nullptr, nullptr, nullptr);
    for (int64_t at = 0; at < half; ++at) down[at] = -scale * up[at];
    multiply(up, half, scale);
    softmax(up, half, 1);
    softmax(down, half, 1);
    for (int64_t at = 0; at < half; ++at) {  // NaN stays NaN
      features[at] = up[at] < FEATURE_FLOOR ? FEATURE_FLOOR : up[at];
      features[half + at] = down[at] < FEATURE_FLOOR ? FEATURE_FLOOR : down[at];
    }
  }

  // The older keys' part of the denominator, after adding `added` to their masses, if it is given.
  float add_mass(float* masses, const float* added, const float* weights) const {
    for (int64_t at = 0; added && at < features_; ++at) masses[at] += added[at];
    Floats products{};
    int64_t at = 0;
    for (; at + WIDTH <= features_; at += WIDTH) products += load(masses + at) * load(weights + at);
    float mass = sum(products);
    for (; at < features_; ++at) mass += masses[at] * weights[at];
    return mass;
  }

  int64_t head_dim_, queries_, features_, stride_, padded_;
  bool has_left_ = false;
  const float *map_of_queries_ = nullptr, *map_of_keys_ = nullptr;  // [R, D, padded_]
  float *query_map_, *key_map_;                                     // memory for them
  float* near_;                                                     // [R]: sigmoid(w)
  float *key_features_, *value_;  // [R, stride_] and [D], of the row that has left the window
  float *ones_, *mapped_;
};

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
