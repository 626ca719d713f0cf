#pragma once
#include "ort_kernel.h"
namespace liger {
inline void add_cuda_operators(const OrtApi*, OrtCustomOpDomain*) {}
}
