// Vectors of integers for products with quantized weights: one form per instruction set, compiled into a namespace of
// that name. Every form defines:
//
//   BYTES, LANES          the bytes of a vector, and its 32-bit lanes
//   per_vector            the blocks in a vector whose integers fill `each` lanes
//   CENTER                what `dot_int8` and `add_dots` subtract from 8-bit weights
//   Integers              a vector of bytes
//   Sums, Numbers         vectors of 32-bit integers and of floats
//   load_bytes            a vector, or its first `count` bytes followed by zeros; `count` is a multiple of 16
//   dot_int4              per lane: the products of 4 bytes of 4-bit weights, low half times `even` plus high half
//                         times `odd`
//   dot_int8              per lane: the products of 4 bytes, each a weight minus CENTER times an activation
//   add_dots<bits>        per lane: a sum plus the products of 4 unpacked weights, for 8 bits minus CENTER, and 4
//                         activations. In its place, a form that defines LIGER_MULTIPLIES_PAIRS has:
//   add_pairs             adds the products of 4 rows and 4 tokens in 8 columns to sums of pairs of them: sums[2 q + p] is
//                         of rows 2 p and 2 p + 1 by tokens 2 q and 2 q + 1. Weights are two vectors of 4 columns of each row
//   sort_pairs            such sums to one vector per token
//   to_numbers            32-bit integers to floats
//   number_of             a float, from a number of any dtype
//   load_numbers          LANES floats, from numbers of any dtype
//   spread_products<each> products of two series of numbers, each in `each` lanes, or in all if that is more than
//                         LANES; all that fit into a vector, or the first `count` followed by zeros
//   nibbles, bytes        LANES floats, from 4-bit or 8-bit integers
//   total                 the sum of all lanes
//
// Activations are from -127 to 127.

#pragma once

#include <algorithm>
#include <utility>

#include "vectors.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

template <class Body, int... at>
LIGER_INLINE void call_each(const Body& body, std::integer_sequence<int, at...>) {
  (body(std::integral_constant<int, at>()), ...);
}
// Calls body(0), ..., body(count - 1) with constants, so that arrays that they index can stay in registers.
template <int count, class Body>
LIGER_INLINE void unrolled(const Body& body) {
  call_each(body, std::make_integer_sequence<int, count>());
}
#define LIGER_EACH(index) [&](auto index) LIGER_ALWAYS_INLINE

LIGER_INLINE float number_of(float number) { return number; }
LIGER_INLINE float number_of(Half half) {
#ifdef __F16C__
  return _cvtsh_ss(half.bits);
#else
  const Half halves[WIDTH] = {half};
  float numbers[WIDTH];
  read(halves, numbers, WIDTH);
  return numbers[0];
#endif
}
LIGER_INLINE float number_of(BFloat16 number) {
  const uint32_t bits = uint32_t{number.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger

#if defined(__AVX512VNNI__)
#include "integers_avx512.h"
#elif defined(__AVX2__)
#include "integers_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "integers_neon.h"
#else
#include "integers_plain.h"
#endif
