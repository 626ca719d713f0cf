// liger::IntegerLinear and liger::IntegerLogits on a CPU, and liger::Linear and liger::Logits with float16 or bfloat16
// weights.
//
// The weight is read where ONNX Runtime has it: with external data, in the mapped file. A thread reads pieces of a weight
// that lie one after another, because it prefetches beyond the one it computes, and helps another when it has finished.

#include "cpu_linear_operator.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "call_memory.h"
#include "cpu_linear.h"
#include "linear_signature.h"

namespace liger {
namespace {

constexpr int64_t MAX_WORKERS = 64;

// Consecutive pieces that workers take one by one.
struct alignas(64) Range {
  std::atomic<int64_t> next;
  int64_t end;

  int64_t left() const { return end - next.load(std::memory_order_relaxed); }
};

// Runs a call's pieces on the threads of ONNX Runtime: body(piece, worker). Each worker has a range of them, and then
// takes from the one with the most left.
template <class Body>
void for_each_piece(const ort::Context& context, int64_t pieces, int64_t workers, const Body& body) {
  Range ranges[MAX_WORKERS];
  for (int64_t worker = 0; worker < workers; ++worker) {
    ranges[worker].next = worker * pieces / workers;
    ranges[worker].end = (worker + 1) * pieces / workers;
  }
  context.parallel(workers, [&](size_t worker) {
    for (Range* range = &ranges[worker]; range->left() > 0;) {
      for (int64_t piece = range->next++; piece < range->end; piece = range->next++) body(piece, worker);
      const auto has_less = [](const Range& one, const Range& other) { return one.left() < other.left(); };
      range = std::max_element(ranges, ranges + workers, has_less);
    }
  });
}

// Runs body(token) for every token.
template <class Body>
void for_each_token(const ort::Context& context, int64_t tokens, const Body& body) {
  if (tokens > MAX_STREAMED_TOKENS) return context.parallel(tokens, body);
  for (int64_t token = 0; token < tokens; ++token) body(token);  // sooner done than shared
}

int64_t workers_for(int64_t pieces) {
  static const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  return std::min({pieces, threads, MAX_WORKERS});
}

template <class Element, class Weight>
int64_t pieces_of(const CpuLinearCall<Element, Weight>& call) {
  return (call.result_rows() + LINEAR_PIECE - 1) / LINEAR_PIECE;
}

// What calls with any weight have in common.
template <class Element, class Weight>
void fill(CpuLinearCall<Element, Weight>& call, const LinearCall& from, bool is_gated, bool to_float, float epsilon) {
  call.tokens = from.tokens;
  call.is_gated = is_gated;
  call.to_float = to_float;
  call.epsilon = epsilon;
  call.weight.rows = from.rows;
  call.hidden = from.hidden.template as<Element>();
  call.norm = from.norm.template as<Element>();
  call.bias = from.bias.template as<Element>();
  call.residual = from.residual.template as<Element>();
  call.output = from.output.data;
}

template <class Element, bool is_logits>
class CpuIntegerLinear : LinearSignature<true, is_logits> {
  using Signature = LinearSignature<true, is_logits>;
  using Signature::bits, Signature::block_size, Signature::epsilon, Signature::is_gated;

 public:
  using Signature::inputs, Signature::name, Signature::outputs;

  explicit CpuIntegerLinear(const ort::Info& info) : Signature(info) {
    if (block_size != 32 && block_size != 64 && block_size != 128) {
      throw ort::Error(std::string("liger::") + name + " needs blocks of 32, 64 or 128 weights on a CPU");
    }
  }

  void run(const ort::Context& context) const {
    IntegerLinearCall<Element> call = call_of(Signature::call(context));
    if (call.tokens == 0) return;
    const IntegerLinearKernels<Element>& kernels = linear_kernels();
    const int64_t pieces = pieces_of(call), workers = workers_for(pieces);
    const int64_t of_worker = aligned(kernels.memory_of_piece(call));
    const int64_t of_integers = product({call.tokens, RoundedActivations::padded(call.weight.columns())});
    const int64_t of_scales = aligned(product({call.tokens, call.weight.blocks, sizeof(float)}));
    char* memory = memory_of_calls(of_integers + 2 * of_scales + product({workers, of_worker}));
    call.rounded.row_bytes = RoundedActivations::padded(call.weight.columns());
    call.rounded.integers = reinterpret_cast<int8_t*>(memory);
    call.rounded.scales = reinterpret_cast<float*>(memory += of_integers);
    call.rounded.sums = reinterpret_cast<float*>(memory += of_scales);
    memory += of_scales;
    for_each_token(context, call.tokens, [&](size_t token) { kernels.round(call, token); });
    for_each_piece(context, pieces, workers, [&](int64_t piece, size_t worker) {
      kernels.multiply(call, piece, memory + worker * of_worker);
    });
  }

 private:
  IntegerLinearCall<Element> call_of(const LinearCall& from) const {
    IntegerLinearCall<Element> call{};
    fill(call, from, is_gated, is_logits, epsilon);
    call.weight.blocks = from.columns / block_size;
    call.weight.block_size = block_size;
    call.weight.bits = static_cast<int>(bits);
    call.weight.integers = from.weight.template as<uint8_t>();
    call.weight.scales = from.scales.template as<Element>();
    call.weight.zero_points = from.zero_points.template as<uint8_t>();
    return call;
  }
};

template <class Element, bool is_logits>
class CpuDenseLinear : LinearSignature<false, is_logits> {
  using Signature = LinearSignature<false, is_logits>;

 public:
  using Signature::inputs, Signature::name, Signature::outputs;

  explicit CpuDenseLinear(const ort::Info& info) : Signature(info) {}

  void run(const ort::Context& context) const {
    const LinearCall from = Signature::call(context);
    if (from.columns % 16) throw ort::Error(std::string("liger::") + name + " needs a multiple of 16 columns on a CPU");
    if (from.tokens == 0) return;
    DenseLinearCall<Element> call{};
    fill(call, from, Signature::is_gated, is_logits, Signature::epsilon);
    call.weight.width = from.columns;
    call.weight.numbers = from.weight.template as<Element>();
    const DenseLinearKernels<Element>& kernels = linear_kernels();
    call.normalized = reinterpret_cast<float*>(memory_of_calls(product({call.tokens, from.columns, sizeof(float)})));
    for_each_token(context, call.tokens, [&](size_t token) { kernels.normalize(call, token); });
    const int64_t pieces = pieces_of(call);
    for_each_piece(context, pieces, workers_for(pieces), [&](int64_t piece, size_t) { kernels.multiply(call, piece); });
  }
};

// Adds the operator of layers and that of logits: Linear<Element, is_logits>.
template <template <class, bool> class Linear, class Element, OrtElementType activation>
void add(const OrtApi* api, OrtCustomOpDomain* domain) {
  ort::add_operator<Linear<Element, false>, activation>(api, domain, ort::CPU);
  ort::add_operator<Linear<Element, true>, activation>(api, domain, ort::CPU);
}

}  // namespace

void add_cpu_linear_operators(const OrtApi* api, OrtCustomOpDomain* domain) {
  add<CpuIntegerLinear, float, ORT_FLOAT>(api, domain);
  add<CpuIntegerLinear, Half, ORT_FLOAT16>(api, domain);
  add<CpuIntegerLinear, BFloat16, ORT_BFLOAT16>(api, domain);
  add<CpuDenseLinear, Half, ORT_FLOAT16>(api, domain);
  add<CpuDenseLinear, BFloat16, ORT_BFLOAT16>(api, domain);
}

}  // namespace liger
