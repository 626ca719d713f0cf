// Calls the CPU operators with random cases and compares them with their references: operators SEED FIRST LAST.
// Prints two lines per case, "NUMBER OPERATOR started" and "NUMBER OPERATOR OUTCOME", to tell which case ended the program.

#include <unistd.h>

#include <cstdio>

#include "calls.h"
#include "cpu_attention.h"
#include "cpu_linear.h"
#include "cuda_operators.h"

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

#ifdef LIGER_HAS_AVX512
namespace avx512 {
extern const CpuKernels kernels;
}
#endif

static bool uses_baseline = false;

// In place of cpu_dispatch.cpp: every instruction set has its turn.
const CpuKernels& attention_kernels(int64_t head_dim) {
#ifdef LIGER_HAS_AVX512
  if (!uses_baseline && head_dim % 16 == 0) return avx512::kernels;
#endif
  static_cast<void>(head_dim);
  return cpu_kernels();
}

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
    const std::string found = difference(expected->at(at), answer.outputs[at], 10 * bound_of(made.activation));
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
