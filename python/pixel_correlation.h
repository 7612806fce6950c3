// Shapes, checks and allocation of pixel_correlation, the same on every device.
#pragma once
#include <tuple>

#include "common.h"
#include "pixel_correlation/pixel_correlation.h"

namespace toco {

inline CorrelationShape correlation_shape(const Tensor& features, const Tensor& cams) {
  STD_TORCH_CHECK(features.dim() == 3 && cams.dim() == 3, "features and cams must have 3 dimensions");
  const CorrelationShape shape{features.size(0), features.size(1), cams.size(1), features.size(2)};
  check_shape(cams, {shape.batch, shape.classes, shape.pixels}, "cams");
  check_same_device(cams, features, "cams");
  check_same_dtype(cams, features, "cams");
  return shape;
}

template <typename T>
FeatureMaps<T> maps_of(const Tensor& features) {
  return {data<T>(features), features.stride(0), features.stride(1), features.stride(2)};
}

// launch(features, cams, revised, sums, signs, shape)
template <typename Launch>
std::tuple<Tensor, Tensor, Tensor> pixel_correlation_on(const Tensor& features, const Tensor& cams, bool with_grad,
                                                        Launch launch) {
  const CorrelationShape s = correlation_shape(features, cams);
  const Tensor c = dense(cams);
  const ScalarType type = accumulate_type(features.scalar_type());
  Tensor revised = empty(features, {s.batch, s.classes, s.pixels}, type);
  Tensor sums = with_grad ? empty(features, {s.batch, s.pixels}, type) : empty(features, {0}, type);
  Tensor signs = with_grad ? empty(features, {s.batch, s.pixels, s.words()}, ScalarType::Int)
                           : empty(features, {0}, ScalarType::Int);
  dispatch_floating(features.scalar_type(), "features", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(maps_of<T>(features), data<T>(c), mutable_data<A>(revised), with_grad ? mutable_data<A>(sums) : nullptr,
           with_grad ? mutable_data<uint32_t>(signs) : nullptr, s);
  });
  return {revised, sums, signs};
}

// launch(grad, features, cams, revised, sums, signs, grad_features, shape)
template <typename Launch>
Tensor pixel_correlation_backward_on(const Tensor& grad, const Tensor& features, const Tensor& cams,
                                     const Tensor& revised, const Tensor& sums, const Tensor& signs, Launch launch) {
  const CorrelationShape s = correlation_shape(features, cams);
  const ScalarType type = accumulate_type(features.scalar_type());
  check_shape(grad, {s.batch, s.classes, s.pixels}, "grad");
  check_shape(revised, {s.batch, s.classes, s.pixels}, "revised");
  check_shape(sums, {s.batch, s.pixels}, "sums");
  check_shape(signs, {s.batch, s.pixels, s.words()}, "signs");
  for (const Tensor* t : {&grad, &revised, &sums}) {
    check_same_device(*t, features, "grad, revised and sums");
    STD_TORCH_CHECK(t->scalar_type() == type, "grad, revised and sums must have the dtype of sums");
  }
  check_same_device(signs, features, "signs");
  STD_TORCH_CHECK(signs.scalar_type() == ScalarType::Int, "signs must be int32");
  const Tensor g = dense(grad), c = dense(cams), r = dense(revised), total = dense(sums), bits = dense(signs);
  Tensor grad_features = empty(features, {s.batch, s.width, s.pixels}, type);
  dispatch_floating(features.scalar_type(), "features", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(data<A>(g), maps_of<T>(features), data<T>(c), data<A>(r), data<A>(total), data<uint32_t>(bits),
           mutable_data<A>(grad_features), s);
  });
  return grad_features;
}

}  // namespace toco
