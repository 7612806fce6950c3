#include "topk_pool.h"

#include "torch_cuda/stream.h"

namespace toco {

std::tuple<Tensor, Tensor> topk_pool(const Tensor& scores, int64_t k, std::optional<Tensor> counts) {
  const OnDeviceOf device(scores);
  return topk_pool_on(scores, k, counts, [&](auto* s, Kept kept, auto* pooled, int32_t* indices, PoolShape shape) {
    topk_pool_cuda(s, kept, pooled, indices, shape, device.stream);
  });
}

Tensor topk_pool_backward(const Tensor& grad, const Tensor& indices, int64_t patches) {
  const OnDeviceOf device(grad);
  return topk_pool_backward_on(grad, indices, patches, [&](auto* g, auto* i, auto* grad_scores, PoolShape shape) {
    topk_pool_backward_cuda(g, i, grad_scores, shape, device.stream);
  });
}

// A block's classes lie in shared memory, and blocks are counted in 16 bits.
static void check_limits(const Tensor& tokens, const Tensor& weight) {
  STD_TORCH_CHECK(weight.size(1) <= 3072, "weight must have at most 3072 classes on CUDA, got ", weight.size(1));
  STD_TORCH_CHECK(tokens.size(0) <= 65535, "tokens must be of at most 65535 images on CUDA, got ", tokens.size(0));
}

std::tuple<Tensor, Tensor> linear_topk_pool(const Tensor& tokens, const Tensor& weight, std::optional<Tensor> bias,
                                            int64_t k, std::optional<Tensor> counts, bool softmax) {
  check_limits(tokens, weight);
  const OnDeviceOf device(tokens);
  return linear_topk_pool_on(
      tokens, weight, bias, k, counts, softmax,
      [&](auto classifier, Kept kept, auto* pooled, int32_t* indices, PoolShape s) {
        using A = Accumulate<std::remove_pointer_t<decltype(pooled)>>;
        Tensor scores = empty(tokens, {s.batch, s.patches, s.classes}, accumulate_type(tokens.scalar_type()));
        linear_topk_pool_cuda(classifier, kept, pooled, indices, mutable_data<A>(scores), s, device.stream);
      });
}

std::tuple<Tensor, Tensor, Tensor> linear_topk_pool_backward(const Tensor& grad, const Tensor& tokens,
                                                             const Tensor& weight, std::optional<Tensor> bias,
                                                             const Tensor& indices, bool softmax, bool with_tokens) {
  check_limits(tokens, weight);
  const OnDeviceOf device(tokens);
  return linear_topk_pool_backward_on(
      grad, tokens, weight, bias, indices, softmax, with_tokens,
      [&](auto* g, auto classifier, auto* i, auto* grad_tokens, auto* grad_weight, auto* grad_bias, PoolShape s) {
        using A = Accumulate<std::remove_pointer_t<decltype(grad_weight)>>;
        const ScalarType type = accumulate_type(tokens.scalar_type());
        Tensor grad_scores = empty(tokens, {s.batch, s.patches, s.classes}, type);
        Tensor partials = empty(tokens, {linear_partials(classifier.width, s)}, type);
        linear_topk_pool_backward_cuda(g, classifier, i, grad_tokens, grad_weight, grad_bias,
                                       mutable_data<A>(grad_scores), mutable_data<A>(partials), s, device.stream);
      });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CUDA, m) {
  m.impl("linear_topk_pool", TORCH_BOX(&linear_topk_pool));
  m.impl("linear_topk_pool_backward", TORCH_BOX(&linear_topk_pool_backward));
  m.impl("topk_pool", TORCH_BOX(&topk_pool));
  m.impl("topk_pool_backward", TORCH_BOX(&topk_pool_backward));
}

}  // namespace toco
