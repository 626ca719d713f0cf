// A stand-in for ONNX Runtime that runs operators of the library: the functions of ort_api.h over tensors of exactly their
// size, so that AddressSanitizer sees every access beyond one. Memory can be made to run out inside an operator.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "ort_api.h"

struct OrtValue {
  OrtElementType type;
  std::vector<int64_t> shape;
  void* data;
};
struct OrtTensorTypeAndShapeInfo {
  const OrtValue* value;
};
struct OrtStatus {
  std::string message;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> operators;
};
struct OrtSessionOptions {
  OrtCustomOpDomain* domain;
};
struct OrtKernelInfo {
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> numbers;
  std::map<std::string, std::string> texts;
  std::map<size_t, OrtValue> constants;
};
struct OrtKernelContext {
  std::vector<const OrtValue*> inputs;
  std::map<size_t, OrtValue*> aliases;  // outputs that share an input's memory
  std::map<size_t, OrtValue> outputs;
  size_t threads;
};

namespace host {

constexpr size_t LARGEST = size_t{1} << 28;  // bytes of a tensor or an allocation

// Allocations until one fails, in operators only; negative for no failure.
inline std::atomic<int64_t> allocations_left{-1};
inline thread_local bool is_in_operator = false;

// Marks the code of an operator or of the host.
class Inside {
 public:
  explicit Inside(bool is_operator) : before_(is_in_operator) { is_in_operator = is_operator; }
  ~Inside() { is_in_operator = before_; }

 private:
  bool before_;
};

inline size_t item_size(OrtElementType type) {
  return type == ORT_INT64 ? 8 : type == ORT_FLOAT ? 4 : type == ORT_FLOAT16 || type == ORT_BFLOAT16 ? 2 : 1;
}

// Bytes of a tensor, or more than LARGEST.
inline size_t bytes_of(OrtElementType type, const std::vector<int64_t>& shape) {
  size_t bytes = item_size(type);
  for (const int64_t size : shape) {
    if (size == 0) return 0;
  }
  for (const int64_t size : shape) {
    if (size < 0 || static_cast<size_t>(size) > LARGEST / bytes) return LARGEST + 1;
    bytes *= size;
  }
  return bytes;
}

// A tensor full of 0xFF bytes, which are NaN or -1, in memory of its own. An empty tensor has no memory.
inline OrtValue tensor(OrtElementType type, const std::vector<int64_t>& shape) {
  const size_t bytes = bytes_of(type, shape);
  void* data = bytes == 0 ? nullptr : std::malloc(bytes);
  if (data != nullptr) std::memset(data, 0xFF, bytes);
  return {type, shape, data};
}

// Sets one function of the table, which runs as code of the host.
template <class Entry>
struct Slot;
template <int place, class Result, class... Arguments>
struct Slot<ort::Entry<place, Result(Arguments...)>> {
  static void set(void** table, Result (*function)(Arguments...)) { table[place] = reinterpret_cast<void*>(function); }
};

inline OrtStatus* fail(const std::string& message) { return new OrtStatus{"host: " + message}; }

template <class Values, class Value>
OrtStatus* attribute(const Values& values, const char* name, Value* value) {
  const Inside inside(false);
  const auto found = values.find(name);
  if (found == values.end()) return fail(std::string("no attribute ") + name);
  *value = found->second;
  return nullptr;
}

inline OrtStatus* text(const OrtKernelInfo* info, const char* name, char* value, size_t* size) {
  const Inside inside(false);
  std::string found;
  if (OrtStatus* status = attribute(info->texts, name, &found)) return status;
  *size = found.size() + 1;
  if (value != nullptr) std::memcpy(value, found.c_str(), *size);
  return nullptr;
}

inline OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* sizes, size_t rank, OrtValue** value) {
  const Inside inside(false);
  const std::vector<int64_t> shape(sizes, sizes + rank);
  const auto alias = context->aliases.find(index);
  if (alias != context->aliases.end() && alias->second->shape == shape) {
    *value = alias->second;
    return nullptr;
  }
  OrtValue& made = context->outputs[index];
  if (bytes_of(made.type, shape) > LARGEST) return fail("an output is too large");
  made = tensor(made.type, shape);
  *value = &made;
  return nullptr;
}

// Divides the indices among threads; the caller is one of them.
inline OrtStatus* parallel_for(const OrtKernelContext* context, void (*run)(void*, size_t), size_t total, size_t, void* data) {
  const Inside inside(false);
  const auto work = [=](size_t thread) {
    const Inside inside_operator(true);
    for (size_t index = thread; index < total; index += context->threads) run(data, index);
  };
  std::vector<std::thread> others;
  for (size_t thread = 1; thread < context->threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  return nullptr;
}

inline const OrtApi* api() {
  static void* table[400] = {};
  Slot<ort::CreateStatus>::set(table, [](OrtErrorCode, const char* message) {
    const Inside inside(false);
    return new OrtStatus{message};
  });
  Slot<ort::GetErrorMessage>::set(table, [](const OrtStatus* status) { return status->message.c_str(); });
  Slot<ort::ReleaseStatus>::set(table, [](OrtStatus* status) { delete status; });
  Slot<ort::CreateCustomOpDomain>::set(table, [](const char*, OrtCustomOpDomain** domain) -> OrtStatus* {
    *domain = new OrtCustomOpDomain;
    return nullptr;
  });
  Slot<ort::CustomOpDomainAdd>::set(table, [](OrtCustomOpDomain* domain, const OrtCustomOp* op) -> OrtStatus* {
    domain->operators.push_back(op);
    return nullptr;
  });
  Slot<ort::AddCustomOpDomain>::set(table, [](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
    options->domain = domain;
    return nullptr;
  });
  Slot<ort::GetTensorMutableData>::set(table, [](OrtValue* value, void** data) -> OrtStatus* {
    *data = value->data;
    return nullptr;
  });
  Slot<ort::GetTensorTypeAndShape>::set(table, [](const OrtValue* value, OrtTensorTypeAndShapeInfo** info) -> OrtStatus* {
    const Inside inside(false);
    *info = new OrtTensorTypeAndShapeInfo{value};
    return nullptr;
  });
  Slot<ort::ReleaseTypeAndShape>::set(table, [](OrtTensorTypeAndShapeInfo* info) { delete info; });
  Slot<ort::GetTensorElementType>::set(table, [](const OrtTensorTypeAndShapeInfo* info, OrtElementType* type) -> OrtStatus* {
    *type = info->value->type;
    return nullptr;
  });
  Slot<ort::GetDimensionsCount>::set(table, [](const OrtTensorTypeAndShapeInfo* info, size_t* rank) -> OrtStatus* {
    *rank = info->value->shape.size();
    return nullptr;
  });
  Slot<ort::GetDimensions>::set(table, [](const OrtTensorTypeAndShapeInfo* info, int64_t* to, size_t count) -> OrtStatus* {
    std::copy_n(info->value->shape.begin(), count, to);
    return nullptr;
  });
  Slot<ort::GetAttributeInt>::set(table, [](const OrtKernelInfo* info, const char* name, int64_t* value) {
    return attribute(info->integers, name, value);
  });
  Slot<ort::GetAttributeFloat>::set(table, [](const OrtKernelInfo* info, const char* name, float* value) {
    return attribute(info->numbers, name, value);
  });
  Slot<ort::GetAttributeString>::set(table, text);
  Slot<ort::GetInputCount>::set(table, [](const OrtKernelContext* context, size_t* count) -> OrtStatus* {
    *count = context->inputs.size();
    return nullptr;
  });
  Slot<ort::GetInput>::set(table, [](const OrtKernelContext* context, size_t index, const OrtValue** value) -> OrtStatus* {
    *value = context->inputs.at(index);
    return nullptr;
  });
  Slot<ort::GetOutput>::set(table, output);
  Slot<ort::GetConstantInput>::set(
      table, [](const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** value) -> OrtStatus* {
        const auto found = info->constants.find(index);
        *is_constant = found != info->constants.end();
        if (*is_constant) *value = &found->second;
        return nullptr;
      });
  Slot<ort::GetAllocator>::set(table, [](const OrtKernelInfo*, OrtMemType, OrtAllocator** allocator) -> OrtStatus* {
    static OrtAllocator memory{ort::ORT_VERSION, [](OrtAllocator*, size_t size) { return std::malloc(size); },
                               [](OrtAllocator*, void* piece) { std::free(piece); }, nullptr};
    *allocator = &memory;
    return nullptr;
  });
  Slot<ort::GetComputeStream>::set(table, [](const OrtKernelContext*, void** stream) -> OrtStatus* {
    *stream = nullptr;
    return nullptr;
  });
  Slot<ort::ParallelFor>::set(table, parallel_for);
  return reinterpret_cast<const OrtApi*>(table);
}

}  // namespace host

// Memory of the whole program: it runs out in an operator when the host says so.
__attribute__((noinline)) void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  const bool runs_out = host::is_in_operator && host::allocations_left >= 0 && host::allocations_left-- == 0;
  return runs_out || bytes > host::LARGEST ? nullptr : std::malloc(bytes);
}
__attribute__((noinline)) void* operator new(size_t bytes) {
  if (void* const memory = operator new(bytes, std::nothrow)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }
