// Selects the compilations of the CPU kernels for this processor.

#include "cpu_instructions.h"

namespace liger {

const CpuKernels& cpu_kernels() {
  static const CpuKernels& best = *compiled_attention().front().kernels;
  return best;
}

const CpuKernels& attention_kernels(int64_t head_dim) {
  static const CpuKernels* const wide = wide_attention();
  if (wide && head_dim % 16 == 0 && head_dim >= 64) return *wide;  // AVX2 is faster for smaller heads
  return cpu_kernels();
}

const LinearKernels& linear_kernels() {
  static const LinearKernels& best = *compiled_linear().front().kernels;
  return best;
}

}  // namespace liger
