// Shapes, checks and allocation of dense_energy, the same on every device.
#pragma once
#include <tuple>

#include "common.h"
#include "dense_energy/dense_energy.h"

namespace toco {

// Where float32 puts the points of the lattice, or in the precision of the values.
inline void check_image(const Tensor& image, const Tensor& maps, FilterKernel kernel) {
  const ScalarType type = kernel == FilterKernel::kLattice ? ScalarType::Float : accumulate_type(maps.scalar_type());
  STD_TORCH_CHECK(image.scalar_type() == type,
                  "image must be float32, or float64 for the exact kernel on float64 values");
  STD_TORCH_CHECK(
      image.dim() == 4 && image.size(2) > 0 && image.size(3) > 0 && image.size(2) * image.size(3) <= int64_t(1) << 28,
      "image must have 4 dimensions and at most 2^28 pixels");
  check_shape(image, {maps.size(0), 3, image.size(2), image.size(3)}, "image");
  check_same_device(image, maps, "image");
}

// launch(maps, image, roi, unlabeled, loss, grad, shape): pointers, and the shape behind them.
template <typename Launch>
std::tuple<Tensor, Tensor> dense_energy_on(const Tensor& maps, const Tensor& image, const Tensor& roi,
                                           const Tensor& unlabeled, FilterKernel kernel, bool logits, bool with_grad,
                                           Launch launch) {
  STD_TORCH_CHECK(maps.dim() == 4 && maps.size(1) > 0, "probabilities must have 4 dimensions, and a class");
  check_image(image, maps, kernel);
  const EnergyShape s{maps.size(0), maps.size(1), maps.size(2), maps.size(3), image.size(2), image.size(3)};
  STD_TORCH_CHECK(s.height > 0 && s.width > 0, "there must be pixels");
  STD_TORCH_CHECK(logits || (s.height == s.image_height && s.width == s.image_width),
                  "image must have the probabilities' size");
  check_shape(roi, {s.batch, s.image_height, s.image_width}, "roi");
  check_shape(unlabeled, {s.batch, s.image_height, s.image_width}, "unlabeled");
  check_same_device(roi, maps, "roi");
  check_same_device(unlabeled, maps, "unlabeled");
  const ScalarType type = accumulate_type(maps.scalar_type());
  STD_TORCH_CHECK(roi.scalar_type() == type, "roi must be float32, or float64 for float64 probabilities");
  STD_TORCH_CHECK(unlabeled.scalar_type() == ScalarType::Bool, "unlabeled must be bool");

  const Tensor m = dense(maps), i = dense(image), r = dense(roi), u = dense(unlabeled);
  Tensor loss = empty(m, {}, type);
  Tensor grad = with_grad ? empty(m, {s.batch, s.classes, s.height, s.width}, type) : empty(m, {0}, type);
  dispatch_floating(m.scalar_type(), "probabilities", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(data<T>(m), i.data_ptr(), data<A>(r), data<uint8_t>(u), mutable_data<A>(loss),
           with_grad ? mutable_data<A>(grad) : nullptr, s);
  });
  return {loss, grad};
}

// launch(values, image, out, shape): the filter, or the mean field.
template <typename Launch>
Tensor dense_filter_on(const Tensor& values, const Tensor& image, FilterKernel kernel, Launch launch) {
  STD_TORCH_CHECK(values.dim() == 4 && values.size(1) > 0, "values must have 4 dimensions, and a class");
  check_image(image, values, kernel);
  const EnergyShape s{values.size(0), values.size(1), values.size(2), values.size(3), image.size(2), image.size(3)};
  check_shape(image, {s.batch, 3, s.height, s.width}, "image");
  const Tensor v = dense(values), i = dense(image);
  Tensor out = empty(v, {s.batch, s.classes, s.height, s.width}, v.scalar_type());
  const auto typed = [&](auto zero) {
    using A = decltype(zero);
    launch(data<A>(v), i.data_ptr(), mutable_data<A>(out), s);
  };
  STD_TORCH_CHECK(v.scalar_type() == ScalarType::Float || v.scalar_type() == ScalarType::Double,
                  "values must be float32 or float64");
  v.scalar_type() == ScalarType::Double ? typed(double{}) : typed(float{});
  return out;
}

}  // namespace toco
