// ONNX Runtime's interface for C++: tensors as values, failures as exceptions, operators as classes.

#pragma once

#include <array>
#include <initializer_list>
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
  } catch (const std::exception& error) {
    return CreateStatus::call(api, ORT_FAIL, error.what());
  }
}

constexpr size_t MAX_RANK = 4;

struct Tensor {
  void* data = nullptr;
  size_t rank = 0;
  std::array<int64_t, MAX_RANK> shape{};

  template <class Element>
  Element* as() const {
    return static_cast<Element*>(data);
  }
  explicit operator bool() const { return data != nullptr; }
};

// A tensor's memory and shape. An absent tensor has no data.
inline Tensor tensor_of(const OrtApi* api, const OrtValue* value) {
  Tensor tensor;
  if (value == nullptr) return tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, GetTensorTypeAndShape::call(api, value, &info));
  OrtStatus* status = GetDimensionsCount::call(api, info, &tensor.rank);
  if (status == nullptr && tensor.rank <= MAX_RANK) {
    status = GetDimensions::call(api, info, tensor.shape.data(), tensor.rank);
  }
  ReleaseTypeAndShape::call(api, info);
  check(api, status);
  if (tensor.rank > MAX_RANK) throw Error("a tensor has more than 4 dimensions");
  check(api, GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

// A call's tensors.
class Context {
 public:
  Context(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {
    check(api, GetInputCount::call(api, context, &inputs_));
  }

  Tensor input(size_t index) const {
    if (index >= inputs_) return {};
    const OrtValue* value = nullptr;
    check(api_, GetInput::call(api_, context_, index, &value));
    return tensor_of(api_, value);
  }

  Tensor output(size_t index, std::initializer_list<int64_t> shape) const {
    OrtValue* value = nullptr;
    check(api_, GetOutput::call(api_, context_, index, shape.begin(), shape.size(), &value));
    Tensor tensor;
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

  // Runs body(0), ..., body(total - 1) on the session's threads.
  template <class Body>
  void parallel(size_t total, const Body& body) const {
    auto run = [](void* data, size_t index) { (*static_cast<const Body*>(data))(index); };
    check(api_, ParallelFor::call(api_, context_, run, total, 0, const_cast<Body*>(&body)));
  }

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
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

// An input or output of an operator. ACTIVATION stands for the type that the operator is registered for.
constexpr OrtElementType ACTIVATION = ORT_UNDEFINED;
struct Parameter {
  OrtElementType type;
  OrtCharacteristic characteristic = ORT_REQUIRED;
  OrtMemType memory = ORT_MEM_DEFAULT;
};

// An operator for one activation dtype on one kind of device. A Kernel is constructed from an Info and has `run(Context)`,
// the operator's `name`, and its parameters `inputs` and `outputs`.
template <class Kernel>
class Operator : public OrtCustomOp {
 public:
  Operator(const char* provider, OrtElementType activation) : OrtCustomOp{}, provider_(provider), activation_(activation) {
    version = ORT_VERSION;
    GetName = [](const OrtCustomOp*) { return Kernel::name; };
    GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op)->provider_; };
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::inputs.size(); };
    GetInputType = [](const OrtCustomOp* op, size_t index) { return self(op)->type(Kernel::inputs[index]); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return Kernel::inputs[index].characteristic; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t index) { return Kernel::inputs[index].memory; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::outputs.size(); };
    GetOutputType = [](const OrtCustomOp* op, size_t index) { return self(op)->type(Kernel::outputs[index]); };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return ORT_REQUIRED; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    GetStartVersion = GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
      return guarded(api, [&] { *kernel = new Instance{api, Kernel(Info(api, info))}; });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      auto* instance = static_cast<Instance*>(kernel);
      return guarded(instance->api, [&] { instance->kernel.run(Context(instance->api, context)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

 private:
  struct Instance {
    const OrtApi* api;
    Kernel kernel;
  };

  static const Operator* self(const OrtCustomOp* op) { return static_cast<const Operator*>(op); }
  OrtElementType type(const Parameter& parameter) const {
    return parameter.type == ACTIVATION ? activation_ : parameter.type;
  }

  const char* provider_;
  OrtElementType activation_;
};

}  // namespace ort
