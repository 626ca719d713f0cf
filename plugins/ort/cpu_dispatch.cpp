// Selects the compilations of the CPU kernels for this processor.

#include "cpu_instructions.h"

namespace liger {

const CpuKernels& cpu_kernels() {
  static const CpuKernels& best = *compiled_attention().front().kernels;
  return best;
}

const LinearKernels& linear_kernels() {
  static const LinearKernels& best = *compiled_linear().front().kernels;
  return best;
}

}  // namespace liger
