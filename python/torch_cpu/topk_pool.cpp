#include "topk_pool.h"

namespace toco {

std::tuple<Tensor, Tensor> topk_pool(const Tensor& scores, int64_t k, std::optional<Tensor> counts) {
  return topk_pool_on(scores, k, counts, [](auto* s, Kept kept, auto* pooled, int32_t* indices, PoolShape shape) {
    topk_pool_cpu(s, kept, pooled, indices, shape, torch_threads());
  });
}

Tensor topk_pool_backward(const Tensor& grad, const Tensor& indices, int64_t patches) {
  return topk_pool_backward_on(grad, indices, patches, [](auto* g, auto* i, auto* grad_scores, PoolShape shape) {
    topk_pool_backward_cpu(g, i, grad_scores, shape, torch_threads());
  });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("topk_pool", TORCH_BOX(&topk_pool));
  m.impl("topk_pool_backward", TORCH_BOX(&topk_pool_backward));
}

}  // namespace toco
