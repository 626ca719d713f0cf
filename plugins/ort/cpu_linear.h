// Linear layers on a CPU: a call's data, and one function table per instruction set.

#pragma once

#include <cstdint>

#include "half.h"

namespace liger {

// A weight in the layout of ONNX Runtime's MatMulNBits, read where it lies. A block of columns shares a scale and a zero
// point; a number is scale * (integer - zero point).
template <class Element>
struct IntegerWeight {
  int64_t rows, blocks, block_size;  // block_size is 32, 64 or 128
  int bits;                          // 4 or 8; of two 4-bit integers in a byte, the low half is the first
  const uint8_t* integers;           // [rows, blocks, block_size * bits / 8]
  const Element* scales;             // [rows, blocks]
  const uint8_t* zero_points;        // [rows, blocks * bits / 8 rounded up], or null: all are 2^(bits - 1)

  int64_t columns() const { return blocks * block_size; }
  int64_t row_bytes() const { return columns() * bits / 8; }
  const uint8_t* zero_points_of(int64_t row) const {
    return zero_points == nullptr ? nullptr : zero_points + row * ((blocks * bits + 7) / 8);
  }
};

// A weight that is not quantized, [rows, width], read where it lies.
template <class Element>
struct DenseWeight {
  int64_t rows, width;  // the latter is a multiple of 16
  const Element* numbers;

  int64_t columns() const { return width; }
};

// A call's activations, rounded to 8-bit integers, one scale per block.
struct RoundedActivations {
  static constexpr int64_t PADDING = 128;  // activations of two vectors of any instruction set
  // Bytes of a row: its columns, and zeros up to a whole number of vectors.
  static int64_t padded(int64_t columns) { return (columns + PADDING - 1) / PADDING * PADDING; }

  int8_t* integers;  // [tokens, row_bytes], in the order in which the kernel reads them
  float* scales;     // [tokens, blocks]
  float* sums;       // [tokens, blocks]: scale times the sum of a block's integers
  int64_t row_bytes;
};

// One call: T tokens, a weight of N rows and K columns. If it is gated, the weight's first N / 2 rows are the gate and the
// others what is gated, and the result has N / 2 columns. The pointers to norm, bias and residual may be null.
template <class Element, class Weight>
struct CpuLinearCall {
  int64_t tokens;
  bool is_gated;
  bool to_float;  // the output is float32 for any Element
  float epsilon;  // of the norm
  Weight weight;
  const Element *hidden, *norm, *bias, *residual;  // [T, K], [K], [N], [T, N]
  void* output;                                    // [T, N] or [T, N / 2]

  int64_t result_rows() const { return is_gated ? weight.rows / 2 : weight.rows; }
};

template <class Element>
struct IntegerLinearCall : CpuLinearCall<Element, IntegerWeight<Element>> {
  RoundedActivations rounded;
};

template <class Element>
struct DenseLinearCall : CpuLinearCall<Element, DenseWeight<Element>> {
  float* normalized;  // [tokens, columns]
};

// Results are computed in pieces of this many columns, for all tokens at once.
constexpr int64_t LINEAR_PIECE = 64;
// Up to this many tokens each weight is unpacked once per token, from then on once per piece.
constexpr int64_t MAX_STREAMED_TOKENS = 16;

// One compilation of cpu_linear.cpp for one instruction set.
template <class Element>
struct IntegerLinearKernels {
  // Fills a token's row of call.rounded.
  void (*round)(const IntegerLinearCall<Element>&, int64_t token);
  // Computes a piece, in memory of memory_of_piece() bytes.
  void (*multiply)(const IntegerLinearCall<Element>&, int64_t piece, void* memory);
  int64_t (*memory_of_piece)(const IntegerLinearCall<Element>&);
};

template <class Element>
struct DenseLinearKernels {
  // Fills a token's row of call.normalized.
  void (*normalize)(const DenseLinearCall<Element>&, int64_t token);
  void (*multiply)(const DenseLinearCall<Element>&, int64_t piece);
};

struct LinearKernels : IntegerLinearKernels<float>,
                       IntegerLinearKernels<Half>,
                       IntegerLinearKernels<BFloat16>,
                       DenseLinearKernels<Half>,
                       DenseLinearKernels<BFloat16> {};

// The kernels for the best instruction set of this processor.
const LinearKernels& linear_kernels();

}  // namespace liger
