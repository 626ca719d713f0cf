// The recurrent half of a token's attention, one function per kind of mixer: each updates a key/value head's state and adds
// the recurrence's share to memory.output. They are not templates, so that calls of any kind round alike.
//
// Equations: docs/reference/model.md, "Attention" (arXiv 2503.01496, equations 5 to 8; arXiv 2404.07904 for hgrn2; arXiv
// 2409.07146 for gsa).

#pragma once

#include "attention_matrices.h"
#include "attention_memory.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

LIGER_INLINE Floats log_sigmoid(Floats x) {
  return smaller(x, all(0)) - log_of_one_plus(exponential(-larger(x, -x)));
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
    store(decays + at, exponential(log_sigmoid(load(key + at)) / sizes.gate_normalizer));
  }
  std::memcpy(features, key, head_dim * sizeof(float));
  softmax(features, head_dim, 1);
}

// gla and hgrn2: S = diag(decays) S + features v^T and o = S^T softmax(q), for a state S [D, D].
void add_matrix(const Sizes& sizes, float* state, TokenMemory& memory) {
  const int64_t head_dim = sizes.head_dim, queries = sizes.num_queries_per_kv;
  key_features(sizes, memory.key, memory.features, memory.decays);
  for (int64_t head = 0; head < queries; ++head) {
    float* const weights = memory.weights + head * memory.weight_stride;
    std::memcpy(weights, memory.query + head * head_dim, head_dim * sizeof(float));
    softmax(weights, head_dim, sizes.recurrent_weight);
  }
  read_out(state, head_dim, head_dim, memory.weights, memory.weight_stride, memory.output, queries, memory.decays, memory.features,
           memory.value);
}

// The decays a of gsa's M slots, and 1 - a. Each slot's gate is the mean of D / M values of the key.
LIGER_INLINE void slot_gates(const Sizes& sizes, const float* key, float* decays, float* strengths) {
  const int64_t pool = sizes.head_dim / sizes.slots, padded = Scratch::rounded(sizes.slots);
  std::fill(decays + sizes.slots, decays + padded, 0.0f);
  for (int64_t slot = 0; slot < sizes.slots; ++slot) {
    float total = 0;
    for (int64_t at = 0; at < pool; ++at) total += key[slot * pool + at];
    decays[slot] = total / static_cast<float>(pool);
  }
  for (int64_t at = 0; at < padded; at += WIDTH) {
    const Floats gate = log_sigmoid(load(decays + at)) / sizes.gate_normalizer, decay = exponential(gate);
    store(decays + at, decay);
    store(strengths + at, gate > -0.34f ? -exponential_less_one(gate) : 1.0f - decay);  // a near 1 would cancel
  }
}

// gsa: K = diag(a) K + (1 - a) k^T, V likewise, and o = V^T softmax(K q), for slots K and V [M, D].
void add_slots(const Sizes& sizes, float* slot_key, float* slot_value, TokenMemory& memory) {
  const int64_t head_dim = sizes.head_dim, queries = sizes.num_queries_per_kv, stride = memory.weight_stride;
  slot_gates(sizes, memory.key, memory.decays, memory.features);
  update_rows(slot_key, sizes.slots, head_dim, memory.decays, memory.features, memory.key);
  score_rows(slot_key, sizes.slots, memory.query, queries, head_dim, memory.weights, stride);
  for (int64_t head = 0; head < queries; ++head) {
    softmax(memory.weights + head * stride, sizes.slots, sizes.recurrent_weight);
  }
  read_out(slot_value, sizes.slots, head_dim, memory.weights, stride, memory.output, queries, memory.decays,
           memory.features, memory.value);
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
