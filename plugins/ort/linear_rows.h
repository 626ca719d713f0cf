// Products of few tokens: a thread streams rows of the weight through its registers.

#pragma once

#include "linear_rounding.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t STREAMED = 4;  // tokens multiplied by a row at once
constexpr int64_t PAGE = 4096;

template <int bits>
constexpr float CENTERED = bits == 8 ? CENTER : 0;

template <int bits>
LIGER_INLINE float zero_point(const uint8_t* row, int64_t block) {
  if (row == nullptr) return (1 << (bits - 1)) - CENTERED<bits>;
  const int integer = bits == 8 ? row[block] : row[block / 2] >> 4 * (block % 2) & 15;
  return static_cast<float>(integer) - CENTERED<bits>;
}

template <int bits>
LIGER_INLINE Numbers zero_points(const uint8_t* row, int64_t block) {
  if (row == nullptr) return Numbers{} + zero_point<bits>(row, block);
  if constexpr (bits == 4) return nibbles(row + block / 2);
  return bytes(row + block) - CENTERED<bits>;
}

// Sums over columns of scaled integers times scaled activations, for `rows` rows and `tokens` tokens.
template <int bits, int each, int rows, int tokens, class Element>
LIGER_INLINE void sum_products(const IntegerWeight<Element>& weight, const RoundedActivations& rounded, int64_t row,
                               int64_t token, Numbers (&results)[rows][tokens]) {
  const int64_t row_bytes = weight.row_bytes(), blocks = weight.blocks;
  const uint8_t* const integers = weight.integers + row * row_bytes;
  const Element* const scales = weight.scales + row * blocks;
  const int8_t* const activations = rounded.integers + token * rounded.row_bytes;
  const float* const token_scales = rounded.scales + token * blocks;
  Numbers sums[rows][tokens] = {};  // in registers
  const auto add = [&](int64_t at, auto... part) LIGER_ALWAYS_INLINE {
    const int64_t block = at / (4 * each);
    unrolled<rows>(LIGER_EACH(r) {
      const uint8_t* const from = integers + r * row_bytes + at;
      __builtin_prefetch(integers + PAGE + at * rows + r * BYTES);  // in the order of addresses
      const Integers packed = sizeof...(part) ? load_bytes(from, row_bytes - at) : load_bytes(from);
      unrolled<tokens>(LIGER_EACH(t) {
        const int8_t* const of_token = activations + t * rounded.row_bytes + at * (bits == 4 ? 2 : 1);
        Sums dots;
        if constexpr (bits == 4) {
          dots = dot_int4(packed, load_bytes(of_token), load_bytes(of_token + BYTES));
        } else {
          dots = dot_int8(packed, load_bytes(of_token));
        }
        const float* const of_scale = token_scales + t * blocks + block;
        sums[r][t] += to_numbers(dots) * spread_products<each>(scales + r * blocks + block, of_scale, part...);
      });
    });
  };
  int64_t at = 0;
  for (; at + BYTES <= row_bytes; at += BYTES) add(at);
  if (at < row_bytes) add(at, std::min(per_vector(each), blocks - at / (4 * each)));
  unrolled<rows>(LIGER_EACH(r) { unrolled<tokens>(LIGER_EACH(t) { results[r][t] = sums[r][t]; }); });
}

// The products of `rows` rows and `tokens` tokens, to results[token * LINEAR_PIECE + row].
template <int bits, int each, int rows, int tokens, class Element>
void stream_rows(const IntegerWeight<Element>& weight, const RoundedActivations& rounded, int64_t row, int64_t token,
                 float* results) {
  Numbers sums[rows][tokens];
  sum_products<bits, each>(weight, rounded, row, token, sums);
  const int64_t blocks = weight.blocks;
  const float* const token_sums = rounded.sums + token * blocks;
  for (int r = 0; r < rows; ++r) {
    const Element* const scales = weight.scales + (row + r) * blocks;
    const uint8_t* const zeros = weight.zero_points_of(row + r);
    Numbers totals[tokens];
    for (int t = 0; t < tokens; ++t) totals[t] = sums[r][t];
    float rest[tokens] = {};
    int64_t block = 0;
    for (; block + LANES <= blocks; block += LANES) {
      const Numbers offsets = load_numbers(scales + block) * zero_points<bits>(zeros, block);
      for (int t = 0; t < tokens; ++t) totals[t] -= offsets * load_numbers(token_sums + t * blocks + block);
    }
    for (; block < blocks; ++block) {
      const float offset = number_of(scales[block]) * zero_point<bits>(zeros, block);
      for (int t = 0; t < tokens; ++t) rest[t] += offset * token_sums[t * blocks + block];
    }
    for (int t = 0; t < tokens; ++t) results[t * LINEAR_PIECE + r] = total(totals[t]) - rest[t];
  }
}

template <int bits, int each, int rows, class Element>
void stream_tokens(const IntegerLinearCall<Element>& call, int64_t row, float* results) {
  for (int64_t token = 0; token < call.tokens; token += STREAMED) {
    float* const to = results + token * LINEAR_PIECE;
    switch (std::min(STREAMED, call.tokens - token)) {
      case 4: stream_rows<bits, each, rows, 4>(call.weight, call.rounded, row, token, to); break;
      case 3: stream_rows<bits, each, rows, 3>(call.weight, call.rounded, row, token, to); break;
      case 2: stream_rows<bits, each, rows, 2>(call.weight, call.rounded, row, token, to); break;
      default: stream_rows<bits, each, rows, 1>(call.weight, call.rounded, row, token, to);
    }
  }
}

template <int bits, int each, int rows, class Element>
void stream_all(const IntegerLinearCall<Element>& call, int64_t first, int64_t count, float* results) {
  int64_t row = 0;
  for (; row + rows <= count; row += rows) stream_tokens<bits, each, rows>(call, first + row, results + row);
  for (; row < count; ++row) stream_tokens<bits, each, 1>(call, first + row, results + row);
}

// Several rows share the loads of the activations. More than fit into a page would be read out of order for too long.
template <int bits, int each, class Element>
void stream(const IntegerLinearCall<Element>& call, int64_t first, int64_t count, float* results) {
  if (4 * call.weight.row_bytes() <= PAGE) return stream_all<bits, each, 4>(call, first, count, results);
  return stream_all<bits, each, 2>(call, first, count, results);
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
