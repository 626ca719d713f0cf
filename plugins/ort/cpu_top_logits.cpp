// liger::Candidates on a CPU: threads list the largest logits of parts of the vocabulary, then the lists are merged.

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "top_logits.h"
#include "cpu_attention.h"

namespace liger {
namespace {

// A sort key: larger for larger logits and, among equal logits, for lower tokens. NaN sorts first.
uint64_t key_of(float logit, int64_t token) {
  if (logit == 0) logit = 0;  // -0.0 equals 0.0
  if (logit != logit) logit = std::numeric_limits<float>::quiet_NaN();
  uint32_t bits;
  std::memcpy(&bits, &logit, sizeof(bits));
  bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
  return uint64_t{bits} << 32 | static_cast<uint64_t>(MAX_TOKENS - 1 - token);
}

float logit_of(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  bits ^= bits >> 31 ? 0x80000000u : 0xFFFFFFFFu;
  float logit;
  std::memcpy(&logit, &bits, sizeof(logit));
  return logit;
}

float token_of(uint64_t key) { return static_cast<float>(MAX_TOKENS - 1 - static_cast<int64_t>(key & 0xFFFFFFFFu)); }

// A list in memory of its own, with room for the keys of all its tokens or for 2 K keys.
struct List {
  uint64_t* keys;
  int64_t count;
  float largest;
  double sum;

  uint64_t* end() { return keys + count; }
  void add(uint64_t key) { keys[count++] = key; }
  void keep_largest() {
    if (count <= TOP_LOGITS) return;
    std::nth_element(keys, keys + TOP_LOGITS - 1, end(), std::greater<>());
    count = TOP_LOGITS;
  }
};

void fill(List& list, const float* logits, int64_t first, int64_t last, float temperature) {
  int64_t token = first;
  for (; token < std::min(first + TOP_LOGITS, last); ++token) list.add(key_of(logits[token], token));
  float least = logit_of(*std::min_element(list.keys, list.end()));
  for (; token < last; ++token) {
    if (logits[token] <= least) continue;  // among equal logits the listed ones come first
    list.add(key_of(logits[token], token));
    if (list.count < 2 * TOP_LOGITS) continue;
    list.keep_largest();
    least = logit_of(list.keys[TOP_LOGITS - 1]);  // the K-th largest
  }
  list.keep_largest();
  list.largest = logit_of(*std::max_element(list.keys, list.end()));
  const bool is_empty = list.largest == -std::numeric_limits<float>::infinity();
  list.sum = is_empty ? 0 : cpu_kernels().sum_of_weights(logits + first, last - first, list.largest, temperature);
}

// Writes the largest of all lists to an output row. `merged` is empty, with room for K keys of each list.
void merge(const List* lists, int64_t count, float temperature, List merged, float* output) {
  for (const List* list = lists; list < lists + count; ++list) {
    std::copy(list->keys, list->keys + list->count, merged.end());
    merged.count += list->count;
  }
  merged.keep_largest();
  std::sort(merged.keys, merged.end(), std::greater<>());
  const double largest = logit_of(merged.keys[0]);
  double sum = 0;
  for (int64_t at = 0; at < count; ++at) {
    if (lists[at].sum != 0) sum += lists[at].sum * std::exp((lists[at].largest - largest) / temperature);
  }
  output[0] = static_cast<float>(sum);
  for (int64_t at = 0; at < TOP_LOGITS; ++at) {
    const bool is_token = at < merged.count;
    output[1 + at] = is_token ? logit_of(merged.keys[at]) : -std::numeric_limits<float>::infinity();
    output[1 + TOP_LOGITS + at] = is_token ? token_of(merged.keys[at]) : -1;
  }
}

class CpuTopLogits : public TopLogitsSignature {
 public:
  explicit CpuTopLogits(const ort::Info&) {}

  void run(const ort::Context& context) const {
    const Call call = TopLogitsSignature::call(context);
    const float temperature = *call.temperature;
    if (!(temperature >= 0) || std::isinf(temperature)) {
      throw ort::Error("liger::Candidates needs a temperature of 0 or more, not " + std::to_string(temperature));
    }
    if (temperature == 0) {
      for (int64_t row = 0; row < call.batch; ++row) call.output[row * (1 + 2 * TOP_LOGITS)] = 0;
      return;
    }
    // All memory is allocated here: the threads cannot run out of it.
    const int64_t pieces = (call.size + PIECE - 1) / PIECE, room = std::min({call.size, PIECE, 2 * TOP_LOGITS});
    std::vector<uint64_t> keys(product({call.batch, pieces, room})), merged(pieces * TOP_LOGITS);
    std::vector<List> lists(product({call.batch, pieces}));
    for (size_t index = 0; index < lists.size(); ++index) lists[index] = {keys.data() + index * room, 0, 0, 0};
    context.parallel(lists.size(), [&](size_t index) {
      const int64_t row = index / pieces, first = index % pieces * PIECE;
      const float* logits = call.logits + ((row + 1) * call.length - 1) * call.size;
      fill(lists[index], logits, first, std::min(first + PIECE, call.size), temperature);
    });
    for (int64_t row = 0; row < call.batch; ++row) {
      merge(lists.data() + row * pieces, pieces, temperature, {merged.data(), 0, 0, 0},
            call.output + row * (1 + 2 * TOP_LOGITS));
    }
  }

 private:
  static constexpr int64_t PIECE = 16384;  // enough work to wake a thread
};

}  // namespace

void add_cpu_top_logits(const OrtApi* api, OrtCustomOpDomain* domain) {
  ort::add_operator<CpuTopLogits, ORT_FLOAT>(api, domain, ort::CPU);
}

}  // namespace liger
