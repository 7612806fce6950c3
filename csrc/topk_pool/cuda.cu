// Selection on the GPU: a block takes kClasses neighbouring classes of one image, one sector of memory in float32, and
// its threads share the patches. They exchange data through shared memory alone.
#include "topk_pool/cuda_select.h"

namespace toco {

template <typename T>
void topk_pool_cuda(const T* scores, Kept kept, T* pooled, int32_t* indices, PoolShape s, void* stream) {
  pool_on_device(scores, kept, pooled, indices, s, "topk_pool", stream);
}

template <typename T>
void topk_pool_backward_cuda(const T* grad, const int32_t* indices, T* grad_scores, PoolShape s, void* stream) {
  spread_on_device(grad, indices, grad_scores, s, "topk_pool_backward", stream);
}

#define INSTANTIATE(T)                                                             \
  template void topk_pool_cuda<T>(const T*, Kept, T*, int32_t*, PoolShape, void*); \
  template void topk_pool_backward_cuda<T>(const T*, const int32_t*, T*, PoolShape, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace toco
