// Signatures of the attention operators in the `liger` domain, shared by all devices: attributes, parameters, and shape
// checks.

#pragma once

#include <array>
#include <cmath>

#include "checks.h"
#include "cpu_attention.h"

namespace liger {

// What the attention operators share. Their inputs: query [B, T, H * D], or, without key and value, packed rows of q, k and
// v of (H + 2 G) D; key and value [B, T, G * D]; cos and sin, float32 [B, T, D / 2]; position_ids, int64 [B, T]; the
// recurrent states; window_key and window_value. Their outputs: output [B, T, H * D] and the next states.
class AttentionNode {
 public:
  Sizes sizes;

 protected:
  static constexpr int64_t MAX_SIZE = 1 << 16;  // of heads, of a head, and of a state's rows: products fit into int64

  AttentionNode(const ort::Info& info, Mixer mixer);

  int64_t num_heads() const { return sizes.num_key_value_heads * sizes.num_queries_per_kv; }

  // Reads gate_normalizer and recurrent_weight.
  void read_options(const ort::Info& info);

  // The tensors of a call but its states, after checking their shapes. No size of one sequence overflows.
  template <class Element>
  Call<Element> tokens(const ort::Context& context) const;

  // Adds recurrent state number `state`, whose `shape` starts with the batch.
  template <class Element>
  void add_state(const ort::Context& context, Call<Element>& call, int state, const char* name,
                 std::initializer_list<int64_t> shape) const;

  // Adds the window, which follows `states` recurrent states.
  template <class Element>
  void add_window(const ort::Context& context, Call<Element>& call, int states) const;

 private:
  static constexpr size_t FIRST_STATE = 6;  // among the inputs
};

// liger::Attention, for gla and hgrn2. One recurrent state, [B, G, D, D]. The last input is compiled GPU kernels, read by
// CUDA only.
struct AttentionSignature : AttentionNode {
  static constexpr const char* name = "Attention";
  static constexpr size_t KERNELS = 9;
  static constexpr std::array<ort::Parameter, 10> inputs{{
      {ort::ACTIVATION},
      {ort::ACTIVATION, ORT_OPTIONAL},
      {ort::ACTIVATION, ORT_OPTIONAL},
      {ORT_FLOAT},
      {ORT_FLOAT},
      {ORT_INT64},
      {ORT_FLOAT},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
      {ORT_UINT8, ORT_OPTIONAL, ORT_MEM_CPU_INPUT},
  }};
  static constexpr std::array<ort::Parameter, 4> outputs{{
      {ort::ACTIVATION},
      {ORT_FLOAT},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
  }};

  explicit AttentionSignature(const ort::Info& info);

  template <class Element>
  Call<Element> call(const ort::Context& context) const;
};

// liger::GSAAttention, on a CPU only. Recurrent states slot_key and slot_value, [B, G, M, D].
struct GSASignature : AttentionNode {
  static constexpr const char* name = "GSAAttention";
  static constexpr std::array<ort::Parameter, 10> inputs{{
      {ort::ACTIVATION},
      {ort::ACTIVATION, ORT_OPTIONAL},
      {ort::ACTIVATION, ORT_OPTIONAL},
      {ORT_FLOAT},
      {ORT_FLOAT},
      {ORT_INT64},
      {ORT_FLOAT},
      {ORT_FLOAT},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
  }};
  static constexpr std::array<ort::Parameter, 5> outputs{{
      {ort::ACTIVATION},
      {ORT_FLOAT},
      {ORT_FLOAT},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
  }};

  explicit GSASignature(const ort::Info& info);

  template <class Element>
  Call<Element> call(const ort::Context& context) const;
};

// liger::LoLCATsAttention, on a CPU only. Recurrent states recurrent_state [B, H, F, D] and normalizer [B, H, F]. The last
// inputs are learned: query_map and key_map [H, D, F / 2] and window_factors [H].
struct LoLCATsSignature : AttentionNode {
  static constexpr const char* name = "LoLCATsAttention";
  static constexpr std::array<ort::Parameter, 13> inputs{{
      {ort::ACTIVATION},
      {ort::ACTIVATION, ORT_OPTIONAL},
      {ort::ACTIVATION, ORT_OPTIONAL},
      {ORT_FLOAT},
      {ORT_FLOAT},
      {ORT_INT64},
      {ORT_FLOAT},
      {ORT_FLOAT},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
      {ort::ACTIVATION},
  }};
  static constexpr std::array<ort::Parameter, 5> outputs = GSASignature::outputs;

  explicit LoLCATsSignature(const ort::Info& info) : AttentionNode(info, Mixer::lolcats) {}

  template <class Element>
  Call<Element> call(const ort::Context& context) const;
};

inline AttentionNode::AttentionNode(const ort::Info& info, Mixer mixer) : sizes{} {
  const int64_t heads = info.integer("num_heads");
  sizes.mixer = mixer;
  sizes.num_key_value_heads = info.integer("num_key_value_heads");
  sizes.head_dim = info.integer("head_dim");
  sizes.window = info.integer("window_size");
  constexpr int64_t MAX_WINDOW = 1 << 30;  // its product with heads and a head size fits into int64
  if (sizes.num_key_value_heads < 1 || heads < 1 || heads > MAX_SIZE || heads % sizes.num_key_value_heads ||
      sizes.head_dim < 8 || sizes.head_dim > MAX_SIZE || sizes.head_dim % 8 || sizes.window < 1 ||
      sizes.window > MAX_WINDOW) {
    throw ort::Error("liger: attention needs a number of query heads that is a multiple of the key/value heads, a head "
                     "size that is a multiple of 8, both up to 65536, and a window from 1 to 2^30");
  }
  sizes.num_queries_per_kv = heads / sizes.num_key_value_heads;
}

inline void AttentionNode::read_options(const ort::Info& info) {
  sizes.gate_normalizer = info.number("gate_normalizer");
  sizes.recurrent_weight = info.number("recurrent_weight");
  if (!std::isfinite(sizes.gate_normalizer) || sizes.gate_normalizer <= 0 || !(sizes.recurrent_weight >= 0) ||
      !(sizes.recurrent_weight <= 1)) {
    throw ort::Error("liger: attention needs a positive gate_normalizer and a recurrent_weight from 0 to 1");
  }
}

template <class Element>
Call<Element> AttentionNode::tokens(const ort::Context& context) const {
  const ort::Tensor query = context.input(0), key = context.input(1), value = context.input(2);
  require_axes("query", query, "[B, T, H * D]");
  if (bool(key) != bool(value)) throw ort::Error("liger: attention needs both key and value, or neither");
  const int64_t head_dim = sizes.head_dim, heads = num_heads() * head_dim;
  const int64_t width = sizes.num_key_value_heads * head_dim, batch = query.shape[0], length = query.shape[1];
  if (length == 0) throw ort::Error("liger: attention needs at least one token");
  Call<Element> call{};
  call.batch = batch;
  call.length = length;
  call.query = query.as<Element>();
  if (key) {
    require_shape("query", query, {batch, length, heads});
    require_shape("key", key, {batch, length, width});
    require_shape("value", value, {batch, length, width});
    call.key = key.as<Element>();
    call.value = value.as<Element>();
    call.query_stride = heads;
    call.key_stride = call.value_stride = width;
  } else {
    require_shape("query with packed key and value", query, {batch, length, heads + 2 * width});
    call.key = call.query + heads;
    call.value = call.key + width;
    call.query_stride = call.key_stride = call.value_stride = heads + 2 * width;
  }
  const ort::Tensor cos = context.input(3), sin = context.input(4), positions = context.input(5);
  require_shape("cos", cos, {batch, length, head_dim / 2});
  require_shape("sin", sin, {batch, length, head_dim / 2});
  require_shape("position_ids", positions, {batch, length});
  call.cos = cos.as<float>();
  call.sin = sin.as<float>();
  call.position_ids = positions.as<int64_t>();
  call.output = context.output(0, {batch, length, heads}).as<Element>();
  return call;
}

template <class Element>
void AttentionNode::add_state(const ort::Context& context, Call<Element>& call, int state, const char* name,
                              std::initializer_list<int64_t> shape) const {
  const ort::Tensor past = context.input(FIRST_STATE + state);
  require_shape(name, past, shape);
  int64_t size = 1;
  for (const int64_t* axis = shape.begin() + 1; axis != shape.end(); ++axis) size *= *axis;
  call.state_sizes[state] = size / sizes.num_key_value_heads;
  call.states[state] = past.as<float>();
  call.next_states[state] = context.output(1 + state, shape).as<float>();
}

template <class Element>
void AttentionNode::add_window(const ort::Context& context, Call<Element>& call, int states) const {
  const std::initializer_list<int64_t> shape = {call.batch, sizes.num_key_value_heads, sizes.window, sizes.head_dim};
  const ort::Tensor keys = context.input(FIRST_STATE + states), values = context.input(FIRST_STATE + states + 1);
  require_shape("window_key", keys, shape);
  require_shape("window_value", values, shape);
  call.window_key = keys.as<Element>();
  call.window_value = values.as<Element>();
  call.next_window_key = context.output(1 + states, shape).as<Element>();
  call.next_window_value = context.output(2 + states, shape).as<Element>();
}

inline Mixer mixer_of(const ort::Info& info) {
  const std::string mixer = info.text("mixer");
  if (mixer != "gla" && mixer != "hgrn2") {
    throw ort::Error("liger::Attention has no mixer " + mixer + "; it has gla and hgrn2");
  }
  return mixer == "gla" ? Mixer::gla : Mixer::hgrn2;
}

inline AttentionSignature::AttentionSignature(const ort::Info& info) : AttentionNode(info, mixer_of(info)) {
  read_options(info);
}

template <class Element>
Call<Element> AttentionSignature::call(const ort::Context& context) const {
  auto call = tokens<Element>(context);
  call.state_rows = sizes.head_dim;
  const std::initializer_list<int64_t> shape = {call.batch, sizes.num_key_value_heads, sizes.head_dim, sizes.head_dim};
  add_state(context, call, 0, "recurrent_state", shape);
  add_window(context, call, 1);
  return call;
}

inline GSASignature::GSASignature(const ort::Info& info) : AttentionNode(info, Mixer::gsa) {
  read_options(info);
  sizes.slots = info.integer("num_slots");
  if (sizes.slots < 1 || sizes.head_dim % sizes.slots) {
    throw ort::Error("liger::GSAAttention needs a number of slots that divides the head size");
  }
}

template <class Element>
Call<Element> GSASignature::call(const ort::Context& context) const {
  auto call = tokens<Element>(context);
  call.state_rows = sizes.slots;
  const std::initializer_list<int64_t> shape = {call.batch, sizes.num_key_value_heads, sizes.slots, sizes.head_dim};
  add_state(context, call, 0, "slot_key", shape);
  add_state(context, call, 1, "slot_value", shape);
  add_window(context, call, 2);
  return call;
}

template <class Element>
Call<Element> LoLCATsSignature::call(const ort::Context& context) const {
  auto call = tokens<Element>(context);
  const ort::Tensor query_map = context.input(10), key_map = context.input(11), factors = context.input(12);
  require_axes("query_map", query_map, "[H, D, F / 2]");
  const int64_t half = query_map.shape[2];
  if (half < 1 || half > MAX_SIZE) refuse_shape("query_map", "[H, D, F / 2] with F / 2 from 1 to 65536", query_map);
  require_shape("query_map", query_map, {num_heads(), sizes.head_dim, half});
  require_shape("key_map", key_map, {num_heads(), sizes.head_dim, half});
  require_shape("window_factors", factors, {num_heads()});
  call.query_map = query_map.as<Element>();
  call.key_map = key_map.as<Element>();
  call.window_factors = factors.as<Element>();
  call.state_rows = 2 * half;
  add_state(context, call, 0, "recurrent_state", {call.batch, num_heads(), 2 * half, sizes.head_dim});
  add_state(context, call, 1, "normalizer", {call.batch, num_heads(), 2 * half});
  add_window(context, call, 2);
  return call;
}

}  // namespace liger
