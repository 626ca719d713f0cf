// Plain C++: 4 lanes in the compiler's vector types. See integers.h.

#pragma once

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t BYTES = 16, LANES = 4;
constexpr int64_t per_vector(int64_t) { return 1; }
constexpr int CENTER = 0;
typedef uint8_t Integers __attribute__((vector_size(16)));
typedef int32_t Sums __attribute__((vector_size(16)));
typedef float Numbers __attribute__((vector_size(16)));

LIGER_INLINE Integers load_bytes(const void* from) {
  Integers integers;
  std::memcpy(&integers, from, BYTES);
  return integers;
}
LIGER_INLINE Integers load_bytes(const void* from, int64_t) { return load_bytes(from); }  // no part is smaller

LIGER_INLINE Sums dot_int8(Integers weights, Integers activations) {
  Sums sums{};
  for (int at = 0; at < BYTES; ++at) sums[at / 4] += weights[at] * static_cast<int8_t>(activations[at]);
  return sums;
}
LIGER_INLINE Sums dot_int4(Integers packed, Integers even, Integers odd) {
  return dot_int8(packed & 15, even) + dot_int8(packed >> 4, odd);
}
template <int bits>
LIGER_INLINE Sums add_dots(Sums sums, Integers weights, const int8_t* activations) {
  for (int at = 0; at < BYTES; ++at) sums[at / 4] += weights[at] * activations[at % 4];
  return sums;
}
LIGER_INLINE Numbers to_numbers(Sums integers) { return __builtin_convertvector(integers, Numbers); }

template <class Number>
LIGER_INLINE Numbers load_numbers(const Number* from) {
  return Numbers{number_of(from[0]), number_of(from[1]), number_of(from[2]), number_of(from[3])};
}
template <int each, class Number>
LIGER_INLINE Numbers spread_products(const Number* from, const float* factors, int64_t = 1) {
  return Numbers{} + number_of(*from) * *factors;
}

LIGER_INLINE Numbers bytes(const uint8_t* from) {
  return to_numbers(Sums{from[0], from[1], from[2], from[3]});
}
LIGER_INLINE Numbers nibbles(const uint8_t* from) {
  return to_numbers(Sums{from[0] & 15, from[0] >> 4, from[1] & 15, from[1] >> 4});
}

LIGER_INLINE float total(Numbers numbers) { return (numbers[0] + numbers[1]) + (numbers[2] + numbers[3]); }

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
