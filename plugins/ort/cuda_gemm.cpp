#include "cuda_gemm.h"

#include <dlfcn.h>

#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>

namespace liger {
namespace {

// The cuBLAS functions in use, as cublas_v2.h declares them.
struct Cublas {
  int (*create)(void** handle);
  int (*set_stream)(void* handle, void* stream);
  int (*multiply)(void* handle, int transposes_a, int transposes_b, int m, int n, int k, const void* alpha, const void* a,
                  int a_type, int a_stride, const void* b, int b_type, int b_stride, const void* beta, void* c, int c_type,
                  int c_stride, int compute_type, int algorithm);
};

constexpr int NOT_TRANSPOSED = 0, TRANSPOSED = 1;  // CUBLAS_OP_N, CUBLAS_OP_T
constexpr int COMPUTE_FLOAT32 = 68;          // CUBLAS_COMPUTE_32F: float32 inputs are not rounded to TF32
constexpr int ANY_ALGORITHM = -1;            // CUBLAS_GEMM_DEFAULT

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error("liger: " + message); }

// Opens the library that the process has loaded already, or else the installed one.
void* open_library() {
  for (const int mode : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW}) {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
      if (void* library = dlopen(name, mode)) return library;
    }
  }
  fail("cuBLAS is not installed; install the CUDA libraries that onnxruntime-gpu needs");
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) fail(std::string("cuBLAS does not have ") + name);
}

const Cublas& cublas() {
  static const Cublas found = [] {
    void* const library = open_library();
    Cublas cublas{};
    find(library, "cublasCreate_v2", cublas.create);
    find(library, "cublasSetStream_v2", cublas.set_stream);
    find(library, "cublasGemmEx", cublas.multiply);
    return cublas;
  }();
  return found;
}

void check(int status, const char* what) {
  if (status != 0) fail(std::string("cuBLAS failed ") + what + ", status " + std::to_string(status));
}

}  // namespace

void multiply(const Product& product, void* stream) {
  for (const int64_t size : {product.tokens, product.rows, product.columns, product.output_stride}) {
    if (size > std::numeric_limits<int>::max()) fail("a matrix product is too large for cuBLAS; pass fewer tokens per call");
  }
  static std::mutex mutex;  // a handle has one stream
  const std::lock_guard<std::mutex> lock(mutex);
  static void* const handle = [] {
    void* created = nullptr;
    check(cublas().create(&created), "to start");
    return created;
  }();
  check(cublas().set_stream(handle, stream), "to take a stream");
  const float one = 1.0f, kept = product.adds ? 1.0f : 0.0f;
  const int type = static_cast<int>(product.type), columns = static_cast<int>(product.columns);
  // cuBLAS matrices are column-major: to cuBLAS, our row-major matrices are transposed.
  check(cublas().multiply(handle, TRANSPOSED, NOT_TRANSPOSED, static_cast<int>(product.rows),
                          static_cast<int>(product.tokens), columns, &one, product.weight, type, columns,
                          product.hidden, type, columns, &kept, product.output, static_cast<int>(product.output_type),
                          static_cast<int>(product.output_stride), COMPUTE_FLOAT32, ANY_ALGORITHM),
        "to multiply");
}

}  // namespace liger
