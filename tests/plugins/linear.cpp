// Linear layers with quantized weights, as one instruction set computes them, against sums in float64: linear SEED CASES.
// Prints each case that differs, and the largest relative error.

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "cpu_linear.cpp"

namespace {

using namespace liger;
namespace compiled = LIGER_INSTRUCTIONS;

constexpr float EPSILON = 1e-5f;
constexpr double BOUND = 4e-6;

struct Case {
  int64_t tokens, rows, blocks, block_size;
  int bits;
  bool has_zeros, has_norm, has_bias, has_residual, is_gated, is_half, to_float;

  int64_t columns() const { return blocks * block_size; }
  std::string text() const {
    std::string flags;
    const std::pair<bool, const char*> named[] = {{has_zeros, " zeros"}, {has_norm, " norm"}, {has_bias, " bias"},
                                                  {has_residual, " residual"}, {is_gated, " gated"}, {is_half, " half"},
                                                  {to_float, " to_float"}};
    for (const auto& [is_set, name] : named) flags += is_set ? name : "";
    return std::to_string(tokens) + " tokens, " + std::to_string(rows) + " x " + std::to_string(blocks) + " blocks of " +
           std::to_string(block_size) + ", " + std::to_string(bits) + " bits" + flags;
  }
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  float number() { return std::normal_distribution<float>()(engine_); }
  bool flag() { return integer(0, 1) == 1; }

 private:
  std::mt19937_64 engine_;
};

Case random_case(Random& random) {
  Case made{};
  made.tokens = random.flag() ? random.integer(1, 16) : random.integer(17, 30);
  made.bits = random.flag() ? 4 : 8;
  made.block_size = int64_t{32} << random.integer(0, 2);
  made.blocks = random.integer(1, 24);
  made.is_gated = random.flag();
  made.rows = random.integer(1, 90) * (made.is_gated ? 2 : 1);
  for (bool* flag : {&made.has_zeros, &made.has_norm, &made.has_bias, &made.is_half, &made.to_float}) *flag = random.flag();
  made.has_residual = !made.is_gated && random.flag();
  return made;
}

// Numbers of a dtype, and the same numbers in float64.
template <class Element>
struct Numbers {
  std::vector<Element> stored;
  std::vector<double> exact;

  template <class Draw>
  Numbers(int64_t count, const Draw& draw) {
    for (int64_t at = 0; at < count; ++at) {
      float number = draw(at);
      Element element[8] = {};
      const float eight[8] = {number};
      compiled::write(eight, element, 8);
      stored.push_back(element[0]);
      exact.push_back(compiled::number_of(element[0]));
    }
  }
};

// A number as the dtype of activations holds it.
double stored(double number, bool is_half) {
  const float eight[8] = {float(number)};
  Half halves[8];
  compiled::write(eight, halves, 8);
  return is_half ? compiled::number_of(halves[0]) : number;
}

// The numbers that a row of activations stands for after rounding.
std::vector<double> rounded(const double* hidden, const double* norm, const Case& made) {
  const int64_t columns = made.columns();
  std::vector<double> numbers(hidden, hidden + columns);
  if (norm) {
    double squares = 0;
    for (const double number : numbers) squares += number * number;
    const double factor = 1 / std::sqrt(squares / columns + EPSILON);
    for (int64_t at = 0; at < columns; ++at) numbers[at] = stored(numbers[at] * factor * norm[at], made.is_half);
  }
  for (int64_t start = 0; start < columns; start += made.block_size) {
    float largest = 0;
    for (int64_t at = start; at < start + made.block_size; ++at) largest = std::max(largest, std::abs(float(numbers[at])));
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (int64_t at = start; at < start + made.block_size; ++at) {
      numbers[at] = std::nearbyint(float(numbers[at]) * inverse) * double(largest / 127);
    }
  }
  return numbers;
}

template <class Element>
double error_of(const Case& made, Random& random) {
  const int64_t columns = made.columns(), results = made.is_gated ? made.rows / 2 : made.rows;
  // With a norm, multiples of a block's largest number divided by 127: no rounding depends on the norm's last bit.
  const Numbers<Element> hidden(made.tokens * columns, [&](int64_t at) {
    return !made.has_norm ? random.number() : at % made.block_size ? float(random.integer(-127, 127)) : 127.0f;
  });
  const Numbers<Element> norm(columns, [&](int64_t at) { return at / made.block_size % 2 ? -2.0f : 0.5f; });
  const Numbers<Element> bias(made.rows, [&](int64_t) { return random.number(); });
  const Numbers<Element> residual(made.tokens * results, [&](int64_t) { return random.number(); });
  const Numbers<Element> scales(made.rows * made.blocks, [&](int64_t) { return 0.001f * random.number(); });
  IntegerWeight<Element> weight{made.rows, made.blocks, made.block_size, made.bits, nullptr, scales.stored.data(), nullptr};
  const int64_t zero_bytes = (made.blocks * made.bits + 7) / 8;
  std::vector<uint8_t> integers(made.rows * weight.row_bytes()), zeros(made.rows * zero_bytes);
  for (std::vector<uint8_t>* bytes : {&integers, &zeros}) {
    for (uint8_t& byte : *bytes) byte = random.flag() ? random.integer(0, 255) : 255 * random.integer(0, 1);
  }
  weight.integers = integers.data();
  weight.zero_points = made.has_zeros ? zeros.data() : nullptr;

  IntegerLinearCall<Element> call{};
  call.tokens = made.tokens;
  call.is_gated = made.is_gated;
  call.to_float = made.to_float;
  call.epsilon = EPSILON;
  call.weight = weight;
  call.hidden = hidden.stored.data();
  call.norm = made.has_norm ? norm.stored.data() : nullptr;
  call.bias = made.has_bias ? bias.stored.data() : nullptr;
  call.residual = made.has_residual ? residual.stored.data() : nullptr;
  const int64_t row_bytes = RoundedActivations::padded(columns);
  std::vector<int8_t> activations(made.tokens * row_bytes, 99);
  std::vector<float> token_scales(made.tokens * made.blocks), sums(made.tokens * made.blocks);
  call.rounded = {activations.data(), token_scales.data(), sums.data(), row_bytes};
  std::vector<float> output(made.tokens * results);
  call.output = output.data();
  const auto& kernels = [&]() -> const IntegerLinearKernels<Element>& {
    if constexpr (std::is_same_v<Element, float>) return compiled::linear.of_float; else return compiled::linear.of_half;
  }();
  for (int64_t token = 0; token < made.tokens; ++token) kernels.round(call, token);
  std::vector<char> memory(kernels.memory_of_piece(call));
  for (int64_t piece = 0; piece * LINEAR_PIECE < results; ++piece) kernels.multiply(call, piece, memory.data());

  const auto weight_at = [&](int64_t row, int64_t column) {
    const int64_t block = column / made.block_size;
    const uint8_t* const from = integers.data() + row * weight.row_bytes();
    const uint8_t* const zero = zeros.data() + row * zero_bytes;
    const auto at = [&](const uint8_t* bytes, int64_t place) {
      return made.bits == 8 ? bytes[place] : bytes[place / 2] >> 4 * (place % 2) & 15;
    };
    const int zero_point = made.has_zeros ? at(zero, block) : 1 << (made.bits - 1);
    return scales.exact[row * made.blocks + block] * (at(from, column) - zero_point);
  };
  double squares = 0, all = 1e-30;
  for (int64_t token = 0; token < made.tokens; ++token) {
    const auto row = rounded(hidden.exact.data() + token * columns, made.has_norm ? norm.exact.data() : nullptr, made);
    const auto product = [&](int64_t n) {
      double sum = made.has_bias ? bias.exact[n] : 0;
      for (int64_t column = 0; column < columns; ++column) sum += row[column] * weight_at(n, column);
      return sum;
    };
    for (int64_t n = 0; n < results; ++n) {
      double wanted = product(n);
      if (made.is_gated) wanted = wanted / (1 + std::exp(-wanted)) * product(results + n);
      if (made.has_residual) wanted += residual.exact[token * results + n];
      const int64_t place = token * results + n;
      double found = output[place];
      if (made.is_half && !made.to_float) found = compiled::number_of(reinterpret_cast<const Half*>(output.data())[place]);
      squares += (found - wanted) * (found - wanted);
      all += wanted * wanted;
    }
  }
  return std::sqrt(squares / all);
}

}  // namespace

int main(int, char** arguments) {
  const uint64_t seed = std::stoull(arguments[1]), cases = std::stoull(arguments[2]);
  double largest = 0;
  for (uint64_t number = 0; number < cases; ++number) {
    Random random(seed << 32 | number);
    const Case made = random_case(random);
    const double error = made.is_half ? error_of<Half>(made, random) : error_of<float>(made, random);
    const double bound = made.is_half && !made.to_float ? 1e-3 : BOUND;  // of the output's dtype
    if (!(error <= bound)) std::printf("%s: %g\n", made.text().c_str(), error);
    if (bound == BOUND) largest = std::max(largest, error);
  }
  std::printf("largest error %g\n", largest);
}
