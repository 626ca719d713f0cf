// Shared by the CUDA operators: a node's compiled kernels, workspaces, and activation dtypes.

#pragma once

#include <memory>

#include "checks.h"
#include "cpu_attention.h"
#include "cuda_kernels.h"

namespace liger {

// The constant bundle of a node, loaded when the node first runs, because a context is current then.
class Compiled {
 public:
  Compiled(const ort::Info& info, size_t index) : bundle_(info.constant(index)) {
    if (!bundle_) throw ort::Error("liger: this graph has no GPU kernels; convert it with --targets");
    if (bundle_.type != ORT_UINT8) throw ort::Error("liger: the graph's kernels are no bytes; convert it again");
    require_axes("the graph's kernels", bundle_, "[bytes]");
  }

  const CudaKernels& get() const {
    if (!kernels_) kernels_ = CudaKernels::load(bundle_.as<const char>(), bundle_.shape[0]);
    return *kernels_;
  }

 private:
  ort::Tensor bundle_;
  mutable std::shared_ptr<const CudaKernels> kernels_;
};

// Memory of a call, from ONNX Runtime's pool. It is returned once the call is enqueued: the next user of the memory writes
// to it later on the same stream.
class Workspace {
 public:
  Workspace(OrtAllocator* allocator, size_t bytes)
      : allocator_(allocator), next_(static_cast<char*>(allocator->Alloc(allocator, bytes))), memory_(next_) {
    if (memory_ == nullptr && bytes > 0) throw ort::Error("liger: out of GPU memory; pass fewer tokens per call");
  }
  ~Workspace() {
    if (memory_ != nullptr) allocator_->Free(allocator_, memory_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* take(size_t bytes) {
    void* piece = next_;
    next_ += aligned(bytes);
    return piece;
  }
  static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  OrtAllocator* allocator_;
  char* next_;
  void* memory_;
};

template <class Element>
struct ActivationName;
template <>
struct ActivationName<float> {
  static constexpr const char* value = "float32";
};
template <>
struct ActivationName<Half> {
  static constexpr const char* value = "float16";
};
template <>
struct ActivationName<BFloat16> {
  static constexpr const char* value = "bfloat16";
};

// The session's allocator of GPU memory, valid as long as the session.
inline OrtAllocator* gpu_allocator(const ort::Info& info) {
  OrtAllocator* allocator = nullptr;
  ort::check(info.api(), ort::GetAllocator::call(info.api(), info.raw(), ORT_MEM_DEFAULT, &allocator));
  return allocator;
}

}  // namespace liger
