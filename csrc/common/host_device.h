// Mathematics that CPU and GPU kernels share is written once, in functions marked TOCO_HOST_DEVICE.
#pragma once

#if defined(__CUDACC__)
#define TOCO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TOCO_HOST_DEVICE __attribute__((always_inline)) inline
#endif
