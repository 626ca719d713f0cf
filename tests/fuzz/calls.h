// Calls of the operators in the stand-in for ONNX Runtime, and their comparison with the reference.

#pragma once

#include "reference.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace fuzz {

struct Answer {
  bool is_refused = true;
  std::string message;
  std::vector<OrtValue> outputs;
};

// The relative difference from the reference that a few roundings to the activations' dtype make, of ordinary numbers.
inline double bound_of(OrtElementType activation) {
  return activation == ORT_BFLOAT16 ? 1.6e-2 : activation == ORT_FLOAT16 ? 2e-3 : 1e-5;
}

inline const OrtCustomOp* find(const Case& made) {
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

inline Answer call(const Case& made, size_t threads) {
  const OrtCustomOp* const op = find(made);
  Answer answer;
  void* kernel = nullptr;
  answer.message = refusal_of([&] { return op->CreateKernelV2(op, host::api(), &made.attributes, &kernel); });
  if (!answer.message.empty()) return answer;
  OrtKernelContext context{{}, {}, {}, threads};
  std::vector<OrtValue> states;
  for (const OrtValue& input : made.inputs) context.inputs.push_back(input.type == ORT_UNDEFINED ? nullptr : &input);
  for (size_t at = 0; at < made.outputs.size(); ++at) context.outputs[at] = {made.outputs[at], {}, nullptr};
  if (made.in_place) states = {made.inputs.begin() + 6, made.inputs.begin() + 5 + made.outputs.size()};
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

// Where numbers differ by more than `bound` times the largest, or `bound`; empty if nowhere. Where the reference is not
// finite, neither may the result be.
inline std::string difference(const Result& expected, const OrtValue& found, double bound) {
  if (found.shape != expected.shape) return "another shape";
  const Numbers numbers = numbers_of(found);
  double scale = 1;
  for (const double number : expected.numbers) scale = std::isfinite(number) ? std::max(scale, std::abs(number)) : scale;
  for (size_t at = 0; at < numbers.size(); ++at) {
    const double wanted = expected.numbers[at], number = numbers[at];
    const double slack = expected.slack.empty() ? 0 : expected.slack[at];
    const bool agrees = std::isfinite(wanted) ? std::abs(number - wanted) <= bound * scale + slack : !std::isfinite(number);
    if (!agrees) return std::to_string(number) + " at " + std::to_string(at) + " instead of " + std::to_string(wanted);
  }
  return "";
}

}  // namespace fuzz
