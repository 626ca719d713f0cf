// Signatures of the operators in the `liger` domain, shared by all devices: attributes, parameters, and shape checks.

#pragma once

#include <array>
#include <cmath>
#include <type_traits>

#include "checks.h"
#include "cpu_attention.h"

namespace liger {

constexpr int64_t POSITION_BYTES = 8, TURN = int64_t{1} << 52;  // config/rope.py

// liger::Attention. Inputs: query [B, T, H * D], or, without key and value, packed rows of q, k and v of (H + 2 G) D;
// key and value [B, T, G * D]; cos and sin, float32 [B, T, D / 2]; position_ids, int64 [B, T]; recurrent_state, window_key
// and window_value; compiled GPU kernels, read by CUDA only. Outputs: output [B, T, H * D] and the next state tensors.
struct AttentionSignature {
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

  // Returns a call's tensors, after checking their shapes against the attributes. No size of one sequence overflows.
  template <class Element>
  Call<Element> call(const ort::Context& context) const;

  Sizes sizes;
};

// liger::GatedSiLU: from gate and up in one row, [B, T, 2 I], to silu(gate) * up, [B, T, I].
struct GatedSiLUSignature {
  static constexpr const char* name = "GatedSiLU";
  static constexpr size_t KERNELS = 1;
  static constexpr std::array<ort::Parameter, 2> inputs{{{ort::ACTIVATION}, {ORT_UINT8, ORT_OPTIONAL, ORT_MEM_CPU_INPUT}}};
  static constexpr std::array<ort::Parameter, 1> outputs{{{ort::ACTIVATION}}};

  // Tensors [B, T, 2 I] and [B, T, I].
  static std::array<ort::Tensor, 2> call(const ort::Context& context);
};

// liger::MostLikely: from logits, float32 [B, T, V], to the index of the first largest, int64 [B, T]; -1 if a logit is NaN
// or the largest is infinite.
struct ArgmaxSignature {
  static constexpr const char* name = "MostLikely";
  static constexpr size_t KERNELS = 1;
  static constexpr std::array<ort::Parameter, 2> inputs{{{ORT_FLOAT}, {ORT_UINT8, ORT_OPTIONAL, ORT_MEM_CPU_INPUT}}};
  static constexpr std::array<ort::Parameter, 1> outputs{{{ORT_INT64}}};

  // Tensors [B, T, V] and [B, T].
  static std::array<ort::Tensor, 2> call(const ort::Context& context);
};

// liger::RotaryAngles: from position_ids, int64 [B, T], and turns, int64 [8, D / 2], the table of rotary_turns in
// config/rope.py, to the cosines and sines of rotary angles, float32 [B, T, D / 2]. Packages of format 4 and older have
// frequencies, float32 [D / 2], instead of turns.
template <class Table>
struct RotaryAnglesSignature {
  static constexpr const char* name = "RotaryAngles";
  static constexpr size_t KERNELS = 2;
  static constexpr std::array<ort::Parameter, 3> inputs{
      {{ORT_INT64}, {ort::ACTIVATION}, {ORT_UINT8, ORT_OPTIONAL, ORT_MEM_CPU_INPUT}}};
  static constexpr std::array<ort::Parameter, 2> outputs{{{ORT_FLOAT}, {ORT_FLOAT}}};
  static constexpr bool has_turns = std::is_same_v<Table, int64_t>;

  // The two inputs and the two outputs.
  static std::array<ort::Tensor, 4> call(const ort::Context& context);
};

// liger::LastPositions: from hidden states [B, T, N] and a count, an int64 scalar in main memory, to the last `count`
// positions of each sequence, [B, count, N]; all positions if count is 0.
struct LastPositionsSignature {
  static constexpr const char* name = "LastPositions";
  static constexpr std::array<ort::Parameter, 2> inputs{{{ort::ACTIVATION}, {ORT_INT64, ORT_REQUIRED, ORT_MEM_CPU_INPUT}}};
  static constexpr std::array<ort::Parameter, 1> outputs{{{ort::ACTIVATION}}};

  explicit LastPositionsSignature(const ort::Info&) {}

  // Calls copy(to, from, bytes) for each sequence.
  template <class Copy>
  static void run(const ort::Context& context, size_t item_size, const Copy& copy);
};

inline AttentionSignature::AttentionSignature(const ort::Info& info) {
  const std::string mixer = info.text("mixer");
  if (mixer != "gla" && mixer != "hgrn2") {
    throw ort::Error("liger::Attention has no mixer " + mixer + "; it has gla and hgrn2");
  }
  const int64_t heads = info.integer("num_heads");
  sizes.mixer = mixer == "gla" ? Mixer::gla : Mixer::hgrn2;
  sizes.num_key_value_heads = info.integer("num_key_value_heads");
  sizes.head_dim = info.integer("head_dim");
  sizes.window = info.integer("window_size");
  sizes.gate_normalizer = info.number("gate_normalizer");
  sizes.recurrent_weight = info.number("recurrent_weight");
  constexpr int64_t MAX_HEADS = 1 << 16, MAX_WINDOW = 1 << 30;  // products of these and a head size fit into int64
  if (sizes.num_key_value_heads < 1 || heads < 1 || heads > MAX_HEADS || heads % sizes.num_key_value_heads ||
      sizes.head_dim < 8 || sizes.head_dim > MAX_HEADS || sizes.head_dim % 8 || sizes.window < 1 ||
      sizes.window > MAX_WINDOW) {
    throw ort::Error("liger::Attention needs a number of query heads that is a multiple of the key/value heads, a head "
                     "size that is a multiple of 8, both up to 65536, and a window from 1 to 2^30");
  }
  if (!std::isfinite(sizes.gate_normalizer) || sizes.gate_normalizer <= 0 || !(sizes.recurrent_weight >= 0) ||
      !(sizes.recurrent_weight <= 1)) {
    throw ort::Error("liger::Attention needs a positive gate_normalizer and a recurrent_weight from 0 to 1");
  }
  sizes.num_queries_per_kv = heads / sizes.num_key_value_heads;
}

template <class Element>
Call<Element> AttentionSignature::call(const ort::Context& context) const {
  const ort::Tensor query = context.input(0), key = context.input(1), value = context.input(2);
  require_axes("query", query, "[B, T, H * D]");
  if (bool(key) != bool(value)) throw ort::Error("liger::Attention needs both key and value, or neither");
  const int64_t kv_heads = sizes.num_key_value_heads, head_dim = sizes.head_dim;
  const int64_t heads = kv_heads * sizes.num_queries_per_kv * head_dim;
  const int64_t width = kv_heads * head_dim, batch = query.shape[0], length = query.shape[1];
  if (length == 0) throw ort::Error("liger::Attention needs at least one token");
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
  const ort::Tensor state = context.input(6), keys = context.input(7), values = context.input(8);
  require_shape("recurrent_state", state, {batch, kv_heads, head_dim, head_dim});
  require_shape("window_key", keys, {batch, kv_heads, sizes.window, head_dim});
  require_shape("window_value", values, {batch, kv_heads, sizes.window, head_dim});
  call.cos = cos.as<float>();
  call.sin = sin.as<float>();
  call.position_ids = positions.as<int64_t>();
  call.state = state.as<float>();
  call.window_key = keys.as<Element>();
  call.window_value = values.as<Element>();
  call.output = context.output(0, {batch, length, heads}).as<Element>();
  call.next_state = context.output(1, {batch, kv_heads, head_dim, head_dim}).as<float>();
  call.next_window_key = context.output(2, {batch, kv_heads, sizes.window, head_dim}).as<Element>();
  call.next_window_value = context.output(3, {batch, kv_heads, sizes.window, head_dim}).as<Element>();
  return call;
}

inline std::array<ort::Tensor, 2> GatedSiLUSignature::call(const ort::Context& context) {
  const ort::Tensor input = context.input(0);
  require_axes("gate and up", input, "[B, T, 2 I]");
  if (input.shape[2] % 16) refuse_shape("gate and up", "[B, T, 2 I] with I a multiple of 8", input);
  return {input, context.output(0, {input.shape[0], input.shape[1], input.shape[2] / 2})};
}

inline std::array<ort::Tensor, 2> ArgmaxSignature::call(const ort::Context& context) {
  const ort::Tensor input = context.input(0);
  require_axes("logits", input, "[B, T, V]");
  if (input.shape[2] < 1) refuse_shape("logits", "[B, T, V] with at least one token in the vocabulary", input);
  return {input, context.output(0, {input.shape[0], input.shape[1]})};
}

template <class Table>
std::array<ort::Tensor, 4> RotaryAnglesSignature<Table>::call(const ort::Context& context) {
  const ort::Tensor positions = context.input(0), table = context.input(1);
  const char* name = has_turns ? "turns" : "frequencies";
  const char* axes = has_turns ? "[8, D / 2]" : "[D / 2]";
  require_axes("position_ids", positions, "[B, T]");
  require_axes(name, table, axes);
  const int64_t width = table.shape[table.rank - 1];
  if (width < 1 || width > 128) refuse_shape(name, "D / 2 of 1 to 128", table);
  if (has_turns && table.shape[0] != POSITION_BYTES) refuse_shape(name, axes, table);
  const auto shape = {positions.shape[0], positions.shape[1], width};
  return {positions, table, context.output(0, shape), context.output(1, shape)};
}

template <class Copy>
void LastPositionsSignature::run(const ort::Context& context, size_t item_size, const Copy& copy) {
  const ort::Tensor input = context.input(0), count = context.input(1);
  require_axes("hidden states", input, "[B, T, N]");
  if (count.rank > 1 || (count.rank == 1 && count.shape[0] != 1)) refuse_shape("logits_to_keep", "[]", count);
  const int64_t batch = input.shape[0], length = input.shape[1], width = input.shape[2], asked = *count.as<int64_t>();
  if (asked < 0 || asked > length) {
    throw ort::Error("liger::LastPositions: logits_to_keep must be from 0 to the tokens read, " + std::to_string(length) +
                     ", not " + std::to_string(asked));
  }
  const int64_t kept = asked == 0 ? length : asked;
  const ort::Tensor output = context.output(0, {batch, kept, width});
  if (product({batch, kept, width}) == 0) return;
  const size_t row = static_cast<size_t>(width) * item_size;
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    copy(output.as<char>() + sequence * kept * row, input.as<char>() + ((sequence + 1) * length - kept) * row, kept * row);
  }
}

}  // namespace liger
