// Kernels compiled ahead of time, from the bundle that a graph carries (kernels/bundle.py), launched through the CUDA
// driver. The driver is opened with the first bundle, so this library builds and loads without CUDA.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace liger {

// A kernel's arguments by name: pointers, 32-bit integers and floats.
class Arguments {
 public:
  void pointer(const char* name, const void* value) { values_[name].pointer = value; }
  void integer(const char* name, int64_t value);  // throws if it does not fit into 32 bits
  void number(const char* name, float value) { values_[name].number = value; }

 private:
  friend class CudaKernels;
  union Value {
    const void* pointer;
    int32_t integer;
    float number;
  };
  std::map<std::string, Value> values_;
};

// The kernels of one bundle, loaded for the GPU whose context is current.
class CudaKernels {
 public:
  // Loads a bundle, once per context and content. Throws if the driver is missing, the bundle is damaged, or it has no
  // kernels for this GPU.
  static std::shared_ptr<const CudaKernels> load(const char* bundle, size_t size);

  // The attention shape: "MIXER NUM_KEY_VALUE_HEADS NUM_QUERIES_PER_KV HEAD_DIM WINDOW ACTIVATION".
  const std::string& shape() const { return shape_; }

  bool has(const std::string& name) const { return kernels_.count(name) != 0; }

  // Launches a kernel for `batch` sequences of `length` tokens on a stream. Does nothing if there are none.
  void launch(const std::string& name, const Arguments& arguments, int64_t batch, int64_t length, void* stream) const;

 private:
  struct Axis {
    int64_t times, per;
    std::string of;
    unsigned count(int64_t batch, int64_t length) const;
  };
  struct Kernel {
    void* function;
    unsigned threads, shared_bytes;
    bool is_dependent;  // launched with programmatic dependent launch
    std::vector<Axis> grid;
    std::vector<std::string> arguments;
  };

  CudaKernels(const char* bundle, size_t size);
  static Axis parse_axis(const std::string& text);  // TIMES:OF:PER

  std::string shape_;
  std::map<std::string, Kernel> kernels_;
};

// Copies bytes within GPU memory, on a stream.
void copy_on_device(void* to, const void* from, size_t bytes, void* stream);

}  // namespace liger
