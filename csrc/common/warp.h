// Largest values and sums of integers over all threads of a kernel: of each warp first, so that memory sees one atomic
// operation in place of 32. Both are exact, whatever the order. Where kernels run on the CPU, every thread stands
// alone.
#pragma once

namespace toco {

// Every thread of the warp must take part.
template <typename T>
__device__ void max_of_warp(T* result, T value) {
#if defined(__CUDA_ARCH__)
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, offset));
  if (threadIdx.x % 32 != 0) return;
#endif
  atomicMax(result, value);
}

template <typename T>
__device__ void sum_of_warp(T* result, T value) {
#if defined(__CUDA_ARCH__)
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 != 0) return;
#endif
  if (value != 0) atomicAdd(result, value);
}

}  // namespace toco
