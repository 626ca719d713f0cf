// Signatures of the smaller operators in the `liger` domain, shared by all devices: parameters and shape checks.

#pragma once

#include <array>
#include <type_traits>

#include "checks.h"

namespace liger {

constexpr int64_t POSITION_BYTES = 8, TURN = int64_t{1} << 52;  // config/rope.py

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
