// Scratch of a kernel: starts at a cache line and is not cleared.
//
// Large buffers lie in huge pages, and up to kKept bytes of them are kept for the next call. Memory fresh from the
// system is cleared page by page on first touch, which can cost more than a memory-bound kernel's own work.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "common/huge_pages.h"

namespace toco {

struct Block {
  void* data = nullptr;
  size_t size = 0;
};

// A few blocks that wait for the next call. Whoever finds another thread at it allocates and frees as usual, so that
// nobody waits, and a forked child cannot inherit a lock that is never released.
class KeptBlocks {
 public:
  // A block of at least `size` bytes, and not much more; none if there is none.
  Block take(size_t size) {
    Block found;
    if (busy_.test_and_set(std::memory_order_acquire)) return found;
    for (Block& block : blocks_)
      if (!found.data && block.size >= size && block.size <= 2 * size) {
        found = block;
        kept_ -= block.size;
        block = {};
      }
    busy_.clear(std::memory_order_release);
    return found;
  }

  // Whether the block is kept, in place of the oldest ones where there is no room; else the caller frees it.
  bool give(Block given) {
    if (given.size > kKept || busy_.test_and_set(std::memory_order_acquire)) return false;
    while (blocks_[next_].data || kept_ + given.size > kKept) {
      std::free(blocks_[next_].data);
      kept_ -= blocks_[next_].size;
      blocks_[next_] = {};
      if (kept_ + given.size > kKept) next_ = (next_ + 1) % kSlots;
    }
    blocks_[next_] = given;
    kept_ += given.size;
    next_ = (next_ + 1) % kSlots;
    busy_.clear(std::memory_order_release);
    return true;
  }

 private:
  static constexpr size_t kKept = size_t(256) << 20;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  static constexpr int kSlots = 32;  // twice what a call of a kernel gives back
  Block blocks_[kSlots];
  int next_ = 0;  // the oldest
  size_t kept_ = 0;
};

inline KeptBlocks& kept_blocks() {
  static KeptBlocks blocks;
  return blocks;
}

template <typename T>
class Buffer {
 public:
  T* data;

  explicit Buffer(int64_t size) {
    constexpr size_t kLine = 64;
    const size_t bytes = size * sizeof(T), alignment = bytes < kHugePage ? kLine : kHugePage;
    if (bytes >= kHugePage) block_ = kept_blocks().take(bytes);
    if (!block_.data) {
      block_.size = (bytes + alignment) / alignment * alignment;
      block_.data = std::aligned_alloc(alignment, block_.size);
      if (!block_.data) throw std::bad_alloc();
      prefer_huge_pages(block_.data, block_.size);
    }
    data = static_cast<T*>(block_.data);
  }
  ~Buffer() {
    if (block_.size < kHugePage || !kept_blocks().give(block_)) std::free(block_.data);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

 private:
  static constexpr size_t kHugePage = size_t(2) << 20;
  Block block_;
};

}  // namespace toco
