// Calls the CPU operators with random cases and compares them with their references: operators SEED FIRST LAST.
// Prints two lines per case, "NUMBER OPERATOR started" and "NUMBER OPERATOR OUTCOME", to tell which case ended the program.

#include <unistd.h>

#include <cstdio>

#include "cpu_attention.h"
#include "cpu_linear.h"
#include "cuda_operators.h"
#include "reference.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace liger {

namespace baseline {
extern const CpuKernels kernels;
#ifndef LIGER_HAS_AVX2
extern const LinearKernels linear;
#endif
}
#ifdef LIGER_HAS_AVX2
namespace avx2 {
extern const CpuKernels kernels;
extern const LinearKernels linear;
}
#endif

static bool uses_baseline = false;

// In place of cpu_dispatch.cpp: every instruction set has its turn.
const CpuKernels& cpu_kernels() {
#ifdef LIGER_HAS_AVX2
  if (!uses_baseline) return avx2::kernels;
#endif
  return baseline::kernels;
}

const LinearKernels& linear_kernels() {
#ifdef LIGER_HAS_AVX2
  return avx2::linear;
#else
  return baseline::linear;
#endif
}

void add_cuda_operators(const OrtApi*, OrtCustomOpDomain*) {}

}  // namespace liger

namespace fuzz {
namespace {

constexpr unsigned SECONDS = 20;  // after which a case hangs

struct Answer {
  bool is_refused = true;
  std::string message;
  std::vector<OrtValue> outputs;
};

const OrtCustomOp* find(const Case& made) {
  static const OrtCustomOpDomain* const domain = [] {
    OrtSessionOptions options{};
    const OrtApiBase base{[](uint32_t) noexcept { return host::api(); }, [] () noexcept { return "1.0"; }};
    RegisterCustomOps(&options, &base);
    return options.domain;
  }();
  for (const OrtCustomOp* op : domain->operators) {
    if (op->GetName(op) == made.name && op->GetInputType(op, 0) == made.activation) return op;
  }
  std::abort();
}

// Runs code of the operator. Returns its refusal, or an empty text.
template <class Body>
std::string refusal_of(const Body& body) {
  OrtStatus* status;
  {
    const host::Inside inside(true);
    status = body();
  }
  host::allocations_left = -1;
  const std::string message = status == nullptr ? "" : status->message;
  delete status;
  return message;
}

Answer call(const Case& made, size_t threads) {
  const OrtCustomOp* const op = find(made);
  Answer answer;
  void* kernel = nullptr;
  answer.message = refusal_of([&] { return op->CreateKernelV2(op, host::api(), &made.attributes, &kernel); });
  if (!answer.message.empty()) return answer;
  OrtKernelContext context{{}, {}, {}, threads};
  std::vector<OrtValue> states;
  for (const OrtValue& input : made.inputs) context.inputs.push_back(input.type == ORT_UNDEFINED ? nullptr : &input);
  for (size_t at = 0; at < made.outputs.size(); ++at) context.outputs[at] = {made.outputs[at], {}, nullptr};
  if (made.in_place) states = {made.inputs.begin() + 6, made.inputs.begin() + 9};
  for (size_t at = 0; at < states.size(); ++at) {
    OrtValue& state = states[at];
    const size_t bytes = host::bytes_of(state.type, state.shape);
    const void* const from = state.data;
    state = host::tensor(state.type, state.shape);
    if (from != nullptr) std::memcpy(state.data, from, bytes);
    if (made.inputs[6 + at].type != ORT_UNDEFINED) context.inputs[6 + at] = &state;
    context.aliases[1 + at] = &state;
  }
  host::allocations_left = made.memory;
  answer.message = refusal_of([&] { return op->KernelComputeV2(kernel, &context); });
  op->KernelDestroy(kernel);
  answer.is_refused = !answer.message.empty();
  for (size_t at = 0; at < made.outputs.size(); ++at) {
    const bool is_alias = at > 0 && at <= states.size();
    answer.outputs.push_back(is_alias ? states[at - 1] : context.outputs[at]);
  }
  return answer;
}

// Where numbers differ by more than the dtype's rounding; empty if nowhere. Where the reference is not finite, neither may
// the result be.
std::string difference(const Result& expected, const OrtValue& found, bool is_half) {
  if (found.shape != expected.shape) return "another shape";
  const Numbers numbers = numbers_of(found);
  double scale = 1;
  for (const double number : expected.numbers) scale = std::isfinite(number) ? std::max(scale, std::abs(number)) : scale;
  const double bound = (is_half ? 2e-2 : 1e-4) * scale;
  for (size_t at = 0; at < numbers.size(); ++at) {
    const double wanted = expected.numbers[at], number = numbers[at];
    const double slack = expected.slack.empty() ? 0 : expected.slack[at];
    const bool agrees = std::isfinite(wanted) ? std::abs(number - wanted) <= bound + slack : !std::isfinite(number);
    if (!agrees) return std::to_string(number) + " at " + std::to_string(at) + " instead of " + std::to_string(wanted);
  }
  return "";
}

bool is_same(const OrtValue& a, const OrtValue& b) {
  return a.shape == b.shape && (a.data == b.data || !std::memcmp(a.data, b.data, host::bytes_of(a.type, a.shape)));
}

// "refused" or "same", or "wrong" and why.
std::string outcome(const Case& made, const Results& expected, const Answer& answer, const Answer& again) {
  const bool out_of_memory = answer.message.find("not enough memory") != std::string::npos;
  if (answer.is_refused && answer.message.rfind("liger", 0) && answer.message.rfind("host", 0)) {
    return "wrong refused without the operator's name: " + answer.message;
  }
  if (made.memory >= 0 && out_of_memory) return "refused";
  if (answer.is_refused != !expected) return "wrong " + (expected ? "refused: " + answer.message : "answered");
  if (!expected) return "refused";
  const bool is_undefined = made.name == "Candidates" && *static_cast<float*>(made.inputs[1].data) == 0;
  for (size_t at = 0; at < answer.outputs.size() && !is_undefined; ++at) {
    if (!is_same(answer.outputs[at], again.outputs[at])) return "wrong other threads, other bits";
    if (made.values == Values::huge && made.name != "LastPositions") continue;  // float32 rounds these too coarsely
    const std::string found = difference(expected->at(at), answer.outputs[at], made.activation == ORT_FLOAT16);
    if (!found.empty()) return "wrong output " + std::to_string(at) + ": " + found;
  }
  return "same";
}

void report(uint64_t number, const Case& made, const std::string& what) {
  std::printf("%llu %s %s\n", static_cast<unsigned long long>(number), made.name.c_str(), what.c_str());
  std::fflush(stdout);
}

void run(uint64_t seed, uint64_t number) {
  const Case made = case_of(seed, number);
  report(number, made, "started");
  liger::uses_baseline = number % 3 == 0;
  const Results expected = reference(made);
  Answer answer, again;
  // A thread of its own, so that memory kept between calls is allocated anew, and no larger than needed.
  std::thread([&] { answer = call(made, 1 + number % 4); }).join();
  std::thread([&] {
    Case whole = made;
    whole.memory = -1;
    again = call(whole, 1);
  }).join();
  report(number, made, outcome(made, expected, answer, again));
  for (const auto& values : {made.inputs, answer.outputs, again.outputs}) {
    for (const OrtValue& value : values) std::free(value.data);
  }
}

}  // namespace
}  // namespace fuzz

int main(int, char** arguments) {
  const uint64_t seed = std::stoull(arguments[1]), last = std::stoull(arguments[3]);
  for (uint64_t number = std::stoull(arguments[2]); number < last; ++number) {
    alarm(fuzz::SECONDS);
    fuzz::run(seed, number);
  }
}
