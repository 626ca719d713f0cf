// Products with weights that are not quantized: a thread reads their rows as they lie and widens them in registers.

#pragma once

#include "linear_rows.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t DENSE_TOKENS = 4;  // tokens multiplied by a row at once
constexpr int DENSE_ROWS = LANES == 16 ? 4 : 3;  // rows that several tokens are multiplied by, as many as registers hold

template <class Element>
void normalize_token(const DenseLinearCall<Element>& call, int64_t token) {
  const int64_t columns = call.weight.columns();
  const Element* const hidden = call.hidden + token * columns;
  float* const to = call.normalized + token * columns;
  const float factor = norm_factor(call, hidden);
  for (int64_t at = 0; at < columns; at += WIDTH) {
    read(hidden + at, to + at, WIDTH);
    if (call.norm == nullptr) continue;
    float weights[WIDTH];
    read(call.norm + at, weights, WIDTH);
    store(to + at, load(to + at) * factor * load(weights));
    Element rounded[WIDTH];  // a norm of its own would write this dtype
    write(to + at, rounded, WIDTH);
    read(rounded, to + at, WIDTH);
  }
}

// The products of `rows` rows and `tokens` tokens, to results[token * LINEAR_PIECE + row].
template <int rows, int tokens, class Element>
void multiply_rows(const Element* weight, int64_t columns, const float* hidden, float* results) {
  Floats sums[rows][tokens] = {};  // in registers
  for (int64_t at = 0; at < columns; at += WIDTH) {
    Floats numbers[rows];
    unrolled<rows>(LIGER_EACH(r) {
      float wide[WIDTH];
      read(weight + r * columns + at, wide, WIDTH);
      numbers[r] = load(wide);
    });
    unrolled<tokens>(LIGER_EACH(t) {
      const Floats activations = load(hidden + t * columns + at);
      unrolled<rows>(LIGER_EACH(r) { sums[r][t] += numbers[r] * activations; });
    });
  }
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < rows; ++r) results[t * LINEAR_PIECE + r] = sum(sums[r][t]);
  }
}

template <int rows, int tokens, class Element>
void multiply_tokens(const DenseLinearCall<Element>& call, int64_t first, int64_t count, int64_t token, float* results) {
  const int64_t columns = call.weight.columns();
  const float* const hidden = call.normalized + token * columns;
  int64_t row = 0;
  for (; row + rows <= count; row += rows) {
    multiply_rows<rows, tokens>(call.weight.numbers + (first + row) * columns, columns, hidden, results + row);
  }
  for (; row < count; ++row) {
    multiply_rows<1, tokens>(call.weight.numbers + (first + row) * columns, columns, hidden, results + row);
  }
}

template <class Element>
void multiply_any(const DenseLinearCall<Element>& call, int64_t first, int64_t count, int64_t token, float* results) {
  switch (std::min(DENSE_TOKENS, call.tokens - token)) {
    case 4: return multiply_tokens<DENSE_ROWS, 4>(call, first, count, token, results);
    case 3: return multiply_tokens<DENSE_ROWS, 3>(call, first, count, token, results);
    case 2: return multiply_tokens<DENSE_ROWS, 2>(call, first, count, token, results);
    default: return multiply_tokens<4, 1>(call, first, count, token, results);
  }
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
