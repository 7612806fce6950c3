// Shapes, checks and allocation of cam_regularization, the same on every device.
#pragma once
#include <tuple>
#include <vector>

#include "cam_regularization/cam_regularization.h"
#include "common.h"

namespace toco {

inline MapSize map_size(const std::vector<int64_t>& size, const char* name) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, name, " must be a height and a width above 0");
  return {size[0], size[1]};
}

inline ViewShape view_shape(const Tensor& maps, const std::vector<int64_t>& view, const char* name) {
  STD_TORCH_CHECK(maps.dim() == 4 && maps.size(2) > 0 && maps.size(3) > 0, name, " must have 4 dimensions, and pixels");
  return {{maps.size(2), maps.size(3)}, map_size(view, name)};
}

// Maps of two views: the kernels compute in the dtype of sums, to which the operators' callers bring them.
inline EquivariantShape equivariant_shape(const Tensor& maps, const Tensor& other, const Tensor& image_labels,
                                          const std::vector<int64_t>& view, const std::vector<int64_t>& other_view,
                                          const std::vector<int64_t>& size) {
  const ViewShape first = view_shape(maps, view, "maps"), second = view_shape(other, other_view, "other_cams");
  const EquivariantShape shape{maps.size(0), maps.size(1), first, second, map_size(size, "size")};
  STD_TORCH_CHECK(shape.classes > 0, "maps must have a background");
  check_shape(other, {shape.batch, shape.classes, second.grid.height, second.grid.width}, "other_cams");
  check_shape(image_labels, {shape.batch, shape.classes - 1}, "image_labels");
  check_same_dtype(other, maps, "other_cams");
  check_same_device(other, maps, "other_cams");
  check_same_device(image_labels, maps, "image_labels");
  return shape;
}

inline Tensor grad_of(const Tensor& maps, bool wanted) {
  if (!wanted) return empty(maps, {0}, maps.scalar_type());
  return empty(maps, {maps.size(0), maps.size(1), maps.size(2), maps.size(3)}, maps.scalar_type());
}

template <typename Body>
void dispatch_sums(const Tensor& maps, Body body) {
  if (maps.scalar_type() == ScalarType::Double) return body(double{});
  STD_TORCH_CHECK(maps.scalar_type() == ScalarType::Float, "maps must be float32 or float64");
  body(float{});
}

// launch(cams, other_cams, image_labels, loss, grad_cams, grad_other_cams, shape)
template <typename Launch>
std::tuple<Tensor, Tensor, Tensor> equivariant_loss_on(const Tensor& cams, const Tensor& other_cams,
                                                       const Tensor& image_labels, bool with_grad, bool with_grad_other,
                                                       const EquivariantShape& shape, Launch launch) {
  const Tensor c = dense(cams), o = dense(other_cams), l = dense(image_labels);
  Tensor loss = empty(c, {}, c.scalar_type()), grad = grad_of(c, with_grad), grad_other = grad_of(o, with_grad_other);
  dispatch_sums(c, [&](auto zero) {
    using A = decltype(zero);
    launch(data<A>(c), data<A>(o), flags_of(l, "image_labels"), mutable_data<A>(loss),
           with_grad ? mutable_data<A>(grad) : nullptr, with_grad_other ? mutable_data<A>(grad_other) : nullptr, shape);
  });
  return {loss, grad, grad_other};
}

// launch(revised, other_cams, image_labels, loss, grad_revised, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> cross_equivariant_loss_on(const Tensor& revised, const Tensor& other_cams,
                                                     const Tensor& image_labels, int64_t kept, bool with_grad,
                                                     const EquivariantShape& shape, Launch launch) {
  STD_TORCH_CHECK(0 < kept && kept <= shape.classes * shape.size.pixels(), "kept must be in 1 … C + 1 times pixels");
  const Tensor r = dense(revised), o = dense(other_cams), l = dense(image_labels);
  Tensor loss = empty(r, {}, r.scalar_type()), grad = grad_of(r, with_grad);
  dispatch_sums(r, [&](auto zero) {
    using A = decltype(zero);
    launch(data<A>(r), data<A>(o), flags_of(l, "image_labels"), mutable_data<A>(loss),
           with_grad ? mutable_data<A>(grad) : nullptr, shape);
  });
  return {loss, grad};
}

// launch(cams, image_labels, loss, grad_cams, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> min_pooling_loss_on(const Tensor& cams, const Tensor& image_labels,
                                               const std::vector<int64_t>& size, bool with_grad, Launch launch) {
  const MinPoolingShape shape{cams.size(0), cams.size(1), view_shape(cams, size, "cams")};
  STD_TORCH_CHECK(shape.maps.view.pixels() >= 4, "size must have four pixels");
  check_shape(image_labels, {shape.batch, shape.classes}, "image_labels");
  check_same_device(image_labels, cams, "image_labels");
  const Tensor c = dense(cams), l = dense(image_labels);
  Tensor loss = empty(c, {}, c.scalar_type()), grad = grad_of(c, with_grad);
  dispatch_sums(c, [&](auto zero) {
    using A = decltype(zero);
    launch(data<A>(c), flags_of(l, "image_labels"), mutable_data<A>(loss), with_grad ? mutable_data<A>(grad) : nullptr,
           shape);
  });
  return {loss, grad};
}

}  // namespace toco
