// The CPU kernels: a call's data, and one function per dtype and instruction set.

#pragma once

#include <cstdint>

#include "half.h"

namespace liger {

enum class Mixer { gla, hgrn2, gsa, lolcats };

constexpr int STATES = 2;  // recurrent state tensors of a layer, at most

// The sizes of a layer's attention.
struct Sizes {
  Mixer mixer;
  int64_t num_queries_per_kv;   // R: query heads per key/value head
  int64_t num_key_value_heads;  // G
  int64_t head_dim;             // D: a multiple of 8
  int64_t window;               // W: keys in the window, including the current one
  int64_t slots;                // M, which divides D (gsa)
  float gate_normalizer;
  float recurrent_weight;
};

// One call: T tokens of B sequences. Rows of projections may be slices of longer rows, hence the strides, in elements.
// Position -1 marks padding, which may only end a row. Padding changes no state, and its output is zero.
template <class Element>
struct Call {
  int64_t batch, length;
  const Element *query, *key, *value;  // [B, T, H * D], [B, T, G * D], [B, T, G * D]
  int64_t query_stride, key_stride, value_stride;
  const float *cos, *sin;                      // [B, T, D / 2]
  const int64_t* position_ids;                 // [B, T]
  int64_t state_rows;                          // of the first recurrent state: D, M slots (gsa) or F features (lolcats)
  int64_t state_sizes[STATES];                 // floats of a key/value head
  const float* states[STATES];                 // [B, G, D, D]; gsa: [B, G, M, D] twice; lolcats: [B, H, F, D], [B, H, F]
  const Element *window_key, *window_value;    // [B, G, W, D], oldest first
  const Element *query_map, *key_map;          // lolcats: [H, D, F / 2]
  const Element* window_factors;               // lolcats: [H]
  Element* output;                             // [B, T, H * D]
  float* next_states[STATES];                  // may be states
  Element *next_window_key, *next_window_value;  // may be window_key and window_value
};

// The kernels for activations of one dtype.
template <class Element>
struct TypedKernels {
  // All tokens of key/value head `head` (0 to B * G), in memory of memory_of_head() floats.
  void (*attend)(const Sizes&, const Call<Element>&, int64_t head, float* memory);
  // output = silu(gate) * up; `count` is a multiple of 8.
  void (*gated_silu)(const Element* gate, const Element* up, Element* output, int64_t count);
};

// One compilation of cpu_attention.cpp for one instruction set.
struct CpuKernels : TypedKernels<float>, TypedKernels<Half>, TypedKernels<BFloat16> {
  int64_t (*memory_of_head)(const Sizes&, int64_t state_rows, int64_t length);
  // Index of the first of the largest of `count` values; -1 if one is NaN or the largest is infinite.
  int64_t (*argmax)(const float* values, int64_t count);
  // The sum of exp((value - largest) / temperature); no value is larger than `largest`.
  double (*sum_of_weights)(const float* values, int64_t count, float largest, float temperature);
};

// The kernels for the best instruction set of this processor.
const CpuKernels& cpu_kernels();

// The kernels whose vectors fit a head size best; only their attention may be used.
const CpuKernels& attention_kernels(int64_t head_dim);

}  // namespace liger
