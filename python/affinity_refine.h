// Shapes, checks and allocation of affinity_refine, the same on every device.
#pragma once
#include <string>

#include "affinity_refine/affinity_refine.h"
#include "common.h"

namespace toco {

inline AffinityKind affinity_kind(const std::string& kind) {
  STD_TORCH_CHECK(kind == "par" || kind == "pamr", "kind must be 'par' or 'pamr', got '", kind, "'");
  return kind == "par" ? AffinityKind::kPar : AffinityKind::kPamr;
}

// launch(image, masks, refined, shape): pointers, and the shape behind them.
template <typename Launch>
Tensor affinity_refine_on(const Tensor& image, const Tensor& masks, const std::vector<int64_t>& dilations,
                          Launch launch) {
  STD_TORCH_CHECK(image.dim() == 4 && masks.dim() == 4, "image and masks must have 4 dimensions");
  STD_TORCH_CHECK(image.scalar_type() == accumulate_type(masks.scalar_type()),
                  "image must be float32, or float64 for float64 masks");
  STD_TORCH_CHECK(!dilations.empty(), "dilations must not be empty");
  for (const int64_t d : dilations) STD_TORCH_CHECK(d > 0, "dilations must be positive, got ", d);
  const RefineShape shape{image.size(0), image.size(1), masks.size(1), image.size(2), image.size(3)};
  check_shape(masks, {shape.batch, shape.channels, shape.height, shape.width}, "masks");
  STD_TORCH_CHECK(shape.height > 0 && shape.width > 0, "image must have pixels");

  const Tensor i = dense(image), m = dense(masks);
  Tensor refined = empty(m, {shape.batch, shape.channels, shape.height, shape.width}, m.scalar_type());
  dispatch_floating(m.scalar_type(), "masks", [&](auto zero) {
    using T = decltype(zero);
    launch(data<Accumulate<T>>(i), data<T>(m), mutable_data<T>(refined), shape);
  });
  return refined;
}

}  // namespace toco
