// liger::Candidates, whatever device runs it: the likeliest tokens of a sequence's last position.

#pragma once

#include <algorithm>
#include <array>

#include "cuda_kernels.h"
#include "ort_kernel.h"

namespace liger {

constexpr int64_t CANDIDATES = 256;  // K: kernels/plans.py
constexpr int64_t MOST_TOKENS = 1 << 24;  // whose numbers float32 holds

// Inputs: logits, float32 [B, T, V]; temperature, a float32 scalar; compiled GPU kernels, which only CUDA reads. Output,
// float32 [B, 1 + 2 K], of the last position of each sequence: the sum of exp((logit - largest) / temperature) over all
// tokens, the K largest logits in order (of equal ones that of the lower token first), their tokens. Past V tokens, -inf
// and -1. At temperature 0 nothing is computed: the sum is 0 and the rest is undefined.
struct CandidatesForm {
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
    if (logits.rank != 3 || logits.shape[1] < 1 || logits.shape[2] < 1 || logits.shape[2] > MOST_TOKENS) {
      throw ort::Error("liger::Candidates needs [B, T, V] of at least one position and of at most 2^24 tokens");
    }
    if (temperature.rank != 0) throw ort::Error("liger::Candidates needs a scalar temperature");
    const int64_t batch = logits.shape[0];
    return {logits.as<const float>(), temperature.as<const float>(),
            context.output(0, {batch, 1 + 2 * CANDIDATES}).as<float>(), batch, logits.shape[1], logits.shape[2]};
  }
};

// Memory for the lists of all sequences: kernels/candidates.py.
struct CandidateLists {
  void *keys, *sums;
};

// The launches of a call on CUDA, with memory for as many lists as the first makes, twice.
void launch_candidates(const CudaKernels& kernels, const CandidatesForm::Call& call, CandidateLists lists,
                       CandidateLists merged, void* stream);

void add_cpu_candidates(const OrtApi* api, OrtCustomOpDomain* domain);
void add_cuda_candidates(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace liger
