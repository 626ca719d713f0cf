// Loads a bundle and launches its step kernels, gated SiLU and top logits for 3 sequences: launches BUNDLE
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "top_logits.h"

int main(int, char** arguments) {
  std::ifstream file(arguments[1], std::ios::binary);
  const std::string bundle((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  try {
    const auto kernels = liger::CudaKernels::load(bundle.data(), bundle.size());
    std::printf("shape %s\n", kernels->shape().c_str());
    liger::Arguments values;
    const char* pointers[] = {"query", "key", "value", "cos", "sin", "position_ids", "state", "window_key", "window_value",
                              "output", "next_state", "next_window_key", "next_window_value", "rows", "gated",
                              "vectors", "rotated_queries"};
    for (size_t at = 0; at < std::size(pointers); ++at) values.pointer(pointers[at], (const void*)(0x1000 * (at + 1)));
    for (const char* name : {"query_stride", "key_stride", "value_stride", "width"}) values.integer(name, 7);
    values.number("gate_normalizer", 16.0f);
    values.number("recurrent_weight", 0.5f);
    kernels->launch("step_kernel", values, 3, 1, (void*)5);
    if (kernels->has("many_step_kernel")) kernels->launch("many_step_kernel", values, 3, 1, (void*)5);
    if (kernels->has("missing_kernel")) std::printf("has a missing kernel\n");
    kernels->launch("gated_silu_kernel", values, 3, 5000, (void*)5);
    const liger::TopLogitsSignature::Call call{(const float*)0x100, (const float*)0x200, (float*)0x300, 3, 1, 300000};
    liger::launch_top_logits(*kernels, call, {(void*)0x400, (void*)0x500}, {(void*)0x600, (void*)0x700}, (void*)5);
    liger::copy_on_device((void*)16, (const void*)32, 64, (void*)5);
    kernels->launch("missing_kernel", values, 3, 1, (void*)5);
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
  }
}
