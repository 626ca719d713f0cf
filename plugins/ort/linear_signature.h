// Signatures of the operators of linear layers, shared by all devices: attributes, parameters, and shape checks.

#pragma once

#include <array>

#include "checks.h"

namespace liger {

// One call: T tokens, a weight of N rows and K columns. Absent optional tensors have no data.
struct LinearCall {
  int64_t tokens, rows, columns;
  ort::Tensor hidden, weight, scales, zero_points, norm, bias, residual, output;
};

// liger::Linear. Inputs: hidden [B, T, K]; weight [N, K]; optional RMSNorm weight [K], bias [N], and residual with the
// result's shape; compiled GPU kernels. Result: the normalized hidden states times the weight, plus bias. If `gated`, the
// first half of that is the gate of the second. Plus the residual. Shape [B, T, N], or [B, T, N / 2] if gated.
// liger::IntegerLinear has a weight in the layout of MatMulNBits: integers [N, K / block_size, bytes], scales
// [N, K / block_size], optional zero points. liger::Logits and liger::IntegerLogits return float32 for any activations.
template <bool is_integer, bool is_logits>
struct LinearSignature {
  static constexpr size_t OPTIONS = is_integer ? 4 : 2;  // index of the first input after the weight
  static constexpr ort::Parameter OPTION{ort::ACTIVATION, ORT_OPTIONAL};
  static constexpr ort::Parameter BUNDLE{ORT_UINT8, ORT_OPTIONAL, ORT_MEM_CPU_INPUT};
  static constexpr ort::Parameter PRESENT{ort::ACTIVATION};

  static constexpr const char* name =
      is_integer ? (is_logits ? "IntegerLogits" : "IntegerLinear") : (is_logits ? "Logits" : "Linear");
  static constexpr auto inputs = [] {
    if constexpr (is_integer) {
      constexpr ort::Parameter integers{ORT_UINT8}, zero_points{ORT_UINT8, ORT_OPTIONAL};
      return std::array<ort::Parameter, 8>{{PRESENT, integers, PRESENT, zero_points, OPTION, OPTION, OPTION, BUNDLE}};
    } else {
      return std::array<ort::Parameter, 6>{{PRESENT, PRESENT, OPTION, OPTION, OPTION, BUNDLE}};
    }
  }();
  static constexpr std::array<ort::Parameter, 1> outputs{{{is_logits ? ORT_FLOAT : ort::ACTIVATION}}};

  explicit LinearSignature(const ort::Info& info) : epsilon(info.number("epsilon")), is_gated(info.integer("gated") != 0) {
    if constexpr (is_integer) {
      bits = info.integer("bits");
      block_size = info.integer("block_size");
      if ((bits != 4 && bits != 8) || block_size < 32 || block_size > 1 << 16 || block_size % 32) {
        throw ort::Error(std::string("liger::") + name +
                         " needs 4 or 8 bits and blocks of a multiple of 32 weights, up to 65536");
      }
    }
  }

  int64_t result_rows(const LinearCall& call) const { return is_gated ? call.rows / 2 : call.rows; }

  LinearCall call(const ort::Context& context) const {
    LinearCall call{};
    call.hidden = context.input(0);
    call.weight = context.input(1);
    require_axes("hidden states", call.hidden, "[B, T, K]");
    require_axes("weight", call.weight, is_integer ? "[N, blocks, bytes]" : "[N, K]");
    const int64_t batch = call.hidden.shape[0], length = call.hidden.shape[1];
    call.tokens = product({batch, length});
    call.columns = call.hidden.shape[2];
    call.rows = call.weight.shape[0];
    if (call.columns < 1 || call.rows < 1 || (is_gated && call.rows % 2)) {
      refuse_shape("weight", is_gated ? "[2 N, K]" : "[N, K] with N and K of at least 1", call.weight);
    }
    if constexpr (is_integer) {
      const int64_t blocks = call.columns / block_size;
      if (call.columns % block_size) refuse_shape("hidden states", "[B, T, blocks * block_size]", call.hidden);
      call.scales = context.input(2);
      call.zero_points = context.input(3);
      require_shape("weight", call.weight, {call.rows, blocks, block_size * bits / 8});
      require_shape("scales", call.scales, {call.rows, blocks});
      if (call.zero_points) require_shape("zero_points", call.zero_points, {call.rows, (blocks * bits + 7) / 8});
    } else {
      require_shape("weight", call.weight, {call.rows, call.columns});
    }
    call.norm = context.input(OPTIONS);
    call.bias = context.input(OPTIONS + 1);
    call.residual = context.input(OPTIONS + 2);
    if (call.norm) require_shape("norm_weight", call.norm, {call.columns});
    if (call.bias) require_shape("bias", call.bias, {call.rows});
    if (call.residual) require_shape("residual", call.residual, {batch, length, result_rows(call)});
    if (call.residual && is_gated) throw ort::Error("liger: a gated layer does not support a residual");
    if (is_logits && (call.bias || call.residual)) throw ort::Error("liger: logits do not support a bias or a residual");
    call.output = context.output(0, {batch, length, result_rows(call)});
    return call;
  }

  float epsilon;
  bool is_gated;
  int64_t bits = 0, block_size = 0;
};

}  // namespace liger
