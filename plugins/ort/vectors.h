// Vectors of floats in the compiler's vector types: eight, which are one register with AVX2 and two with SSE or NEON, or as
// many as LIGER_WIDTH says; their exponential; and arrays of float32, float16 and bfloat16 numbers. Compiled once per instruction set,
// into a namespace of that name.

#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

#ifdef __F16C__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

#ifndef LIGER_WIDTH
#define LIGER_WIDTH 8
#endif
constexpr int64_t WIDTH = LIGER_WIDTH;
typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef float UnalignedFloats __attribute__((vector_size(4 * WIDTH), aligned(4)));

#ifndef LIGER_ALWAYS_INLINE  // tests define it as nothing, which takes half the time to compile
#define LIGER_ALWAYS_INLINE __attribute__((always_inline))
#endif
#define LIGER_INLINE inline LIGER_ALWAYS_INLINE

LIGER_INLINE Floats load(const float* from) { return *reinterpret_cast<const UnalignedFloats*>(from); }
LIGER_INLINE void store(float* to, Floats values) { *reinterpret_cast<UnalignedFloats*>(to) = values; }
LIGER_INLINE Floats all(float value) { return Floats{} + value; }

// The sum of all lanes, fours first: adding one lane after another would take as long as a row of products.
LIGER_INLINE float sum(Floats values) {
  typedef float Four __attribute__((vector_size(16)));
  Four fours[WIDTH / 4], total{};
  std::memcpy(fours, &values, sizeof(values));
  for (const Four& four : fours) total += four;
  return (total[0] + total[1]) + (total[2] + total[3]);
}

// The part of a vector that is one register. GCC compares vectors of several registers lane by lane.
#ifdef __AVX2__
typedef Floats FloatPart;
typedef Words WordPart;
#else
typedef float FloatPart __attribute__((vector_size(16)));
typedef uint32_t WordPart __attribute__((vector_size(16)));
#endif

// body(a, b), computed register by register.
template <class Part, class Vector, class Body>
LIGER_INLINE Vector by_parts(Vector a, Vector b, const Body& body) {
  constexpr size_t count = sizeof(Vector) / sizeof(Part);
  Part first[count], second[count];
  std::memcpy(first, &a, sizeof(a));
  std::memcpy(second, &b, sizeof(b));
  for (size_t part = 0; part < count; ++part) first[part] = body(first[part], second[part]);
  std::memcpy(&a, first, sizeof(a));
  return a;
}

// If a number is NaN, the result is b.
LIGER_INLINE Floats larger(Floats a, Floats b) {
  return by_parts<FloatPart>(a, b, [](FloatPart x, FloatPart y) LIGER_ALWAYS_INLINE { return x > y ? x : y; });
}
LIGER_INLINE Floats smaller(Floats a, Floats b) {
  return by_parts<FloatPart>(a, b, [](FloatPart x, FloatPart y) LIGER_ALWAYS_INLINE { return x < y ? x : y; });
}
LIGER_INLINE Words larger(Words a, Words b) {
  return by_parts<WordPart>(a, b, [](WordPart x, WordPart y) LIGER_ALWAYS_INLINE { return x > y ? x : y; });
}

// The bits of magnitudes have the order of the magnitudes, with NaN as the largest.
LIGER_INLINE Words magnitudes(Floats values) { return (Words)values & 0x7fffffff; }

// e^r - 1 for r from -ln 2 / 2 to ln 2 / 2, by the minimax polynomial of (e^r - 1 - r) / r^2.
LIGER_INLINE Floats exponential_less_one(Floats r) {
  Floats power = all(1.9875691e-4f);
  power = power * r + 1.3981999e-3f;
  power = power * r + 8.3334519e-3f;
  power = power * r + 4.1665796e-2f;
  power = power * r + 1.6666665e-1f;
  power = power * r + 5.0000001e-1f;
  return power * r * r + r;
}

// e^x to about two units in the last place; NaN and infinities as in std::exp. Results below 2^-125.5 are 0, because
// arithmetic with subnormal numbers is slow.
LIGER_INLINE Floats exponential(Floats x) {
  x = smaller(all(89.0f), larger(all(-87.3f), x));  // NaN stays NaN
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits of the sum
  const Floats shifted = x * 1.44269504f + rounder, whole = shifted - rounder;
  const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  const Floats power = exponential_less_one(rest) + 1.0f;
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
  for (int64_t at = 0; at < count; at += 8) {
#ifdef __F16C__
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
    _mm256_storeu_ps(to + at, _mm256_cvtph_ps(halves));
#elif defined(__aarch64__)
    const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(&from[at].bits));
    vst1q_f32(to + at, vcvt_f32_f16(vget_low_f16(halves)));
    vst1q_f32(to + at + 4, vcvt_high_f32_f16(halves));
#else
    for (int64_t lane = at; lane < at + 8; ++lane) {
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

// Eight bfloat16 numbers, and their bits in words.
typedef uint16_t Eight __attribute__((vector_size(16)));
typedef uint32_t EightWords __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));

LIGER_INLINE void read(const BFloat16* from, float* to, int64_t count) {
  for (int64_t at = 0; at < count; at += 8) {
    Eight bits;
    std::memcpy(&bits, from + at, sizeof(bits));
#ifdef __AVX2__  // GCC would convert two halves and join them
    const EightWords wide = (EightWords)_mm256_cvtepu16_epi32((__m128i)bits) << 16;
#else
    const EightWords wide = __builtin_convertvector(bits, EightWords) << 16;
#endif
    std::memcpy(to + at, &wide, sizeof(wide));
  }
}

// Reads any number of elements; `read` and `write` take multiples of 8.
template <class Element>
LIGER_INLINE void read_any(const Element* from, float* to, int64_t count) {
  const int64_t whole = count / WIDTH * WIDTH;
  read(from, to, whole);
  Element last[WIDTH] = {};
  float numbers[WIDTH];
  std::memcpy(last, from + whole, (count - whole) * sizeof(Element));
  read(last, numbers, WIDTH);
  std::memcpy(to + whole, numbers, (count - whole) * sizeof(float));
}

LIGER_INLINE void write(const float* from, float* to, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }

LIGER_INLINE void write(const float* from, Half* to, int64_t count) {
  for (int64_t at = 0; at < count; at += 8) {
#ifdef __F16C__
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + at), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + at), halves);
#elif defined(__aarch64__)
    const float16x4_t low = vcvt_f16_f32(vld1q_f32(from + at));
    vst1q_u16(&to[at].bits, vreinterpretq_u16_f16(vcvt_high_f16_f32(low, vld1q_f32(from + at + 4))));
#else
    for (int64_t lane = at; lane < at + 8; ++lane) {
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

LIGER_INLINE void write(const float* from, BFloat16* to, int64_t count) {
  for (int64_t at = 0; at < count; at += 8) {
    EightWords bits;
    std::memcpy(&bits, from + at, sizeof(bits));
    const EightWords nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // ties to even
    const EightWords not_a_number = bits >> 16 | 0x40;
    const EightWords is_nan = (EightWords)((EightInts)(0x7f800000 - (bits & 0x7fffffff)) >> 31);  // all bits, or none
    const Eight rounded = __builtin_convertvector((is_nan & not_a_number) | (~is_nan & nearest), Eight);
    std::memcpy(to + at, &rounded, sizeof(rounded));
  }
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
