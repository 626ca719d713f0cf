// Liger attention on a CPU, token by token. Compiled once per instruction set, into a namespace of that name.
//
// One thread computes a key/value head. The head's state is read and written once per token for all its query heads, in
// blocks of columns whose sums stay in registers.

#include "cpu_attention.h"

#include "attention_lolcats.h"
#include "attention_mixers.h"
#include "attention_window.h"

namespace liger {
namespace LIGER_INSTRUCTIONS {
namespace {

// What a thread works with: a token, and for lolcats the keys that are older than the window.
struct Memory : TokenMemory {
  OlderKeys older;

  Memory(const Sizes& sizes, int64_t state_rows, Scratch& scratch)
      : TokenMemory(sizes, state_rows, scratch), older(sizes, sizes.mixer == Mixer::lolcats ? state_rows : 0, scratch) {}
};

// Adds the recurrence's share to memory.output, except for lolcats, whose weights depend on those of the window.
void add_recurrence(const Sizes& sizes, float* const states[STATES], TokenMemory& memory) {
  if (sizes.mixer == Mixer::gsa) {
    add_slots(sizes, states[0], states[1], memory);
  } else if (sizes.mixer != Mixer::lolcats) {
    add_matrix(sizes, states[0], memory);
  }
}

// Adds the weighted values of the window's visible rows to memory.output.
void attend_window(const Sizes& sizes, const float* keys, float* values, int64_t rows, float* const states[STATES],
                   Memory& memory) {
  const int64_t queries = sizes.num_queries_per_kv, head_dim = sizes.head_dim, stride = memory.score_stride;
  score_rows(keys, rows, memory.rotated_query, queries, head_dim, memory.scores, stride);
  if (sizes.mixer == Mixer::lolcats) {
    memory.older.weigh(states[0], states[1], rows, memory);
  } else {
    for (int64_t head = 0; head < queries; ++head) softmax(memory.scores + head * stride, rows, 1 - sizes.recurrent_weight);
  }
  read_out(values, rows, head_dim, memory.scores, stride, memory.output, queries, nullptr, nullptr, nullptr);
}

template <class Element, class Window>
LIGER_INLINE void attend_token(const Sizes& sizes, const Call<Element>& call, int64_t sequence, int64_t kv_head,
                               int64_t token, Window& window, Memory& memory) {
  const int64_t head_dim = sizes.head_dim, heads = sizes.num_queries_per_kv * head_dim;
  const int64_t row = sequence * call.length + token;
  read(call.query + row * call.query_stride + kv_head * heads, memory.query, heads);
  read(call.key + row * call.key_stride + kv_head * head_dim, memory.key, head_dim);
  read(call.value + row * call.value_stride + kv_head * head_dim, memory.value, head_dim);

  const float *cos = call.cos + row * (head_dim / 2), *sin = call.sin + row * (head_dim / 2);
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  for (int64_t at = 0; at < heads; at += head_dim) {
    rotate(memory.query + at, cos, sin, memory.rotated_query + at, head_dim, scale);
  }
  rotate(memory.key, cos, sin, memory.rotated_key, head_dim, 1);

  std::memset(memory.output, 0, heads * sizeof(float));
  const int64_t head = sequence * sizes.num_key_value_heads + kv_head;
  float* states[STATES];
  for (int state = 0; state < STATES; ++state) states[state] = call.next_states[state] + head * call.state_sizes[state];
  add_recurrence(sizes, states, memory);
  if (sizes.mixer == Mixer::lolcats) memory.older.take(window.leaving_key(), window.leaving_value());

  Element* output = call.output + row * sizes.num_key_value_heads * heads + kv_head * heads;
  window.append(memory.rotated_key, memory.value, output);
  attend_window(sizes, window.keys(), window.values(), window.visible(), states, memory);
  write(memory.output, output, heads);
}

template <class Element, class Window>
LIGER_INLINE void attend_tokens(const Sizes& sizes, const Call<Element>& call, int64_t head, Window window,
                                Memory& memory) {
  const int64_t sequence = head / sizes.num_key_value_heads, kv_head = head % sizes.num_key_value_heads;
  for (int state = 0; state < STATES; ++state) {
    const int64_t size = call.state_sizes[state];
    if (size == 0 || call.states[state] == call.next_states[state]) continue;
    std::memcpy(call.next_states[state] + head * size, call.states[state] + head * size, size * sizeof(float));
  }
  for (int64_t token = 0; token < call.length; ++token) {
    if (call.position_ids[sequence * call.length + token] < 0) {
      const int64_t heads = sizes.num_queries_per_kv * sizes.head_dim;
      const int64_t row = (sequence * call.length + token) * sizes.num_key_value_heads * heads + kv_head * heads;
      std::memset(call.output + row, 0, heads * sizeof(Element));
    } else {
      attend_token(sizes, call, sequence, kv_head, token, window, memory);
    }
  }
  window.leave(call, head);
}

// Floats of the window and a call's tokens.
int64_t span_of(const Sizes& sizes, int64_t length) { return (sizes.window + length) * sizes.head_dim; }

int64_t memory_of_head(const Sizes& sizes, int64_t state_rows, int64_t length) {
  Scratch scratch(nullptr);
  const Memory memory(sizes, state_rows, scratch);
  return scratch.taken() + 2 * Scratch::rounded(span_of(sizes, length));
}

template <class Element>
void attend(const Sizes& sizes, const Call<Element>& call, int64_t head, float* pieces) {
  const int64_t first = call.position_ids[head / sizes.num_key_value_heads * call.length];
  const int64_t span = span_of(sizes, call.length);
  Scratch scratch(pieces);
  Memory memory(sizes, call.state_rows, scratch);
  if (sizes.mixer == Mixer::lolcats) memory.older.read_learned(call, head % sizes.num_key_value_heads);
  if constexpr (std::is_same_v<Element, float>) {
    if (call.length == 1 && first >= 0) {
      attend_tokens(sizes, call, head, Slide(sizes, call, head, first), memory);
      return;
    }
  }
  float *keys = scratch.take(span), *values = scratch.take(span);
  // A call without a token leaves the window unchanged, so all of its rows count as filled.
  const int64_t seen = first >= 0 ? first : sizes.window;
  attend_tokens(sizes, call, head, Span<Element>(sizes, call, head, seen, keys, values), memory);
}

template <class Element>
void gated_silu(const Element* gate, const Element* up, Element* output, int64_t count) {
  float gates[WIDTH], ups[WIDTH];
  for (int64_t at = 0; at < count; at += WIDTH) {
    read(gate + at, gates, WIDTH);
    read(up + at, ups, WIDTH);
    const Floats x = load(gates);
    store(gates, x / (exponential(-x) + 1.0f) * load(ups));
    write(gates, output + at, WIDTH);
  }
}

int64_t argmax(const float* values, int64_t count) {
  Floats peaks = all(-INFINITY);
  Words largest{};
  int64_t at = 0;
  for (; at + WIDTH <= count; at += WIDTH) {
    const Floats piece = load(values + at);
    peaks = larger(piece, peaks);
    largest = larger(magnitudes(piece), largest);
  }
  float peak = -INFINITY;
  bool has_nan = false;
  for (int lane = 0; lane < WIDTH; ++lane) {
    peak = std::max(peak, peaks[lane]);
    has_nan |= largest[lane] > 0x7f800000;
  }
  for (; at < count; ++at) {
    peak = values[at] > peak ? values[at] : peak;
    has_nan |= values[at] != values[at];
  }
  if (has_nan || !std::isfinite(peak)) return -1;
  return std::find(values, values + count, peak) - values;
}

double sum_of_weights(const float* values, int64_t count, float largest, float temperature) {
  constexpr int64_t PIECE = 1024;  // added up in float32
  double total = 0;
  for (int64_t start = 0; start < count; start += PIECE) {
    const int64_t stop = std::min(start + PIECE, count);
    Floats weights = all(0);
    int64_t at = start;
    for (; at + WIDTH <= stop; at += WIDTH) weights += exponential((load(values + at) - largest) / temperature);
    total += sum(weights);
    for (; at < stop; ++at) total += std::exp((values[at] - largest) / temperature);
  }
  return total;
}

}  // namespace

extern const CpuKernels kernels;
const CpuKernels kernels = {{attend<float>, gated_silu<float>},
                            {attend<Half>, gated_silu<Half>},
                            {attend<BFloat16>, gated_silu<BFloat16>},
                            memory_of_head,
                            argmax,
                            sum_of_weights};

}  // namespace LIGER_INSTRUCTIONS
}  // namespace liger
