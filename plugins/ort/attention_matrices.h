// Products of the attention kernels with a state's or a window's rows. The sums of a block of columns stay in registers.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vectors.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

constexpr int64_t MEMBERS = 4;  // query heads whose sums are kept in registers together

// exp(value - largest value) in place, and their sum; `count` is a multiple of 8.
LIGER_INLINE float exponentials(float* values, int64_t count) {
  Floats peaks = load(values);
  for (int64_t at = WIDTH; at < count; at += WIDTH) peaks = larger(peaks, load(values + at));
  float peak = peaks[0];
  for (int lane = 1; lane < WIDTH; ++lane) peak = std::max(peak, peaks[lane]);
  Floats total{};
  for (int64_t at = 0; at < count; at += WIDTH) {
    const Floats powers = exponential(load(values + at) - peak);
    store(values + at, powers);
    total += powers;
  }
  return sum(total);
}

// Any number of values, followed by padding that becomes 0.
LIGER_INLINE float exponentials_of(float* values, int64_t count) {
  const int64_t padded = (count + WIDTH - 1) / WIDTH * WIDTH;
  std::fill(values + count, values + padded, -INFINITY);
  return exponentials(values, padded);
}

LIGER_INLINE void multiply(float* values, int64_t count, float factor) {
  for (int64_t at = 0; at < count; ++at) values[at] *= factor;
}

// scale * softmax(values) in place, for any number of values, followed by padding.
LIGER_INLINE void softmax(float* values, int64_t count, float scale) {
  const float factor = scale / exponentials_of(values, count);
  multiply(values, count, factor);
}

// Rotary embedding in Llama's half-split order.
LIGER_INLINE void rotate(const float* from, const float* cos, const float* sin, float* to, int64_t head_dim, float scale) {
  const int64_t half = head_dim / 2;
  for (int64_t at = 0; at < half; ++at) {
    const float first = from[at], second = from[at + half];
    to[at] = (first * cos[at] - second * sin[at]) * scale;
    to[at + half] = (second * cos[at] + first * sin[at]) * scale;
  }
}

// state = diag(decays) state + features added^T if `added` is given; sums[m] += weights[m]^T state for `members` heads.
template <int members, int blocks>
LIGER_INLINE void read_columns(float* matrix, int64_t rows, int64_t columns, const float* weights, int64_t weight_stride,
                               float* sums, int64_t sum_stride, const float* decays, const float* features,
                               const float* added) {
  Floats total[members][blocks], addend[blocks];
  for (int block = 0; block < blocks; ++block) {
    if (added) addend[block] = load(added + block * WIDTH);
    for (int member = 0; member < members; ++member) {
      total[member][block] = load(sums + member * sum_stride + block * WIDTH);
    }
  }
  for (int64_t row = 0; row < rows; ++row, matrix += columns) {
    for (int block = 0; block < blocks; ++block) {
      Floats values = load(matrix + block * WIDTH);
      if (added) {
        values = values * decays[row] + addend[block] * features[row];
        store(matrix + block * WIDTH, values);
      }
      for (int member = 0; member < members; ++member) {
        total[member][block] += values * weights[member * weight_stride + row];
      }
    }
  }
  for (int block = 0; block < blocks; ++block) {
    for (int member = 0; member < members; ++member) {
      store(sums + member * sum_stride + block * WIDTH, total[member][block]);
    }
  }
}

template <int members>
LIGER_INLINE void read_members(float* matrix, int64_t rows, int64_t columns, const float* weights, int64_t weight_stride,
                               float* sums, const float* decays, const float* features, const float* added) {
  constexpr int blocks = members == 1 ? 4 : 2;  // enough sums that each need not wait for the one before
  int64_t at = 0;
  for (; at + blocks * WIDTH <= columns; at += blocks * WIDTH) {
    read_columns<members, blocks>(matrix + at, rows, columns, weights, weight_stride, sums + at, columns, decays, features,
                                  added ? added + at : nullptr);
  }
  for (; at < columns; at += WIDTH) {
    read_columns<members, 1>(matrix + at, rows, columns, weights, weight_stride, sums + at, columns, decays, features,
                             added ? added + at : nullptr);
  }
}

// Adds weighted rows of a matrix [rows, columns] to sums [heads, columns], with weights [heads, weight_stride], after
// updating the matrix if `added` is given.
LIGER_INLINE void read_out(float* matrix, int64_t rows, int64_t columns, const float* weights, int64_t weight_stride,
                           float* sums, int64_t heads, const float* decays, const float* features, const float* added) {
  for (int64_t head = 0; head < heads; head += MEMBERS) {
    const float* of_head = weights + head * weight_stride;
    float* to = sums + head * columns;
    switch (std::min(MEMBERS, heads - head)) {
      case 4: read_members<4>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added); break;
      case 3: read_members<3>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added); break;
      case 2: read_members<2>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added); break;
      default: read_members<1>(matrix, rows, columns, of_head, weight_stride, to, decays, features, added);
    }
    added = nullptr;  // the first heads have updated the matrix
  }
}

// matrix = diag(decays) matrix + features added^T.
LIGER_INLINE void update_rows(float* matrix, int64_t rows, int64_t columns, const float* decays, const float* features,
                              const float* added) {
  for (int64_t row = 0; row < rows; ++row, matrix += columns) {
    for (int64_t at = 0; at < columns; at += WIDTH) {
      store(matrix + at, load(matrix + at) * decays[row] + load(added + at) * features[row]);
    }
  }
}

// scores[head, row] = queries[head] . keys[row] for `members` heads.
template <int members>
LIGER_INLINE void score_members(const float* keys, int64_t rows, const float* queries, int64_t head_dim, float* scores,
                                int64_t score_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    Floats products[members] = {};
    for (int64_t at = 0; at < head_dim; at += WIDTH) {
      const Floats key = load(keys + row * head_dim + at);
      for (int member = 0; member < members; ++member) products[member] += key * load(queries + member * head_dim + at);
    }
    for (int member = 0; member < members; ++member) scores[member * score_stride + row] = sum(products[member]);
  }
}

LIGER_INLINE void score_rows(const float* keys, int64_t rows, const float* queries, int64_t heads, int64_t head_dim,
                             float* scores, int64_t score_stride) {
  for (int64_t head = 0; head < heads; head += MEMBERS) {
    const float* of_head = queries + head * head_dim;
    float* to = scores + head * score_stride;
    switch (std::min(MEMBERS, heads - head)) {
      case 4: score_members<4>(keys, rows, of_head, head_dim, to, score_stride); break;
      case 3: score_members<3>(keys, rows, of_head, head_dim, to, score_stride); break;
      case 2: score_members<2>(keys, rows, of_head, head_dim, to, score_stride); break;
      default: score_members<1>(keys, rows, of_head, head_dim, to, score_stride);
    }
  }
}

}  // namespace
}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
