// The memory in which a thread computes a head's tokens.

#pragma once

#include "vectors.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

// Pieces of memory, taken in order, each rounded up to whole vectors. Without memory it only counts the floats.
class Scratch {
 public:
  explicit Scratch(float* memory) : memory_(memory) {}

  float* take(int64_t floats) {
    float* const piece = memory_ == nullptr ? nullptr : memory_ + taken_;
    taken_ += rounded(floats);
    return piece;
  }
  int64_t taken() const { return taken_; }
  static int64_t rounded(int64_t floats) { return (floats + WIDTH - 1) / WIDTH * WIDTH; }

 private:
  float* memory_;
  int64_t taken_ = 0;
};

// One token of a key/value head. Rows of a stride end in padding.
struct TokenMemory {
  int64_t score_stride, weight_stride;
  float *query, *rotated_query, *output;                        // [R, D]
  float *key, *value, *rotated_key;                             // [D]
  float *decays, *features;                                     // [D]: what is kept of a state's row, and added to it
  float *scores;                                                // [R, score_stride], of the window's rows
  float *weights;                                               // [R, weight_stride], of the state's rows

  TokenMemory(const Sizes& sizes, int64_t state_rows, Scratch& scratch)
      : score_stride(Scratch::rounded(sizes.window)), weight_stride(Scratch::rounded(state_rows)) {
    const int64_t queries = sizes.num_queries_per_kv, head_dim = sizes.head_dim;
    for (float** piece : {&query, &rotated_query, &output}) *piece = scratch.take(queries * head_dim);
    for (float** piece : {&key, &value, &rotated_key}) *piece = scratch.take(head_dim);
    for (float** piece : {&decays, &features}) *piece = scratch.take(weight_stride);
    scores = scratch.take(queries * score_stride);
    weights = scratch.take(queries * weight_stride);
  }
};

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
