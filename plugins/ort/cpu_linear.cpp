// Linear layers on a CPU. Compiled once per instruction set, into a namespace of that name.
//
// With quantized weights, activations are rounded to 8 bits in blocks. With integers w of a row and a of a token, zero
// point z, and scales s and t of a block, the product is the sum over blocks of s t (w . a) - s z t sum(a).

#include "cpu_linear.h"

#include "linear_dense.h"
#include "linear_panels.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

template <class Element>
LIGER_INLINE void write_any(const float* from, Element* to, int64_t count) {
  const int64_t whole = count / WIDTH * WIDTH;
  write(from, to, whole);
  Element last[WIDTH];
  float numbers[WIDTH] = {};
  std::memcpy(numbers, from + whole, (count - whole) * sizeof(float));
  write(numbers, last, WIDTH);
  std::memcpy(to + whole, last, (count - whole) * sizeof(Element));
}

template <class Element>
LIGER_INLINE void add(const Element* from, float* to, int64_t count) {
  float numbers[LINEAR_PIECE] = {};
  read_any(from, numbers, count);
  for (int64_t at = 0; at < count; ++at) to[at] += numbers[at];
}

// Writes results of a token from sums, which are read up to a multiple of WIDTH; `up` is read if the call is gated.
template <class Element, class Weight>
void finish(const CpuLinearCall<Element, Weight>& call, int64_t token, int64_t row, int64_t count, float* sums, float* up) {
  const int64_t rows = call.result_rows(), place = token * rows + row;
  if (call.bias) add(call.bias + row, sums, count);
  if (call.is_gated) {
    if (call.bias) add(call.bias + rows + row, up, count);
    for (int64_t at = 0; at < count; at += WIDTH) {
      const Floats gate = load(sums + at);
      store(sums + at, gate / (exponential(-gate) + 1.0f) * load(up + at));
    }
  }
  if (call.residual) add(call.residual + place, sums, count);
  if (call.to_float) {
    std::memcpy(static_cast<float*>(call.output) + place, sums, count * sizeof(float));
  } else {
    write_any(sums, static_cast<Element*>(call.output) + place, count);
  }
}

template <int bits, int each, class Element>
void multiply_few(const IntegerLinearCall<Element>& call, int64_t first, int64_t count) {
  float sums[MAX_STREAMED_TOKENS][LINEAR_PIECE] = {}, up[MAX_STREAMED_TOKENS][LINEAR_PIECE] = {};
  stream<bits, each>(call, first, count, sums[0]);
  if (call.is_gated) stream<bits, each>(call, call.result_rows() + first, count, up[0]);
  for (int64_t token = 0; token < call.tokens; ++token) finish(call, token, first, count, sums[token], up[token]);
}

template <int bits, class Element>
void multiply_many(const IntegerLinearCall<Element>& call, int64_t first, int64_t count, uint8_t* memory) {
  const int64_t blocks = call.weight.blocks, parts = call.weight.block_size * bits / 8 / PART;
  for (int64_t row = first; row < first + count; row += LANES) {
    const int64_t rows = std::min(LANES, first + count - row);
    const Panel panel = unpack<bits>(call.weight, row, rows, memory);
    uint8_t* const second = memory + Panel::size(call.weight);
    const Panel gated = call.is_gated ? unpack<bits>(call.weight, call.result_rows() + row, rows, second) : panel;
    for (int64_t next = 0; next < call.tokens; next += PANEL_TOKENS) {
      const int64_t token = std::min(next, call.tokens - PANEL_TOKENS);  // the last tokens may be computed twice
      float sums[PANEL_TOKENS][PANEL_STRIDE] = {}, up[PANEL_TOKENS][PANEL_STRIDE] = {};
      multiply_panel<bits>(panel, blocks, parts, call.rounded, token, sums[0]);
      if (call.is_gated) multiply_panel<bits>(gated, blocks, parts, call.rounded, token, up[0]);
      for (int64_t t = 0; t < PANEL_TOKENS; ++t) finish(call, token + t, row, rows, sums[t], up[t]);
    }
  }
}

template <class Element>
int64_t memory_of_piece(const IntegerLinearCall<Element>& call) {
  return call.tokens > MAX_STREAMED_TOKENS ? (call.is_gated ? 2 : 1) * Panel::size(call.weight) : 0;
}

template <int bits, class Element>
void multiply_bits(const IntegerLinearCall<Element>& call, int64_t piece, void* memory) {
  const int64_t first = piece * LINEAR_PIECE, count = std::min(LINEAR_PIECE, call.result_rows() - first);
  if (call.tokens > MAX_STREAMED_TOKENS) return multiply_many<bits>(call, first, count, static_cast<uint8_t*>(memory));
  constexpr int lanes = 32 * bits / 8 / 4;  // of a block of 32
  switch (call.weight.block_size) {
    case 32: return multiply_few<bits, lanes>(call, first, count);
    case 64: return multiply_few<bits, 2 * lanes>(call, first, count);
    default: return multiply_few<bits, 4 * lanes>(call, first, count);
  }
}

template <class Element>
void multiply(const IntegerLinearCall<Element>& call, int64_t piece, void* memory) {
  return call.weight.bits == 4 ? multiply_bits<4>(call, piece, memory) : multiply_bits<8>(call, piece, memory);
}

template <class Element>
void multiply_dense(const DenseLinearCall<Element>& call, int64_t piece) {
  const int64_t first = piece * LINEAR_PIECE, count = std::min(LINEAR_PIECE, call.result_rows() - first);
  for (int64_t token = 0; token < call.tokens; token += DENSE_TOKENS) {
    float sums[DENSE_TOKENS][LINEAR_PIECE] = {}, up[DENSE_TOKENS][LINEAR_PIECE] = {};
    multiply_any(call, first, count, token, sums[0]);
    if (call.is_gated) multiply_any(call, call.result_rows() + first, count, token, up[0]);
    for (int64_t t = 0; t < std::min(DENSE_TOKENS, call.tokens - token); ++t) {
      finish(call, token + t, first, count, sums[t], up[t]);
    }
  }
}

}  // namespace

extern const LinearKernels linear;
const LinearKernels linear = {{round_token<float>, multiply<float>, memory_of_piece<float>},
                              {round_token<Half>, multiply<Half>, memory_of_piece<Half>},
                              {round_token<BFloat16>, multiply<BFloat16>, memory_of_piece<BFloat16>},
                              {normalize_token<Half>, multiply_dense<Half>},
                              {normalize_token<BFloat16>, multiply_dense<BFloat16>}};

}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
