// Activations of quantized linear layers: normalized, and rounded to 8 bits in blocks as MatMulNBits does at accuracy
// level 4.

#pragma once

#include <cmath>
#include <type_traits>

#include "cpu_linear.h"
#include "integers.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t PART = 16;  // bytes of integers: the least that a block has
constexpr int64_t MAX_BLOCK = 128;

// Where the activations of a part's low halves are in a row; those of its high halves follow BYTES later. With 8 bits
// there are no halves: activations are in the order of the weights.
template <int bits>
LIGER_INLINE int64_t place_of_part(int64_t part) {
  constexpr int64_t parts = BYTES / PART;
  return bits == 4 ? part / parts * 2 * BYTES + part % parts * PART : part * PART;
}

template <class Element, class Weight>
float norm_factor(const CpuLinearCall<Element, Weight>& call, const Element* hidden) {
  if (call.norm == nullptr) return 1;
  const int64_t columns = call.weight.columns();
  float numbers[WIDTH];
  Floats squares{};
  for (int64_t at = 0; at < columns; at += WIDTH) {
    read(hidden + at, numbers, WIDTH);
    squares += load(numbers) * load(numbers);
  }
  return 1 / std::sqrt(sum(squares) / static_cast<float>(columns) + call.epsilon);
}

// Writes a block's integers in the order of its weights. Returns their scale; NaN and infinities make it not finite.
template <class Element>
float round_block(const Element* hidden, const Element* norm, float factor, int64_t count, int32_t* integers) {
  float numbers[MAX_BLOCK], weights[MAX_BLOCK];
  read(hidden, numbers, count);
  if (norm != nullptr) read(norm, weights, count);
  Words largest{};
  for (int64_t at = 0; at < count; at += WIDTH) {
    Floats values = load(numbers + at);
    if (norm != nullptr) values = values * factor * load(weights + at);
    store(numbers + at, values);
    if constexpr (!std::is_same_v<Element, float>) {  // a norm of its own would write this dtype
      Element rounded[WIDTH];
      write(numbers + at, rounded, WIDTH);
      read(rounded, numbers + at, WIDTH);
      values = load(numbers + at);
    }
    largest = larger(magnitudes(values), largest);
  }
  uint32_t bits = 0;
  for (int lane = 0; lane < WIDTH; ++lane) bits = std::max(bits, largest[lane]);
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof(magnitude));
  const float inverse = magnitude > 1e-35f ? 127 / magnitude : 0;  // 127 / magnitude must be finite
  // Not by adding 1.5 * 2^23: fused into one operation with the product, that would round ties differently.
  for (int64_t at = 0; at < count; ++at) numbers[at] = std::nearbyint(numbers[at] * inverse);
  for (int64_t at = 0; at < count; at += WIDTH) {
    const Floats shifted = load(numbers + at) + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits of the sum
    const Ints rounded = ((Ints)shifted << 24) >> 24;
    std::memcpy(integers + at, &rounded, sizeof(rounded));
  }
  return magnitude / 127;
}

template <class Element, int bits>
void round_row(const IntegerLinearCall<Element>& call, int64_t token) {
  const int64_t block_size = call.weight.block_size, blocks = call.weight.blocks;
  const RoundedActivations& to = call.rounded;
  const Element* hidden = call.hidden + token * call.weight.columns();
  int8_t* const row = to.integers + token * to.row_bytes;
  const float factor = norm_factor(call, hidden);
  std::memset(row, 0, to.row_bytes);
  int32_t integers[MAX_BLOCK];
  for (int64_t block = 0, part = 0; block < blocks; ++block) {
    const int64_t start = block * block_size;
    const Element* norm = call.norm ? call.norm + start : nullptr;
    const float scale = round_block(hidden + start, norm, factor, block_size, integers);
    int32_t sum = 0;
    for (int64_t at = 0; at < block_size; ++at) sum += integers[at];
    to.scales[token * blocks + block] = scale;
    to.sums[token * blocks + block] = scale * static_cast<float>(sum);
    for (int64_t at = 0; at < block_size; at += PART * 8 / bits, ++part) {
      int8_t* const low = row + place_of_part<bits>(part);
      if (bits == 4) {
        for (int64_t byte = 0; byte < PART; ++byte) {
          low[byte] = static_cast<int8_t>(integers[at + 2 * byte]);
          low[BYTES + byte] = static_cast<int8_t>(integers[at + 2 * byte + 1]);
        }
      } else {
        for (int64_t byte = 0; byte < PART; ++byte) low[byte] = static_cast<int8_t>(integers[at + byte]);
      }
    }
  }
}

template <class Element>
void round_token(const IntegerLinearCall<Element>& call, int64_t token) {
  return call.weight.bits == 4 ? round_row<Element, 4>(call, token) : round_row<Element, 8>(call, token);
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
