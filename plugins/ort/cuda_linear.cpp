#include "cuda_linear.h"

#include <algorithm>

#include "cuda_gemm.h"
#include "cuda_node.h"
#include "linear_signature.h"

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

template <class Element, bool is_integer, bool is_logits>
class CudaLinear : LinearSignature<is_integer, is_logits> {
  using Signature = LinearSignature<is_integer, is_logits>;

 public:
  using Signature::inputs, Signature::name, Signature::outputs;

  explicit CudaLinear(const ort::Info& info)
      : Signature(info), compiled_(info, Signature::OPTIONS + 3), allocator_(gpu_allocator(info)), kernel_(info.text("kernel")) {
    if (is_integer) dequantize_ = "dequantize_kernel_" + std::to_string(bits) + "_" + std::to_string(block_size);
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
  using Signature::bits, Signature::block_size, Signature::epsilon, Signature::is_gated, Signature::result_rows;

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
    arguments.number("epsilon", epsilon);
    return arguments;
  }

  void multiply_with_cublas(const LinearCall& call, void* stream) const {
    const CudaKernels& kernels = compiled_.get();
    const size_t row = call.columns * sizeof(Element);
    const size_t normed = call.norm ? call.tokens * row : 0;
    const size_t numbers = is_integer ? std::min(call.rows, PIECE) * row : 0;
    const size_t gate_and_up = is_gated ? product({call.tokens, call.rows, sizeof(Element)}) : 0;
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
    if (is_gated) product.output = workspace.take(gate_and_up);
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
    if (is_gated) {
      arguments.pointer("rows", product.output);
      arguments.pointer("gated", call.output.data);
      arguments.integer("width", result_rows(call));
      kernels.launch("gated_silu_kernel", arguments, call.tokens, result_rows(call), stream);
    }
  }

  // Dequantizes and multiplies PIECE rows at a time.
  void multiply_pieces(const LinearCall& call, Product product, void* numbers, void* stream) const {
    const int64_t blocks = call.columns / block_size;
    const int64_t row_bytes = call.columns * bits / 8, zero_bytes = (blocks * bits + 7) / 8;
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
};

template <class Element, OrtElementType activation>
void add_typed(const OrtApi* api, OrtCustomOpDomain* domain) {
  ort::add_operator<CudaLinear<Element, false, false>, activation>(api, domain, ort::CUDA);
  ort::add_operator<CudaLinear<Element, false, true>, activation>(api, domain, ort::CUDA);
  ort::add_operator<CudaLinear<Element, true, false>, activation>(api, domain, ort::CUDA);
  ort::add_operator<CudaLinear<Element, true, true>, activation>(api, domain, ort::CUDA);
}

}  // namespace

void add_linear_operators(const OrtApi* api, OrtCustomOpDomain* domain) {
  add_typed<float, ORT_FLOAT>(api, domain);
  add_typed<Half, ORT_FLOAT16>(api, domain);
  add_typed<BFloat16, ORT_BFLOAT16>(api, domain);
}

}  // namespace liger
