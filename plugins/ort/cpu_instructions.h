// The compilations of the CPU kernels that this processor runs, the best first. The last is the baseline.

#pragma once

#include <vector>

#include "cpu_attention.h"
#include "cpu_linear.h"

namespace liger {

template <class Kernels>
struct Compiled {
  const char* instructions;  // the name of its instruction set in CMakeLists.txt
  const Kernels* kernels;
};

std::vector<Compiled<CpuKernels>> compiled_attention();
std::vector<Compiled<LinearKernels>> compiled_linear();

// Attention with vectors of 16 numbers, for head sizes that are multiples of 16; null if there is none.
const CpuKernels* wide_attention();

}  // namespace liger
