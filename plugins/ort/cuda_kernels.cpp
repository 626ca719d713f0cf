#include "cuda_kernels.h"

#include <dlfcn.h>

#include <cstring>
#include <limits>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <tuple>

namespace liger {
namespace {

// CUlaunchAttribute and CUlaunchConfig, the arguments of cuLaunchKernelEx.
struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    int is_allowed;
    char bytes[64];
  } value;
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
constexpr int DEPENDENT_LAUNCH = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

// The CUDA driver functions in use, as cuda.h declares them. Handles are pointers; a result is 0 or an error.
struct Driver {
  int (*cuInit)(unsigned);
  int (*cuCtxGetCurrent)(void**);
  int (*cuCtxSetCurrent)(void*);
  int (*cuDevicePrimaryCtxRetain)(void**, int);
  int (*cuCtxGetDevice)(int*);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuModuleLoadData)(void**, const void*);
  int (*cuModuleGetFunction)(void**, void*, const char*);
  int (*cuFuncSetAttribute)(void*, int, int);
  int (*cuLaunchKernelEx)(const LaunchConfig*, void*, void**, void**);
  int (*cuMemcpyDtoDAsync)(uintptr_t, uintptr_t, size_t, void*);
  int (*cuGetErrorString)(int, const char**);
};

constexpr int CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int MAX_DYNAMIC_SHARED = 8;                        // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr unsigned SHARED_BY_DEFAULT = 48 * 1024;

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error("liger: " + message); }

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) fail(std::string("the CUDA driver does not have ") + name + "; update the driver");
}

const Driver& driver() {
  static const Driver found = [] {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) fail("the CUDA driver (libcuda.so.1) is not installed; install the NVIDIA driver");
    Driver driver{};
    find(library, "cuInit", driver.cuInit);
    find(library, "cuCtxGetCurrent", driver.cuCtxGetCurrent);
    find(library, "cuCtxSetCurrent", driver.cuCtxSetCurrent);
    find(library, "cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain);
    find(library, "cuCtxGetDevice", driver.cuCtxGetDevice);
    find(library, "cuDeviceGetAttribute", driver.cuDeviceGetAttribute);
    find(library, "cuModuleLoadData", driver.cuModuleLoadData);
    find(library, "cuModuleGetFunction", driver.cuModuleGetFunction);
    find(library, "cuFuncSetAttribute", driver.cuFuncSetAttribute);
    find(library, "cuLaunchKernelEx", driver.cuLaunchKernelEx);
    find(library, "cuMemcpyDtoDAsync_v2", driver.cuMemcpyDtoDAsync);
    find(library, "cuGetErrorString", driver.cuGetErrorString);
    return driver;
  }();
  return found;
}

void check(int result, const std::string& what) {
  if (result == 0) return;
  const char* text = nullptr;
  driver().cuGetErrorString(result, &text);
  fail(what + ": " + (text ? text : "CUDA error " + std::to_string(result)));
}

// The context that ONNX Runtime uses: the current one, or else the first GPU's primary context.
void* current_context() {
  void* context = nullptr;
  check(driver().cuInit(0), "starting CUDA");
  check(driver().cuCtxGetCurrent(&context), "getting the CUDA context");
  if (context == nullptr) {
    check(driver().cuDevicePrimaryCtxRetain(&context, 0), "creating the CUDA context");
    check(driver().cuCtxSetCurrent(context), "setting the CUDA context");
  }
  return context;
}

int capability_of_current_device() {
  int device = 0, major = 0, minor = 0;
  check(driver().cuCtxGetDevice(&device), "finding the GPU");
  check(driver().cuDeviceGetAttribute(&major, CAPABILITY_MAJOR, device), "getting the GPU's architecture");
  check(driver().cuDeviceGetAttribute(&minor, CAPABILITY_MINOR, device), "getting the GPU's architecture");
  return 10 * major + minor;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// One kernel line of a bundle.
struct Entry {
  int capability;
  std::string name, symbol, grid, arguments;
  unsigned threads, shared_bytes, is_dependent;
  size_t offset, size;
};

struct Bundle {
  std::string shape;
  std::vector<Entry> entries;
  const char* cubins;
  size_t cubin_bytes;
};

Bundle parse(const char* data, size_t size) {
  Bundle bundle{};
  const std::string text(data, size);
  size_t at = 0;
  auto next_line = [&] {
    const size_t stop = text.find('\n', at);
    if (stop == std::string::npos) fail("the graph's kernels are damaged; convert the package again");
    const std::string line = text.substr(at, stop - at);
    at = stop + 1;
    return line;
  };
  if (next_line() != "liger-kernels 2") fail("the graph's kernels have another format version; convert the package again");
  for (std::string line = next_line(); line != "end"; line = next_line()) {
    std::istringstream fields(line);
    std::string kind;
    fields >> kind;
    if (kind == "shape") {
      std::getline(fields >> std::ws, bundle.shape);
      continue;
    }
    Entry entry;
    fields >> entry.capability >> entry.name >> entry.symbol >> entry.threads >> entry.shared_bytes >>
        entry.is_dependent >> entry.grid >> entry.offset >> entry.size >> entry.arguments;
    if (kind != "kernel" || fields.fail()) fail("the graph's kernels are damaged; convert the package again");
    bundle.entries.push_back(entry);
  }
  bundle.cubins = data + at;
  bundle.cubin_bytes = size - at;
  return bundle;
}

// The architecture whose machine code a GPU runs: its own, or the newest older one with the same major version.
int best_target(const Bundle& bundle, int capability) {
  int best = 0;
  std::string known;
  for (const Entry& entry : bundle.entries) {
    const bool runs = entry.capability / 10 == capability / 10 && entry.capability <= capability;
    if (runs && entry.capability > best) best = entry.capability;
    const std::string name = "sm_" + std::to_string(entry.capability);
    if (known.find(name) == std::string::npos) known += (known.empty() ? "" : ", ") + name;
  }
  if (best == 0) {
    const std::string wanted = "sm_" + std::to_string(capability);
    fail("the package has kernels for " + known + " and this GPU is " + wanted + "; convert it with --targets " + wanted);
  }
  return best;
}

}  // namespace

void Arguments::integer(const char* name, int64_t value) {
  if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
    fail(std::string(name) + " of a kernel must fit into 32 bits, not be " + std::to_string(value) +
         "; pass fewer sequences or tokens per call");
  }
  values_[name].integer = static_cast<int32_t>(value);
}

CudaKernels::Axis CudaKernels::parse_axis(const std::string& text) {
  const std::vector<std::string> parts = split(text, ':');
  Axis axis{};
  if (parts.size() == 3) {
    std::istringstream(parts[0]) >> axis.times;
    std::istringstream(parts[2]) >> axis.per;
    axis.of = parts[1];
  }
  if (axis.times < 1 || axis.per < 1) fail("the graph's kernels are damaged; convert the package again");
  return axis;
}

unsigned CudaKernels::Axis::count(int64_t batch, int64_t length) const {
  const int64_t size = of == "batch" ? batch : of == "length" ? length : 1, parts = size / per + (size % per != 0);
  int64_t count;
  if (__builtin_mul_overflow(times, parts, &count) || count > std::numeric_limits<int32_t>::max()) {
    fail("a call is too large for the GPU; pass fewer sequences or tokens per call");
  }
  return static_cast<unsigned>(count);
}

CudaKernels::CudaKernels(const char* data, size_t size) {
  const Bundle bundle = parse(data, size);
  const int target = best_target(bundle, capability_of_current_device());
  shape_ = bundle.shape;
  for (const Entry& entry : bundle.entries) {
    if (entry.capability != target) continue;
    if (entry.offset > bundle.cubin_bytes || entry.size > bundle.cubin_bytes - entry.offset) {
      fail("the graph's kernels are truncated; convert the package again");
    }
    void *module = nullptr, *function = nullptr;  // kept until the process ends, like the library
    check(driver().cuModuleLoadData(&module, bundle.cubins + entry.offset), "loading " + entry.name);
    check(driver().cuModuleGetFunction(&function, module, entry.symbol.c_str()), "finding " + entry.name);
    if (entry.shared_bytes > SHARED_BY_DEFAULT) {
      check(driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, static_cast<int>(entry.shared_bytes)),
            "reserving shared memory for " + entry.name);
    }
    Kernel kernel{function, entry.threads, entry.shared_bytes, entry.is_dependent != 0, {}, {}};
    for (const std::string& axis : split(entry.grid, ',')) {
      kernel.grid.push_back(parse_axis(axis));
    }
    if (kernel.grid.size() != 3) fail("the graph's kernels are damaged; convert the package again");
    for (const std::string& argument : split(entry.arguments, ',')) {
      kernel.arguments.push_back(argument.substr(0, argument.find(':')));
    }
    kernels_.emplace(entry.name, std::move(kernel));
  }
}

std::shared_ptr<const CudaKernels> CudaKernels::load(const char* bundle, size_t size) {
  static std::mutex mutex;
  static std::map<std::pair<void*, std::string>, std::shared_ptr<const CudaKernels>> loaded;
  void* const context = current_context();
  const std::lock_guard<std::mutex> lock(mutex);
  auto& kernels = loaded[{context, std::string(bundle, size)}];
  if (!kernels) kernels.reset(new CudaKernels(bundle, size));
  return kernels;
}

void CudaKernels::launch(const std::string& name, const Arguments& arguments, int64_t batch, int64_t length,
                         void* stream) const {
  const auto found = kernels_.find(name);
  if (found == kernels_.end()) fail("the package has no kernel " + name + "; convert it again");
  const Kernel& kernel = found->second;
  static const Arguments::Value none{};  // for Triton's scratch pointers: no kernel here uses scratch memory
  std::vector<void*> parameters;
  for (const std::string& argument : kernel.arguments) {
    const auto value = arguments.values_.find(argument);
    const bool is_scratch = argument == "global_scratch" || argument == "profile_scratch";
    if (value == arguments.values_.end() && !is_scratch) {
      fail("kernel " + name + " has an unknown argument " + argument + "; update liger-export");
    }
    parameters.push_back(const_cast<Arguments::Value*>(is_scratch ? &none : &value->second));
  }
  LaunchConfig config{};
  for (int axis = 0; axis < 3; ++axis) {
    config.grid[axis] = kernel.grid[axis].count(batch, length);
    if (config.grid[axis] == 0) return;  // the driver refuses an empty grid
  }
  config.block[0] = kernel.threads;
  config.block[1] = config.block[2] = 1;
  config.shared_bytes = kernel.shared_bytes;
  config.stream = stream;
  LaunchAttribute dependent{};
  dependent.id = DEPENDENT_LAUNCH;
  dependent.value.is_allowed = 1;
  config.attributes = &dependent;
  config.attribute_count = kernel.is_dependent ? 1 : 0;
  check(driver().cuLaunchKernelEx(&config, kernel.function, parameters.data(), nullptr), "launching " + name);
}

void copy_on_device(void* to, const void* from, size_t bytes, void* stream) {
  current_context();
  check(driver().cuMemcpyDtoDAsync(reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from), bytes, stream),
        "copying on the GPU");
}

}  // namespace liger
