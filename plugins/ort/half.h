// 16-bit floating-point numbers, as bits: IEEE half precision, and bfloat16, the upper half of a float32.

#pragma once

#include <cstdint>

namespace liger {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

}  // namespace liger
