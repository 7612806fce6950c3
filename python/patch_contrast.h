// Shapes, checks and allocation of patch_contrast, the same on every device.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "common.h"
#include "patch_contrast/patch_contrast.h"
#include "tokens.h"

namespace toco {

inline PatchShape patch_shape(const Tensor& tokens) {
  STD_TORCH_CHECK(tokens.dim() == 3, "tokens must have 3 dimensions");
  return {tokens.size(0), tokens.size(1), tokens.size(2)};
}

// launch(tokens, labels, pairs, loss, grad_tokens, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> patch_token_contrast_on(const Tensor& tokens, const Tensor& labels,
                                                   const std::optional<Tensor>& pairs, bool with_grad, Launch launch) {
  const PatchShape shape = patch_shape(tokens);
  check_shape(labels, {shape.batch, shape.patches}, "labels");
  check_same_device(labels, tokens, "labels");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "labels must be int64");
  if (pairs) {
    check_shape(*pairs, {2}, "pairs");
    check_same_device(*pairs, tokens, "pairs");
    STD_TORCH_CHECK(pairs->scalar_type() == ScalarType::Long, "pairs must be int64");
  }
  const Tensor rows = token_rows(tokens), l = dense(labels);
  const std::optional<Tensor> p = pairs ? std::optional<Tensor>(dense(*pairs)) : std::nullopt;
  const ScalarType type = accumulate_type(tokens.scalar_type());
  Tensor loss = empty(rows, {}, type);
  Tensor grad = with_grad ? empty(rows, {shape.batch, shape.patches, shape.width}, type) : empty(rows, {0}, type);
  dispatch_floating(tokens.scalar_type(), "tokens", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(tokens_of<T>(rows), data<int64_t>(l), p ? data<int64_t>(*p) : nullptr, mutable_data<A>(loss),
           with_grad ? mutable_data<A>(grad) : nullptr, shape);
  });
  return {loss, grad};
}

// launch(tokens, scores, classes, class_count, loss, grad_tokens, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> patch_contrastive_error_on(const Tensor& tokens, const Tensor& scores, const Tensor& classes,
                                                      bool with_grad, Launch launch) {
  const PatchShape shape = patch_shape(tokens);
  STD_TORCH_CHECK(classes.dim() == 2, "classes must have 2 dimensions");
  const int64_t class_count = classes.size(1);
  check_shape(scores, {shape.batch, shape.patches, class_count}, "scores");
  check_shape(classes, {shape.batch, class_count}, "classes");
  check_same_device(scores, tokens, "scores");
  check_same_device(classes, tokens, "classes");
  const ScalarType type = accumulate_type(tokens.scalar_type());
  STD_TORCH_CHECK(scores.scalar_type() == type, "scores must have the dtype of the loss");
  const Tensor rows = token_rows(tokens), s = dense(scores), c = dense(classes);
  Tensor loss = empty(rows, {}, type);
  Tensor grad = with_grad ? empty(rows, {shape.batch, shape.patches, shape.width}, type) : empty(rows, {0}, type);
  dispatch_floating(tokens.scalar_type(), "tokens", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(tokens_of<T>(rows), data<A>(s), flags_of(c, "classes"), class_count, mutable_data<A>(loss),
           with_grad ? mutable_data<A>(grad) : nullptr, shape);
  });
  return {loss, grad};
}

}  // namespace toco
