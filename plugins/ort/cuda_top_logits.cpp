// liger::Candidates on CUDA: kernels/top_logits.py. Nothing here waits for the GPU, so a step can be captured in a graph.

#include <utility>

#include "top_logits.h"
#include "cuda_node.h"

namespace liger {
namespace {

constexpr int64_t LISTED = 8192, MERGED = 32;  // tokens per list, lists merged by one program: kernels/plans.py

int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

class CudaTopLogits : public TopLogitsSignature {
 public:
  explicit CudaTopLogits(const ort::Info& info) : compiled_(info, KERNELS), allocator_(gpu_allocator(info)) {}

  void run(const ort::Context& context) const {
    const Call call = TopLogitsSignature::call(context);
    const int64_t lists = product({call.batch, parts(call.size, LISTED)});
    const size_t keys = product({lists, TOP_LOGITS, sizeof(int64_t)}), sums = product({lists, 2, sizeof(float)});
    Workspace workspace(allocator_, 2 * (Workspace::aligned(keys) + Workspace::aligned(sums)));
    const TopLogitLists first{workspace.take(keys), workspace.take(sums)};
    const TopLogitLists second{workspace.take(keys), workspace.take(sums)};
    launch_top_logits(compiled_.get(), call, first, second, context.stream());
  }

 private:
  Compiled compiled_;
  OrtAllocator* allocator_;
};

}  // namespace

void launch_top_logits(const CudaKernels& kernels, const TopLogitsSignature::Call& call, TopLogitLists lists,
                       TopLogitLists merged, void* stream) {
  Arguments arguments;
  arguments.pointer("logits", call.logits);
  arguments.pointer("temperature", call.temperature);
  arguments.pointer("candidates", call.output);
  arguments.integer("width", call.size);
  arguments.integer("length", call.length);
  arguments.pointer("lists", lists.keys);
  arguments.pointer("sums", lists.sums);
  kernels.launch("list_kernel", arguments, call.batch, call.size, stream);
  for (int64_t count = parts(call.size, LISTED); count > 1; count = parts(count, MERGED)) {
    arguments.pointer("next_lists", merged.keys);
    arguments.pointer("next_sums", merged.sums);
    arguments.integer("count", count);
    kernels.launch("merge_kernel", arguments, call.batch, count, stream);
    std::swap(lists, merged);
    arguments.pointer("lists", lists.keys);
    arguments.pointer("sums", lists.sums);
  }
  kernels.launch("order_kernel", arguments, call.batch, 1, stream);
}

void add_cuda_top_logits(const OrtApi* api, OrtCustomOpDomain* domain) {
  ort::add_operator<CudaTopLogits, ORT_FLOAT>(api, domain, ort::CUDA);
}

}  // namespace liger
