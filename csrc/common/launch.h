// Launching CUDA kernels: every call is checked, and failures say what and where.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace toco {

inline void cuda_check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// kernel<<<grid, threads, shared_bytes, stream>>>(arguments...); nothing is launched for an empty grid.
template <typename... Parameters, typename... Arguments>
void launch(const char* what, void* stream, dim3 grid, unsigned threads, size_t shared_bytes,
            void (*kernel)(Parameters...), Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  cuda_check(cudaGetLastError(), what);
}

inline unsigned blocks_for(int64_t items, int64_t threads) { return unsigned((items + threads - 1) / threads); }

}  // namespace toco
