// liger::Candidates, the top logits of each sequence's last position: the parts shared by all devices.

#pragma once

#include <algorithm>
#include <array>

#include "checks.h"
#include "cuda_kernels.h"

namespace liger {

constexpr int64_t TOP_LOGITS = 256;  // K: kernels/plans.py
constexpr int64_t MAX_TOKENS = 1 << 24;  // float32 represents all token numbers below exactly

// Inputs: logits, float32 [B, T, V]; temperature, a float32 scalar; compiled GPU kernels, read by CUDA only. Output,
// float32 [B, 1 + 2 K], for the last position of each sequence: the sum of exp((logit - largest) / temperature) over all
// tokens; the K largest logits, sorted (equal logits by token); and their tokens. Places beyond V tokens hold -inf and -1.
// At temperature 0 nothing is computed: the sum is 0 and the rest is undefined.
struct TopLogitsSignature {
  static constexpr const char* name = "Candidates";
  static constexpr size_t KERNELS = 2;
  static constexpr std::array<ort::Parameter, 3> inputs{{
      {ORT_FLOAT},
      {ORT_FLOAT},
      {ORT_UINT8, ORT_OPTIONAL, ORT_MEM_CPU_INPUT},
  }};
  static constexpr std::array<ort::Parameter, 1> outputs{{{ORT_FLOAT}}};

  struct Call {
    const float *logits, *temperature;
    float* output;
    int64_t batch, length, size;  // B, T, V
  };

  static Call call(const ort::Context& context) {
    const ort::Tensor logits = context.input(0), temperature = context.input(1);
    require_axes("logits", logits, "[B, T, V]");
    if (logits.shape[1] < 1 || logits.shape[2] < 1 || logits.shape[2] > MAX_TOKENS) {
      refuse_shape("logits", "[B, T, V] with at least one position and 1 to 2^24 tokens in the vocabulary", logits);
    }
    require_shape("temperature", temperature, {});
    const int64_t batch = logits.shape[0];
    return {logits.as<const float>(), temperature.as<const float>(),
            context.output(0, {batch, 1 + 2 * TOP_LOGITS}).as<float>(), batch, logits.shape[1], logits.shape[2]};
  }
};

// Workspace for the lists of all sequences: kernels/top_logits.py.
struct TopLogitLists {
  void *keys, *sums;
};

// Launches a call on CUDA. Each workspace has room for all lists of the first kernel.
void launch_top_logits(const CudaKernels& kernels, const TopLogitsSignature::Call& call, TopLogitLists lists,
                       TopLogitLists merged, void* stream);

void add_cpu_top_logits(const OrtApi* api, OrtCustomOpDomain* domain);
void add_cuda_top_logits(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace liger
