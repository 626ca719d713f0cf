// AVX-512 with VNNI: 16 lanes. See integers.h.

#pragma once

#include <immintrin.h>

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t BYTES = 64, LANES = 16;
constexpr int64_t per_vector(int64_t each) { return each < LANES ? LANES / each : 1; }
constexpr int CENTER = 0;
typedef __m512i Integers, Sums;
typedef __m512 Numbers;

LIGER_INLINE Integers load_bytes(const void* from) { return _mm512_loadu_si512(from); }
LIGER_INLINE Integers load_bytes(const void* from, int64_t count) {
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, from);
}

LIGER_INLINE Sums dot_int4(Integers packed, Integers even, Integers odd) {
  asm("" : "+v"(packed));  // keeps the compiler from loading it twice
  const Integers low = _mm512_set1_epi8(15);
  const Integers dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), packed & low, even);
  return _mm512_dpbusd_epi32(dots, _mm512_srli_epi16(packed, 4) & low, odd);
}
LIGER_INLINE Sums dot_int8(Integers weights, Integers activations) {
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, activations);
}
template <int bits>
LIGER_INLINE Sums add_dots(Sums sums, Integers weights, const int8_t* activations) {
  int32_t word;
  std::memcpy(&word, activations, sizeof(word));
  return _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(word));
}
LIGER_INLINE Numbers to_numbers(Sums integers) { return _mm512_cvtepi32_ps(integers); }

LIGER_INLINE Numbers load_numbers(const float* from) { return _mm512_loadu_ps(from); }
LIGER_INLINE Numbers load_numbers(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
LIGER_INLINE Numbers load_numbers(const BFloat16* from) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

LIGER_INLINE __m128 first_numbers(const float* from, int64_t count) {
  return count == 4 ? _mm_loadu_ps(from) : _mm_maskz_loadu_ps((1 << count) - 1, from);
}
LIGER_INLINE __m128 first_numbers(const Half* from, int64_t count) {
  return _mm_cvtph_ps(_mm_maskz_loadu_epi16((1 << count) - 1, from));
}
LIGER_INLINE __m128 first_numbers(const BFloat16* from, int64_t count) {
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_maskz_loadu_epi16((1 << count) - 1, from)), 16));
}
template <int each, class Number>
LIGER_INLINE Numbers spread_products(const Number* from, const float* factors, int64_t count = per_vector(each)) {
  const __m128 products = first_numbers(from, count) * first_numbers(factors, count);
  if constexpr (each >= LANES) return _mm512_broadcastss_ps(products);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_permutexvar_ps(_mm512_srli_epi32(lanes, each == 4 ? 2 : 3), _mm512_castps128_ps512(products));
}

LIGER_INLINE Numbers bytes(const uint8_t* from) {
  return to_numbers(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
LIGER_INLINE Numbers nibbles(const uint8_t* from) {
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), low = _mm_set1_epi8(15);
  const __m128i unpacked = _mm_unpacklo_epi8(packed & low, _mm_srli_epi16(packed, 4) & low);
  return to_numbers(_mm512_cvtepu8_epi32(unpacked));
}

LIGER_INLINE float total(Numbers numbers) { return _mm512_reduce_add_ps(numbers); }

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
