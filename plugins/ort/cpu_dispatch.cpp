// Selects the compilation of the CPU kernels for this processor.

#include "cpu_attention.h"

namespace liger {

namespace baseline {
extern const CpuKernels kernels;
}
#ifdef LIGER_HAS_AVX2
namespace avx2 {
extern const CpuKernels kernels;
}
#endif

const CpuKernels& cpu_kernels() {
#ifdef LIGER_HAS_AVX2
  static const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (has_avx2) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace liger
