// Calls the CUDA operators with a fake driver and prints what each call ends in.
#include <cstdio>

#include "cuda_operators.h"
#include "ort_host.h"

namespace {

// A bundle of kernels for the fake driver. The driver reads five parameters of each.
OrtValue bundle(const std::string& grid) {
  std::string text = "liger-kernels 2\nshape none\n";
  for (const char* name : {"linear_kernel", "gated_silu_kernel", "best_of_parts_kernel", "most_likely_kernel"}) {
    text += std::string("kernel 90 ") + name + " " + name + " 32 0 0 " + grid + " 0 4 " +
            "global_scratch:*,global_scratch:*,global_scratch:*,global_scratch:*,global_scratch:*\n";
  }
  text += "end\n\177ELF";
  OrtValue made = host::tensor(ORT_UINT8, {static_cast<int64_t>(text.size())});
  std::copy(text.begin(), text.end(), static_cast<char*>(made.data));
  return made;
}

struct Input {
  OrtElementType type;
  std::vector<int64_t> shape;
};

void call(const OrtCustomOpDomain& domain, const char* what, const std::string& name, const OrtKernelInfo& info,
          const std::vector<Input>& inputs) {
  for (const OrtCustomOp* op : domain.operators) {
    if (op->GetName(op) != name || op->GetInputType(op, 0) != ORT_FLOAT) continue;
    std::vector<OrtValue> values;
    for (const Input& input : inputs) values.push_back(host::tensor(input.type, input.shape));
    OrtKernelContext context{{}, {}, {}, 1};
    for (const OrtValue& value : values) context.inputs.push_back(value.type == ORT_UNDEFINED ? nullptr : &value);
    context.outputs[0].type = op->GetOutputType(op, 0);
    void* kernel = nullptr;
    OrtStatus* status = op->CreateKernelV2(op, host::api(), &info, &kernel);
    if (status == nullptr) status = op->KernelComputeV2(kernel, &context);
    std::printf("%s: %s\n", what, status == nullptr ? "done" : status->message.c_str());
    std::fflush(stdout);
    return;
  }
}

}  // namespace

int main() {
  OrtCustomOpDomain domain;
  liger::add_cuda_operators(host::api(), &domain);
  const std::string grid = "1:batch:1,1:length:64,1:one:1";
  const auto linear = [&](const char* what, int64_t bits, int64_t block_size, int64_t gated, const Input& hidden,
                          const Input& weight, const Input& scales, const Input& zero_points) {
    OrtKernelInfo info;
    info.integers = {{"bits", bits}, {"block_size", block_size}, {"gated", gated}};
    info.numbers = {{"epsilon", 1e-6f}};
    info.texts = {{"kernel", "linear_kernel"}};
    info.constants[7] = bundle(grid);
    call(domain, what, "IntegerLinear", info, {hidden, weight, scales, zero_points});
  };
  const Input hidden{ORT_FLOAT, {1, 2, 64}}, weight{ORT_UINT8, {31, 2, 16}}, scales{ORT_FLOAT, {31, 2}}, zeros{ORT_UINT8, {31, 1}};
  linear("valid", 4, 32, 0, hidden, weight, scales, zeros);
  linear("no tokens", 4, 32, 0, {ORT_FLOAT, {int64_t{1} << 62, 0, 64}}, weight, scales, zeros);
  linear("no block", 4, 0, 0, hidden, weight, scales, zeros);
  linear("bits", 3, 32, 0, hidden, weight, scales, zeros);
  linear("columns", 4, 32, 0, {ORT_FLOAT, {1, 2, 65}}, weight, scales, zeros);
  linear("scales", 4, 32, 0, hidden, weight, {ORT_FLOAT, {31, 1}}, zeros);
  linear("zero points", 4, 32, 0, hidden, weight, scales, {ORT_UINT8, {31}});
  linear("zero point dtype", 4, 32, 0, hidden, weight, scales, {ORT_FLOAT, {31, 1}});
  linear("odd gate and up", 4, 32, 1, hidden, weight, scales, zeros);
  linear("no scales", 4, 32, 0, hidden, weight, {ORT_UNDEFINED, {}}, zeros);

  const auto pointwise = [&](const char* what, const std::string& name, const std::vector<int64_t>& shape,
                             const std::string& axes) {
    OrtKernelInfo info;
    info.constants[1] = bundle(axes);
    call(domain, what, name, info, {{ORT_FLOAT, shape}});
  };
  pointwise("valid gate and up", "GatedSiLU", {3, 2, 128}, grid);
  pointwise("no sequences", "MostLikely", {0, 2, 128}, grid);
  pointwise("too many rows", "GatedSiLU", {int64_t{1} << 40, int64_t{1} << 40, 0}, grid);
  pointwise("width beyond 32 bits", "GatedSiLU", {0, 1, int64_t{1} << 40}, grid);
  pointwise("grid beyond 32 bits", "GatedSiLU", {int64_t{1} << 32, 1, 0}, grid);
  pointwise("damaged axis", "GatedSiLU", {1, 1, 128}, "1:batch:0,1:length:64,1:one:1");
  pointwise("damaged number", "GatedSiLU", {1, 1, 128}, "x:batch:1,1:length:64,1:one:1");
}
