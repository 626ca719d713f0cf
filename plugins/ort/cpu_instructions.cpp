// Lists the compilations of the CPU kernels that this processor runs.

#include "cpu_instructions.h"

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
#ifdef LIGER_HAS_AVX512
namespace avx512 {
extern const CpuKernels kernels;
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
namespace i8mm {
extern const LinearKernels linear;
}
#endif

namespace {

#ifdef LIGER_HAS_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef LIGER_HAS_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef LIGER_HAS_AVX512VNNI
bool has_avx512vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef LIGER_HAS_DOTPROD
#ifdef __linux__
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }                   // HWCAP_ASIMDDP
bool has_i8mm() { return has_dotprod() && getauxval(AT_HWCAP2) >> 13 & 1; }  // HWCAP2_I8MM
#else
bool has_dotprod() { return true; }  // every Apple processor for computers
bool has_i8mm() { return false; }    // not the first of them
#endif
#endif

}  // namespace

std::vector<Compiled<CpuKernels>> compiled_attention() {
  std::vector<Compiled<CpuKernels>> found;
#ifdef LIGER_HAS_AVX2
  if (has_avx2()) found.push_back({"avx2", &avx2::kernels});
#endif
  found.push_back({"baseline", &baseline::kernels});
  return found;
}

const CpuKernels* wide_attention() {
#ifdef LIGER_HAS_AVX512
  if (has_avx512()) return &avx512::kernels;
#endif
  return nullptr;
}

std::vector<Compiled<LinearKernels>> compiled_linear() {
  std::vector<Compiled<LinearKernels>> found;
#ifdef LIGER_HAS_AVX512VNNI
  if (has_avx512vnni()) found.push_back({"avx512vnni", &avx512vnni::linear});
#endif
#ifdef LIGER_HAS_AVXVNNI
  if (has_avx2() && __builtin_cpu_supports("avxvnni")) found.push_back({"avxvnni", &avxvnni::linear});
#endif
#ifdef LIGER_HAS_AVX2
  if (has_avx2()) found.push_back({"avx2", &avx2::linear});
#endif
#ifdef LIGER_HAS_DOTPROD
  if (has_i8mm()) found.push_back({"i8mm", &i8mm::linear});
  if (has_dotprod()) found.push_back({"dotprod", &dotprod::linear});
#endif
  found.push_back({"baseline", &baseline::linear});
  return found;
}

}  // namespace liger
