// Continue token ids with a liger-export package: ONNX Runtime's C interface and nothing else.
// Inputs and outputs: docs/reference/graph.md. Nothing is allocated per token but one tensor of the token itself.

#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <math.h>
#include <onnxruntime_c_api.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 128, MOST_STATES = 4096, MOST_INPUTS = MOST_STATES + 4, MOST_ENDS = 16, MOST_RANK = 8 };
static const char PAST[] = "past_key_values.", PRESENT[] = "present.", MAGIC[] = "liger-c1";

typedef struct {
  char *past, *present;  // names
  size_t bytes;
  void *data[2];       // a call reads one and writes the other
  OrtValue *value[2];  // the same memory, for ONNX Runtime
} State;

typedef struct {
  OrtSession *session;
  OrtMemoryInfo *memory;
  void *library;
  State states[MOST_STATES];
  size_t state_count;
  int turn;          // the buffer that holds the current state
  int64_t position;  // number of tokens read
  size_t vocabulary;
  float *logits, temperature;
  int64_t keep;
  int has_temperature;  // fused graphs do
  OrtValue *logits_value, *keep_value, *temperature_value;
} Model;

static const OrtApi *ort;

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

static void check(OrtStatus *status) {
  if (status) fail("ONNX Runtime: %s", ort->GetErrorMessage(status));
}

static void *allocate(size_t bytes) {
  void *memory = calloc(1, bytes);
  if (!memory) fail("There are not %zu bytes of memory.", bytes);
  return memory;
}

static char *join(const char *first, const char *second) {
  char *joined = allocate(strlen(first) + strlen(second) + 1);
  return strcat(strcpy(joined, first), second);
}

static OrtValue *tensor(const Model *model, void *data, size_t bytes, const int64_t *shape, size_t rank,
                        ONNXTensorElementDataType type) {
  OrtValue *value;
  check(ort->CreateTensorWithDataAsOrtValue(model->memory, data, bytes, shape, rank, type, &value));
  return value;
}

// Read a shape, in which sizes that a call chooses are 1. Returns its number of elements.
static size_t read_shape(OrtTypeInfo *info, int64_t *shape, size_t *rank, ONNXTensorElementDataType *type) {
  const OrtTensorTypeAndShapeInfo *described;
  check(ort->CastTypeInfoToTensorInfo(info, &described));
  check(ort->GetTensorElementType(described, type));
  check(ort->GetDimensionsCount(described, rank));
  if (*rank > MOST_RANK) fail("A tensor has %zu dimensions.", *rank);
  check(ort->GetDimensions(described, shape, *rank));
  size_t elements = 1;
  for (size_t i = 0; i < *rank; i++) {
    if (shape[i] < 0) shape[i] = 1;
    elements *= (size_t)shape[i];
  }
  ort->ReleaseTypeInfo(info);
  return elements;
}

static void add_state(Model *model, const char *name, OrtTypeInfo *info) {
  if (model->state_count == MOST_STATES) fail("The model has more than %d states.", MOST_STATES);
  State *state = &model->states[model->state_count++];
  int64_t shape[MOST_RANK];
  size_t rank;
  ONNXTensorElementDataType type;
  const size_t elements = read_shape(info, shape, &rank, &type);
  state->past = join("", name);
  state->present = join(PRESENT, name + strlen(PAST));
  state->bytes = elements * (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 2);  // or a 16-bit float
  for (int i = 0; i < 2; i++) {
    state->data[i] = allocate(state->bytes);  // a text starts with states of zeros
    state->value[i] = tensor(model, state->data[i], state->bytes, shape, rank, type);
  }
}

static void open_model(Model *model, const OrtEnv *env, const char *graph, const char *library) {
  OrtSessionOptions *options;
  OrtAllocator *allocator;
  size_t inputs, rank;
  check(ort->CreateSessionOptions(&options));
  if (library) check(ort->RegisterCustomOpsLibrary(options, library, &model->library));
  check(ort->CreateSession(env, graph, options, &model->session));
  ort->ReleaseSessionOptions(options);
  check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &model->memory));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->SessionGetInputCount(model->session, &inputs));
  for (size_t i = 0; i < inputs; i++) {
    char *name;
    OrtTypeInfo *info;
    check(ort->SessionGetInputName(model->session, i, allocator, &name));
    check(ort->SessionGetInputTypeInfo(model->session, i, &info));
    if (strncmp(name, PAST, strlen(PAST)) == 0) {
      add_state(model, name, info);
    } else {
      model->has_temperature |= strcmp(name, "temperature") == 0;
      ort->ReleaseTypeInfo(info);
    }
    check(ort->AllocatorFree(allocator, name));
  }
  OrtTypeInfo *info;
  int64_t shape[MOST_RANK];
  ONNXTensorElementDataType type;
  check(ort->SessionGetOutputTypeInfo(model->session, 0, &info));
  model->vocabulary = read_shape(info, shape, &rank, &type);  // logits [1, 1, vocabulary]
  model->logits = allocate(model->vocabulary * sizeof(float));
  model->logits_value = tensor(model, model->logits, model->vocabulary * sizeof(float), shape, rank, type);
  model->keep = 1;  // only the last token's logits
  model->keep_value = tensor(model, &model->keep, sizeof model->keep, NULL, 0, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  model->temperature_value = tensor(model, &model->temperature, sizeof model->temperature, NULL, 0, type);
}

static void close_model(Model *model) {
  for (size_t i = 0; i < model->state_count; i++) {
    State *state = &model->states[i];
    for (int j = 0; j < 2; j++) {
      ort->ReleaseValue(state->value[j]);
      free(state->data[j]);
    }
    free(state->past);
    free(state->present);
  }
  ort->ReleaseValue(model->logits_value);
  ort->ReleaseValue(model->keep_value);
  ort->ReleaseValue(model->temperature_value);
  free(model->logits);
  ort->ReleaseMemoryInfo(model->memory);
  ort->ReleaseSession(model->session);
  if (model->library) dlclose(model->library);
}

// Read up to CHUNK tokens in one call; the logits are then those after the last.
static void read_chunk(Model *model, int64_t *tokens, size_t count) {
  const char *input_names[MOST_INPUTS] = {"input_ids", "position_ids", "logits_to_keep"};
  const char *output_names[MOST_INPUTS] = {"logits"};
  const OrtValue *inputs[MOST_INPUTS];
  OrtValue *outputs[MOST_INPUTS] = {model->logits_value};
  int64_t positions[CHUNK];
  const int64_t shape[] = {1, (int64_t)count};
  for (size_t i = 0; i < count; i++) {
    if (tokens[i] < 0 || (size_t)tokens[i] >= model->vocabulary) fail("%lld is not a token.", (long long)tokens[i]);
    positions[i] = model->position + (int64_t)i;
  }
  int64_t *const text[] = {tokens, positions};
  OrtValue *values[2];
  for (int i = 0; i < 2; i++) {
    values[i] = tensor(model, text[i], count * sizeof(int64_t), shape, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    inputs[i] = values[i];
  }
  inputs[2] = model->keep_value;
  size_t input_count = 3, output_count = 1;
  for (size_t i = 0; i < model->state_count; i++) {
    input_names[input_count] = model->states[i].past;
    inputs[input_count++] = model->states[i].value[model->turn];
    output_names[output_count] = model->states[i].present;
    outputs[output_count++] = model->states[i].value[1 - model->turn];
  }
  if (model->has_temperature) {
    input_names[input_count] = "temperature";
    inputs[input_count++] = model->temperature_value;
  }
  check(ort->Run(model->session, NULL, input_names, inputs, input_count, output_names, output_count, outputs));
  model->turn = 1 - model->turn;
  model->position += (int64_t)count;
  for (int i = 0; i < 2; i++) ort->ReleaseValue(values[i]);
}

static void read_tokens(Model *model, int64_t *tokens, size_t count) {
  for (size_t start = 0; start < count; start += CHUNK) {
    read_chunk(model, tokens + start, count - start < CHUNK ? count - start : CHUNK);
  }
}

static int64_t most_likely(const Model *model) {
  size_t best = 0;
  for (size_t i = 0; i < model->vocabulary; i++) {
    if (!isfinite(model->logits[i])) fail("The logits are not finite.");
    if (model->logits[i] > model->logits[best]) best = i;
  }
  return (int64_t)best;
}

// Write or read a part of a file of states. A file of another model has other names or sizes.
static void transfer(FILE *file, int saving, void *data, size_t bytes) {
  if ((saving ? fwrite(data, 1, bytes, file) : fread(data, 1, bytes, file)) != bytes) {
    fail(saving ? "The state cannot be written." : "The file of the state is cut off.");
  }
}

static void expect(FILE *file, int saving, const void *data, size_t bytes) {
  char *found = allocate(bytes);
  memcpy(found, data, bytes);
  transfer(file, saving, found, bytes);
  if (memcmp(found, data, bytes) != 0) fail("The file is not a state of this model.");
  free(found);
}

// Save the whole state, or restore it: the position, the token that was chosen and not read yet, and every tensor.
static void keep_state(Model *model, const char *path, int saving, int64_t *pending) {
  FILE *file = fopen(path, saving ? "wb" : "rb");
  if (!file) fail("%s cannot be opened.", path);
  expect(file, saving, MAGIC, sizeof MAGIC);
  transfer(file, saving, &model->position, sizeof model->position);
  transfer(file, saving, pending, sizeof *pending);
  for (size_t i = 0; i < model->state_count; i++) {
    State *state = &model->states[i];
    expect(file, saving, state->past, strlen(state->past) + 1);
    expect(file, saving, &state->bytes, sizeof state->bytes);
    transfer(file, saving, state->data[model->turn], state->bytes);
  }
  if (!saving && fgetc(file) != EOF) fail("The file is not a state of this model.");
  if (fclose(file) != 0) fail("The state cannot be written.");
}

static int64_t number(const char *text) {
  char *end;
  const long long value = strtoll(text, &end, 10);
  if (end == text || *end || value < 0) fail("%s is not a number of 0 or more.", text);
  return value;
}

int main(int argc, char **argv) {
  const char *library = NULL, *restore = NULL, *save = NULL;
  int64_t ends[MOST_ENDS], pending = -1;
  size_t end_count = 0, most = 64, unread = 0;
  for (int option; (option = getopt(argc, argv, "l:n:e:r:s:")) != -1;) {
    if (option == 'l') library = optarg;
    else if (option == 'n') most = (size_t)number(optarg);
    else if (option == 'r') restore = optarg;
    else if (option == 's') save = optarg;
    else if (option == 'e' && end_count < MOST_ENDS) ends[end_count++] = number(optarg);
    else return 2;
  }
  if (optind == argc || most == 0) {
    fprintf(stderr, "Usage: %s [-l LIBRARY] [-n TOKENS] [-e END] [-r FILE] [-s FILE] GRAPH ID...\n", argv[0]);
    return 2;
  }
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // ONNX Runtime would report its use
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!ort) fail("ONNX Runtime %s is too old.", OrtGetApiBase()->GetVersionString());

  OrtEnv *env;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "liger", &env));
  Model *model = allocate(sizeof *model);
  open_model(model, env, argv[optind], library);
  if (restore) keep_state(model, restore, 0, &pending);
  int64_t *tokens = allocate((size_t)(argc - optind) * sizeof *tokens);  // the graph's place is for the pending token
  if (pending >= 0) tokens[unread++] = pending;
  for (int i = optind + 1; i < argc; i++) tokens[unread++] = number(argv[i]);
  if (unread == 0) fail("There are no tokens to read.");

  for (size_t chosen = 0; chosen < most; chosen++) {
    read_tokens(model, tokens, unread);
    pending = most_likely(model);
    int at_end = 0;
    for (size_t i = 0; i < end_count; i++) at_end |= pending == ends[i];
    if (at_end) {
      pending = -1;
      break;
    }
    printf("%lld\n", (long long)pending);
    tokens[0] = pending;
    unread = 1;
  }
  if (save) keep_state(model, save, 1, &pending);
  free(tokens);
  close_model(model);
  free(model);
  ort->ReleaseEnv(env);
  return 0;
}
