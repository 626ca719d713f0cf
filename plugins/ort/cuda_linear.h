// Linear layers on NVIDIA GPUs, with the normalisation, bias, residual and gate around them.

#pragma once

#include "ort_kernel.h"

namespace liger {

void add_linear_operators(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace liger
