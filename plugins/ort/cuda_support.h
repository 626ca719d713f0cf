// What operators on CUDA share: the kernels of a node's graph, and memory for one call.

#pragma once

#include "cuda_kernels.h"
#include "ort_kernel.h"

namespace liger {

// The constant bundle of a node, loaded when the node first runs: a context is current then.
class Compiled {
 public:
  Compiled(const ort::Info& info, size_t index) : bundle_(info.constant(index)) {
    if (!bundle_) throw ort::Error("liger: this graph has no GPU kernels; convert it with --targets");
  }

  const CudaKernels& get() const {
    if (!kernels_) kernels_ = CudaKernels::load(bundle_.as<const char>(), bundle_.shape[0]);
    return *kernels_;
  }

 private:
  ort::Tensor bundle_;
  mutable std::shared_ptr<const CudaKernels> kernels_;
};

// Memory of a call, from ONNX Runtime's own pool. It goes back when the call has been handed to the stream: whoever gets
// it next writes to it behind this call, on the same stream.
class Workspace {
 public:
  Workspace(OrtAllocator* allocator, size_t bytes)
      : allocator_(allocator), next_(static_cast<char*>(allocator->Alloc(allocator, bytes))), memory_(next_) {
    if (memory_ == nullptr) throw ort::Error("liger: no GPU memory is left for this call; read fewer tokens at a time");
  }
  ~Workspace() { allocator_->Free(allocator_, memory_); }
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

}  // namespace liger
