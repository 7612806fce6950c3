// Stands in for csrc/common/launch.h: kernels run on the CPU, thread after thread. That proves their arithmetic and
// indexing, under sanitizers too, where there is no GPU. It proves nothing of races: kernels that exchange data
// between threads cannot run here.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

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
void atomicMax(T* result, T value) {
  *result = max(*result, value);
}
template <typename T>
void atomicAdd(T* result, T value) {
  *result += value;
}

namespace toco {
namespace {
char shared[1 << 16];  // the dynamic shared memory of a block
}

inline void cuda_check(int, const char*) {}

template <typename... Parameters, typename... Arguments>
void launch(const char*, void*, dim3 grid, unsigned threads, size_t, void (*kernel)(Parameters...),
            Arguments... arguments) {
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(arguments...);
}

inline unsigned blocks_for(int64_t items, int64_t threads) { return unsigned((items + threads - 1) / threads); }

}  // namespace toco
