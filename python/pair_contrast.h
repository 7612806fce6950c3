// Shapes, checks and allocation of pair_contrast, the same on every device.
#pragma once
#include <tuple>

#include "common.h"
#include "pair_contrast/pair_contrast.h"
#include "tokens.h"

namespace toco {

inline void check_labels(const Tensor& labels, const Tensor& tokens, const char* name) {
  check_shape(labels, {tokens.size(0), tokens.size(1)}, name);
  check_same_device(labels, tokens, name);
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, name, " must be int64");
}

inline Tensor empty_grad(const Tensor& tokens, bool wanted, ScalarType type) {
  if (!wanted) return empty(tokens, {0}, type);
  return empty(tokens, {tokens.size(0), tokens.size(1), tokens.size(2)}, type);
}

// launch(features, labels, loss, grad_features, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> affinity_loss_on(const Tensor& features, const Tensor& labels, const AffinityRule& rule,
                                            bool with_grad, Launch launch) {
  STD_TORCH_CHECK(features.dim() == 3, "features must have 3 dimensions");
  const PairShape shape{features.size(0), features.size(1), features.size(1), features.size(2)};
  check_labels(labels, features, "labels");
  const bool whole_rows = shape.x_count == 0 || (rule.grid_width > 0 && shape.x_count % rule.grid_width == 0);
  STD_TORCH_CHECK(rule.radius < 0 || whole_rows, "grid_width must divide the number of tokens where there is a radius");
  const Tensor rows = token_rows(features), l = dense(labels);
  const ScalarType type = accumulate_type(features.scalar_type());
  Tensor loss = empty(rows, {}, type), grad = empty_grad(features, with_grad, type);
  dispatch_floating(features.scalar_type(), "features", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(tokens_of<T>(rows), data<int64_t>(l), mutable_data<A>(loss), with_grad ? mutable_data<A>(grad) : nullptr,
           shape);
  });
  return {loss, grad};
}

// launch(x, y, labels_x, labels_y, loss, grad_x, grad_y, shape)
template <typename Launch>
std::tuple<Tensor, Tensor, Tensor> contrast_on(const Tensor& x, const Tensor& y, const Tensor& labels_x,
                                               const Tensor& labels_y, bool with_grad_x, bool with_grad_y,
                                               Launch launch) {
  STD_TORCH_CHECK(x.dim() == 3 && y.dim() == 3, "x and y must have 3 dimensions");
  const PairShape shape{x.size(0), x.size(1), y.size(1), x.size(2)};
  check_shape(y, {shape.batch, shape.y_count, shape.width}, "y");
  check_same_dtype(y, x, "y");
  check_same_device(y, x, "y");
  check_labels(labels_x, x, "labels_x");
  check_labels(labels_y, y, "labels_y");
  const Tensor x_rows = token_rows(x), y_rows = token_rows(y), lx = dense(labels_x), ly = dense(labels_y);
  const ScalarType type = accumulate_type(x.scalar_type());
  Tensor loss = empty(x, {}, type), grad_x = empty_grad(x, with_grad_x, type),
         grad_y = empty_grad(y, with_grad_y, type);
  dispatch_floating(x.scalar_type(), "x", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(tokens_of<T>(x_rows), tokens_of<T>(y_rows), data<int64_t>(lx), data<int64_t>(ly), mutable_data<A>(loss),
           with_grad_x ? mutable_data<A>(grad_x) : nullptr, with_grad_y ? mutable_data<A>(grad_y) : nullptr, shape);
  });
  return {loss, grad_x, grad_y};
}

}  // namespace toco
