// Stands in for csrc/common/launch.h: kernels run on the CPU, thread after thread. That proves their arithmetic and
// indexing, under sanitizers too, where there is no GPU. Threads of a block may meet: each runs up to the barrier, then
// the next. It proves nothing of races, and kernels that exchange data in any other way cannot run here.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 blockIdx, threadIdx;

using cudaStream_t = void*;
enum { cudaMemcpyDeviceToHost };
inline int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  std::memcpy(to, from, bytes);
  return 0;
}
inline int cudaStreamSynchronize(void*) { return 0; }

template <typename T>
T atomicMax(T* result, T value) {
  const T before = *result;
  *result = max(before, value);
  return before;
}
template <typename T>
T atomicAdd(T* result, T value) {
  const T before = *result;
  *result += value;
  return before;
}

namespace toco {
namespace {
alignas(16) char shared[1 << 16];  // the dynamic shared memory of a block
}

// The threads of a block, each with a stack of its own.
struct Block {
  static constexpr size_t kStack = 1 << 16;
  ucontext_t scheduler;
  std::vector<ucontext_t> threads;
  std::vector<char> stacks;
  std::vector<bool> finished;
  void (*run_thread)(void*);
  void* arguments;
};
inline Block block;

inline void enter_thread() {
  block.run_thread(block.arguments);
  block.finished[threadIdx.x] = true;
}

static void run_block(unsigned threads, void (*run_thread)(void*), void* arguments) {
  block.run_thread = run_thread;
  block.arguments = arguments;
  block.threads.resize(threads);
  block.stacks.resize(threads * Block::kStack);
  block.finished.assign(threads, false);
  std::memset(shared, 0xff, sizeof shared);  // NaN: nothing is there before a kernel writes it
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&block.threads[i]);
    block.threads[i].uc_stack.ss_sp = block.stacks.data() + i * Block::kStack;
    block.threads[i].uc_stack.ss_size = Block::kStack;
    block.threads[i].uc_link = &block.scheduler;
    makecontext(&block.threads[i], enter_thread, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
      if (!block.finished[threadIdx.x]) {
        swapcontext(&block.scheduler, &block.threads[threadIdx.x]);
        left |= !block.finished[threadIdx.x];
      }
  }
}

inline void cuda_check(int, const char*) {}

template <typename... Parameters, typename... Arguments>
static void launch(const char*, void*, dim3 grid, unsigned threads, size_t, void (*kernel)(Parameters...),
            Arguments... arguments) {
  auto call_kernel = [&] { kernel(arguments...); };
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        run_block(threads, [](void* call) { (*static_cast<decltype(call_kernel)*>(call))(); }, &call_kernel);
}

inline unsigned blocks_for(int64_t items, int64_t threads) { return unsigned((items + threads - 1) / threads); }

}  // namespace toco

// Up to here, then the other threads of the block.
inline void __syncthreads() { swapcontext(&toco::block.threads[threadIdx.x], &toco::block.scheduler); }
