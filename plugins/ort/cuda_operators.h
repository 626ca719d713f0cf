// The operators of the `liger` domain on NVIDIA GPUs.

#pragma once

#include "ort_kernel.h"

namespace liger {

void add_cuda_operators(const OrtApi* api, OrtCustomOpDomain* domain);

}  // namespace liger
