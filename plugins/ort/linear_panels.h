// Products of many tokens: a thread unpacks as many rows as a vector has lanes into a panel, four bytes of each row
// after another, and multiplies all tokens by it.

#pragma once

#include "linear_rows.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t PANEL_TOKENS = LANES == 16 ? 8 : 4;  // tokens multiplied at once, as many as registers hold
constexpr int64_t PANEL_STRIDE = std::max(LANES, WIDTH);

// LANES rows of a weight, unpacked: integers [columns / 4][LANES][4] in the order of activations, and per block the rows'
// scales and scales times zero points, [blocks][LANES]. Lanes beyond the last row repeat it.
struct Panel {
  uint8_t* integers;
  float *scales, *offsets;

  template <class Element>
  static int64_t size(const IntegerWeight<Element>& weight) {
    return LANES * (RoundedActivations::padded(weight.columns()) + 2 * weight.blocks * sizeof(float));
  }
  template <class Element>
  Panel(const IntegerWeight<Element>& weight, uint8_t* memory) : integers(memory) {
    scales = reinterpret_cast<float*>(memory + LANES * RoundedActivations::padded(weight.columns()));
    offsets = scales + LANES * weight.blocks;
  }
};

typedef uint8_t Part __attribute__((vector_size(16)));
typedef int32_t Four __attribute__((vector_size(16)));

// One part of four rows, [4][PART], to [PART / 4][4][4]: four bytes of each row after another.
LIGER_INLINE void transpose(const Four* rows, Four* columns) {
  const auto first = [](Four a, Four b) { return Four{a[0], b[0], a[1], b[1]}; };
  const auto last = [](Four a, Four b) { return Four{a[2], b[2], a[3], b[3]}; };
  const Four a = first(rows[0], rows[2]), b = first(rows[1], rows[3]);
  const Four c = last(rows[0], rows[2]), d = last(rows[1], rows[3]);
  columns[0] = first(a, b);
  columns[1] = last(a, b);
  columns[2] = first(c, d);
  columns[3] = last(c, d);
}

template <int bits, class Element>
void unpack_integers(const IntegerWeight<Element>& weight, int64_t first, int64_t count, uint8_t* to) {
  const int64_t row_bytes = weight.row_bytes();
  for (int64_t row = 0; row < LANES; row += 4) {
    const uint8_t* from[4];
    for (int each = 0; each < 4; ++each) from[each] = weight.integers + (first + std::min(row + each, count - 1)) * row_bytes;
    for (int64_t part = 0; part < row_bytes / PART; ++part) {
      Four rows[4], columns[4];
      for (int each = 0; each < 4; ++each) std::memcpy(&rows[each], from[each] + part * PART, PART);
      transpose(rows, columns);
      uint8_t* const place = to + place_of_part<bits>(part) * LANES + row * 4;
      for (int64_t at = 0; at < 4; ++at) {
        const Part bytes = (Part)columns[at], low = bits == 4 ? bytes & 15 : bytes, high = bytes >> 4;
        std::memcpy(place + at * 4 * LANES, &low, PART);
        if (bits == 4) std::memcpy(place + (BYTES + at * 4) * LANES, &high, PART);
      }
    }
  }
}

template <int bits, class Element>
Panel unpack(const IntegerWeight<Element>& weight, int64_t first, int64_t count, uint8_t* memory) {
  const Panel panel(weight, memory);
  unpack_integers<bits>(weight, first, count, panel.integers);
  for (int64_t lane = 0; lane < LANES; ++lane) {
    const int64_t row = first + std::min(lane, count - 1);
    const Element* const scales = weight.scales + row * weight.blocks;
    const uint8_t* const zeros = weight.zero_points_of(row);
    for (int64_t block = 0; block < weight.blocks; ++block) {
      const float scale = number_of(scales[block]);
      panel.scales[block * LANES + lane] = scale;
      panel.offsets[block * LANES + lane] = scale * zero_point<bits>(zeros, block);
    }
  }
  return panel;
}

// Adds the products of a panel's rows and PANEL_TOKENS tokens in PART columns. The sums are in order after `in_order`.
template <int bits>
LIGER_INLINE void add_products(Sums (&dots)[PANEL_TOKENS], const uint8_t* panel, const int8_t* activations, int64_t stride) {
#ifdef LIGER_MULTIPLIES_PAIRS
  unrolled<PART / 8>(LIGER_EACH(pair) {
    const uint8_t* const at = panel + pair * 8 * LANES;
    add_pairs(dots, load_bytes(at), load_bytes(at + 4 * LANES), activations + pair * 8, stride);
  });
#else
  unrolled<PART / 4>(LIGER_EACH(word) {
    const Integers integers = load_bytes(panel + word * 4 * LANES);
    unrolled<PANEL_TOKENS>(LIGER_EACH(t) {
      dots[t] = add_dots<bits>(dots[t], integers, activations + t * stride + word * 4);
    });
  });
#endif
}

LIGER_INLINE void in_order([[maybe_unused]] Sums (&dots)[PANEL_TOKENS]) {
#ifdef LIGER_MULTIPLIES_PAIRS
  sort_pairs(dots);
#endif
}

// The products of a panel's rows and PANEL_TOKENS tokens, to results[token * PANEL_STRIDE + row].
template <int bits>
void multiply_panel(const Panel& panel, int64_t blocks, int64_t parts, const RoundedActivations& rounded, int64_t token,
                    float* results) {
  constexpr int tokens = PANEL_TOKENS;
  const int8_t* activations = rounded.integers + token * rounded.row_bytes;
  const float *scales = rounded.scales + token * blocks, *token_sums = rounded.sums + token * blocks;
  Numbers sums[tokens] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    Sums dots[tokens] = {};
    for (int64_t part = block * parts; part < (block + 1) * parts; ++part) {
      const int64_t place = place_of_part<bits>(part);
      unrolled<bits == 4 ? 2 : 1>(LIGER_EACH(half) {
        const int64_t at = place + half * BYTES;
        add_products<bits>(dots, panel.integers + at * LANES, activations + at, rounded.row_bytes);
      });
    }
    in_order(dots);
    const Numbers scale = load_numbers(panel.scales + block * LANES), offset = load_numbers(panel.offsets + block * LANES);
    unrolled<tokens>(LIGER_EACH(t) {
      sums[t] += to_numbers(dots[t]) * (scale * scales[t * blocks + block]);
      sums[t] -= offset * token_sums[t * blocks + block];
    });
  }
  unrolled<tokens>(LIGER_EACH(t) { std::memcpy(results + t * PANEL_STRIDE, &sums[t], sizeof(sums[t])); });
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
