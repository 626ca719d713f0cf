// A stand-in for the CUDA driver (libcuda.so.1) that computes nothing: it prints what it is asked to load and launch.
// Its GPU has the compute capability CAPABILITY, such as 90.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

static std::map<void*, std::string> functions;

extern "C" {
int cuInit(unsigned) { return 0; }
int cuCtxGetCurrent(void** context) { *context = nullptr; return 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { *context = &functions; return 0; }
int cuCtxGetDevice(int* device) { *device = 0; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? CAPABILITY / 10 : CAPABILITY % 10;
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  *module = const_cast<void*>(image);
  return std::memcmp(image, "\177ELF", 4) == 0 ? 0 : 200;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  *function = new char;
  functions[*function] = name;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int bytes) {
  std::printf("reserve %s %d %d\n", functions[function].c_str(), attribute, bytes);
  return 0;
}
struct Config {
  unsigned grid[3], block[3], shared;
  void* stream;
  const int* attributes;
  unsigned attribute_count;
};
int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void**) {
  const unsigned *grid = config->grid, early = config->attribute_count && config->attributes[0] == 6 && config->attributes[2];
  std::printf("launch %s %u,%u,%u %u %u %zu %u:", functions[function].c_str(), grid[0], grid[1], grid[2], config->block[0],
              config->shared, (size_t)config->stream, early);
  const std::string& name = functions[function];
  const int count = name == "step_kernel" ? 20 : name == "many_step_kernel" ? 22 : 5;  // parameters of the kernels launched in the tests
  for (int at = 0; at < count; ++at) std::printf(" %llx", *(unsigned long long*)parameters[at]);
  std::printf("\n");
  return 0;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void* stream) {
  std::printf("copy %zu %zu %zu %zu\n", (size_t)to, (size_t)from, bytes, (size_t)stream);
  return 0;
}
int cuGetErrorString(int, const char** text) { *text = "an error of the test"; return 0; }
}
