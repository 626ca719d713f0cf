// Vectors of eight floats in the compiler's vector types: one register with AVX2, two with SSE or NEON; their exponential;
// and arrays of float32 and float16 numbers. Compiled once per instruction set, into a namespace of that name.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu_attention.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef float UnalignedFloats __attribute__((vector_size(32), aligned(4)));
constexpr int64_t WIDTH = 8;

#define LIGER_INLINE inline __attribute__((always_inline))

LIGER_INLINE Floats load(const float* from) { return *reinterpret_cast<const UnalignedFloats*>(from); }
LIGER_INLINE void store(float* to, Floats values) { *reinterpret_cast<UnalignedFloats*>(to) = values; }
LIGER_INLINE Floats all(float value) { return Floats{} + value; }

LIGER_INLINE float sum(Floats values) {
  float total = 0;
  for (int lane = 0; lane < WIDTH; ++lane) total += values[lane];
  return total;
}

// If a number is NaN, the result is b.
LIGER_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
LIGER_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

// e^x to about two units in the last place; NaN and infinities as in std::exp. Results below 2^-125.5 are 0, because
// arithmetic with subnormal numbers is slow.
LIGER_INLINE Floats exponential(Floats x) {
  x = smaller(all(89.0f), larger(all(-87.3f), x));  // NaN stays NaN
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits of the sum
  const Floats shifted = x * 1.44269504f + rounder, whole = shifted - rounder;
  const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  Floats power = all(1.9875691e-4f);  // minimax polynomial of (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2]
  power = power * rest + 1.3981999e-3f;
  power = power * rest + 8.3334519e-3f;
  power = power * rest + 4.1665796e-2f;
  power = power * rest + 1.6666665e-1f;
  power = power * rest + 5.0000001e-1f;
  power = power * rest * rest + rest + 1.0f;
  // 2^(whole - 1), because 2^128 is too large for a float. For the least whole number, -126, the bits are those of 0.
  const Words exponent = ((Words)shifted + 126) << 23;
  return (power + power) * (Floats)exponent;  // the same bits
}

// log(1 + u) for u in [0, 1], by the series of 2 artanh(u / (2 + u)).
LIGER_INLINE Floats log_of_one_plus(Floats u) {
  const Floats s = u / (u + 2.0f), square = s * s;
  Floats series = all(2.0f / 15);
  series = series * square + 2.0f / 13;
  series = series * square + 2.0f / 11;
  series = series * square + 2.0f / 9;
  series = series * square + 2.0f / 7;
  series = series * square + 2.0f / 5;
  series = series * square + 2.0f / 3;
  return (series * square + 2.0f) * s;
}

LIGER_INLINE void read(const float* from, float* to, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }

LIGER_INLINE void read(const Half* from, float* to, int64_t count) {
  for (int64_t at = 0; at < count; at += WIDTH) {
#ifdef __F16C__
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
    _mm256_storeu_ps(to + at, _mm256_cvtph_ps(halves));
#else
    for (int64_t lane = at; lane < at + WIDTH; ++lane) {
      const uint32_t bits = from[lane].bits, magnitude = (bits & 0x7fff) << 13;
      // Multiplying by 2^112 moves the exponent's bias and makes subnormal numbers normal.
      uint32_t wide;
      float scaled, factor = 5.192296858534828e33f;
      std::memcpy(&scaled, &magnitude, 4);
      scaled *= factor;
      std::memcpy(&wide, &scaled, 4);
      if ((bits & 0x7c00) == 0x7c00) wide = 0x7f800000 | magnitude;
      wide |= (bits & 0x8000) << 16;
      std::memcpy(to + lane, &wide, 4);
    }
#endif
  }
}

LIGER_INLINE void write(const float* from, float* to, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }

LIGER_INLINE void write(const float* from, Half* to, int64_t count) {
  for (int64_t at = 0; at < count; at += WIDTH) {
#ifdef __F16C__
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + at), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + at), halves);
#else
    for (int64_t lane = at; lane < at + WIDTH; ++lane) {
      uint32_t bits;
      std::memcpy(&bits, from + lane, 4);
      const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
      uint32_t half;
      if (magnitude > 0x7f800000) {
        half = 0x7e00;  // not a number
      } else if (magnitude >= 0x477ff000) {
        half = 0x7c00;  // rounds to infinity
      } else if (magnitude < 0x38800000) {  // subnormal: let a float addition round to multiples of 2^-24
        float small;
        std::memcpy(&small, &magnitude, 4);
        small += 0.5f;
        std::memcpy(&half, &small, 4);
        half -= 0x3f000000;
      } else {
        half = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;  // to nearest, ties to even
      }
      to[lane].bits = static_cast<uint16_t>(sign | half);
    }
#endif
  }
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
