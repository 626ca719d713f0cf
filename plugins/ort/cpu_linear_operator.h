// Linear layers with quantized weights on a CPU, fused with normalization, bias, gate and residual.

#pragma once

#include "ort_kernel.h"

namespace liger {

void add_cpu_linear_operators(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace liger
