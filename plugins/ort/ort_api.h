// The part of ONNX Runtime's C interface that this library uses.
//
// ONNX Runtime publishes its functions as one table, OrtApi, which only grows at its end. A function's place in it never
// changes, nor does its signature (onnxruntime_c_api.cc, "Rules on how to add a new Ort API version").
// Each function in use is declared here by that place. tests/plugins/test_ort_api.py calls all of them.
//
// ORT_VERSION is the requested interface version, available since ONNX Runtime 1.18.

#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtApi;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version) noexcept;
  const char* (*GetVersionString)() noexcept;
};

struct OrtAllocator {
  uint32_t version;
  void* (*Alloc)(OrtAllocator* self, size_t size);
  void (*Free)(OrtAllocator* self, void* memory);
  const OrtMemoryInfo* (*Info)(const OrtAllocator* self);
};

enum OrtErrorCode : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtElementType : int {
  ORT_UNDEFINED = 0,
  ORT_FLOAT = 1,
  ORT_UINT8 = 2,
  ORT_INT64 = 7,
  ORT_FLOAT16 = 10,
  ORT_BFLOAT16 = 16
};
enum OrtCharacteristic : int { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };
enum OrtMemType : int { ORT_MEM_CPU_INPUT = -2, ORT_MEM_DEFAULT = 0 };

// An operator for ONNX Runtime: a table of functions. Those that are null are not called.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info);
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);
  OrtElementType (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  OrtElementType (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void (*KernelCompute)(void* kernel, OrtKernelContext* context);
  void (*KernelDestroy)(void* kernel);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp* op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp* op);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp* op, OrtShapeInferContext* context);
  int (*GetStartVersion)(const OrtCustomOp* op);
  int (*GetEndVersion)(const OrtCustomOp* op);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // extern "C"

namespace ort {

constexpr uint32_t ORT_VERSION = 18;

// One function of the table, by its place and type.
template <int place, class Signature>
struct Entry;

template <int place, class Result, class... Arguments>
struct Entry<place, Result(Arguments...)> {
  static Result call(const OrtApi* api, Arguments... arguments) {
    using Function = Result (*)(Arguments...) noexcept;
    return reinterpret_cast<Function const*>(api)[place](arguments...);
  }
};

using CreateStatus = Entry<0, OrtStatus*(OrtErrorCode, const char*)>;
using GetErrorMessage = Entry<2, const char*(const OrtStatus*)>;
using CreateCustomOpDomain = Entry<26, OrtStatus*(const char*, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Entry<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Entry<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Entry<51, OrtStatus*(OrtValue*, void**)>;
using GetTensorElementType = Entry<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, OrtElementType*)>;
using GetDimensionsCount = Entry<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = Entry<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>;
using GetTensorTypeAndShape = Entry<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using GetAttributeFloat = Entry<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using GetAttributeInt = Entry<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>;
using GetAttributeString = Entry<87, OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)>;
using GetInputCount = Entry<88, OrtStatus*(const OrtKernelContext*, size_t*)>;
using GetInput = Entry<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>;
using GetOutput = Entry<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>;
using ReleaseStatus = Entry<93, void(OrtStatus*)>;
using ReleaseTypeAndShape = Entry<99, void(OrtTensorTypeAndShapeInfo*)>;
using GetComputeStream = Entry<193, OrtStatus*(const OrtKernelContext*, void**)>;
using GetConstantInput = Entry<249, OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>;
using ParallelFor = Entry<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;
using GetAllocator = Entry<278, OrtStatus*(const OrtKernelInfo*, OrtMemType, OrtAllocator**)>;

}  // namespace ort
