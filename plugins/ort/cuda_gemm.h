// Products with many tokens, by cuBLAS, which ONNX Runtime's CUDA provider needs as well.

#pragma once

#include <cstdint>

namespace liger {

// Dtypes with CUDA's numbers (cudaDataType).
enum class CudaType : int { float32 = 0, float16 = 2, bfloat16 = 14 };

// output[t, n] = hidden[t, :] . weight[n, :], added to the output's previous value if `adds`. Sums are float32.
struct Product {
  int64_t tokens, rows, columns;
  const void *hidden, *weight;  // [tokens, columns], [rows, columns]
  void* output;                 // rows of `output_stride` elements
  int64_t output_stride;
  CudaType type, output_type;
  bool adds;
};

// Starts a product on a stream.
void multiply(const Product& product, void* stream);

}  // namespace liger
