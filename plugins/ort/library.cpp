// The library's entry point for ONNX Runtime, which adds the `liger` domain to a session, and the CPU operators.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>

#include "attention_signature.h"
#include "call_memory.h"
#include "cpu_linear_operator.h"
#include "cuda_operators.h"
#include "operators.h"
#include "top_logits.h"

namespace liger {
namespace {

// Padding may only end a row: before a token, it would count as one in the window.
void check_positions(const int64_t* positions, int64_t batch, int64_t length) {
  for (int64_t sequence = 0; sequence < batch; ++sequence, positions += length) {
    for (int64_t token = 0; token < length; ++token) {
      if (positions[token] < -1 || (token > 0 && positions[token] >= 0 && positions[token - 1] < 0)) {
        throw ort::Error("liger: position_ids must be 0 or more, and -1 for padding at the end of a row");
      }
    }
  }
}

template <class Signature, class Element>
class CpuAttention : public Signature {
 public:
  using Signature::Signature;

  void run(const ort::Context& context) const {
    const auto call = this->template call<Element>(context);
    const Sizes& sizes = this->sizes;
    check_positions(call.position_ids, call.batch, call.length);
    const int64_t heads = product({call.batch, sizes.num_key_value_heads});
    if (heads == 0) return;
    const CpuKernels& kernels = attention_kernels(sizes.head_dim);
    // Threads take one head after another, each in memory of its own, so that none allocates.
    static const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
    const int64_t workers = std::min(heads, threads), each = kernels.memory_of_head(sizes, call.state_rows, call.length);
    auto* const memory = reinterpret_cast<float*>(memory_of_calls(product({workers, each, sizeof(float)})));
    const TypedKernels<Element>& typed = kernels;
    std::atomic<int64_t> next{0};
    context.parallel(workers, [&](size_t worker) {
      for (int64_t head = next++; head < heads; head = next++) typed.attend(sizes, call, head, memory + worker * each);
    });
  }
};

template <class Element>
class CpuGatedSiLU : public GatedSiLUSignature {
 public:
  explicit CpuGatedSiLU(const ort::Info&) {}

  void run(const ort::Context& context) const {
    const auto [input, output] = call(context);
    const int64_t size = output.shape[2], pieces = (size + PIECE - 1) / PIECE;
    const auto *rows = input.template as<const Element>();
    auto *to = output.template as<Element>();
    const TypedKernels<Element>& kernels = cpu_kernels();
    context.parallel(product({output.shape[0], output.shape[1], pieces}), [&](size_t index) {
      const int64_t row = index / pieces, start = index % pieces * PIECE, count = std::min(PIECE, size - start);
      const Element *gate = rows + row * 2 * size + start, *up = gate + size;
      kernels.gated_silu(gate, up, to + row * size + start, count);
    });
  }

 private:
  static constexpr int64_t PIECE = 4096;  // enough work to wake a thread
};

class CpuArgmax : public ArgmaxSignature {
 public:
  explicit CpuArgmax(const ort::Info&) {}

  void run(const ort::Context& context) const {
    const auto [input, output] = call(context);
    const int64_t size = input.shape[2];
    const float* logits = input.as<const float>();
    auto* chosen = output.as<int64_t>();
    context.parallel(product({output.shape[0], output.shape[1]}),
                     [&](size_t row) { chosen[row] = cpu_kernels().argmax(logits + row * size, size); });
  }
};

template <class Element>
class CpuLastPositions : public LastPositionsSignature {
 public:
  using LastPositionsSignature::LastPositionsSignature;

  void run(const ort::Context& context) const { LastPositionsSignature::run(context, sizeof(Element), std::memcpy); }
};

class CpuRotaryAngles : public RotaryAnglesSignature<int64_t> {
 public:
  explicit CpuRotaryAngles(const ort::Info&) {}

  void run(const ort::Context& context) const {
    const auto [positions, table, cosines, sines] = call(context);
    const int64_t tokens = positions.shape[0] * positions.shape[1], width = table.shape[1];
    const auto *position = positions.as<const int64_t>(), *turns = table.as<const int64_t>();
    auto *cosine = cosines.as<float>(), *sine = sines.as<float>();
    for (int64_t index = 0; index < tokens * width; ++index) {
      int64_t rotation = TURN / 2;
      for (int64_t place = 0; place < POSITION_BYTES; ++place) {
        rotation += (position[index / width] >> 8 * place & 255) * turns[place * width + index % width];
      }
      const double angle = (rotation % TURN - TURN / 2) * (2 * PI / TURN);
      cosine[index] = static_cast<float>(std::cos(angle));
      sine[index] = static_cast<float>(std::sin(angle));
    }
  }

 private:
  static constexpr double PI = 3.14159265358979323846;
};

// Adds the operators whose activations have any dtype.
template <class Element, OrtElementType activation>
void add_typed(const OrtApi* api, OrtCustomOpDomain* domain) {
  ort::add_operator<CpuAttention<AttentionSignature, Element>, activation>(api, domain, ort::CPU);
  ort::add_operator<CpuAttention<GSASignature, Element>, activation>(api, domain, ort::CPU);
  ort::add_operator<CpuAttention<LoLCATsSignature, Element>, activation>(api, domain, ort::CPU);
  ort::add_operator<CpuGatedSiLU<Element>, activation>(api, domain, ort::CPU);
  ort::add_operator<CpuLastPositions<Element>, activation>(api, domain, ort::CPU);
}

void add_operators(const OrtApi* api, OrtCustomOpDomain* domain) {
  add_typed<float, ORT_FLOAT>(api, domain);
  add_typed<Half, ORT_FLOAT16>(api, domain);
  add_typed<BFloat16, ORT_BFLOAT16>(api, domain);
  ort::add_operator<CpuArgmax, ORT_FLOAT>(api, domain, ort::CPU);
  ort::add_operator<CpuRotaryAngles, ORT_INT64>(api, domain, ort::CPU);
  add_cpu_top_logits(api, domain);
  add_cpu_linear_operators(api, domain);
  add_cuda_operators(api, domain);
}

}  // namespace
}  // namespace liger

// Called by ONNX Runtime after it has loaded the library.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                                const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ort::ORT_VERSION);
  if (api == nullptr) {
    const OrtApi* oldest = base->GetApi(1);
    return ort::CreateStatus::call(oldest, ORT_FAIL, "liger-export's operators need ONNX Runtime 1.18 or newer.");
  }
  return ort::guarded(api, [&] {
    // Never freed, because a domain must outlive the sessions that use it.
    static OrtCustomOpDomain* const domain = [&] {
      OrtCustomOpDomain* created = nullptr;
      ort::check(api, ort::CreateCustomOpDomain::call(api, "liger", &created));
      liger::add_operators(api, created);
      return created;
    }();
    ort::check(api, ort::AddCustomOpDomain::call(api, options, domain));
  });
}
