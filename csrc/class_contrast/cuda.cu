#include <cooperative_groups.h>

#include "class_contrast/row.h"
#include "common/launch.h"

namespace toco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

template <typename A>
__device__ A warp_sum(A value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// One launch: a block per image (several, when there are more images than multiprocessors), then, once all blocks
// have met, the first adds the images' losses in their order.
template <typename T, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kThreads, 1)
    class_token_contrast_kernel(const T* student, const T* teacher, Flags flags, A scale, A* loss, A* grad_student,
                                A* scratch, ClassContrastShape s) {
  A* losses = scratch + s.batch * 4 * s.crops;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  for (int64_t b = blockIdx.x; b < s.batch; b += gridDim.x) {
    const T* first = teacher + b * s.width;
    const T* second = teacher + (s.batch + b) * s.width;
    A* logits = scratch + b * 4 * s.crops;  // (2, crops)
    A* grads = logits + 2 * s.crops;        // (2, crops)

    for (int64_t j = warp; j < s.crops; j += kThreads / kWarp) {  // a warp per crop
      const T* token = student + (j * s.batch + b) * s.width;
      A dots[2] = {0, 0};
      for (int64_t d = lane; d < s.width; d += kWarp) {
        dots[0] += A(token[d]) * A(first[d]);
        dots[1] += A(token[d]) * A(second[d]);
      }
      dots[0] = warp_sum(dots[0]);
      dots[1] = warp_sum(dots[1]);
      if (lane < 2) logits[lane * s.crops + j] = scale * (lane == 0 ? dots[0] : dots[1]);
    }
    __syncthreads();

    __shared__ A row_loss[2];
    const A weight = contrast_weight<A>(flags, b * s.crops, s);
    if (lane == 0 && warp < 2)  // one thread per teacher token: a few dozen exponentials
      row_loss[warp] = contrast_row(logits + warp * s.crops, flags, b * s.crops, s.crops, grads + warp * s.crops);
    __syncthreads();

    if (threadIdx.x == 0) losses[b] = weight * (row_loss[0] + row_loss[1]);
    if (grad_student)
      for (int64_t d = threadIdx.x; d < s.width; d += kThreads) {
        const A t0 = A(first[d]), t1 = A(second[d]);
        for (int64_t j = 0; j < s.crops; ++j)
          grad_student[(j * s.batch + b) * s.width + d] = weight * scale * (grads[j] * t0 + grads[s.crops + j] * t1);
      }
    __syncthreads();  // row_loss is written again for the next image
  }

  cooperative_groups::this_grid().sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    A total = 0;
    for (int64_t b = 0; b < s.batch; ++b) total += losses[b];
    *loss = total;
  }
}

}  // namespace

template <typename T>
void class_token_contrast_cuda(const T* student, const T* teacher, Flags flags, double temperature, Accumulate<T>* loss,
                               Accumulate<T>* grad_student, Accumulate<T>* scratch, ClassContrastShape s,
                               void* stream) {
  int device = 0, multiprocessors = 0;
  cuda_check(cudaGetDevice(&device), "class_token_contrast");
  cuda_check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "class_token_contrast");
  // All blocks must be resident for the grid to meet; one per multiprocessor always is.
  const int64_t blocks = s.batch < multiprocessors ? (s.batch > 0 ? s.batch : 1) : multiprocessors;
  Accumulate<T> scale = Accumulate<T>(1 / temperature);
  void* arguments[] = {&student, &teacher, &flags, &scale, &loss, &grad_student, &scratch, &s};
  cuda_check(cudaLaunchCooperativeKernel(class_token_contrast_kernel<T>, dim3(unsigned(blocks)), dim3(kThreads),
                                         arguments, 0, static_cast<cudaStream_t>(stream)),
             "class_token_contrast");
}

#define INSTANTIATE(T)                                                                                          \
  template void class_token_contrast_cuda<T>(const T*, const T*, Flags, double, Accumulate<T>*, Accumulate<T>*, \
                                             Accumulate<T>*, ClassContrastShape, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
