// Linear layers on NVIDIA GPUs, fused with normalization, bias, gate and residual.

#pragma once

#include "ort_kernel.h"

namespace liger {

void add_linear_operators(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace liger
