// Memory of a CPU operator's calls.

#pragma once

#include <cstdint>
#include <memory>

namespace liger {

constexpr int64_t MEMORY_ALIGNMENT = 64;  // bytes: the largest vector

inline int64_t aligned(int64_t bytes) { return (bytes + MEMORY_ALIGNMENT - 1) / MEMORY_ALIGNMENT * MEMORY_ALIGNMENT; }

// Memory of this thread's calls, aligned and kept between them: it grows to the size of the largest call.
inline char* memory_of_calls(int64_t bytes) {
  static thread_local std::unique_ptr<char[]> memory;
  static thread_local int64_t size = 0;
  if (size < bytes) {
    size = 0;
    memory.reset();
    memory.reset(new char[bytes + MEMORY_ALIGNMENT]);
    size = bytes;
  }
  const auto address = reinterpret_cast<intptr_t>(memory.get());
  return memory.get() + (aligned(address) - address);
}

}  // namespace liger
