// NEON with dot products, and with matrix products (i8mm) if the compilation has them: 4 lanes. See integers.h.

#pragma once

#include <arm_neon.h>

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t BYTES = 16, LANES = 4;
constexpr int64_t per_vector(int64_t) { return 1; }
typedef int8x16_t Integers;
typedef float32x4_t Numbers;
typedef int32x4_t Sums;

LIGER_INLINE Integers load_bytes(const void* from) { return vld1q_s8(static_cast<const int8_t*>(from)); }
LIGER_INLINE Integers load_bytes(const void* from, int64_t) { return load_bytes(from); }  // no part is smaller

LIGER_INLINE Integers low_halves(Integers packed) { return vandq_s8(packed, vdupq_n_s8(15)); }
LIGER_INLINE Integers high_halves(Integers packed) {
  return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(packed), 4));
}

LIGER_INLINE Sums dot_int4(Integers packed, Integers even, Integers odd) {
  return vdotq_s32(vdotq_s32(vdupq_n_s32(0), low_halves(packed), even), high_halves(packed), odd);
}

#ifdef __ARM_FEATURE_MATMUL_INT8
constexpr int CENTER = 0;
#define LIGER_MULTIPLIES_PAIRS

LIGER_INLINE Sums dot_int8(Integers weights, Integers activations) {
  return vusdotq_s32(vdupq_n_s32(0), vreinterpretq_u8_s8(weights), activations);
}
// Two rows of 8 activations each.
LIGER_INLINE Integers pair_of(const int8_t* first, const int8_t* second) {
  return vcombine_s8(vld1_s8(first), vld1_s8(second));
}
LIGER_INLINE void add_pairs(Sums (&sums)[4], Integers four, Integers next_four, const int8_t* activations, int64_t stride) {
  const int32x4_t a = vreinterpretq_s32_s8(four), b = vreinterpretq_s32_s8(next_four);
  const uint8x16_t rows[2] = {vreinterpretq_u8_s32(vzip1q_s32(a, b)), vreinterpretq_u8_s32(vzip2q_s32(a, b))};
  for (int pair = 0; pair < 2; ++pair, activations += 2 * stride) {
    const Integers tokens = pair_of(activations, activations + stride);
    for (int each = 0; each < 2; ++each) sums[2 * pair + each] = vusmmlaq_s32(sums[2 * pair + each], rows[each], tokens);
  }
}
LIGER_INLINE void sort_pairs(Sums (&sums)[4]) {
  for (int pair = 0; pair < 4; pair += 2) {
    const Sums first = sums[pair], second = sums[pair + 1];
    sums[pair] = vuzp1q_s32(first, second);
    sums[pair + 1] = vuzp2q_s32(first, second);
  }
}
#else
constexpr int CENTER = 128;

LIGER_INLINE Integers centered(Integers weights) { return veorq_s8(weights, vdupq_n_s8(-128)); }
LIGER_INLINE Sums dot_int8(Integers weights, Integers activations) {
  return vdotq_s32(vdupq_n_s32(0), centered(weights), activations);
}
template <int bits>
LIGER_INLINE Sums add_dots(Sums sums, Integers weights, const int8_t* activations) {
  int32_t word;
  std::memcpy(&word, activations, sizeof(word));
  return vdotq_s32(sums, bits == 4 ? weights : centered(weights), vreinterpretq_s8_s32(vdupq_n_s32(word)));
}
#endif

LIGER_INLINE Numbers to_numbers(Sums integers) { return vcvtq_f32_s32(integers); }

LIGER_INLINE Numbers load_numbers(const float* from) { return vld1q_f32(from); }
LIGER_INLINE Numbers load_numbers(const Half* from) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
}
LIGER_INLINE Numbers load_numbers(const BFloat16* from) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(&from->bits)), 16));
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
  const uint32_t first = from[0], second = from[1], integers[LANES] = {first & 15, first >> 4, second & 15, second >> 4};
  return vcvtq_f32_u32(vld1q_u32(integers));
}

LIGER_INLINE float total(Numbers numbers) { return vaddvq_f32(numbers); }

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
