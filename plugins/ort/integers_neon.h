// NEON with dot products: 4 lanes. See integers.h.

#pragma once

#include <arm_neon.h>

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t BYTES = 16, LANES = 4;
constexpr int64_t per_vector(int64_t) { return 1; }
constexpr int CENTER = 128;
typedef int8x16_t Integers;
typedef float32x4_t Numbers;
typedef int32x4_t Sums;

LIGER_INLINE Integers load_bytes(const void* from) { return vld1q_s8(static_cast<const int8_t*>(from)); }
LIGER_INLINE Integers load_bytes(const void* from, int64_t) { return load_bytes(from); }  // no part is smaller

LIGER_INLINE Integers low_halves(Integers packed) { return vandq_s8(packed, vdupq_n_s8(15)); }
LIGER_INLINE Integers high_halves(Integers packed) {
  return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(packed), 4));
}
LIGER_INLINE Integers centered(Integers weights) { return veorq_s8(weights, vdupq_n_s8(-128)); }

LIGER_INLINE Sums dot_int4(Integers packed, Integers even, Integers odd) {
  return vdotq_s32(vdotq_s32(vdupq_n_s32(0), low_halves(packed), even), high_halves(packed), odd);
}
LIGER_INLINE Sums dot_int8(Integers weights, Integers activations) {
  return vdotq_s32(vdupq_n_s32(0), centered(weights), activations);
}
template <int bits>
LIGER_INLINE Sums add_dots(Sums sums, Integers weights, const int8_t* activations) {
  int32_t word;
  std::memcpy(&word, activations, sizeof(word));
  return vdotq_s32(sums, bits == 4 ? weights : centered(weights), vreinterpretq_s8_s32(vdupq_n_s32(word)));
}
LIGER_INLINE Numbers to_numbers(Sums integers) { return vcvtq_f32_s32(integers); }

LIGER_INLINE Numbers load_numbers(const float* from) { return vld1q_f32(from); }
LIGER_INLINE Numbers load_numbers(const Half* from) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
}
template <int each, class Number>
LIGER_INLINE Numbers spread_products(const Number* from, const float* factors, int64_t = 1) {
  return vdupq_n_f32(number_of(*from) * *factors);
}

LIGER_INLINE Numbers bytes(const uint8_t* from) {
  const uint32_t integers[LANES] = {from[0], from[1], from[2], from[3]};
  return vcvtq_f32_u32(vld1q_u32(integers));
}
LIGER_INLINE Numbers nibbles(const uint8_t* from) {
  const uint32_t integers[LANES] = {from[0] & 15u, from[0] >> 4u, from[1] & 15u, from[1] >> 4u};
  return vcvtq_f32_u32(vld1q_u32(integers));
}

LIGER_INLINE float total(Numbers numbers) { return vaddvq_f32(numbers); }

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
