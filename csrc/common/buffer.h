// Scratch of a kernel: starts at a cache line, is not cleared, and lies in huge pages where it is large. A page fault
// per 4 KB would cost as much as the arithmetic of a memory-bound kernel.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace toco {

template <typename T>
struct Buffer {
  T* data;

  explicit Buffer(int64_t size) {
    constexpr size_t kLine = 64, kHugePage = size_t(2) << 20;
    const size_t bytes = size * sizeof(T), alignment = bytes < kHugePage ? kLine : kHugePage;
    const size_t rounded = (bytes + alignment) / alignment * alignment;
    data = static_cast<T*>(std::aligned_alloc(alignment, rounded));
    if (!data) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

}  // namespace toco
