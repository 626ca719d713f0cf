// Random calls of the operators: valid ones and ones with a defect. A case is a function of its seed and number alone.

#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "ort_host.h"

namespace fuzz {

enum class Values { ordinary, special, huge };  // numbers near 1; also NaN and infinities; of every size

struct Case {
  std::string name;             // of the operator
  OrtElementType activation;
  OrtKernelInfo attributes;
  std::vector<OrtValue> inputs;  // one with type ORT_UNDEFINED is absent
  std::vector<OrtElementType> outputs;
  Values values;
  int64_t memory;  // allocations until one fails; -1 for no failure
  bool in_place;   // whether the next states are the states' memory
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  int64_t between(int64_t first, int64_t last) { return first + static_cast<int64_t>(engine_() % (last - first + 1)); }
  bool chance(int percent) { return between(1, 100) <= percent; }
  template <class Item>
  Item pick(std::initializer_list<Item> items) { return items.begin()[between(0, items.size() - 1)]; }
  uint64_t bits() { return engine_(); }

  // A multiple of 1 / 64, which float16 and bfloat16 represent too.
  float ordinary() { return static_cast<float>(between(-128, 128)) / 64; }

  float number(Values values) {
    if (values == Values::ordinary || !chance(values == Values::special ? 4 : 30)) return ordinary();
    if (values == Values::special) return pick({NAN, INFINITY, -INFINITY, 0.0f, -0.0f});
    return pick({3e38f, -3e38f, 1e20f, -1e20f, 65504.0f, -65504.0f, 6e-8f, 1e-40f, -1e-40f, 100.0f, -100.0f});
  }

 private:
  std::mt19937_64 engine_;
};

inline uint16_t half_of(float value) {
  if (std::isnan(value)) return 0x7e00;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::abs(value);
  if (magnitude > 65504) return sign | 0x7c00;
  if (magnitude < 6.103515625e-05f) return sign | static_cast<uint16_t>(std::lround(std::ldexp(magnitude, 24)));
  int exponent;
  const float fraction = std::frexp(magnitude, &exponent);  // exact for the numbers above
  return sign | static_cast<uint16_t>((exponent + 14) * 1024 + std::lround((2 * fraction - 1) * 1024));
}

inline double number_of(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

// The upper half of a float32's bits, rounded to nearest, ties to even.
inline uint16_t bfloat16_of(float value) {
  if (std::isnan(value)) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t below = bits & 0xffff, upper = bits >> 16;
  return static_cast<uint16_t>(upper + (below > 0x8000 || (below == 0x8000 && upper % 2)));
}

inline double number_of_bfloat16(uint16_t upper) {
  const uint32_t bits = uint32_t{upper} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// A tensor's numbers.
inline std::vector<double> numbers_of(const OrtValue& tensor) {
  if (tensor.data == nullptr) return {};
  std::vector<double> numbers(host::bytes_of(tensor.type, tensor.shape) / host::item_size(tensor.type));
  for (size_t at = 0; at < numbers.size(); ++at) {
    switch (tensor.type) {
      case ORT_FLOAT: numbers[at] = static_cast<float*>(tensor.data)[at]; break;
      case ORT_INT64: numbers[at] = static_cast<double>(static_cast<int64_t*>(tensor.data)[at]); break;
      case ORT_FLOAT16: numbers[at] = number_of(static_cast<uint16_t*>(tensor.data)[at]); break;
      case ORT_BFLOAT16: numbers[at] = number_of_bfloat16(static_cast<uint16_t*>(tensor.data)[at]); break;
      default: numbers[at] = static_cast<uint8_t*>(tensor.data)[at];
    }
  }
  return numbers;
}

// Writes a floating-point number.
inline void put(const OrtValue& tensor, size_t at, float number) {
  if (tensor.type == ORT_FLOAT) static_cast<float*>(tensor.data)[at] = number;
  if (tensor.type == ORT_FLOAT16) static_cast<uint16_t*>(tensor.data)[at] = half_of(number);
  if (tensor.type == ORT_BFLOAT16) static_cast<uint16_t*>(tensor.data)[at] = bfloat16_of(number);
}

inline bool is_floating(OrtElementType type) {
  return type == ORT_FLOAT || type == ORT_FLOAT16 || type == ORT_BFLOAT16;
}

inline OrtValue filled(OrtElementType type, const std::vector<int64_t>& shape, Random& random, Values values) {
  OrtValue made = host::tensor(type, shape);
  const size_t count = host::bytes_of(type, shape) / host::item_size(type);
  for (size_t at = 0; at < count; ++at) {
    if (is_floating(type)) put(made, at, random.number(values));
    if (type == ORT_INT64) static_cast<int64_t*>(made.data)[at] = random.between(0, 9);
    if (type == ORT_UINT8) static_cast<uint8_t*>(made.data)[at] = random.bits();
  }
  return made;
}

// Another shape: an axis more, an axis less, or a size that is off by one, zero or huge. A huge tensor is empty.
inline std::vector<int64_t> mutated(std::vector<int64_t> shape, Random& random) {
  const int64_t kind = random.between(0, 5);
  if (shape.empty() || kind == 0) {
    shape.insert(shape.begin() + random.between(0, shape.size()), random.between(0, 2));
  } else if (kind == 1) {
    shape.erase(shape.begin() + random.between(0, shape.size() - 1));
  } else {
    int64_t& size = shape[random.between(0, shape.size() - 1)];
    const int64_t small = std::min(size, int64_t{1} << 20);  // the size, if it has not been made huge before
    size = random.pick<int64_t>({0, 1, small + 1, std::max<int64_t>(small - 1, 0), 2 * small, int64_t{1} << 31,
                                 int64_t{1} << 40, int64_t{1} << 62, std::numeric_limits<int64_t>::max()});
  }
  if (host::bytes_of(ORT_INT64, shape) > size_t{1} << 22) shape[random.between(0, shape.size() - 1)] = 0;
  return host::bytes_of(ORT_INT64, shape) > size_t{1} << 22 ? std::vector<int64_t>{} : shape;
}

template <class Function>
void apply(const OrtValue& tensor, const Function& function) {
  const std::vector<double> numbers = numbers_of(tensor);
  for (size_t at = 0; at < numbers.size(); ++at) put(tensor, at, function(static_cast<float>(numbers[at])));
}

inline bool is_attention(const Case& made) { return made.name.find("Attention") != std::string::npos; }

// Recurrent states of an attention operator, which follow the first six inputs and the first output.
inline size_t states_of(const Case& made) { return made.name == "Attention" ? 1 : 2; }

inline Case attention(const std::string& name, Random& random, OrtElementType activation, Values values) {
  const int64_t kv_heads = random.between(1, 3), queries = random.between(1, 5), head_dim = 8 * random.between(1, 5);
  const int64_t window = random.between(1, 9), batch = random.chance(10) ? 0 : random.between(1, 3);
  const int64_t length = random.chance(40) ? 1 : random.between(random.chance(5) ? 0 : 1, 24);
  const int64_t heads = kv_heads * queries * head_dim, width = kv_heads * head_dim;
  const int64_t features = 2 * random.between(1, 20);
  Case made{name, activation, {}, {}, {activation}, values, -1, false};
  made.attributes.integers = {{"num_heads", kv_heads * queries}, {"num_key_value_heads", kv_heads},
                              {"head_dim", head_dim}, {"window_size", window}};
  made.attributes.numbers = {{"gate_normalizer", 16.0f}, {"recurrent_weight", random.pick({0.0f, 0.5f, 1.0f})}};
  const bool packed = random.chance(50);
  const auto add = [&](OrtElementType type, const std::vector<int64_t>& shape) {
    made.inputs.push_back(filled(type, shape, random, values));
  };
  const OrtValue absent{ORT_UNDEFINED, {}, nullptr};
  add(activation, {batch, length, packed ? heads + 2 * width : heads});
  for (int projection = 0; projection < 2; ++projection) {
    if (packed) made.inputs.push_back(absent);
    else add(activation, {batch, length, width});
  }
  add(ORT_FLOAT, {batch, length, head_dim / 2});
  add(ORT_FLOAT, {batch, length, head_dim / 2});
  add(ORT_INT64, {batch, length});
  if (name == "Attention") {
    made.attributes.texts["mixer"] = random.pick({"gla", "hgrn2"});
    add(ORT_FLOAT, {batch, kv_heads, head_dim, head_dim});
  } else if (name == "GSAAttention") {
    const int64_t slots = made.attributes.integers["num_slots"] = random.pick<int64_t>({1, 2, 8, head_dim});
    for (int state = 0; state < 2; ++state) add(ORT_FLOAT, {batch, kv_heads, slots, head_dim});
  } else {
    add(ORT_FLOAT, {batch, kv_heads * queries, features, head_dim});
    add(ORT_FLOAT, {batch, kv_heads * queries, features});
    apply(made.inputs.back(), [](float mass) { return std::abs(mass); });  // a sum of positive numbers
  }
  const size_t states = states_of(made);
  add(activation, {batch, kv_heads, window, head_dim});
  add(activation, {batch, kv_heads, window, head_dim});
  if (name == "LoLCATsAttention") {
    for (int map = 0; map < 2; ++map) {
      add(activation, {kv_heads * queries, head_dim, features / 2});
      apply(made.inputs.back(), [](float number) { return number / 8; });  // so that float16 keeps enough of x A
    }
    add(activation, {kv_heads * queries});
  }
  made.outputs.insert(made.outputs.end(), states, ORT_FLOAT);
  made.outputs.insert(made.outputs.end(), 2, activation);
  auto* positions = static_cast<int64_t*>(made.inputs[5].data);
  for (int64_t row = 0; row < batch; ++row) {
    const int64_t first = random.pick<int64_t>({0, random.between(0, 12), int64_t{1} << 40});
    const int64_t tokens = random.chance(20) ? random.between(0, length) : length;
    for (int64_t at = 0; at < length; ++at) positions[row * length + at] = at < tokens ? first + at : -1;
    // Rows of the window that hold no key are undefined.
    for (int64_t head = 0; head < kv_heads; ++head) {
      for (const size_t input : {6 + states, 7 + states}) {
        const int64_t unused = std::max<int64_t>(0, tokens > 0 ? window - first : 0) * head_dim;
        const size_t size = host::item_size(activation);
        char* const end = static_cast<char*>(made.inputs[input].data) + (row * kv_heads + head + 1) * window * head_dim * size;
        std::memset(end - unused * size, 0xFF, unused * size);
      }
    }
  }
  made.in_place = random.chance(40);
  return made;
}

inline Case linear(const std::string& name, Random& random, OrtElementType activation, Values values) {
  const bool is_logits = name == "IntegerLogits", is_gated = random.chance(30);
  const int64_t bits = random.pick<int64_t>({4, 8}), block_size = random.pick<int64_t>({32, 64, 128});
  const int64_t blocks = random.between(1, 5), columns = blocks * block_size;
  const int64_t rows = is_gated ? 2 * random.between(1, 40) : random.between(1, 140);
  const int64_t batch = random.chance(10) ? 0 : random.between(1, 2), length = random.between(1, random.chance(30) ? 24 : 2);
  Case made{name, activation, {}, {}, {is_logits ? ORT_FLOAT : activation}, values, -1, false};
  made.attributes.integers = {{"bits", bits}, {"block_size", block_size}, {"gated", is_gated}};
  made.attributes.numbers = {{"epsilon", 1e-5f}};
  const auto add = [&](bool is_present, OrtElementType type, const std::vector<int64_t>& shape) {
    made.inputs.push_back(is_present ? filled(type, shape, random, values) : OrtValue{ORT_UNDEFINED, {}, nullptr});
  };
  add(true, activation, {batch, length, columns});
  add(true, ORT_UINT8, {rows, blocks, block_size * bits / 8});
  add(true, activation, {rows, blocks});
  add(random.chance(50), ORT_UINT8, {rows, (blocks * bits + 7) / 8});
  add(random.chance(50), activation, {columns});
  add(!is_logits && random.chance(50), activation, {rows});
  add(!is_logits && !is_gated && random.chance(50), activation, {batch, length, rows});
  add(random.chance(10), ORT_UINT8, {random.between(0, 3)});
  return made;
}

// float16 or bfloat16 numbers, the only ones for which a CPU has the operator.
inline Case dense_linear(const std::string& name, Random& random, OrtElementType activation, Values values) {
  const bool is_logits = name == "Logits", is_gated = random.chance(30);
  const int64_t columns = 16 * random.between(1, 9), batch = random.chance(10) ? 0 : random.between(1, 2);
  const int64_t rows = is_gated ? 2 * random.between(1, 40) : random.between(1, 140);
  const int64_t length = random.between(1, random.chance(30) ? 24 : 3);
  Case made{name, activation, {}, {}, {is_logits ? ORT_FLOAT : activation}, values, -1, false};
  made.attributes.integers = {{"gated", is_gated}};
  made.attributes.numbers = {{"epsilon", 1e-5f}};
  const auto add = [&](bool is_present, OrtElementType type, const std::vector<int64_t>& shape) {
    made.inputs.push_back(is_present ? filled(type, shape, random, values) : OrtValue{ORT_UNDEFINED, {}, nullptr});
  };
  add(true, activation, {batch, length, columns});
  add(true, activation, {rows, columns});
  add(random.chance(50), activation, {columns});
  add(!is_logits && random.chance(50), activation, {rows});
  add(!is_logits && !is_gated && random.chance(50), activation, {batch, length, rows});
  add(random.chance(10), ORT_UINT8, {random.between(0, 3)});
  return made;
}

inline bool is_linear(const Case& made) {
  return made.name.find("Linear") != std::string::npos || made.name.find("Logits") != std::string::npos;
}

inline Case simple(const std::string& name, Random& random, OrtElementType activation, Values values) {
  Case made{name, activation, {}, {}, {activation}, values, -1, false};
  const int64_t batch = random.between(random.chance(10) ? 0 : 1, 3), length = random.between(1, 4);
  if (name == "GatedSiLU") {
    const int64_t size = 8 * (random.chance(5) ? random.between(500, 1100) : random.between(1, 9));
    made.inputs = {filled(activation, {batch, length, 2 * size}, random, values)};
  } else if (name == "MostLikely") {
    made.inputs = {filled(ORT_FLOAT, {batch, length, random.between(1, 300)}, random, values)};
    made.outputs = {ORT_INT64};
  } else if (name == "LastPositions") {
    made.inputs = {filled(activation, {batch, length, random.between(1, 9)}, random, values), host::tensor(ORT_INT64, {})};
    *static_cast<int64_t*>(made.inputs[1].data) = random.between(0, length);
  } else {
    const int64_t size = random.chance(5) ? random.between(16000, 40000) : random.between(1, 900);
    made.inputs = {filled(ORT_FLOAT, {batch, length, size}, random, values), host::tensor(ORT_FLOAT, {})};
    *static_cast<float*>(made.inputs[1].data) = random.pick({0.0f, 0.25f, 1.0f, 30.0f});
  }
  return made;
}

inline void replace(OrtValue& old, const OrtValue& made) {
  std::free(old.data);
  old = made;
}

// Changes an attribute, an input's dtype, presence, shape or value, or the memory that there is.
inline void spoil(Case& made, Random& random) {
  constexpr int64_t LEAST = std::numeric_limits<int64_t>::min(), MOST = std::numeric_limits<int64_t>::max();
  const auto any = [&] { return random.pick<int64_t>({LEAST, -1, 0, 1, 3, 7, 8, int64_t{1} << 31, int64_t{1} << 62, MOST}); };
  const int64_t kind = random.between(0, 9);
  OrtValue& input = made.inputs[random.between(0, made.inputs.size() - 1)];
  if (kind == 0) {
    made.memory = random.between(0, 4);
  } else if (kind == 1 && !made.attributes.integers.empty()) {
    auto& integers = made.attributes.integers;
    std::next(integers.begin(), random.between(0, integers.size() - 1))->second = any();
  } else if (kind == 2 && is_attention(made)) {
    const char* const name = random.pick({"gate_normalizer", "recurrent_weight"});
    made.attributes.numbers[name] = random.pick({0.0f, -1.0f, 2.0f, NAN, INFINITY, -INFINITY});
  } else if (kind == 3 && is_attention(made)) {
    made.name == "Attention" && random.chance(50) ? void(made.attributes.texts["mixer"] = random.pick({"", "gsa", "gla2"}))
                                                  : void(made.attributes.integers.erase("head_dim"));
  } else if (kind == 4) {
    replace(input, {ORT_UNDEFINED, {}, nullptr});
  } else if (kind == 5 && input.type != ORT_UNDEFINED) {
    const auto type = random.pick({ORT_FLOAT, ORT_FLOAT16, ORT_BFLOAT16, ORT_INT64, ORT_UINT8});
    replace(input, filled(type, input.shape, random, made.values));
  } else if (kind == 6) {
    const size_t at = is_attention(made) ? 5 : is_linear(made) ? 0 : made.inputs.size() - 1;
    const OrtValue& changed = made.inputs[at];
    const size_t count = host::bytes_of(changed.type, changed.shape) / host::item_size(changed.type);
    if (count == 0) return;
    const size_t place = random.between(0, count - 1);
    if (changed.type == ORT_INT64) static_cast<int64_t*>(changed.data)[place] = random.chance(50) ? any() : -random.between(1, 3);
    if (changed.type == ORT_FLOAT) static_cast<float*>(changed.data)[place] = random.pick({NAN, -1.0f, INFINITY, -INFINITY});
  } else if (input.type != ORT_UNDEFINED) {
    replace(input, filled(input.type, mutated(input.shape, random), random, made.values));
  }
}

inline Case case_of(uint64_t seed, uint64_t number) {
  Random random(seed * 0x9E3779B97F4A7C15u + number);
  const Values values = random.pick({Values::ordinary, Values::ordinary, Values::special, Values::huge});
  const OrtElementType activation = random.pick({ORT_FLOAT, ORT_FLOAT16, ORT_BFLOAT16});
  const std::string name = random.pick({"Attention", "Attention", "GSAAttention", "LoLCATsAttention", "GatedSiLU", "MostLikely", "LastPositions",
                                        "Candidates", "IntegerLinear", "IntegerLogits", "Linear", "Logits"});
  const bool is_typed = name != "MostLikely" && name != "Candidates";
  const bool is_attention = name.find("Attention") != std::string::npos;
  Case made = is_attention                    ? attention(name, random, activation, values)
              : name.rfind("Integer", 0) == 0 ? linear(name, random, activation, values)
              : name == "Linear" || name == "Logits"
                  ? dense_linear(name, random, activation == ORT_FLOAT ? ORT_FLOAT16 : activation, values)
                  : simple(name, random, is_typed ? activation : ORT_FLOAT, values);
  for (int64_t defects = random.pick({0, 0, 1, 1, 2}); defects > 0; --defects) spoil(made, random);
  return made;
}

}  // namespace fuzz
