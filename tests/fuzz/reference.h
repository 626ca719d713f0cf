// What each operator must return, from its definition in float64 with plain loops; nothing for calls that it must refuse.

#pragma once

#include <algorithm>
#include <numeric>
#include <optional>

#include "cases.h"

namespace fuzz {

using Numbers = std::vector<double>;
struct Result {
  std::vector<int64_t> shape;
  Numbers numbers;
  Numbers slack{};  // by how much a number may differ beyond its dtype's rounding; empty for not at all
};
using Results = std::optional<std::vector<Result>>;

constexpr int64_t K = 256;  // logits listed by Candidates

inline bool is(const OrtValue& input, OrtElementType type, const std::vector<int64_t>& shape) {
  return input.type == type && input.shape == shape;
}

inline void softmax(double* values, int64_t count, double scale) {
  const double largest = *std::max_element(values, values + count);
  double total = 0;
  for (int64_t at = 0; at < count; ++at) total += values[at] = std::exp(values[at] - largest);
  for (int64_t at = 0; at < count; ++at) values[at] *= scale / total;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Shape {
  int64_t heads, kv_heads, head_dim, window, batch, length;
  double normalizer, weight;
  bool is_gla;

  int64_t queries() const { return heads / kv_heads; }
};

// A call's sizes; nothing if the operator must refuse them.
inline std::optional<Shape> shape_of(const Case& made) {
  const auto& integers = made.attributes.integers;
  const auto& numbers = made.attributes.numbers;
  const auto& texts = made.attributes.texts;
  if (integers.size() < 4 || (texts.at("mixer") != "gla" && texts.at("mixer") != "hgrn2")) return {};
  Shape shape{integers.at("num_heads"), integers.at("num_key_value_heads"), integers.at("head_dim"),
              integers.at("window_size"), 0, 0, numbers.at("gate_normalizer"), numbers.at("recurrent_weight"),
              texts.at("mixer") == "gla"};
  if (shape.heads < 1 || shape.heads > 65536 || shape.kv_heads < 1 || shape.heads % shape.kv_heads) return {};
  if (shape.head_dim < 8 || shape.head_dim > 65536 || shape.head_dim % 8 || shape.window < 1 || shape.window > 1 << 30) return {};
  if (!(shape.normalizer > 0 && shape.normalizer < INFINITY && shape.weight >= 0 && shape.weight <= 1)) return {};
  const std::vector<OrtValue>& inputs = made.inputs;
  if (inputs[0].type != made.activation || inputs[0].shape.size() != 3) return {};
  const int64_t batch = shape.batch = inputs[0].shape[0], length = shape.length = inputs[0].shape[1];
  const int64_t kv_heads = shape.kv_heads, head_dim = shape.head_dim, width = kv_heads * head_dim;
  const bool packed = inputs[1].type == ORT_UNDEFINED && inputs[2].type == ORT_UNDEFINED;
  const std::vector<int64_t> halves{batch, length, head_dim / 2}, rows{batch, length, width};
  const std::vector<int64_t> window{batch, kv_heads, shape.window, head_dim};
  const OrtElementType activation = made.activation;
  const bool fits =
      length > 0 && is(inputs[0], activation, {batch, length, shape.heads * head_dim + (packed ? 2 * width : 0)}) &&
      (packed || (is(inputs[1], activation, rows) && is(inputs[2], activation, rows))) && is(inputs[3], ORT_FLOAT, halves) &&
      is(inputs[4], ORT_FLOAT, halves) && is(inputs[5], ORT_INT64, {batch, length}) &&
      is(inputs[6], ORT_FLOAT, {batch, kv_heads, head_dim, head_dim}) && is(inputs[7], activation, window) &&
      is(inputs[8], activation, window);
  return fits ? std::optional(shape) : std::nullopt;
}

inline void rotate(double* head, const double* cos, const double* sin, int64_t head_dim) {
  for (int64_t at = 0, half = head_dim / 2; at < half; ++at) {
    const double first = head[at], second = head[at + half];
    head[at] = first * cos[at] - second * sin[at];
    head[at + half] = second * cos[at] + first * sin[at];
  }
}

// Keys and values of a head's window, oldest first.
struct Window {
  std::vector<Numbers> keys, values;

  void append(Numbers key, Numbers value, int64_t size) {
    keys.push_back(std::move(key));
    values.push_back(std::move(value));
    if (static_cast<int64_t>(keys.size()) > size) keys.erase(keys.begin()), values.erase(values.begin());
  }
};

// One token of one key/value head: updates the state and the window, and writes its query heads' output.
inline void attend(const Shape& shape, const double* query, const Numbers& key, const Numbers& value, const double* cos,
                   const double* sin, double* state, Window& window, double* output) {
  const int64_t head_dim = shape.head_dim;
  Numbers features = key, decays(head_dim);
  if (shape.is_gla) softmax(features.data(), head_dim, 1);
  for (int64_t row = 0; row < head_dim; ++row) {
    decays[row] = shape.is_gla ? std::pow(sigmoid(key[row]), 1 / shape.normalizer) : sigmoid(key[row]);
    if (!shape.is_gla) features[row] = sigmoid(-key[row]);
    double* const to = state + row * head_dim;
    for (int64_t at = 0; at < head_dim; ++at) to[at] = to[at] * decays[row] + features[row] * value[at];
  }
  Numbers rotated = key;
  rotate(rotated.data(), cos, sin, head_dim);
  window.append(rotated, value, shape.window);
  for (int64_t head = 0; head < shape.queries(); ++head, query += head_dim, output += head_dim) {
    Numbers weights(query, query + head_dim), turned = weights, scores;
    softmax(weights.data(), head_dim, shape.weight);
    rotate(turned.data(), cos, sin, head_dim);
    for (const Numbers& seen : window.keys) {
      scores.push_back(std::inner_product(turned.begin(), turned.end(), seen.begin(), 0.0) / std::sqrt(head_dim));
    }
    softmax(scores.data(), scores.size(), 1 - shape.weight);
    for (int64_t at = 0; at < head_dim; ++at) {
      output[at] = 0;
      for (int64_t row = 0; row < head_dim; ++row) output[at] += weights[row] * state[row * head_dim + at];
      for (size_t row = 0; row < scores.size(); ++row) output[at] += scores[row] * window.values[row][at];
    }
  }
}

inline Results attention(const Case& made) {
  const std::optional<Shape> found = shape_of(made);
  if (!found) return {};
  const Shape& shape = *found;
  const int64_t head_dim = shape.head_dim, heads = shape.heads * head_dim, width = shape.kv_heads * head_dim;
  const bool packed = made.inputs[1].type == ORT_UNDEFINED;
  std::vector<Numbers> inputs;
  for (const OrtValue& input : made.inputs) inputs.push_back(numbers_of(input));
  std::vector<Result> results{{{shape.batch, shape.length, heads}, {}}};
  for (const size_t state : {6, 7, 8}) results.push_back({made.inputs[state].shape, inputs[state]});
  if (shape.batch == 0) return results;
  results[0].numbers.resize(shape.batch * shape.length * heads);
  const auto* positions = static_cast<const int64_t*>(made.inputs[5].data);
  for (int64_t row = 0; row < shape.batch * shape.length; ++row) {
    const bool follows_padding = row % shape.length && positions[row] >= 0 && positions[row - 1] < 0;
    if (positions[row] < -1 || follows_padding) return {};
  }
  for (int64_t head = 0; head < shape.batch * shape.kv_heads; ++head) {
    const int64_t sequence = head / shape.kv_heads, kv_head = head % shape.kv_heads, size = shape.window * head_dim;
    const int64_t first = positions[sequence * shape.length];
    if (first < 0) continue;  // padding only: the states stay, and the output is zero
    Window window;
    for (int64_t row = 0; row < std::min(first, shape.window); ++row) {
      const auto key = inputs[7].begin() + head * size + row * head_dim, value = inputs[8].begin() + head * size + row * head_dim;
      window.append(Numbers(key, key + head_dim), Numbers(value, value + head_dim), shape.window);
    }
    for (int64_t token = 0; token < shape.length && positions[sequence * shape.length + token] >= 0; ++token) {
      const int64_t row = sequence * shape.length + token;
      const double* const whole = inputs[0].data() + row * (packed ? heads + 2 * width : heads);
      const double* const keys = packed ? whole + heads : inputs[1].data() + row * width;
      const double* const values = packed ? keys + width : inputs[2].data() + row * width;
      const int64_t own = kv_head * head_dim, group = kv_head * shape.queries() * head_dim;
      attend(shape, whole + group, Numbers(keys + own, keys + own + head_dim), Numbers(values + own, values + own + head_dim),
             inputs[3].data() + row * head_dim / 2, inputs[4].data() + row * head_dim / 2,
             results[1].numbers.data() + head * head_dim * head_dim, window, results[0].numbers.data() + row * heads + group);
    }
    for (const auto& [rows, result] : {std::pair(&window.keys, &results[2]), std::pair(&window.values, &results[3])}) {
      const auto to = result->numbers.begin() + head * size;
      std::fill(to, to + size, 0.0);
      for (size_t row = 0; row < rows->size(); ++row) std::copy((*rows)[row].begin(), (*rows)[row].end(), to + row * head_dim);
    }
  }
  return results;
}

inline Results gated_silu(const Case& made) {
  const OrtValue& input = made.inputs[0];
  if (input.type != made.activation || input.shape.size() != 3 || input.shape[2] % 16) return {};
  const int64_t size = input.shape[2] / 2;
  const Numbers numbers = numbers_of(input);
  Result result{{input.shape[0], input.shape[1], size}, {}};
  for (size_t row = 0; row < numbers.size(); row += 2 * size) {
    for (int64_t at = 0; at < size; ++at) {
      const double gate = numbers[row + at];
      result.numbers.push_back(gate * sigmoid(gate) * numbers[row + size + at]);
    }
  }
  return {{result}};
}

inline Results most_likely(const Case& made) {
  const OrtValue& input = made.inputs[0];
  if (input.type != ORT_FLOAT || input.shape.size() != 3 || input.shape[2] < 1) return {};
  const Numbers numbers = numbers_of(input);
  Result result{{input.shape[0], input.shape[1]}, {}};
  for (auto row = numbers.begin(); row != numbers.end(); row += input.shape[2]) {
    const auto last = row + input.shape[2], peak = std::max_element(row, last);
    const bool has_nan = std::any_of(row, last, [](double logit) { return std::isnan(logit); });
    result.numbers.push_back(has_nan || std::isinf(*peak) ? -1 : peak - row);
  }
  return {{result}};
}

inline Results last_positions(const Case& made) {
  const OrtValue &input = made.inputs[0], &count = made.inputs[1];
  if (input.type != made.activation || input.shape.size() != 3) return {};
  if (!is(count, ORT_INT64, {}) && !is(count, ORT_INT64, {1})) return {};
  const int64_t length = input.shape[1], width = input.shape[2], asked = *static_cast<int64_t*>(count.data);
  if (asked < 0 || asked > length) return {};
  const int64_t kept = asked ? asked : length;
  const Numbers numbers = numbers_of(input);
  Result result{{input.shape[0], kept, width}, {}};
  for (auto row = numbers.begin(); row != numbers.end(); row += length * width) {
    result.numbers.insert(result.numbers.end(), row + (length - kept) * width, row + length * width);
  }
  return {{result}};
}

inline Results candidates(const Case& made) {
  const OrtValue& input = made.inputs[0];
  if (input.type != ORT_FLOAT || input.shape.size() != 3 || !is(made.inputs[1], ORT_FLOAT, {})) return {};
  const int64_t batch = input.shape[0], length = input.shape[1], size = input.shape[2];
  const double temperature = *static_cast<float*>(made.inputs[1].data);
  if (length < 1 || size < 1 || size > 1 << 24 || !(temperature >= 0) || std::isinf(temperature)) return {};
  const Numbers numbers = numbers_of(input);
  Result result{{batch, 1 + 2 * K}, {}};
  for (int64_t row = 0; row < batch; ++row) {
    const double* const logits = numbers.data() + ((row + 1) * length - 1) * size;
    std::vector<int64_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return logits[a] > logits[b] || (std::isnan(logits[a]) && !std::isnan(logits[b]));
    });
    double sum = 0;
    for (int64_t at = 0; at < size; ++at) sum += std::exp((logits[at] - logits[order[0]]) / temperature);
    const bool is_zero = temperature == 0 || logits[order[0]] == -INFINITY;
    result.numbers.push_back(is_zero ? 0 : sum);
    for (int64_t at = 0; at < K; ++at) result.numbers.push_back(at < size ? logits[order[at]] : -INFINITY);
    for (int64_t at = 0; at < K; ++at) result.numbers.push_back(at < size ? static_cast<double>(order[at]) : -1);
  }
  return {{result}};
}

struct LinearShape {
  int64_t tokens, rows, blocks, block_size, bits;
  bool is_gated;
};

// A call's sizes; nothing if the operator must refuse them.
inline std::optional<LinearShape> linear_shape_of(const Case& made) {
  const auto& integers = made.attributes.integers;
  const int64_t bits = integers.at("bits"), block_size = integers.at("block_size");
  const bool is_gated = integers.at("gated") != 0, is_logits = made.name == "IntegerLogits";
  if ((bits != 4 && bits != 8) || (block_size != 32 && block_size != 64 && block_size != 128)) return {};
  const std::vector<OrtValue>& inputs = made.inputs;
  const auto is_absent = [&](size_t at) { return inputs[at].type == ORT_UNDEFINED; };
  if (inputs[0].type != made.activation || inputs[0].shape.size() != 3 || inputs[1].shape.size() != 3) return {};
  const int64_t batch = inputs[0].shape[0], length = inputs[0].shape[1], columns = inputs[0].shape[2];
  const int64_t rows = inputs[1].shape[0], blocks = columns / block_size;
  if (columns < 1 || rows < 1 || columns % block_size || (is_gated && rows % 2)) return {};
  if (!is(inputs[1], ORT_UINT8, {rows, blocks, block_size * bits / 8})) return {};
  const OrtElementType activation = made.activation;
  const bool fits = is(inputs[2], activation, {rows, blocks}) &&
                    (is_absent(3) || is(inputs[3], ORT_UINT8, {rows, (blocks * bits + 7) / 8})) &&
                    (is_absent(4) || is(inputs[4], activation, {columns})) &&
                    (is_absent(5) || (!is_logits && is(inputs[5], activation, {rows}))) &&
                    (is_absent(6) || (!is_logits && !is_gated && is(inputs[6], activation, {batch, length, rows}))) &&
                    (is_absent(7) || inputs[7].type == ORT_UINT8);
  if (!fits) return {};
  return LinearShape{batch * length, rows, blocks, block_size, bits, is_gated};
}

// A weight's numbers: scale * (integer - zero point).
inline Numbers dequantized(const Case& made, const LinearShape& shape) {
  const Numbers bytes = numbers_of(made.inputs[1]), scales = numbers_of(made.inputs[2]), points = numbers_of(made.inputs[3]);
  const int64_t columns = shape.blocks * shape.block_size, point_bytes = (shape.blocks * shape.bits + 7) / 8;
  const auto integer = [&](const Numbers& from, int64_t start, int64_t at) {
    if (shape.bits == 8) return static_cast<int64_t>(from[start + at]);
    return static_cast<int64_t>(from[start + at / 2]) >> (at % 2 * 4) & 15;
  };
  Numbers numbers;
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t at = 0; at < columns; ++at) {
      const int64_t block = at / shape.block_size, fixed = int64_t{1} << (shape.bits - 1);
      const int64_t point = points.empty() ? fixed : integer(points, row * point_bytes, block);
      const int64_t number = integer(bytes, row * columns * shape.bits / 8, at) - point;
      numbers.push_back(scales[row * shape.blocks + block] * static_cast<double>(number));
    }
  }
  return numbers;
}

// A token's activations: normalized if there is a norm, and rounded to 8 bits in blocks. NaN and infinities spread over
// the whole block.
inline Numbers rounded(Numbers hidden, const Numbers& norm, int64_t block_size, bool is_half) {
  double squares = 0;
  for (const double number : hidden) squares += number * number / static_cast<double>(hidden.size());
  for (size_t at = 0; at < norm.size(); ++at) hidden[at] *= norm[at] / std::sqrt(squares + 1e-5);
  for (auto block = hidden.begin(); block != hidden.end(); block += block_size) {
    float largest = 0;
    for (auto at = block; at != block + block_size; ++at) {
      if (is_half && std::abs(*at) > 65504) *at = std::copysign(INFINITY, *at);
      if (!std::isfinite(*at)) largest = NAN;
      largest = std::isnan(largest) ? largest : std::max(largest, static_cast<float>(std::abs(*at)));
    }
    const float inverse = largest > 1e-35f ? 127 / largest : 0;
    for (auto at = block; at != block + block_size; ++at) {
      *at = std::isnan(largest) ? NAN : std::nearbyint(static_cast<float>(*at) * inverse) * largest / 127;
    }
  }
  return hidden;
}

// What two activations of each block that are rounded to the next integer change: a norm in float32 may decide so.
inline double slack_of(const Numbers& read, const double* weight, int64_t block_size) {
  double slack = 0;
  for (size_t start = 0; start < read.size(); start += block_size) {
    double largest = 0, largest_weight = 0;
    for (int64_t at = 0; at < block_size; ++at) {
      largest = std::max(largest, std::abs(read[start + at]));
      largest_weight = std::max(largest_weight, std::abs(weight[start + at]));
    }
    slack += 2 * largest / 127 * largest_weight;
  }
  return slack;
}

inline Results linear(const Case& made) {
  const std::optional<LinearShape> found = linear_shape_of(made);
  if (!found) return {};
  const LinearShape& shape = *found;
  const int64_t columns = shape.blocks * shape.block_size, results = shape.is_gated ? shape.rows / 2 : shape.rows;
  const Numbers weight = dequantized(made, shape), hidden = numbers_of(made.inputs[0]), norm = numbers_of(made.inputs[4]);
  const Numbers bias = numbers_of(made.inputs[5]), residual = numbers_of(made.inputs[6]);
  const bool is_half = made.activation == ORT_FLOAT16;
  Result result{{made.inputs[0].shape[0], made.inputs[0].shape[1], results}, {}, {}};
  for (int64_t token = 0; token < shape.tokens; ++token) {
    const auto first = hidden.begin() + token * columns;
    const Numbers read = rounded(Numbers(first, first + columns), norm, shape.block_size, is_half);
    const auto product = [&](int64_t row) {
      const double sum = std::inner_product(read.begin(), read.end(), weight.begin() + row * columns, 0.0);
      return bias.empty() ? sum : sum + bias[row];
    };
    const auto slack = [&](int64_t row) { return norm.empty() ? 0 : slack_of(read, &weight[row * columns], shape.block_size); };
    for (int64_t row = 0; row < results; ++row) {
      double number = product(row), may_differ = slack(row);
      if (shape.is_gated) {
        const double gate = number * sigmoid(number), up = product(results + row), of_up = slack(results + row);
        may_differ = (std::abs(gate) + 1.1 * may_differ) * (std::abs(up) + of_up) - std::abs(gate * up);
        number = gate * up;
      }
      number = residual.empty() ? number : number + residual[token * results + row];
      if (is_half && made.outputs[0] == ORT_FLOAT16 && std::abs(number) >= 65520) number = std::copysign(INFINITY, number);
      result.numbers.push_back(number);
      result.slack.push_back(may_differ);
    }
  }
  return {{result}};
}

inline Results reference(const Case& made) {
  if (made.name.rfind("Integer", 0) == 0) return linear(made);
  if (made.name == "Attention") return attention(made);
  if (made.name == "GatedSiLU") return gated_silu(made);
  if (made.name == "MostLikely") return most_likely(made);
  return made.name == "LastPositions" ? last_positions(made) : candidates(made);
}

}  // namespace fuzz
