// ONNX Runtime's interface for C++: tensors as values, failures as exceptions, operators as classes.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

#include "ort_api.h"

namespace ort {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws a status's message as an exception, and releases the status.
inline void check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = GetErrorMessage::call(api, status);
  ReleaseStatus::call(api, status);
  throw Error(message);
}

// Runs `body` and returns exceptions as a status: no exception may cross into ONNX Runtime.
template <class Body>
OrtStatus* guarded(const OrtApi* api, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return CreateStatus::call(api, ORT_FAIL, "liger: not enough memory for this call; pass fewer tokens per call");
  } catch (const std::exception& error) {
    return CreateStatus::call(api, ORT_FAIL, error.what());
  } catch (...) {
    return CreateStatus::call(api, ORT_FAIL, "liger: unknown error in an operator; please report it");
  }
}

constexpr size_t MAX_RANK = 4;

struct Tensor {
  bool is_present = false;
  OrtElementType type = ORT_UNDEFINED;
  void* data = nullptr;  // may be null if the tensor is empty
  size_t rank = 0;
  std::array<int64_t, MAX_RANK> shape{};

  template <class Element>
  Element* as() const {
    return static_cast<Element*>(data);
  }
  explicit operator bool() const { return is_present; }
};

// A tensor's memory, dtype and shape; an absent tensor if `value` is null.
inline Tensor tensor_of(const OrtApi* api, const OrtValue* value) {
  Tensor tensor;
  if (value == nullptr) return tensor;
  tensor.is_present = true;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, GetTensorTypeAndShape::call(api, value, &info));
  OrtStatus* status = GetTensorElementType::call(api, info, &tensor.type);
  if (status == nullptr) status = GetDimensionsCount::call(api, info, &tensor.rank);
  if (status == nullptr && tensor.rank <= MAX_RANK) {
    status = GetDimensions::call(api, info, tensor.shape.data(), tensor.rank);
  }
  ReleaseTypeAndShape::call(api, info);
  check(api, status);
  if (tensor.rank > MAX_RANK) throw Error("liger: a tensor has more than 4 dimensions");
  check(api, GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

// An input or output of an operator. ACTIVATION stands for the dtype that the operator is registered for.
constexpr OrtElementType ACTIVATION = ORT_UNDEFINED;
struct Parameter {
  OrtElementType type;
  OrtCharacteristic characteristic = ORT_REQUIRED;
  OrtMemType memory = ORT_MEM_DEFAULT;
};

// The inputs of an operator for one activation dtype.
struct Signature {
  const Parameter* inputs;
  OrtElementType activation;

  OrtElementType type(const Parameter& parameter) const {
    return parameter.type == ACTIVATION ? activation : parameter.type;
  }
};

// A call's tensors.
class Context {
 public:
  Context(const OrtApi* api, OrtKernelContext* context, const Signature& signature)
      : api_(api), context_(context), signature_(signature) {
    check(api, GetInputCount::call(api, context, &inputs_));
  }

  // An input of the dtype in the signature. Only optional ones may be absent.
  Tensor input(size_t index) const {
    const Parameter& parameter = signature_.inputs[index];
    const OrtValue* value = nullptr;
    if (index < inputs_) check(api_, GetInput::call(api_, context_, index, &value));
    const Tensor tensor = tensor_of(api_, value);
    const auto name = [&] { return "liger: input " + std::to_string(index + 1); };
    if (!tensor && parameter.characteristic == ORT_REQUIRED) throw Error(name() + " is absent");
    if (tensor && tensor.type != signature_.type(parameter)) {
      throw Error(name() + " must have ONNX element type " + std::to_string(signature_.type(parameter)) + ", not " +
                  std::to_string(tensor.type));
    }
    return tensor;
  }

  Tensor output(size_t index, std::initializer_list<int64_t> shape) const {
    OrtValue* value = nullptr;
    check(api_, GetOutput::call(api_, context_, index, shape.begin(), shape.size(), &value));
    Tensor tensor;
    tensor.is_present = true;
    tensor.rank = shape.size();
    std::copy(shape.begin(), shape.end(), tensor.shape.begin());
    check(api_, GetTensorMutableData::call(api_, value, &tensor.data));
    return tensor;
  }

  // The CUDA stream of the call.
  void* stream() const {
    void* stream = nullptr;
    check(api_, GetComputeStream::call(api_, context_, &stream));
    return stream;
  }

  // Runs body(0), ..., body(total - 1) on the session's threads, and throws the first exception of theirs. None may reach
  // ONNX Runtime's threads: the call would wait for ever.
  template <class Body>
  void parallel(size_t total, const Body& body) const {
    if (total == 0) return;
    std::atomic<bool> has_failed{false};
    std::exception_ptr failure;
    auto guarded_body = [&](size_t index) noexcept {
      try {
        if (!has_failed) body(index);
      } catch (...) {
        if (!has_failed.exchange(true)) failure = std::current_exception();
      }
    };
    auto run = [](void* data, size_t index) { (*static_cast<decltype(guarded_body)*>(data))(index); };
    check(api_, ParallelFor::call(api_, context_, run, total, 0, &guarded_body));
    if (failure) std::rethrow_exception(failure);
  }

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
  const Signature& signature_;
  size_t inputs_ = 0;
};

// A node's attributes and constant inputs.
class Info {
 public:
  Info(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  int64_t integer(const char* name) const {
    int64_t value = 0;
    check(api_, GetAttributeInt::call(api_, info_, name, &value));
    return value;
  }

  float number(const char* name) const {
    float value = 0;
    check(api_, GetAttributeFloat::call(api_, info_, name, &value));
    return value;
  }

  std::string text(const char* name) const {
    size_t size = 0;
    check(api_, GetAttributeString::call(api_, info_, name, nullptr, &size));
    std::string value(size, '\0');
    check(api_, GetAttributeString::call(api_, info_, name, value.data(), &size));
    value.resize(size - 1);  // the size counts the terminating zero
    return value;
  }

  Tensor constant(size_t index) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(api_, GetConstantInput::call(api_, info_, index, &is_constant, &value));
    return is_constant ? tensor_of(api_, value) : Tensor{};
  }

  const OrtKernelInfo* raw() const { return info_; }
  const OrtApi* api() const { return api_; }

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

constexpr const char* CPU = "CPUExecutionProvider";
constexpr const char* CUDA = "CUDAExecutionProvider";

// An operator for one activation dtype on one kind of device. A Kernel is constructed from an Info and has `run(Context)`,
// the operator's `name`, and its parameters `inputs` and `outputs`.
template <class Kernel>
class Operator : public OrtCustomOp {
 public:
  Operator(const char* provider, OrtElementType activation)
      : OrtCustomOp{}, provider_(provider), signature_{Kernel::inputs.data(), activation} {
    version = ORT_VERSION;
    GetName = [](const OrtCustomOp*) { return Kernel::name; };
    GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op)->provider_; };
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::inputs.size(); };
    GetInputType = [](const OrtCustomOp* op, size_t index) { return self(op)->signature_.type(Kernel::inputs[index]); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return Kernel::inputs[index].characteristic; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t index) { return Kernel::inputs[index].memory; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::outputs.size(); };
    GetOutputType = [](const OrtCustomOp* op, size_t index) { return self(op)->signature_.type(Kernel::outputs[index]); };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return ORT_REQUIRED; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    GetStartVersion = GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
      return guarded(api, [&] { *kernel = new Instance{api, self(op)->signature_, Kernel(Info(api, info))}; });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      auto* instance = static_cast<Instance*>(kernel);
      return guarded(instance->api, [&] { instance->kernel.run(Context(instance->api, context, instance->signature)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

 private:
  struct Instance {
    const OrtApi* api;
    Signature signature;
    Kernel kernel;
  };

  static const Operator* self(const OrtCustomOp* op) { return static_cast<const Operator*>(op); }

  const char* provider_;
  Signature signature_;
};

// Adds an operator to a domain. It is static, because sessions keep pointers to it.
template <class Kernel, OrtElementType activation>
void add_operator(const OrtApi* api, OrtCustomOpDomain* domain, const char* provider) {
  static const Operator<Kernel> op(provider, activation);
  check(api, CustomOpDomainAdd::call(api, domain, &op));
}

}  // namespace ort
