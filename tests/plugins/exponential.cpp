// Compares the vectors' exponential with std::exp on floats of every class. Prints one line per wrong result, and then the
// largest error of the others, in units in the last place.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "vectors.h"

using namespace liger::LIGER_INSTRUCTIONS;

constexpr uint32_t STEP = 1021;       // divides no power of 2: the patterns tested have all exponents and varied fractions
constexpr float FLUSHED = 1.67e-38f;  // 2^-125.5: smaller results are 0

float of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The error in units in the last place; infinity if the result is of another class.
double error_of(float x, float found) {
  const double exact = std::exp(static_cast<double>(x));
  const float expected = static_cast<float>(exact);
  if (std::isnan(expected)) return std::isnan(found) ? 0 : INFINITY;
  if (std::isinf(expected) || found == expected) return found == expected ? 0 : INFINITY;
  if (found == 0) return expected < FLUSHED ? 0 : INFINITY;
  const double unit = std::nextafter(expected, INFINITY) - static_cast<double>(expected);
  return std::abs(found - exact) / unit;
}

int main() {
  double largest = 0;
  const auto compare = [&](float x) {
    // The other lanes must not change the result.
    float lanes[WIDTH] = {1.0f, -1.0f, NAN, INFINITY, -INFINITY, 0.0f, 100.0f, -100.0f};
    for (int64_t lane = 0; lane < WIDTH; lane += 3) {
      float values[WIDTH];
      std::copy(lanes, lanes + WIDTH, values);
      values[lane] = x;
      store(values, exponential(load(values)));
      const double error = error_of(x, values[lane]);
      if (error < 4) {
        largest = std::max(largest, error);
      } else {
        std::printf("wrong: exp(%a) is %a\n", x, values[lane]);
      }
    }
  };
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += STEP) compare(of_bits(static_cast<uint32_t>(bits)));
  for (const uint32_t magnitude : {0x00000000u, 0x00000001u, 0x007fffffu, 0x00800000u, 0x42b17217u, 0x42b17218u,
                                   0x42aeac50u, 0x7f7fffffu, 0x7f800000u, 0x7f800001u, 0x7fc00000u, 0x7fffffffu}) {
    compare(of_bits(magnitude));
    compare(of_bits(magnitude | 0x80000000u));
  }
  std::printf("largest error %.2f\n", largest);
}
