// Time of the attention operators' kernels on one thread of a CPU, AVX2 and AVX-512 in turns.
//
//     FLAGS="-std=c++17 -O3 -Wno-psabi -Iplugins/ort -mavx2 -mfma -mf16c"
//     WIDE="-mavx512f -mavx512dq -mavx512bw -mavx512vl -DLIGER_WIDTH=16 -Wno-uninitialized"
//     g++ $FLAGS -DLIGER_INSTRUCTIONS=avx2 -c plugins/ort/cpu_attention.cpp -o avx2.o
//     g++ $FLAGS $WIDE -DLIGER_INSTRUCTIONS=avx512 -c plugins/ort/cpu_attention.cpp -o avx512.o
//     g++ $FLAGS benchmarks/attention.cpp avx2.o avx512.o -o attention
//     ./attention LAYERS KEY_VALUE_HEADS QUERIES_PER_KV HEAD_DIM WINDOW TOKENS
//
// A call computes every head of every layer in float32, states in place, as a decode step does with full windows. Prints the
// least and the median microseconds per token and layer of 31 rounds, in the thread's own processor time.

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "call_memory.h"
#include "cpu_attention.h"

namespace liger {
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}
}  // namespace liger

namespace {

using namespace liger;

constexpr int ROUNDS = 31;

// A layer's tensors, full of small numbers.
struct Layer {
  std::vector<float> rows, angles, states[STATES], keys, values, maps, factors, output;
  std::vector<int64_t> positions;
  Call<float> call{};

  Layer(const Sizes& sizes, int64_t tokens) {
    const int64_t head_dim = sizes.head_dim, kv_heads = sizes.num_key_value_heads, queries = sizes.num_queries_per_kv;
    const int64_t heads = kv_heads * queries, stride = (heads + 2 * kv_heads) * head_dim;
    const bool is_lolcats = sizes.mixer == Mixer::lolcats;
    const int64_t state_rows = is_lolcats ? 2 * head_dim : sizes.mixer == Mixer::gsa ? sizes.slots : head_dim;
    const auto fill = [](std::vector<float>& values, int64_t count) {
      values.resize(count);
      for (int64_t at = 0; at < count; ++at) values[at] = static_cast<float>(at * 7919 % 1009 + 1) / 1009;
      return values.data();
    };
    call.batch = 1;
    call.length = tokens;
    call.query = fill(rows, tokens * stride);
    call.key = call.query + heads * head_dim;
    call.value = call.key + kv_heads * head_dim;
    call.query_stride = call.key_stride = call.value_stride = stride;
    call.cos = call.sin = fill(angles, tokens * head_dim / 2);
    for (int64_t token = 0; token < tokens; ++token) positions.push_back(sizes.window + token);
    call.position_ids = positions.data();
    call.state_rows = state_rows;
    call.state_sizes[0] = state_rows * head_dim * (is_lolcats ? queries : 1);
    call.state_sizes[1] = is_lolcats ? queries * state_rows : sizes.mixer == Mixer::gsa ? call.state_sizes[0] : 0;
    for (int state = 0; state < STATES; ++state) {
      call.states[state] = call.next_states[state] = fill(states[state], kv_heads * call.state_sizes[state]);
    }
    call.window_key = call.next_window_key = fill(keys, kv_heads * sizes.window * head_dim);
    call.window_value = call.next_window_value = fill(values, kv_heads * sizes.window * head_dim);
    call.query_map = call.key_map = fill(maps, heads * head_dim * head_dim);
    call.window_factors = fill(factors, heads);
    call.output = fill(output, tokens * heads * head_dim);
  }
};

double microseconds(const CpuKernels& kernels, const Sizes& sizes, std::vector<Layer>& layers) {
  const int64_t floats = kernels.memory_of_head(sizes, layers[0].call.state_rows, layers[0].call.length);
  auto* const memory = reinterpret_cast<float*>(memory_of_calls(floats * sizeof(float)));
  const TypedKernels<float>& typed = kernels;
  const auto now = [] {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
  };
  const double start = now();
  for (Layer& layer : layers) {
    for (int64_t head = 0; head < sizes.num_key_value_heads; ++head) typed.attend(sizes, layer.call, head, memory);
  }
  return (now() - start) / (layers.size() * layers[0].call.length);
}

}  // namespace

int main(int, char** arguments) {
  const auto number = [&](int place) { return std::stoll(arguments[place]); };
  for (const auto& [name, mixer] : {std::pair("gla", Mixer::gla), std::pair("hgrn2", Mixer::hgrn2),
                                    std::pair("gsa", Mixer::gsa), std::pair("lolcats", Mixer::lolcats)}) {
    const Sizes sizes{mixer, number(3), number(2), number(4), number(5), number(4), 16, 0.5f};
    std::vector<Layer> layers;
    for (int64_t layer = 0; layer < number(1); ++layer) layers.emplace_back(sizes, number(6));
    std::vector<double> times[2];
    for (int round = 0; round < ROUNDS; ++round) {
      times[0].push_back(microseconds(avx2::kernels, sizes, layers));
      times[1].push_back(microseconds(avx512::kernels, sizes, layers));
    }
    for (auto& each : times) std::sort(each.begin(), each.end());
    std::printf("%-8s AVX2 %.2f, %.2f; AVX-512 %.2f, %.2f\n", name, times[0][0], times[0][ROUNDS / 2], times[1][0],
                times[1][ROUNDS / 2]);
  }
}
