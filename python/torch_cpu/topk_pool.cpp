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

std::tuple<Tensor, Tensor> linear_topk_pool(const Tensor& tokens, const Tensor& weight, std::optional<Tensor> bias,
                                            int64_t k, std::optional<Tensor> counts, bool softmax) {
  return linear_topk_pool_on(tokens, weight, bias, k, counts, softmax,
                             [](auto classifier, Kept kept, auto* pooled, int32_t* indices, PoolShape shape) {
                               linear_topk_pool_cpu(classifier, kept, pooled, indices, shape, torch_threads());
                             });
}

std::tuple<Tensor, Tensor, Tensor> linear_topk_pool_backward(const Tensor& grad, const Tensor& tokens,
                                                             const Tensor& weight, std::optional<Tensor> bias,
                                                             const Tensor& indices, bool softmax, bool with_tokens) {
  return linear_topk_pool_backward_on(
      grad, tokens, weight, bias, indices, softmax, with_tokens,
      [](auto* g, auto classifier, auto* i, auto* grad_tokens, auto* grad_weight, auto* grad_bias, PoolShape shape) {
        linear_topk_pool_backward_cpu(g, classifier, i, grad_tokens, grad_weight, grad_bias, shape, torch_threads());
      });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("linear_topk_pool", TORCH_BOX(&linear_topk_pool));
  m.impl("linear_topk_pool_backward", TORCH_BOX(&linear_topk_pool_backward));
  m.impl("topk_pool", TORCH_BOX(&topk_pool));
  m.impl("topk_pool_backward", TORCH_BOX(&topk_pool_backward));
}

}  // namespace toco
