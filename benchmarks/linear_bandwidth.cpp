// Speed of quantized linear layers on one thread of a CPU, in turns with a loop that only reads the same bytes.
//
//     g++ -std=c++17 -O3 -march=native -Wno-psabi -Iplugins/ort benchmarks/linear_bandwidth.cpp -o linear_bandwidth
//     ./linear_bandwidth COLUMNS BLOCK_SIZE BITS TOKENS MEGABYTES
//
// The weight is in a file that is mapped, as in a package. Prints the best of 12 rounds.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define LIGER_INSTRUCTIONS native
#include "call_memory.h"
#include "cpu_linear.cpp"

namespace {

using namespace liger;

// Seconds of a call.
template <class Body>
double timed(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The sum of all 8-byte words.
uint64_t read_all(const uint8_t* from, int64_t bytes) {
  constexpr int64_t LINE = 64, AHEAD = 4096;
  uint64_t sums[LINE / 8] = {};
  for (int64_t at = 0; at + LINE <= bytes; at += LINE) {
    __builtin_prefetch(from + at + AHEAD);
    uint64_t words[LINE / 8];
    std::memcpy(words, from + at, LINE);
    for (int64_t word = 0; word < LINE / 8; ++word) sums[word] += words[word];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

// A mapped file of arbitrary bytes, which has no name.
const uint8_t* mapped(int64_t bytes) {
  char name[] = "/tmp/linear_bandwidth.XXXXXX";
  const int file = mkstemp(name);
  unlink(name);
  std::vector<uint8_t> content(bytes);
  for (int64_t at = 0; at < bytes; ++at) content[at] = static_cast<uint8_t>(at * 2654435761u >> 13);
  if (write(file, content.data(), bytes) != bytes) std::abort();
  return static_cast<const uint8_t*>(mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) return std::puts("usage: linear_bandwidth COLUMNS BLOCK_SIZE BITS TOKENS MEGABYTES"), 2;
  const int64_t columns = std::stoll(arguments[1]), block_size = std::stoll(arguments[2]);
  const int64_t tokens = std::stoll(arguments[4]);
  IntegerWeight<float> weight{1, columns / block_size, block_size, std::stoi(arguments[3]), nullptr, nullptr, nullptr};
  const int64_t zero_bytes = (weight.blocks * weight.bits + 7) / 8;
  const int64_t row = weight.row_bytes() + 4 * weight.blocks + zero_bytes;
  weight.rows = std::stoll(arguments[5]) * 1000000 / row / LINEAR_PIECE * LINEAR_PIECE;
  weight.integers = mapped(weight.rows * weight.row_bytes());
  weight.zero_points = mapped(weight.rows * zero_bytes);
  const std::vector<float> scales(weight.rows * weight.blocks, 0.01f);
  weight.scales = scales.data();

  const std::vector<float> hidden(tokens * columns, 0.5f);
  std::vector<float> output(tokens * weight.rows), token_scales(tokens * weight.blocks), sums(token_scales);
  std::vector<int8_t> integers(tokens * RoundedActivations::padded(columns));
  IntegerLinearCall<float> call{};
  call.tokens = tokens;
  call.weight = weight;
  call.hidden = hidden.data();
  call.output = output.data();
  call.rounded = {integers.data(), token_scales.data(), sums.data(), RoundedActivations::padded(columns)};
  const IntegerLinearKernels<float>& kernels = native::linear;
  char* const memory = memory_of_calls(kernels.memory_of_piece(call));

  double reading = 1e9, rounding = 1e9, multiplying = 1e9;
  volatile uint64_t unused = 0;
  for (int round = 0; round < 12; ++round) {
    reading = std::min(reading, timed([&] {
      unused = read_all(weight.integers, weight.rows * weight.row_bytes()) +
               read_all(weight.zero_points, weight.rows * zero_bytes) +
               read_all(reinterpret_cast<const uint8_t*>(scales.data()), scales.size() * sizeof(float));
    }));
    rounding = std::min(rounding, timed([&] {
      for (int64_t token = 0; token < tokens; ++token) kernels.round(call, token);
    }));
    multiplying = std::min(multiplying, timed([&] {
      for (int64_t piece = 0; piece * LINEAR_PIECE < weight.rows; ++piece) kernels.multiply(call, piece, memory);
    }));
  }
  const double bytes = 1e-9 * weight.rows * row, products = 1e-9 * weight.rows * columns * tokens;
  std::printf("read %.1f GB/s; product %.1f GB/s (%.0f%%), %.1f billion weights per second; rounding %.1f us\n",
              bytes / reading, bytes / multiplying, 100 * reading / multiplying, products / multiplying, 1e6 * rounding);
}
