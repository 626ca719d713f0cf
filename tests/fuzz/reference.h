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

// The number that a dtype stores: infinity if a number is too large for float16. No case has numbers near bfloat16's end.
inline double stored(double number, OrtElementType type) {
  return type == ORT_FLOAT16 && std::abs(number) >= 65520 ? std::copysign(INFINITY, number) : number;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

enum class Mixer { gla, hgrn2, gsa, lolcats };

struct Shape {
  Mixer mixer;
  int64_t heads, kv_heads, head_dim, window, slots, features, batch, length;
  double normalizer, weight;

  int64_t queries() const { return heads / kv_heads; }
};

inline std::optional<Mixer> mixer_of(const Case& made) {
  if (made.name == "GSAAttention") return Mixer::gsa;
  if (made.name == "LoLCATsAttention") return Mixer::lolcats;
  const std::string& mixer = made.attributes.texts.at("mixer");
  return mixer == "gla" ? std::optional(Mixer::gla) : mixer == "hgrn2" ? std::optional(Mixer::hgrn2) : std::nullopt;
}

// Whether the recurrent states and learned tensors have the shapes of the mixer.
inline bool has_states(const Case& made, const Shape& shape) {
  const std::vector<OrtValue>& inputs = made.inputs;
  if (shape.mixer == Mixer::lolcats) {
    const std::vector<int64_t> map{shape.heads, shape.head_dim, shape.features / 2};
    return is(inputs[6], ORT_FLOAT, {shape.batch, shape.heads, shape.features, shape.head_dim}) &&
           is(inputs[7], ORT_FLOAT, {shape.batch, shape.heads, shape.features}) && is(inputs[10], made.activation, map) &&
           is(inputs[11], made.activation, map) && is(inputs[12], made.activation, {shape.heads});
  }
  const std::vector<int64_t> slots{shape.batch, shape.kv_heads, shape.slots, shape.head_dim};
  if (shape.mixer == Mixer::gsa) return is(inputs[6], ORT_FLOAT, slots) && is(inputs[7], ORT_FLOAT, slots);
  return is(inputs[6], ORT_FLOAT, {shape.batch, shape.kv_heads, shape.head_dim, shape.head_dim});
}

// A call's sizes; nothing if the operator must refuse them.
inline std::optional<Shape> shape_of(const Case& made) {
  const auto& integers = made.attributes.integers;
  const auto& numbers = made.attributes.numbers;
  const std::optional<Mixer> mixer = mixer_of(made);
  if (integers.count("head_dim") == 0 || !mixer) return {};
  Shape shape{*mixer, integers.at("num_heads"), integers.at("num_key_value_heads"), integers.at("head_dim"),
              integers.at("window_size"), 0, 0, 0, 0, numbers.at("gate_normalizer"), numbers.at("recurrent_weight")};
  if (shape.heads < 1 || shape.heads > 65536 || shape.kv_heads < 1 || shape.heads % shape.kv_heads) return {};
  if (shape.head_dim < 8 || shape.head_dim > 65536 || shape.head_dim % 8 || shape.window < 1 || shape.window > 1 << 30) return {};
  const bool has_options = shape.mixer != Mixer::lolcats;
  if (has_options && !(shape.normalizer > 0 && shape.normalizer < INFINITY && shape.weight >= 0 && shape.weight <= 1)) return {};
  if (shape.mixer == Mixer::gsa) {
    shape.slots = integers.at("num_slots");
    if (shape.slots < 1 || shape.head_dim % shape.slots) return {};
  }
  const std::vector<OrtValue>& inputs = made.inputs;
  if (shape.mixer == Mixer::lolcats) {
    const std::vector<int64_t>& map = inputs[10].shape;
    if (map.size() != 3 || map[2] < 1 || map[2] > 65536) return {};
    shape.features = 2 * map[2];
  }
  if (inputs[0].type != made.activation || inputs[0].shape.size() != 3) return {};
  const int64_t batch = shape.batch = inputs[0].shape[0], length = shape.length = inputs[0].shape[1];
  const int64_t kv_heads = shape.kv_heads, head_dim = shape.head_dim, width = kv_heads * head_dim;
  const bool packed = inputs[1].type == ORT_UNDEFINED && inputs[2].type == ORT_UNDEFINED;
  const std::vector<int64_t> halves{batch, length, head_dim / 2}, rows{batch, length, width};
  const std::vector<int64_t> window{batch, kv_heads, shape.window, head_dim};
  const OrtElementType activation = made.activation;
  const size_t states = states_of(made);
  const bool fits =
      length > 0 && is(inputs[0], activation, {batch, length, shape.heads * head_dim + (packed ? 2 * width : 0)}) &&
      (packed || (is(inputs[1], activation, rows) && is(inputs[2], activation, rows))) && is(inputs[3], ORT_FLOAT, halves) &&
      is(inputs[4], ORT_FLOAT, halves) && is(inputs[5], ORT_INT64, {batch, length}) && has_states(made, shape) &&
      is(inputs[6 + states], activation, window) && is(inputs[7 + states], activation, window);
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

// A token's projections and angles, and the learned tensors of lolcats, for one key/value head.
struct Token {
  const double* query;  // [R, D]
  Numbers key, value;
  const double *cos, *sin;
  const double *query_map, *key_map, *factors;  // [R, D, F / 2] twice, [R]
};

// matrix = diag(decays) matrix + features added^T.
inline void update(double* matrix, const Numbers& decays, const Numbers& features, const Numbers& added) {
  for (size_t row = 0; row < decays.size(); ++row) {
    for (size_t at = 0; at < added.size(); ++at, ++matrix) *matrix = *matrix * decays[row] + features[row] * added[at];
  }
}

// output = weights^T matrix.
inline void read_out(const double* matrix, const Numbers& weights, double* output, int64_t columns) {
  for (const double weight : weights) {
    for (int64_t at = 0; at < columns; ++at, ++matrix) output[at] += weight * *matrix;
  }
}

inline void recur_matrix(const Shape& shape, const Token& token, double* state, double* output) {
  const int64_t head_dim = shape.head_dim;
  const bool is_gla = shape.mixer == Mixer::gla;
  Numbers features = token.key, decays(head_dim);
  if (is_gla) softmax(features.data(), head_dim, 1);
  for (int64_t row = 0; row < head_dim; ++row) {
    decays[row] = is_gla ? std::pow(sigmoid(token.key[row]), 1 / shape.normalizer) : sigmoid(token.key[row]);
    if (!is_gla) features[row] = sigmoid(-token.key[row]);
  }
  update(state, decays, features, token.value);
  for (int64_t head = 0; head < shape.queries(); ++head) {
    Numbers weights(token.query + head * head_dim, token.query + (head + 1) * head_dim);
    softmax(weights.data(), head_dim, shape.weight);
    read_out(state, weights, output + head * head_dim, head_dim);
  }
}

inline void recur_slots(const Shape& shape, const Token& token, double* slot_key, double* slot_value, double* output) {
  const int64_t head_dim = shape.head_dim, pool = head_dim / shape.slots;
  Numbers decays, strengths;
  for (auto part = token.key.begin(); part != token.key.end(); part += pool) {
    decays.push_back(std::pow(sigmoid(std::accumulate(part, part + pool, 0.0) / pool), 1 / shape.normalizer));
    strengths.push_back(1 - decays.back());
  }
  update(slot_key, decays, strengths, token.key);
  update(slot_value, decays, strengths, token.value);
  for (int64_t head = 0; head < shape.queries(); ++head) {
    const double* const query = token.query + head * head_dim;
    Numbers weights;
    for (int64_t slot = 0; slot < shape.slots; ++slot) {
      weights.push_back(std::inner_product(query, query + head_dim, slot_key + slot * head_dim, 0.0));
    }
    softmax(weights.data(), shape.slots, shape.weight);
    read_out(slot_value, weights, output + head * head_dim, head_dim);
  }
}

// phi of lolcats.
inline Numbers features_of(const Shape& shape, const Numbers& row, const double* map) {
  const int64_t half = shape.features / 2;
  Numbers features(shape.features);
  for (int64_t at = 0; at < half; ++at) {
    for (int64_t from = 0; from < shape.head_dim; ++from) features[at] += row[from] * map[from * half + at];
    features[half + at] = -features[at];
  }
  softmax(features.data(), half, 1);
  softmax(features.data() + half, half, 1);
  for (double& feature : features) feature = feature < 1e-12 ? 1e-12 : feature;
  return features;
}

// A query head of lolcats: adds the key that leaves the window to the sums, if one does, turns scores into weights, and
// writes the older keys' share.
inline void recur_lolcats(const Shape& shape, const Token& token, int64_t head, const Window& left, const Numbers& query,
                          double* sums, double* masses, Numbers& scores, double* output) {
  const int64_t map = head * shape.head_dim * shape.features / 2;
  if (!left.keys.empty()) {
    const Numbers added = features_of(shape, left.keys[0], token.key_map + map), ones(added.size(), 1);
    update(sums, ones, added, left.values[0]);
    update(masses, ones, added, {1});
  }
  Numbers weights = features_of(shape, query, token.query_map + map);
  const double largest = *std::max_element(scores.begin(), scores.end());
  double mass = std::inner_product(weights.begin(), weights.end(), masses, 0.0);
  for (double& score : scores) mass += score = sigmoid(token.factors[head]) * std::exp(score - largest);
  for (double& score : scores) score /= mass;
  for (double& weight : weights) weight /= mass;
  read_out(sums, weights, output, shape.head_dim);
}

// One token of one key/value head: updates the states and the window, and writes its query heads' output.
inline void attend(const Shape& shape, const Token& token, double* const states[2], Window& window, double* output) {
  const int64_t head_dim = shape.head_dim;
  std::fill(output, output + shape.queries() * head_dim, 0.0);
  if (shape.mixer == Mixer::gsa) recur_slots(shape, token, states[0], states[1], output);
  else if (shape.mixer != Mixer::lolcats) recur_matrix(shape, token, states[0], output);
  Numbers rotated = token.key;
  rotate(rotated.data(), token.cos, token.sin, head_dim);
  Window left;
  if (static_cast<int64_t>(window.keys.size()) == shape.window) left.append(window.keys[0], window.values[0], 1);
  window.append(rotated, token.value, shape.window);
  for (int64_t head = 0; head < shape.queries(); ++head, output += head_dim) {
    Numbers turned(token.query + head * head_dim, token.query + (head + 1) * head_dim), scores;
    rotate(turned.data(), token.cos, token.sin, head_dim);
    for (const Numbers& seen : window.keys) {
      scores.push_back(std::inner_product(turned.begin(), turned.end(), seen.begin(), 0.0) / std::sqrt(head_dim));
    }
    if (shape.mixer == Mixer::lolcats) {
      double *const sums = states[0] + head * shape.features * head_dim, *const masses = states[1] + head * shape.features;
      recur_lolcats(shape, token, head, left, turned, sums, masses, scores, output);
    } else {
      softmax(scores.data(), scores.size(), 1 - shape.weight);
    }
    for (size_t row = 0; row < scores.size(); ++row) read_out(window.values[row].data(), {scores[row]}, output, head_dim);
  }
}

inline Results attention(const Case& made) {
  const std::optional<Shape> found = shape_of(made);
  if (!found) return {};
  const Shape& shape = *found;
  const int64_t head_dim = shape.head_dim, heads = shape.heads * head_dim, width = shape.kv_heads * head_dim;
  const bool packed = made.inputs[1].type == ORT_UNDEFINED;
  const size_t window_at = 6 + states_of(made);  // of its keys, among the inputs
  std::vector<Numbers> inputs;
  for (const OrtValue& input : made.inputs) inputs.push_back(numbers_of(input));
  std::vector<Result> results{{{shape.batch, shape.length, heads}, {}}};
  for (size_t state = 6; state < window_at + 2; ++state) results.push_back({made.inputs[state].shape, inputs[state]});
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
    const auto state = [&](size_t index) {  // of this head
      Numbers& numbers = results[1 + index].numbers;
      return index + 6 < window_at ? numbers.data() + numbers.size() / (shape.batch * shape.kv_heads) * head : nullptr;
    };
    double* const states[] = {state(0), state(1)};
    const auto learned = [&](size_t input) {  // of this head
      const bool is_learned = shape.mixer == Mixer::lolcats;
      return is_learned ? inputs[input].data() + inputs[input].size() / shape.kv_heads * kv_head : nullptr;
    };
    Window window;
    for (int64_t row = 0; row < std::min(first, shape.window); ++row) {
      const auto key = inputs[window_at].begin() + head * size + row * head_dim;
      const auto value = inputs[window_at + 1].begin() + head * size + row * head_dim;
      window.append(Numbers(key, key + head_dim), Numbers(value, value + head_dim), shape.window);
    }
    for (int64_t token = 0; token < shape.length && positions[sequence * shape.length + token] >= 0; ++token) {
      const int64_t row = sequence * shape.length + token;
      const double* const whole = inputs[0].data() + row * (packed ? heads + 2 * width : heads);
      const double* const keys = packed ? whole + heads : inputs[1].data() + row * width;
      const double* const values = packed ? keys + width : inputs[2].data() + row * width;
      const int64_t own = kv_head * head_dim, group = kv_head * shape.queries() * head_dim;
      const Token projected{whole + group, Numbers(keys + own, keys + own + head_dim),
                            Numbers(values + own, values + own + head_dim), inputs[3].data() + row * head_dim / 2,
                            inputs[4].data() + row * head_dim / 2, learned(10), learned(11), learned(12)};
      attend(shape, projected, states, window, results[0].numbers.data() + row * heads + group);
    }
    Result *const of_keys = &results[window_at - 5], *const of_values = of_keys + 1;
    for (const auto& [rows, result] : {std::pair(&window.keys, of_keys), std::pair(&window.values, of_values)}) {
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
inline Numbers rounded(Numbers hidden, const Numbers& norm, int64_t block_size, OrtElementType activation) {
  double squares = 0;
  for (const double number : hidden) squares += number * number / static_cast<double>(hidden.size());
  for (size_t at = 0; at < norm.size(); ++at) hidden[at] *= norm[at] / std::sqrt(squares + 1e-5);
  for (auto block = hidden.begin(); block != hidden.end(); block += block_size) {
    float largest = 0;
    for (auto at = block; at != block + block_size; ++at) {
      *at = stored(*at, activation);
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
  Result result{{made.inputs[0].shape[0], made.inputs[0].shape[1], results}, {}, {}};
  for (int64_t token = 0; token < shape.tokens; ++token) {
    const auto first = hidden.begin() + token * columns;
    const Numbers read = rounded(Numbers(first, first + columns), norm, shape.block_size, made.activation);
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
      result.numbers.push_back(stored(number, made.outputs[0]));
      result.slack.push_back(may_differ);
    }
  }
  return {{result}};
}

// A layer whose weight is not quantized.
inline Results dense_linear(const Case& made) {
  const std::vector<OrtValue>& inputs = made.inputs;
  const bool is_gated = made.attributes.integers.at("gated") != 0, is_logits = made.name == "Logits";
  const OrtElementType activation = made.activation;
  if (inputs[0].type != activation || inputs[0].shape.size() != 3 || inputs[1].shape.size() != 2) return {};
  const int64_t batch = inputs[0].shape[0], length = inputs[0].shape[1], columns = inputs[0].shape[2];
  const int64_t rows = inputs[1].shape[0], results = is_gated ? rows / 2 : rows;
  const auto fits = [&](size_t at, bool may_be, const std::vector<int64_t>& shape) {
    return inputs[at].type == ORT_UNDEFINED || (may_be && is(inputs[at], activation, shape));
  };
  if (columns < 1 || columns % 16 || rows < 1 || (is_gated && rows % 2) || !is(inputs[1], activation, {rows, columns}) ||
      !fits(2, true, {columns}) || !fits(3, !is_logits, {rows}) ||
      !fits(4, !is_logits && !is_gated, {batch, length, rows})) {
    return {};  // the sixth input, kernels for GPUs, is not read
  }
  const Numbers hidden = numbers_of(inputs[0]), weight = numbers_of(inputs[1]), norm = numbers_of(inputs[2]);
  const Numbers bias = numbers_of(inputs[3]), residual = numbers_of(inputs[4]);
  Result result{{batch, length, results}, {}, {}};
  for (int64_t token = 0; token < batch * length; ++token) {
    Numbers read(hidden.begin() + token * columns, hidden.begin() + (token + 1) * columns);
    const double squares = std::inner_product(read.begin(), read.end(), read.begin(), 0.0);
    for (size_t at = 0; at < norm.size(); ++at) {
      read[at] *= norm[at] / std::sqrt(squares / static_cast<double>(columns) + 1e-5);
      read[at] = stored(read[at], activation);
    }
    // A product, and by how much it may differ: normalized numbers are rounded to their dtype, and sums to float32.
    const auto product = [&](int64_t row, double& slack) {
      double sum = bias.empty() ? 0 : bias[row], magnitudes = std::abs(sum);
      for (int64_t at = 0; at < columns; ++at) {
        sum += read[at] * weight[row * columns + at];
        magnitudes += std::abs(read[at] * weight[row * columns + at]);
      }
      slack = std::isfinite(magnitudes) ? magnitudes * (norm.empty() ? 1e-6 : activation == ORT_FLOAT16 ? 1e-3 : 8e-3) : 0;
      return sum;
    };
    for (int64_t row = 0; row < results; ++row) {
      double slack = 0, number = product(row, slack);
      if (is_gated) {
        double of_up = 0;
        const double gate = number * sigmoid(number), up = product(results + row, of_up);
        slack = (std::abs(gate) + 1.1 * slack) * (std::abs(up) + of_up) - std::abs(gate * up);
        number = gate * up;
      }
      number = residual.empty() ? number : number + residual[token * results + row];
      result.numbers.push_back(stored(number, made.outputs[0]));
      result.slack.push_back(slack);
    }
  }
  return {{result}};
}

inline Results reference(const Case& made) {
  if (made.name.rfind("Integer", 0) == 0) return linear(made);
  if (is_linear(made)) return dense_linear(made);
  if (is_attention(made)) return attention(made);
  if (made.name == "GatedSiLU") return gated_silu(made);
  if (made.name == "MostLikely") return most_likely(made);
  return made.name == "LastPositions" ? last_positions(made) : candidates(made);
}

}  // namespace fuzz
