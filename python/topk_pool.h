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

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) { return t ? std::optional<Tensor>(dense(*t)) : t; }

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

template <typename T>
Classifier<T> classifier_of(const Tensor& tokens, const Tensor& weight, const std::optional<Tensor>& bias,
                            bool softmax) {
  return {data<T>(tokens), data<T>(weight), bias ? data<T>(*bias) : nullptr, tokens.size(2), softmax};
}

inline void check_classifier(const Tensor& tokens, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(tokens.dim() == 3 && weight.dim() == 2, "tokens must have 3 dimensions, and weight 2");
  check_shape(weight, {tokens.size(2), weight.size(1)}, "weight");
  check_same_dtype(weight, tokens, "weight");
  check_same_device(weight, tokens, "weight");
  if (!bias) return;
  check_shape(*bias, {weight.size(1)}, "bias");
  check_same_dtype(*bias, tokens, "bias");
  check_same_device(*bias, tokens, "bias");
}

// launch(classifier, kept, pooled, indices, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> linear_topk_pool_on(const Tensor& tokens, const Tensor& weight,
                                               const std::optional<Tensor>& bias, int64_t k,
                                               const std::optional<Tensor>& counts, bool softmax, Launch launch) {
  check_classifier(tokens, weight, bias);
  const PoolShape shape = pool_shape(tokens.size(0), tokens.size(1), weight.size(1), k, counts, tokens);
  const Tensor t = dense(tokens), w = dense(weight);
  const std::optional<Tensor> b = dense(bias), each = dense(counts);
  Tensor pooled = empty(t, {shape.batch, shape.classes}, t.scalar_type());
  Tensor indices = empty(t, {shape.batch, shape.most, shape.classes}, ScalarType::Int);
  dispatch_floating(t.scalar_type(), "tokens", [&](auto zero) {
    using T = decltype(zero);
    launch(classifier_of<T>(t, w, b, softmax), kept_of(k, each), mutable_data<T>(pooled),
           mutable_data<int32_t>(indices), shape);
  });
  return {pooled, indices};
}

// launch(grad, classifier, indices, grad_tokens, grad_weight, grad_bias, shape)
template <typename Launch>
std::tuple<Tensor, Tensor, Tensor> linear_topk_pool_backward_on(const Tensor& grad, const Tensor& tokens,
                                                                const Tensor& weight, const std::optional<Tensor>& bias,
                                                                const Tensor& indices, bool softmax, bool with_tokens,
                                                                Launch launch) {
  check_classifier(tokens, weight, bias);
  STD_TORCH_CHECK(indices.dim() == 3 && indices.scalar_type() == ScalarType::Int, "indices must be int32 (B, K, C)");
  const PoolShape shape{tokens.size(0), tokens.size(1), weight.size(1), indices.size(1)};
  check_shape(indices, {shape.batch, shape.most, shape.classes}, "indices");
  check_same_device(indices, tokens, "indices");
  check_shape(grad, {shape.batch, shape.classes}, "grad");
  check_same_dtype(grad, tokens, "grad");
  check_same_device(grad, tokens, "grad");
  const Tensor g = dense(grad), t = dense(tokens), w = dense(weight), i = dense(indices);
  const std::optional<Tensor> b = dense(bias);
  const ScalarType type = t.scalar_type();
  Tensor grad_tokens = with_tokens ? empty(t, {t.size(0), t.size(1), t.size(2)}, type) : empty(t, {0}, type);
  Tensor grad_weight = empty(t, {w.size(0), w.size(1)}, type), grad_bias = empty(t, {w.size(1)}, type);
  dispatch_floating(type, "tokens", [&](auto zero) {
    using T = decltype(zero);
    launch(data<T>(g), classifier_of<T>(t, w, b, softmax), data<int32_t>(i),
           with_tokens ? mutable_data<T>(grad_tokens) : nullptr, mutable_data<T>(grad_weight),
           mutable_data<T>(grad_bias), shape);
  });
  return {grad_tokens, grad_weight, grad_bias};
}

}  // namespace toco
