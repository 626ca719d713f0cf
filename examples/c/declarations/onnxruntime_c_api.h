// The part of ONNX Runtime's C interface that generate.c uses, for a machine that has the library and not its header.
//
// ONNX Runtime publishes its functions as one table, which only grows at its end: a function's place in it and its
// signature never change. Each place is written beside its function.

#pragma once

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 18  // the requested interface, which ONNX Runtime 1.18 and newer have

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;

typedef enum { ORT_LOGGING_LEVEL_WARNING = 2 } OrtLoggingLevel;
typedef enum { OrtDeviceAllocator = 0 } OrtAllocatorType;
typedef enum { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10
} ONNXTensorElementDataType;

typedef struct OrtApi {
  void *unused_0[2];
  const char *(*GetErrorMessage)(const OrtStatus *);                                // 2
  OrtStatus *(*CreateEnv)(OrtLoggingLevel, const char *log_id, OrtEnv **);          // 3
  void *unused_4[3];
  OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **);  // 7
  void *unused_8[1];
  OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *input_names, const OrtValue *const *inputs,
                    size_t input_count, const char *const *output_names, size_t output_count, OrtValue **outputs);  // 9
  OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);                         // 10
  void *unused_11[18];
  OrtStatus *(*RegisterCustomOpsLibrary)(OrtSessionOptions *, const char *path, void **handle);  // 29
  OrtStatus *(*SessionGetInputCount)(const OrtSession *, size_t *);                 // 30
  void *unused_31[2];
  OrtStatus *(*SessionGetInputTypeInfo)(const OrtSession *, size_t index, OrtTypeInfo **);   // 33
  OrtStatus *(*SessionGetOutputTypeInfo)(const OrtSession *, size_t index, OrtTypeInfo **);  // 34
  void *unused_35[1];
  OrtStatus *(*SessionGetInputName)(const OrtSession *, size_t index, OrtAllocator *, char **);  // 36
  void *unused_37[12];
  OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape,
                                               size_t rank, ONNXTensorElementDataType, OrtValue **);  // 49
  void *unused_50[5];
  OrtStatus *(*CastTypeInfoToTensorInfo)(const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **);  // 55
  void *unused_56[4];
  OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *, ONNXTensorElementDataType *);  // 60
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *);    // 61
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *, size_t rank);  // 62
  void *unused_63[6];
  OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo **);  // 69
  void *unused_70[6];
  OrtStatus *(*AllocatorFree)(OrtAllocator *, void *);                              // 76
  void *unused_77[1];
  OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);                    // 78
  void *unused_79[13];
  void (*ReleaseEnv)(OrtEnv *);                                                     // 92
  void *unused_93[1];
  void (*ReleaseMemoryInfo)(OrtMemoryInfo *);                                       // 94
  void (*ReleaseSession)(OrtSession *);                                             // 95
  void (*ReleaseValue)(OrtValue *);                                                 // 96
  void *unused_97[1];
  void (*ReleaseTypeInfo)(OrtTypeInfo *);                                           // 98
  void *unused_99[1];
  void (*ReleaseSessionOptions)(OrtSessionOptions *);                               // 100
} OrtApi;

_Static_assert(offsetof(OrtApi, Run) == 9 * sizeof(void *), "the places of functions");
_Static_assert(offsetof(OrtApi, CreateTensorWithDataAsOrtValue) == 49 * sizeof(void *), "the places of functions");
_Static_assert(offsetof(OrtApi, ReleaseSessionOptions) == 100 * sizeof(void *), "the places of functions");

typedef struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);
