// AVX2, with the dot products of AVX-VNNI if the compilation has them: 8 lanes. See integers.h.

#pragma once

#include <immintrin.h>

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t BYTES = 32, LANES = 8;
constexpr int64_t per_vector(int64_t each) { return each < LANES ? LANES / each : 1; }
typedef __m256i Integers, Sums;
typedef __m256 Numbers;

LIGER_INLINE Integers load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
LIGER_INLINE Integers load_bytes(const void* from, int64_t) {  // the only part of a vector is its half
  return _mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

LIGER_INLINE Integers low_halves(Integers packed) { return _mm256_and_si256(packed, _mm256_set1_epi8(15)); }
LIGER_INLINE Integers high_halves(Integers packed) { return low_halves(_mm256_srli_epi16(packed, 4)); }
LIGER_INLINE Integers four_times(const int8_t* activations) {
  int32_t word;
  std::memcpy(&word, activations, sizeof(word));
  return _mm256_set1_epi32(word);
}

#ifdef __AVXVNNI__
constexpr int CENTER = 0;

LIGER_INLINE Sums dot_int4(Integers packed, Integers even, Integers odd) {
  const Integers dots = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), low_halves(packed), even);
  return _mm256_dpbusd_avx_epi32(dots, high_halves(packed), odd);
}
LIGER_INLINE Sums dot_int8(Integers weights, Integers activations) {
  return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), weights, activations);
}
template <int bits>
LIGER_INLINE Sums add_dots(Sums sums, Integers weights, const int8_t* activations) {
  return _mm256_dpbusd_avx_epi32(sums, weights, four_times(activations));
}
#else
constexpr int CENTER = 128;  // sums of two products of an unsigned byte would not fit into 16 bits

LIGER_INLINE Integers widen(Integers pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
LIGER_INLINE Sums dot_int4(Integers packed, Integers even, Integers odd) {
  const Integers low = _mm256_maddubs_epi16(low_halves(packed), even);
  return widen(_mm256_add_epi16(low, _mm256_maddubs_epi16(high_halves(packed), odd)));
}
LIGER_INLINE Sums dot_int8(Integers weights, Integers activations) {
  const Integers centered = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
  return widen(_mm256_maddubs_epi16(_mm256_abs_epi8(centered), _mm256_sign_epi8(activations, centered)));
}
template <int bits>
LIGER_INLINE Sums add_dots(Sums sums, Integers weights, const int8_t* activations) {
  const Integers four = four_times(activations);
  const Integers dots = bits == 4 ? widen(_mm256_maddubs_epi16(weights, four)) : dot_int8(weights, four);
  return _mm256_add_epi32(sums, dots);
}
#endif

LIGER_INLINE Numbers to_numbers(Sums integers) { return _mm256_cvtepi32_ps(integers); }

LIGER_INLINE Numbers load_numbers(const float* from) { return _mm256_loadu_ps(from); }
LIGER_INLINE Numbers load_numbers(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
LIGER_INLINE Numbers load_numbers(const BFloat16* from) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

template <class Number>
LIGER_INLINE __m128 product_in_all(const Number* from, const float* factor) {
  return _mm_set1_ps(number_of(*from) * *factor);
}
template <int each, class Number>
LIGER_INLINE Numbers spread_products(const Number* from, const float* factors, int64_t count = per_vector(each)) {
  const __m128 first = product_in_all(from, factors);
  if constexpr (each >= LANES) return _mm256_set_m128(first, first);
  return _mm256_set_m128(count == 2 ? product_in_all(from + 1, factors + 1) : _mm_setzero_ps(), first);
}

LIGER_INLINE Numbers numbers_of(__m128i integers) { return to_numbers(_mm256_cvtepu8_epi32(integers)); }
LIGER_INLINE Numbers bytes(const uint8_t* from) {
  return numbers_of(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
LIGER_INLINE Numbers nibbles(const uint8_t* from) {
  int32_t word;
  std::memcpy(&word, from, sizeof(word));
  const __m128i packed = _mm_cvtsi32_si128(word), low = _mm_set1_epi8(15);
  return numbers_of(_mm_unpacklo_epi8(_mm_and_si128(packed, low), _mm_and_si128(_mm_srli_epi16(packed, 4), low)));
}

LIGER_INLINE float total(Numbers numbers) {
  __m128 sums = _mm_add_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps(numbers, 1));
  sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
  return _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)));
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
