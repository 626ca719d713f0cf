// Compares the CPU operators with their references in float64, in every instruction set that this processor has:
// kernel_tests [DAMAGE]. Prints each call that differs, and the number of calls per operator and instruction set.
//
// With a DAMAGE, the reference reads other weights than the kernel, whose calls must then differ: `shift` exchanges the
// halves of bytes of 4-bit weights, `blocks` gives each block the scale of the next.

#include <cstdio>
#include <functional>

#include "calls.h"
#include "cpu_instructions.h"
#include "cuda_operators.h"

namespace liger {

static Compiled<CpuKernels> attention_in_use;
static const CpuKernels* wide_in_turn;
static Compiled<LinearKernels> linear_in_use;

// In place of cpu_dispatch.cpp: every instruction set has its turn.
const CpuKernels& cpu_kernels() { return *attention_in_use.kernels; }
const CpuKernels& attention_kernels(int64_t head_dim) {
  return head_dim % 16 == 0 && wide_in_turn ? *wide_in_turn : cpu_kernels();
}
const LinearKernels& linear_kernels() { return *linear_in_use.kernels; }

void add_cuda_operators(const OrtApi*, OrtCustomOpDomain*) {}

}  // namespace liger

namespace fuzz {
namespace {

constexpr size_t THREADS = 2;
constexpr int64_t MOST_TOKENS = 9, MANY_TOKENS = 18;  // the latter are more than MAX_STREAMED_TOKENS

std::map<std::string, int> calls;  // by instruction set and operator

void compare(const Case& made, const Results& expected, const std::string& instructions, const std::string& text) {
  const Answer answer = call(made, THREADS);
  std::string wrong = answer.message;
  for (size_t at = 0; at < answer.outputs.size() && wrong.empty(); ++at) {
    wrong = difference(expected->at(at), answer.outputs[at], bound_of(made.activation));
  }
  if (!wrong.empty()) std::printf("wrong: %s %s: %s\n", instructions.c_str(), text.c_str(), wrong.c_str());
  ++calls[instructions + " " + made.name];
  for (const OrtValue& value : answer.outputs) std::free(value.data);
}

struct Sizes {
  int64_t rows, blocks;
};

// Fewer rows than a vector has lanes, odd numbers, more than one piece, rows of more than a quarter of a page.
constexpr Sizes SIZES[] = {{1, 1}, {70, 1}, {6, 2}, {35, 3}, {66, 5}, {9, 17}};

struct Linear {
  int64_t bits, block_size, tokens;
  bool has_zeros;
  Sizes sizes;
  bool is_gated;
  OrtElementType activation;
  bool has_norm;

  std::string text() const {
    return std::to_string(bits) + " bits, blocks of " + std::to_string(block_size) + ", " + std::to_string(tokens) +
           " tokens, " + std::to_string(sizes.rows) + " rows of " + std::to_string(sizes.blocks) + " blocks" +
           (has_zeros ? ", zero points" : "") + (is_gated ? ", gated" : "") + (has_norm ? ", norm" : "") +
           ", activations of type " + std::to_string(activation);
  }
};

void fill(OrtValue& tensor, const std::function<float(int64_t)>& number) {
  const int64_t count = numbers_of(tensor).size();
  for (int64_t at = 0; at < count; ++at) put(tensor, at, number(at));
}

// A call whose numbers are all exact in float16 and bfloat16. With a norm, activations are multiples of a block's largest divided by
// 127, so that no rounding depends on the last bit of the norm.
Case case_of(const Linear& linear, Random& random) {
  const OrtElementType activation = linear.activation;
  const int64_t rows = linear.sizes.rows * (linear.is_gated ? 2 : 1), blocks = linear.sizes.blocks;
  const int64_t columns = blocks * linear.block_size, bits = linear.bits, block_size = linear.block_size;
  const bool is_logits = !linear.is_gated && linear.tokens % 3 == 0, has_rest = !is_logits && linear.tokens % 2;
  Case made{is_logits ? "IntegerLogits" : "IntegerLinear", activation, {}, {}, {is_logits ? ORT_FLOAT : activation},
            Values::ordinary, -1, false};
  made.attributes.integers = {{"bits", bits}, {"block_size", block_size}, {"gated", linear.is_gated}};
  made.attributes.numbers = {{"epsilon", 1e-5f}};
  const auto add = [&](bool is_present, OrtElementType type, const std::vector<int64_t>& shape) {
    made.inputs.push_back(is_present ? filled(type, shape, random, Values::ordinary) : OrtValue{ORT_UNDEFINED, {}, nullptr});
  };
  add(true, activation, {1, linear.tokens, columns});
  add(true, ORT_UINT8, {rows, blocks, block_size * bits / 8});
  add(true, activation, {rows, blocks});
  add(linear.has_zeros, ORT_UINT8, {rows, (blocks * bits + 7) / 8});
  add(linear.has_norm, activation, {columns});
  add(has_rest, activation, {rows});
  add(has_rest && !linear.is_gated, activation, {1, linear.tokens, rows});
  add(false, ORT_UINT8, {});
  fill(made.inputs[2], [&](int64_t) { return random.ordinary() / 16; });
  if (!linear.has_norm) return made;
  fill(made.inputs[0], [&](int64_t at) { return at % block_size ? random.between(-127, 127) : 127; });
  fill(made.inputs[4], [&](int64_t at) { return at / block_size % 2 ? -2.0f : 0.5f; });
  return made;
}

// The same call with other weights.
Case damaged(const Case& made, const Linear& linear, const std::string& damage) {
  Case other = made;
  if (damage == "shift" && linear.bits == 4) {
    OrtValue& integers = other.inputs[1] = host::tensor(ORT_UINT8, made.inputs[1].shape);
    const auto* const from = static_cast<const uint8_t*>(made.inputs[1].data);
    const size_t count = numbers_of(integers).size();
    for (size_t at = 0; at < count; ++at) static_cast<uint8_t*>(integers.data)[at] = from[at] << 4 | from[at] >> 4;
  }
  if (damage == "blocks") {
    const Numbers from = numbers_of(made.inputs[2]);
    other.inputs[2] = host::tensor(made.inputs[2].type, made.inputs[2].shape);
    const int64_t blocks = linear.sizes.blocks;
    fill(other.inputs[2], [&](int64_t at) { return from[at / blocks * blocks + (at + 1) % blocks]; });
  }
  return other;
}

void compare_linear(const std::string& damage) {
  Random random(0);
  int64_t number = 0;
  for (const int64_t bits : {4, 8}) {
    for (const int64_t block_size : {32, 64, 128}) {
      for (const bool has_zeros : {false, true}) {
        for (int64_t tokens = 1; tokens <= MOST_TOKENS + 1; ++tokens, ++number) {
          const int64_t read = tokens > MOST_TOKENS ? MANY_TOKENS : tokens;
          const Linear linear{bits, block_size, read, has_zeros, SIZES[number % std::size(SIZES)], random.chance(30),
                              random.pick({ORT_FLOAT, ORT_FLOAT, ORT_FLOAT16, ORT_BFLOAT16}), random.chance(50)};
          const Case made = case_of(linear, random);
          Results expected = reference(damaged(made, linear, damage));
          expected->at(0).slack.clear();  // numbers are chosen so that nothing may differ
          for (const auto& compiled : liger::compiled_linear()) {
            liger::linear_in_use = compiled;
            compare(made, expected, compiled.instructions, linear.text());
          }
          for (const OrtValue& value : made.inputs) std::free(value.data);
        }
      }
    }
  }
}

void compare_dense() {
  Random random(0);
  for (int number = 0; number < 120; ++number) {
    const OrtElementType activation = number < 60 ? ORT_FLOAT16 : ORT_BFLOAT16;
    const Case made = dense_linear(number % 4 ? "Linear" : "Logits", random, activation, Values::ordinary);
    const Results expected = reference(made);
    for (const auto& compiled : liger::compiled_linear()) {
      liger::linear_in_use = compiled;
      compare(made, expected, compiled.instructions, made.name + " " + std::to_string(number));
    }
    for (const OrtValue& value : made.inputs) std::free(value.data);
  }
}

void compare_others() {
  Random random(0);
  std::vector<Case> cases;
  for (const OrtElementType activation : {ORT_FLOAT, ORT_FLOAT16, ORT_BFLOAT16}) {
    for (int number = 0; number < 40; ++number) {
      const char* const name = random.pick({"Attention", "GSAAttention", "LoLCATsAttention"});
      cases.push_back(attention(name, random, activation, Values::ordinary));
    }
    for (int number = 0; number < 5; ++number) cases.push_back(simple("GatedSiLU", random, activation, Values::ordinary));
  }
  for (int number = 0; number < 40; ++number) {
    cases.push_back(simple("MostLikely", random, ORT_FLOAT, Values::special));
    cases.push_back(simple("Candidates", random, ORT_FLOAT, Values::ordinary));
  }
  for (size_t number = 0; number < cases.size(); ++number) {
    const Case& made = cases[number];
    const Results expected = reference(made);
    if (!expected) continue;  // a call of no tokens, which must be refused
    if (made.name == "Candidates" && *static_cast<float*>(made.inputs[1].data) == 0) continue;  // undefined
    const std::string text = made.name + " " + std::to_string(number);
    for (const auto& compiled : liger::compiled_attention()) {
      liger::attention_in_use = compiled;
      compare(made, expected, compiled.instructions, text);
    }
    const auto head_dim = made.attributes.integers.find("head_dim");
    if (!liger::wide_attention() || head_dim == made.attributes.integers.end() || head_dim->second % 16) continue;
    liger::wide_in_turn = liger::wide_attention();
    compare(made, expected, "avx512", text);
    liger::wide_in_turn = nullptr;
  }
}

}  // namespace
}  // namespace fuzz

int main(int count, char** arguments) {
  const std::string damage = count > 1 ? arguments[1] : "";
  fuzz::compare_linear(damage);
  if (damage.empty()) {
    fuzz::compare_dense();
    fuzz::compare_others();
  }
  for (const auto& [kind, number] : fuzz::calls) std::printf("%s: %d calls\n", kind.c_str(), number);
}
