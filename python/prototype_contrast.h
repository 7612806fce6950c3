// Shapes, checks and allocation of prototype_contrast, the same on every device.
#pragma once
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"
#include "prototype_contrast/prototype_contrast.h"

namespace toco {

inline PixelShape pixel_shape(const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 3, "features must have 3 dimensions");
  return {features.size(0), features.size(1), features.size(2)};
}

template <typename T>
FeatureMaps<T> features_of(const Tensor& features) {
  return {data<T>(features), features.stride(0), features.stride(1), features.stride(2)};
}

inline void check_prototypes(const Tensor& prototypes, const Tensor& features, const char* name) {
  STD_TORCH_CHECK(prototypes.dim() == 2 && prototypes.size(0) > 0, "prototypes must have 2 dimensions, and a class");
  check_shape(prototypes, {prototypes.size(0), features.size(1)}, name);
  check_same_device(prototypes, features, name);
  STD_TORCH_CHECK(prototypes.scalar_type() == accumulate_type(features.scalar_type()), name,
                  " must have the dtype of the loss");
}

// launch(features, labels, prototypes, classes, loss, grad_features, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> prototype_contrast_on(const Tensor& features, const Tensor& labels, const Tensor& prototypes,
                                                 bool with_grad, Launch launch) {
  const PixelShape shape = pixel_shape(features);
  check_shape(labels, {shape.batch, shape.pixels}, "labels");
  check_same_device(labels, features, "labels");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "labels must be int64");
  check_prototypes(prototypes, features, "prototypes");
  const Tensor l = dense(labels), p = dense(prototypes);
  const ScalarType type = accumulate_type(features.scalar_type());
  Tensor loss = empty(features, {}, type);
  Tensor grad =
      with_grad ? empty(features, {shape.batch, shape.width, shape.pixels}, type) : empty(features, {0}, type);
  dispatch_floating(features.scalar_type(), "features", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(features_of<T>(features), data<int64_t>(l), data<A>(p), p.size(0), mutable_data<A>(loss),
           with_grad ? mutable_data<A>(grad) : nullptr, shape);
  });
  return {loss, grad};
}

// launch(features, cams, present, classes, scores, vectors, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> prototype_candidates_on(const Tensor& features, const Tensor& cams,
                                                   const std::optional<Tensor>& present, int64_t kept, Launch launch) {
  const PixelShape shape = pixel_shape(features);
  STD_TORCH_CHECK(cams.dim() == 3, "cams must have 3 dimensions");
  STD_TORCH_CHECK(kept > 0, "k must be positive");
  const int64_t classes = cams.size(1);
  check_shape(cams, {shape.batch, classes, shape.pixels}, "cams");
  check_same_device(cams, features, "cams");
  const ScalarType type = accumulate_type(features.scalar_type());
  STD_TORCH_CHECK(cams.scalar_type() == type, "cams must be float32, or float64 for float64 features");
  if (present) {
    check_shape(*present, {shape.batch, classes}, "present");
    check_same_device(*present, features, "present");
  }
  const Tensor c = dense(cams);
  const std::optional<Tensor> shown = present ? std::optional<Tensor>(dense(*present)) : std::nullopt;
  Tensor scores = empty(features, {classes, kept}, type), vectors = empty(features, {classes, kept, shape.width}, type);
  dispatch_floating(features.scalar_type(), "features", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const Flags flags = shown ? flags_of(*shown, "present") : Flags{};
    launch(features_of<T>(features), data<A>(c), shown ? &flags : nullptr, classes, mutable_data<A>(scores),
           mutable_data<A>(vectors), shape);
  });
  return {scores, vectors};
}

// What both views of a step have, checked.
struct CheckedViews {
  Tensor features[2], labels[2], prototypes[2], draws, slopes;
  PixelShape shape;
  int64_t classes;

  CheckedViews(const Tensor& first, const Tensor& second, const Tensor& prototypes_1, const Tensor& prototypes_2)
      : features{first, second},
        labels{first, second},
        prototypes{dense(prototypes_1), dense(prototypes_2)},
        draws(first),
        slopes(first),
        shape(pixel_shape(first)),
        classes(prototypes_1.size(0)) {
    check_shape(second, {shape.batch, shape.width, shape.pixels}, "other_features");
    check_same_device(second, first, "other_features");
    check_same_dtype(second, first, "other_features");
    for (const Tensor& set : prototypes) check_prototypes(set, first, "prototypes");
    check_shape(prototypes_2, {classes, shape.width}, "other_prototypes");
  }

  void check_slopes() const {
    check_shape(slopes, {2, 3, shape.batch, classes, shape.pixels}, "slopes");
    check_same_device(slopes, features[0], "slopes");
    check_same_dtype(slopes, features[0], "slopes");
  }

  template <typename A>
  View<A> view(int v, bool with_labels) const {
    return {features_of<A>(features[v]), with_labels ? data<int64_t>(labels[v]) : nullptr, data<A>(prototypes[v]),
            with_labels ? data<A>(draws) + v * shape.batch * shape.pixels : nullptr,
            mutable_data<A>(slopes) + v * 3 * shape.batch * classes * shape.pixels};
  }
};

// Calls body(A{}): steps are computed in the dtype of sums alone.
template <typename Body>
void dispatch_accumulate(const Tensor& features, Body body) {
  STD_TORCH_CHECK(features.scalar_type() == accumulate_type(features.scalar_type()),
                  "features must be float32 or float64");
  if (features.scalar_type() == ScalarType::Double)
    body(double{});
  else
    body(float{});
}

// launch(views, classes, terms, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> pixel_prototype_contrast_on(const Tensor& features, const Tensor& other_features,
                                                       const Tensor& labels, const Tensor& other_labels,
                                                       const Tensor& prototypes, const Tensor& other_prototypes,
                                                       const Tensor& draws, Launch launch) {
  CheckedViews views(features, other_features, prototypes, other_prototypes);
  const PixelShape s = views.shape;
  for (const Tensor* l : {&labels, &other_labels}) {
    check_shape(*l, {s.batch, s.pixels}, "labels");
    check_same_device(*l, features, "labels");
    STD_TORCH_CHECK(l->scalar_type() == ScalarType::Long, "labels must be int64");
  }
  check_shape(draws, {2, s.batch, s.pixels}, "draws");
  check_same_device(draws, features, "draws");
  check_same_dtype(draws, features, "draws");
  views.labels[0] = dense(labels);
  views.labels[1] = dense(other_labels);
  views.draws = dense(draws);
  views.slopes = empty(features, {2, 3, s.batch, views.classes, s.pixels}, features.scalar_type());
  Tensor terms = empty(features, {3}, features.scalar_type());
  dispatch_accumulate(features, [&](auto zero) {
    using A = decltype(zero);
    const View<A> both[2] = {views.view<A>(0, true), views.view<A>(1, true)};
    launch(both, views.classes, mutable_data<A>(terms), s);
  });
  return {terms, views.slopes};
}

// launch(grad, views, classes, grad_features, grad_other_features, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> pixel_prototype_contrast_backward_on(const Tensor& grad, const Tensor& features,
                                                                const Tensor& other_features, const Tensor& prototypes,
                                                                const Tensor& other_prototypes, const Tensor& slopes,
                                                                Launch launch) {
  CheckedViews views(features, other_features, prototypes, other_prototypes);
  const PixelShape s = views.shape;
  views.slopes = dense(slopes);
  views.check_slopes();
  check_shape(grad, {3}, "grad");
  check_same_device(grad, features, "grad");
  check_same_dtype(grad, features, "grad");
  const Tensor g = dense(grad);
  Tensor first = empty(features, {s.batch, s.width, s.pixels}, features.scalar_type());
  Tensor second = empty(features, {s.batch, s.width, s.pixels}, features.scalar_type());
  dispatch_accumulate(features, [&](auto zero) {
    using A = decltype(zero);
    const View<A> both[2] = {views.view<A>(0, false), views.view<A>(1, false)};
    launch(data<A>(g), both, views.classes, mutable_data<A>(first), mutable_data<A>(second), s);
  });
  return {first, second};
}

inline void check_size(const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] >= 0 && size[1] >= 0, "size must be two numbers");
}

// launch(maps, resized, shape)
template <typename Launch>
Tensor resize_corners_on(const Tensor& maps, const std::vector<int64_t>& size, Launch launch) {
  check_size(size);
  STD_TORCH_CHECK(maps.dim() == 4, "maps must have 4 dimensions");
  const ResizeShape s{maps.size(0), maps.size(1), maps.size(2), maps.size(3), size[0], size[1]};
  STD_TORCH_CHECK(s.height > 0 && s.width > 0, "maps must have pixels");
  Tensor resized = empty(maps, {s.batch, s.channels, size[0], size[1]}, accumulate_type(maps.scalar_type()));
  dispatch_floating(maps.scalar_type(), "maps", [&](auto zero) {
    using T = decltype(zero);
    const PlaneMaps<T> planes{data<T>(maps), maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3)};
    launch(planes, mutable_data<Accumulate<T>>(resized), s);
  });
  return resized;
}

// launch(grad, grad_maps, shape)
template <typename Launch>
Tensor resize_corners_backward_on(const Tensor& grad, const std::vector<int64_t>& size, Launch launch) {
  check_size(size);
  STD_TORCH_CHECK(grad.dim() == 4 && size[0] > 0 && size[1] > 0, "grad must have 4 dimensions, and maps pixels");
  const ResizeShape s{grad.size(0), grad.size(1), size[0], size[1], grad.size(2), grad.size(3)};
  const Tensor g = dense(grad);
  Tensor grad_maps = empty(grad, {s.batch, s.channels, size[0], size[1]}, grad.scalar_type());
  dispatch_accumulate(grad, [&](auto zero) {
    using A = decltype(zero);
    launch(data<A>(g), mutable_data<A>(grad_maps), s);
  });
  return grad_maps;
}

}  // namespace toco
