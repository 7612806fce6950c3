// Shapes, checks and allocation of topk_pool, the same on every device.
#pragma once
#include <climits>
#include <optional>
#include <tuple>

#include "common.h"
#include "topk_pool/topk_pool.h"

namespace toco {

inline PoolShape pool_shape(int64_t batch, int64_t patches, int64_t classes, int64_t k,
                            const std::optional<Tensor>& counts, const Tensor& as) {
  STD_TORCH_CHECK(patches < INT_MAX, "there must be fewer than 2^31 - 1 patches");
  if (counts) {
    check_shape(*counts, {batch, classes}, "counts");
    check_same_device(*counts, as, "counts");
    STD_TORCH_CHECK(counts->scalar_type() == ScalarType::Long, "counts must be int64");
    STD_TORCH_CHECK(patches > 0, "there must be at least one patch");
  } else {
    STD_TORCH_CHECK(1 <= k && k <= patches, "k must be between 1 and the number of patches");
  }
  return {batch, patches, classes, counts ? patches : k};
}

inline Kept kept_of(int64_t k, const std::optional<Tensor>& counts) {
  return {k, counts ? data<int64_t>(*counts) : nullptr};
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(dense(*t)) : t;
}

// launch(scores, kept, pooled, indices, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> topk_pool_on(const Tensor& scores, int64_t k, const std::optional<Tensor>& counts,
                                        Launch launch) {
  STD_TORCH_CHECK(scores.dim() == 3, "scores must have 3 dimensions");
  const PoolShape shape = pool_shape(scores.size(0), scores.size(1), scores.size(2), k, counts, scores);
  const Tensor s = dense(scores);
  const std::optional<Tensor> each = dense(counts);
  Tensor pooled = empty(s, {shape.batch, shape.classes}, s.scalar_type());
  Tensor indices = empty(s, {shape.batch, shape.most, shape.classes}, ScalarType::Int);
  dispatch_floating(s.scalar_type(), "scores", [&](auto zero) {
    using T = decltype(zero);
    launch(data<T>(s), kept_of(k, each), mutable_data<T>(pooled), mutable_data<int32_t>(indices), shape);
  });
  return {pooled, indices};
}

// launch(grad, indices, grad_scores, shape)
template <typename Launch>
Tensor topk_pool_backward_on(const Tensor& grad, const Tensor& indices, int64_t patches, Launch launch) {
  STD_TORCH_CHECK(indices.dim() == 3 && indices.scalar_type() == ScalarType::Int, "indices must be int32 (B, K, C)");
  const PoolShape shape{indices.size(0), patches, indices.size(2), indices.size(1)};
  check_shape(grad, {shape.batch, shape.classes}, "grad");
  check_same_device(indices, grad, "indices");
  const Tensor g = dense(grad), i = dense(indices);
  Tensor grad_scores = empty(g, {shape.batch, patches, shape.classes}, g.scalar_type());
  dispatch_floating(g.scalar_type(), "grad", [&](auto zero) {
    using T = decltype(zero);
    launch(data<T>(g), data<int32_t>(i), mutable_data<T>(grad_scores), shape);
  });
  return grad_scores;
}

}  // namespace toco
