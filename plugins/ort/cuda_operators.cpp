// The operators on CUDA. Every launch goes to ONNX Runtime's stream, so a step can be captured in a graph.

#include "cuda_operators.h"

#include <algorithm>

#include "attention_signature.h"
#include "cuda_linear.h"
#include "cuda_node.h"
#include "operators.h"
#include "top_logits.h"

namespace liger {
namespace {

constexpr int64_t BLOCK = 16, CHUNK = 64;   // tokens: kernels/plans.py
constexpr int64_t PART = 2048;              // logits: kernels/plans.py
constexpr int64_t BATCHED_COLUMNS = 16384;  // columns of all states in a batch: kernels/plans.py

template <class Element>
class CudaAttention : public AttentionSignature {
 public:
  explicit CudaAttention(const ort::Info& info)
      : AttentionSignature(info), compiled_(info, KERNELS), allocator_(gpu_allocator(info)) {
    shape_ = sizes.mixer == Mixer::gla ? "gla" : "hgrn2";
    for (const int64_t size : {sizes.num_key_value_heads, sizes.num_queries_per_kv, sizes.head_dim, sizes.window}) {
      shape_ += " " + std::to_string(size);
    }
    shape_ += std::string(" ") + ActivationName<Element>::value;
  }

  void run(const ort::Context& context) const {
    const CudaKernels& kernels = compiled_.get();
    if (kernels.shape() != shape_) {
      throw ort::Error("liger::Attention: the graph's kernels are for " + kernels.shape() + ", this layer is " + shape_ +
                       "; convert the package again");
    }
    const auto call = this->template call<Element>(context);
    Arguments arguments = shared(call);
    if (call.length == 1) {
      run_step(kernels, call, arguments, context.stream());
    } else {
      run_chunkwise(kernels, call, arguments, context.stream());
    }
  }

 private:
  Arguments shared(const Call<Element>& call) const {
    Arguments arguments;
    arguments.pointer("query", call.query);
    arguments.pointer("key", call.key);
    arguments.pointer("value", call.value);
    arguments.pointer("cos", call.cos);
    arguments.pointer("sin", call.sin);
    arguments.pointer("position_ids", call.position_ids);
    arguments.pointer("state", call.states[0]);
    arguments.pointer("window_key", call.window_key);
    arguments.pointer("window_value", call.window_value);
    arguments.pointer("output", call.output);
    arguments.pointer("next_state", call.next_states[0]);
    arguments.pointer("next_window_key", call.next_window_key);
    arguments.pointer("next_window_value", call.next_window_value);
    arguments.integer("query_stride", call.query_stride);
    arguments.integer("key_stride", call.key_stride);
    arguments.integer("value_stride", call.value_stride);
    arguments.number("gate_normalizer", sizes.gate_normalizer);
    arguments.number("recurrent_weight", sizes.recurrent_weight);
    return arguments;
  }

  void run_step(const CudaKernels& kernels, const Call<Element>& call, Arguments& arguments, void* stream) const {
    const int64_t columns = product({call.batch, sizes.num_key_value_heads, sizes.head_dim});
    if (columns < BATCHED_COLUMNS || !kernels.has("many_step_kernel")) {
      kernels.launch("step_kernel", arguments, call.batch, 1, stream);
      return;
    }
    const size_t vectors = product({columns, sizes.num_queries_per_kv + 2, sizeof(float)});
    const size_t queries = product({columns, sizes.num_queries_per_kv, sizeof(Element)});
    Workspace workspace(allocator_, Workspace::aligned(vectors) + Workspace::aligned(queries));
    arguments.pointer("vectors", workspace.take(vectors));
    arguments.pointer("rotated_queries", workspace.take(queries));
    kernels.launch("many_step_kernel", arguments, call.batch, 1, stream);
  }

  void run_chunkwise(const CudaKernels& kernels, const Call<Element>& call, Arguments& arguments, void* stream) const {
    if (product({call.length, call.query_stride}) >= int64_t{1} << 31) {
      throw ort::Error("liger::Attention: too many tokens in one call; split them into several calls");
    }
    const int64_t padded = (call.length + CHUNK - 1) / CHUNK * CHUNK, heads = product({call.batch, sizes.num_key_value_heads});
    // In bytes of float32, which has the most of all pieces.
    const size_t rows = product({heads, padded, sizes.head_dim, sizeof(float)}) / sizeof(float), chunks = rows / CHUNK;
    const std::initializer_list<std::pair<const char*, size_t>> pieces = {
        {"counts", call.batch * sizeof(int32_t)},
        {"features", rows * sizeof(float)},
        {"gates", rows * sizeof(float)},
        {"decayed_keys", rows * sizeof(Element)},
        {"rotated_keys", rows * sizeof(Element)},
        {"block_gates", rows / BLOCK * sizeof(float)},
        {"entering", chunks * sizes.head_dim * sizeof(float)},
    };
    size_t bytes = 0;
    for (const auto& piece : pieces) bytes += Workspace::aligned(piece.second);
    Workspace workspace(allocator_, bytes);
    for (const auto& [name, size] : pieces) arguments.pointer(name, workspace.take(size));
    arguments.integer("query_batch_stride", call.length * call.query_stride);
    arguments.integer("key_batch_stride", call.length * call.key_stride);
    arguments.integer("value_batch_stride", call.length * call.value_stride);
    arguments.integer("length", call.length);
    arguments.integer("padded_length", padded);
    for (const char* name :
         {"count_kernel", "prepare_kernel", "pass_kernel", "window_kernel", "output_kernel", "leave_kernel"}) {
      kernels.launch(name, arguments, call.batch, call.length, stream);
    }
  }

  Compiled compiled_;
  OrtAllocator* allocator_;
  std::string shape_;
};

class CudaGatedSiLU : public GatedSiLUSignature {
 public:
  explicit CudaGatedSiLU(const ort::Info& info) : compiled_(info, KERNELS) {}

  void run(const ort::Context& context) const {
    const auto [input, output] = call(context);
    Arguments arguments;
    arguments.pointer("rows", input.data);
    arguments.pointer("gated", output.data);
    arguments.integer("width", output.shape[2]);
    const int64_t rows = product({output.shape[0], output.shape[1]});
    compiled_.get().launch("gated_silu_kernel", arguments, rows, output.shape[2], context.stream());
  }

 private:
  Compiled compiled_;
};

class CudaArgmax : public ArgmaxSignature {
 public:
  explicit CudaArgmax(const ort::Info& info) : compiled_(info, KERNELS), allocator_(gpu_allocator(info)) {}

  void run(const ort::Context& context) const {
    const auto [input, output] = call(context);
    const int64_t rows = product({output.shape[0], output.shape[1]}), parts = (input.shape[2] + PART - 1) / PART;
    const size_t bytes = Workspace::aligned(product({rows, parts, sizeof(float)}));
    Workspace workspace(allocator_, 2 * bytes);
    Arguments arguments;
    arguments.pointer("logits", input.data);
    arguments.pointer("values", workspace.take(bytes));
    arguments.pointer("indices", workspace.take(bytes));
    arguments.pointer("chosen", output.data);
    arguments.integer("width", input.shape[2]);
    arguments.integer("parts", parts);
    compiled_.get().launch("best_of_parts_kernel", arguments, rows, input.shape[2], context.stream());
    compiled_.get().launch("most_likely_kernel", arguments, rows, 1, context.stream());
  }

 private:
  Compiled compiled_;
  OrtAllocator* allocator_;
};

template <class Table>
class CudaRotaryAngles : public RotaryAnglesSignature<Table> {
 public:
  explicit CudaRotaryAngles(const ort::Info& info) : compiled_(info, CudaRotaryAngles::KERNELS) {}

  void run(const ort::Context& context) const {
    const auto [positions, table, cos, sin] = this->call(context);
    Arguments arguments;
    arguments.pointer("position_ids", positions.data);
    arguments.pointer(this->has_turns ? "turns" : "frequencies", table.data);
    arguments.pointer("cos", cos.data);
    arguments.pointer("sin", sin.data);
    arguments.integer("width", cos.shape[2]);
    const int64_t tokens = product({positions.shape[0], positions.shape[1]});
    compiled_.get().launch("angles_kernel", arguments, tokens, 1, context.stream());
  }

 private:
  Compiled compiled_;
};

template <class Element>
class CudaLastPositions : public LastPositionsSignature {
 public:
  using LastPositionsSignature::LastPositionsSignature;

  void run(const ort::Context& context) const {
    void* const stream = context.stream();
    LastPositionsSignature::run(context, sizeof(Element), [stream](void* to, const void* from, size_t bytes) {
      copy_on_device(to, from, bytes, stream);
    });
  }
};

// Adds the operators whose activations have any dtype.
template <class Element, OrtElementType activation>
void add_typed(const OrtApi* api, OrtCustomOpDomain* domain) {
  ort::add_operator<CudaAttention<Element>, activation>(api, domain, ort::CUDA);
  ort::add_operator<CudaGatedSiLU, activation>(api, domain, ort::CUDA);
  ort::add_operator<CudaLastPositions<Element>, activation>(api, domain, ort::CUDA);
}

}  // namespace

void add_cuda_operators(const OrtApi* api, OrtCustomOpDomain* domain) {
  add_typed<float, ORT_FLOAT>(api, domain);
  add_typed<Half, ORT_FLOAT16>(api, domain);
  add_typed<BFloat16, ORT_BFLOAT16>(api, domain);
  ort::add_operator<CudaArgmax, ORT_FLOAT>(api, domain, ort::CUDA);
  ort::add_operator<CudaRotaryAngles<int64_t>, ORT_INT64>(api, domain, ort::CUDA);
  ort::add_operator<CudaRotaryAngles<float>, ORT_FLOAT>(api, domain, ort::CUDA);
  add_linear_operators(api, domain);
  add_cuda_top_logits(api, domain);
}

}  // namespace liger
