// IEEE half precision, as bits.

#pragma once

#include <cstdint>

namespace liger {

struct Half {
  uint16_t bits;
};

}  // namespace liger
