#include "cuda_linear.h"

#include <algorithm>

#include "cuda_gemm.h"
#include "cuda_node.h"
#include "operators.h"

namespace liger {
namespace {

constexpr int64_t MAX_FUSED_TOKENS = 4;  // up to which the fused kernel is used, which reads all weights once per token
constexpr int64_t PIECE = 8192;          // rows dequantized at a time

template <class Element>
constexpr CudaType TYPE = CudaType::float32;
template <>
constexpr CudaType TYPE<Half> = CudaType::float16;
template <>
constexpr CudaType TYPE<BFloat16> = CudaType::bfloat16;

// One call: T tokens, a weight of N rows and K columns. Absent optional tensors have no data.
struct LinearCall {
  int64_t tokens, rows, columns;
  ort::Tensor hidden, weight, scales, zero_points, norm, bias, residual, output;
};

// liger::Linear. Inputs: hidden [B, T, K]; weight [N, K]; optional RMSNorm weight [K], bias [N], and residual with the
// result's shape; compiled GPU kernels. Result: the normalized hidden states times the weight, plus bias. If `gated`, the
// first half of that is the gate of the second. Plus the residual. Shape [B, T, N], or [B, T, N / 2] if gated.
// liger::IntegerLinear has a weight in the layout of MatMulNBits: integers [N, K / block_size, bytes], scales
// [N, K / block_size], optional zero points. liger::Logits and liger::IntegerLogits return float32 for any activations.
template <class Element, bool is_integer, bool is_logits>
class CudaLinear {
  static constexpr size_t OPTIONS = is_integer ? 4 : 2;  // index of the first input after the weight
  static constexpr ort::Parameter OPTION{ort::ACTIVATION, ORT_OPTIONAL};
  static constexpr ort::Parameter BUNDLE{ORT_UINT8, ORT_OPTIONAL, ORT_MEM_CPU_INPUT};
  static constexpr ort::Parameter PRESENT{ort::ACTIVATION};

 public:
  static constexpr const char* name =
      is_integer ? (is_logits ? "IntegerLogits" : "IntegerLinear") : (is_logits ? "Logits" : "Linear");
  static constexpr auto inputs = [] {
    if constexpr (is_integer) {
      constexpr ort::Parameter integers{ORT_UINT8}, zero_points{ORT_UINT8, ORT_OPTIONAL};
      return std::array<ort::Parameter, 8>{{PRESENT, integers, PRESENT, zero_points, OPTION, OPTION, OPTION, BUNDLE}};
    } else {
      return std::array<ort::Parameter, 6>{{PRESENT, PRESENT, OPTION, OPTION, OPTION, BUNDLE}};
    }
  }();
  static constexpr std::array<ort::Parameter, 1> outputs{{{is_logits ? ORT_FLOAT : ort::ACTIVATION}}};

  explicit CudaLinear(const ort::Info& info)
      : compiled_(info, OPTIONS + 3),
        allocator_(gpu_allocator(info)),
        kernel_(info.text("kernel")),
        epsilon_(info.number("epsilon")),
        is_gated_(info.integer("gated") != 0) {
    if constexpr (is_integer) {
      bits_ = info.integer("bits");
      block_size_ = info.integer("block_size");
      if ((bits_ != 4 && bits_ != 8) || block_size_ < 32 || block_size_ > 1 << 16 || block_size_ % 32) {
        throw ort::Error(std::string("liger::") + name +
                         " needs 4 or 8 bits and blocks of a multiple of 32 weights, up to 65536");
      }
      dequantize_ = "dequantize_kernel_" + std::to_string(bits_) + "_" + std::to_string(block_size_);
    }
  }

  void run(const ort::Context& context) const {
    const LinearCall call = this->call(context);
    if (call.tokens == 0) return;
    if (call.tokens <= MAX_FUSED_TOKENS) {
      Arguments arguments = shared(call);
      arguments.pointer(is_integer ? "words" : "weight", call.weight.data);
      arguments.pointer("output", call.output.data);
      compiled_.get().launch(kernel_, arguments, call.tokens, result_rows(call), context.stream());
    } else {
      multiply_with_cublas(call, context.stream());
    }
  }

 private:
  int64_t result_rows(const LinearCall& call) const { return is_gated_ ? call.rows / 2 : call.rows; }

  LinearCall call(const ort::Context& context) const {
    LinearCall call{};
    call.hidden = context.input(0);
    call.weight = context.input(1);
    require_axes("hidden states", call.hidden, "[B, T, K]");
    require_axes("weight", call.weight, is_integer ? "[N, blocks, bytes]" : "[N, K]");
    const int64_t batch = call.hidden.shape[0], length = call.hidden.shape[1];
    call.tokens = product({batch, length});
    call.columns = call.hidden.shape[2];
    call.rows = call.weight.shape[0];
    if (call.columns < 1 || call.rows < 1 || (is_gated_ && call.rows % 2)) {
      refuse_shape("weight", is_gated_ ? "[2 N, K]" : "[N, K] with N and K of at least 1", call.weight);
    }
    if constexpr (is_integer) {
      const int64_t blocks = call.columns / block_size_;
      if (call.columns % block_size_) refuse_shape("hidden states", "[B, T, blocks * block_size]", call.hidden);
      call.scales = context.input(2);
      call.zero_points = context.input(3);
      require_shape("weight", call.weight, {call.rows, blocks, block_size_ * bits_ / 8});
      require_shape("scales", call.scales, {call.rows, blocks});
      if (call.zero_points) require_shape("zero_points", call.zero_points, {call.rows, (blocks * bits_ + 7) / 8});
    } else {
      require_shape("weight", call.weight, {call.rows, call.columns});
    }
    call.norm = context.input(OPTIONS);
    call.bias = context.input(OPTIONS + 1);
    call.residual = context.input(OPTIONS + 2);
    if (call.norm) require_shape("norm_weight", call.norm, {call.columns});
    if (call.bias) require_shape("bias", call.bias, {call.rows});
    if (call.residual) require_shape("residual", call.residual, {batch, length, result_rows(call)});
    if (call.residual && is_gated_) throw ort::Error("liger: a gated layer does not support a residual");
    if (is_logits && (call.bias || call.residual)) throw ort::Error("liger: logits do not support a bias or a residual");
    call.output = context.output(0, {batch, length, result_rows(call)});
    return call;
  }

  Arguments shared(const LinearCall& call) const {
    Arguments arguments;
    const std::initializer_list<std::pair<const char*, const ort::Tensor*>> pointers = {
        {"hidden", &call.hidden},           {"scales", &call.scales}, {"zero_points", &call.zero_points},
        {"norm_weight", &call.norm},        {"bias", &call.bias},     {"residual", &call.residual},
    };
    for (const auto& [name, tensor] : pointers) arguments.pointer(name, tensor->data);
    arguments.integer("has_norm", bool(call.norm));
    arguments.integer("has_zero_points", bool(call.zero_points));
    arguments.integer("has_bias", bool(call.bias));
    arguments.integer("has_residual", bool(call.residual));
    arguments.integer("in_features", call.columns);
    arguments.integer("out_features", result_rows(call));
    arguments.number("epsilon", epsilon_);
    return arguments;
  }

  void multiply_with_cublas(const LinearCall& call, void* stream) const {
    const CudaKernels& kernels = compiled_.get();
    const size_t row = call.columns * sizeof(Element);
    const size_t normed = call.norm ? call.tokens * row : 0;
    const size_t numbers = is_integer ? std::min(call.rows, PIECE) * row : 0;
    const size_t gate_and_up = is_gated_ ? product({call.tokens, call.rows, sizeof(Element)}) : 0;
    Workspace workspace(allocator_,
                        Workspace::aligned(normed) + Workspace::aligned(numbers) + Workspace::aligned(gate_and_up));
    Arguments arguments = shared(call);
    Product product{call.tokens, call.rows,   call.columns, call.hidden.data, call.weight.data,
                    call.output.data, call.rows, TYPE<Element>, is_logits ? CudaType::float32 : TYPE<Element>,
                    call.bias || call.residual};
    if (call.norm) {
      product.hidden = workspace.take(normed);
      arguments.pointer("output", product.hidden);
      arguments.integer("width", call.columns);
      kernels.launch("rms_norm_kernel", arguments, call.tokens, call.columns, stream);
    }
    void* const dequantized = workspace.take(numbers);
    if (is_gated_) product.output = workspace.take(gate_and_up);
    if (product.adds) {
      arguments.pointer("output", product.output);
      arguments.integer("width", call.rows);
      kernels.launch("begin_kernel", arguments, call.tokens, call.rows, stream);
    }
    if constexpr (is_integer) {
      multiply_pieces(call, product, dequantized, stream);
    } else {
      multiply(product, stream);
    }
    if (is_gated_) {
      arguments.pointer("rows", product.output);
      arguments.pointer("gated", call.output.data);
      arguments.integer("width", result_rows(call));
      kernels.launch("gated_silu_kernel", arguments, call.tokens, result_rows(call), stream);
    }
  }

  // Dequantizes and multiplies PIECE rows at a time.
  void multiply_pieces(const LinearCall& call, Product product, void* numbers, void* stream) const {
    const int64_t blocks = call.columns / block_size_;
    const int64_t row_bytes = call.columns * bits_ / 8, zero_bytes = (blocks * bits_ + 7) / 8;
    const size_t output_size = is_logits ? sizeof(float) : sizeof(Element);
    char* const output = static_cast<char*>(product.output);
    Arguments arguments = shared(call);
    for (int64_t start = 0; start < call.rows; start += PIECE) {
      const int64_t rows = std::min(PIECE, call.rows - start);
      arguments.pointer("words", call.weight.template as<char>() + start * row_bytes);
      arguments.pointer("scales", call.scales.template as<Element>() + start * blocks);
      if (call.zero_points) arguments.pointer("zero_points", call.zero_points.template as<char>() + start * zero_bytes);
      arguments.pointer("output", numbers);
      arguments.integer("width", call.columns);
      compiled_.get().launch(dequantize_, arguments, rows, call.columns, stream);
      product.rows = rows;
      product.weight = numbers;
      product.output = output + start * output_size;
      multiply(product, stream);
    }
  }

  Compiled compiled_;
  OrtAllocator* allocator_;
  std::string kernel_, dequantize_;
  float epsilon_;
  bool is_gated_;
  int64_t bits_ = 0, block_size_ = 0;
};

template <class Element, bool is_integer, bool is_logits>
void add(const OrtApi* api, OrtCustomOpDomain* domain, OrtElementType activation) {
  static const ort::Operator<CudaLinear<Element, is_integer, is_logits>> op(ort::CUDA, activation);
  ort::check(api, ort::CustomOpDomainAdd::call(api, domain, &op));
}

template <class Element>
void add_all(const OrtApi* api, OrtCustomOpDomain* domain, OrtElementType activation) {
  add<Element, false, false>(api, domain, activation);
  add<Element, false, true>(api, domain, activation);
  add<Element, true, false>(api, domain, activation);
  add<Element, true, true>(api, domain, activation);
}

}  // namespace

void add_linear_operators(const OrtApi* api, OrtCustomOpDomain* domain) {
  add_all<float>(api, domain, ORT_FLOAT);
  add_all<Half>(api, domain, ORT_FLOAT16);
  add_all<BFloat16>(api, domain, ORT_BFLOAT16);
}

}  // namespace liger
