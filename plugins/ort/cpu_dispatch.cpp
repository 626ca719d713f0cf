// Selects the compilations of the CPU kernels for this processor.

#include "cpu_attention.h"
#include "cpu_linear.h"

#if defined(LIGER_HAS_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace liger {

namespace baseline {
extern const CpuKernels kernels;
extern const LinearKernels linear;
}
#ifdef LIGER_HAS_AVX2
namespace avx2 {
extern const CpuKernels kernels;
extern const LinearKernels linear;
}
#endif
#ifdef LIGER_HAS_AVXVNNI
namespace avxvnni {
extern const LinearKernels linear;
}
#endif
#ifdef LIGER_HAS_AVX512VNNI
namespace avx512vnni {
extern const LinearKernels linear;
}
#endif
#ifdef LIGER_HAS_DOTPROD
namespace dotprod {
extern const LinearKernels linear;
}
#endif

namespace {

#ifdef LIGER_HAS_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef LIGER_HAS_DOTPROD
bool has_dotprod() {
#ifdef __linux__
  constexpr unsigned long DOT_PRODUCTS = 1 << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & DOT_PRODUCTS;
#else
  return true;  // every Apple processor for computers
#endif
}
#endif

const LinearKernels& choose_linear() {
#ifdef LIGER_HAS_AVX512VNNI
  if (has_avx2() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return avx512vnni::linear;
  }
#endif
#ifdef LIGER_HAS_AVXVNNI
  if (has_avx2() && __builtin_cpu_supports("avxvnni")) return avxvnni::linear;
#endif
#ifdef LIGER_HAS_AVX2
  if (has_avx2()) return avx2::linear;
#endif
#ifdef LIGER_HAS_DOTPROD
  if (has_dotprod()) return dotprod::linear;
#endif
  return baseline::linear;
}

}  // namespace

const CpuKernels& cpu_kernels() {
#ifdef LIGER_HAS_AVX2
  static const bool is_fast = has_avx2();
  if (is_fast) return avx2::kernels;
#endif
  return baseline::kernels;
}

const LinearKernels& linear_kernels() {
  static const LinearKernels& kernels = choose_linear();
  return kernels;
}

}  // namespace liger
