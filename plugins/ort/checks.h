// Checks of sizes and shapes. An error says what was wanted and what was found.

#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "ort_kernel.h"

namespace liger {

// The product of sizes. It is 0 if one of them is: an empty tensor may have any other sizes.
inline int64_t product(std::initializer_list<int64_t> sizes) {
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return 0;
  int64_t result = 1;
  for (const int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(result, size, &result)) {
      throw ort::Error("liger: a tensor of this call is too large; pass fewer sequences or tokens per call");
    }
  }
  return result;
}

// Throws "WHAT must have shape WANTED, not ...".
[[noreturn]] inline void refuse_shape(const char* what, const std::string& wanted, const ort::Tensor& tensor) {
  std::string found;
  for (size_t axis = 0; axis < tensor.rank; ++axis) found += (axis ? ", " : "") + std::to_string(tensor.shape[axis]);
  throw ort::Error(std::string("liger: ") + what + " must have shape " + wanted + ", not [" + found + "]");
}

inline void require_shape(const char* what, const ort::Tensor& tensor, std::initializer_list<int64_t> shape) {
  if (tensor.rank == shape.size() && std::equal(shape.begin(), shape.end(), tensor.shape.begin())) return;
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  refuse_shape(what, "[" + wanted + "]", tensor);
}

// Requires one size per letter of `axes`, such as "[B, T, N]".
inline void require_axes(const char* what, const ort::Tensor& tensor, const std::string& axes) {
  const size_t rank = 1 + std::count(axes.begin(), axes.end(), ',');
  if (tensor.rank != rank) refuse_shape(what, axes, tensor);
}

}  // namespace liger
