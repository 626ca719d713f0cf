// liger::Candidates on CUDA: kernels/candidates.py. Nothing here waits for the GPU, so a step can be captured as a graph.

#include <utility>

#include "candidates.h"
#include "cuda_node.h"

namespace liger {
namespace {

constexpr int64_t LISTED = 8192, MERGED = 32;  // tokens of a list, lists that a program merges: kernels/plans.py

int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

class CudaCandidates : public CandidatesForm {
 public:
  explicit CudaCandidates(const ort::Info& info) : compiled_(info, KERNELS), allocator_(gpu_allocator(info)) {}

  void run(const ort::Context& context) const {
    const Call call = CandidatesForm::call(context);
    const size_t lists = call.batch * parts(call.size, LISTED);
    const size_t keys = lists * CANDIDATES * sizeof(int64_t), sums = lists * 2 * sizeof(float);
    Workspace workspace(allocator_, 2 * (Workspace::aligned(keys) + Workspace::aligned(sums)));
    const CandidateLists first{workspace.take(keys), workspace.take(sums)};
    const CandidateLists second{workspace.take(keys), workspace.take(sums)};
    launch_candidates(compiled_.get(), call, first, second, context.stream());
  }

 private:
  Compiled compiled_;
  OrtAllocator* allocator_;
};

}  // namespace

void launch_candidates(const CudaKernels& kernels, const CandidatesForm::Call& call, CandidateLists lists,
                       CandidateLists merged, void* stream) {
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

void add_cuda_candidates(const OrtApi* api, OrtCustomOpDomain* domain) {
  static const ort::Operator<CudaCandidates> candidates(ort::CUDA, ORT_FLOAT);
  ort::check(api, ort::CustomOpDomainAdd::call(api, domain, &candidates));
}

}  // namespace liger
