// An operator that calls every entry of ort_api.h and returns their results as numbers, and one that fails on threads.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>

#include "ort_kernel.h"

namespace {

class Probe {
 public:
  static constexpr const char* name = "Probe";
  static constexpr std::array<ort::Parameter, 3> inputs{{{ORT_FLOAT}, {ORT_UINT8}, {ORT_FLOAT, ORT_OPTIONAL}}};
  static constexpr std::array<ort::Parameter, 1> outputs{{{ORT_FLOAT}}};

  explicit Probe(const ort::Info& info)
      : integer_(info.integer("integer")), number_(info.number("number")), text_(info.text("text")),
        constant_(info.constant(1)), variable_(info.constant(0)) {
    OrtAllocator* allocator = nullptr;
    ort::check(info.api(), ort::GetAllocator::call(info.api(), info.raw(), ORT_MEM_DEFAULT, &allocator));
    char* memory = static_cast<char*>(allocator->Alloc(allocator, 100));
    std::memset(memory, 7, 100);
    allocated_ = memory[99];
    allocator->Free(allocator, memory);
    OrtStatus* status = ort::CreateStatus::call(info.api(), ORT_INVALID_ARGUMENT, "what went wrong");
    message_ = ort::GetErrorMessage::call(info.api(), status);
    ort::ReleaseStatus::call(info.api(), status);
  }

  void run(const ort::Context& context) const {
    const ort::Tensor input = context.input(0);
    std::atomic<int> total{0};
    context.parallel(10, [&](size_t index) { total += static_cast<int>(index); });
    const float found[] = {
        static_cast<float>(integer_), number_, static_cast<float>(text_ == "some text"),
        static_cast<float>(constant_.as<uint8_t>()[2]), static_cast<float>(static_cast<bool>(variable_)), allocated_,
        static_cast<float>(message_ == "what went wrong"), static_cast<float>(input.rank),
        static_cast<float>(input.shape[0]), static_cast<float>(input.shape[1]), input.as<float>()[5],
        static_cast<float>(input.type),
        static_cast<float>(static_cast<bool>(context.input(2))), static_cast<float>(total),
        static_cast<float>(context.stream() == nullptr),
    };
    const int64_t count = std::size(found);
    std::copy(found, found + count, context.output(0, {1, count}).as<float>());
  }

 private:
  int64_t integer_;
  float number_;
  std::string text_, message_;
  ort::Tensor constant_, variable_;
  float allocated_;
};

// Throws on every thread of a parallel section what its first input says: 0 no memory, 1 an error, 2 something else.
class Failing {
 public:
  static constexpr const char* name = "Failing";
  static constexpr std::array<ort::Parameter, 1> inputs{{{ORT_FLOAT}}};
  static constexpr std::array<ort::Parameter, 1> outputs{{{ORT_FLOAT}}};

  explicit Failing(const ort::Info&) {}

  void run(const ort::Context& context) const {
    const float kind = *context.input(0).as<float>();
    context.output(0, {1});
    context.parallel(8, [&](size_t) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // so that every thread takes part
      if (kind == 0) throw std::bad_alloc();
      if (kind == 1) throw ort::Error("what went wrong on a thread");
      throw 2;
    });
  }
};

}  // namespace

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ort::ORT_VERSION);
  return ort::guarded(api, [&] {
    static const ort::Operator<Probe> probe(ort::CPU, ORT_FLOAT);
    static const ort::Operator<Failing> failing(ort::CPU, ORT_FLOAT);
    OrtCustomOpDomain* domain = nullptr;
    ort::check(api, ort::CreateCustomOpDomain::call(api, "probe", &domain));
    ort::check(api, ort::CustomOpDomainAdd::call(api, domain, &probe));
    ort::check(api, ort::CustomOpDomainAdd::call(api, domain, &failing));
    ort::check(api, ort::AddCustomOpDomain::call(api, options, domain));
    if (base->GetVersionString()[0] != '1') throw ort::Error("GetVersionString");
  });
}
