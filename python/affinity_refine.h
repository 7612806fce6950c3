// Shapes, checks and allocation of affinity_refine, the same on every device.
#pragma once
#include <optional>
#include <string>

#include "affinity_refine/affinity_refine.h"
#include "common.h"

namespace toco {

inline AffinityKind affinity_kind(const std::string& kind) {
  STD_TORCH_CHECK(kind == "par" || kind == "pamr", "kind must be 'par' or 'pamr', got '", kind, "'");
  return kind == "par" ? AffinityKind::kPar : AffinityKind::kPamr;
}

inline void check_dilations(const std::vector<int64_t>& dilations) {
  STD_TORCH_CHECK(!dilations.empty(), "dilations must not be empty");
  for (const int64_t d : dilations) STD_TORCH_CHECK(d > 0, "dilations must be positive, got ", d);
}

// launch(image, masks, refined, shape): pointers, and the shape behind them.
template <typename Launch>
Tensor affinity_refine_on(const Tensor& image, const Tensor& masks, const std::vector<int64_t>& dilations,
                          Launch launch) {
  STD_TORCH_CHECK(image.dim() == 4 && masks.dim() == 4, "image and masks must have 4 dimensions");
  check_same_device(image, masks, "image");
  STD_TORCH_CHECK(image.scalar_type() == accumulate_type(masks.scalar_type()),
                  "image must be float32, or float64 for float64 masks");
  check_dilations(dilations);
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

// launch(image, cams, image_labels, boxes, high, low, labels, shape): pointers, and the shape behind them.
template <typename Launch>
Tensor refine_cam_labels_on(const Tensor& image, const Tensor& cams, const Tensor& image_labels,
                            const std::optional<Tensor>& boxes, double high, double low,
                            const std::optional<Tensor>& high_map, const std::optional<Tensor>& low_map,
                            int64_t down_scale, const std::vector<int64_t>& dilations, int64_t max_classes,
                            Launch launch) {
  STD_TORCH_CHECK(image.dim() == 4 && cams.dim() == 4, "image and cams must have 4 dimensions");
  check_same_dtype(image, cams, "image");
  check_same_device(image, cams, "image");
  check_same_device(image_labels, cams, "image_labels");
  check_dilations(dilations);
  const CamLabelShape shape{cams.size(0), image.size(1), cams.size(1), cams.size(2),
                            cams.size(3), down_scale,    max_classes};
  STD_TORCH_CHECK(0 < down_scale && down_scale <= shape.height && down_scale <= shape.width,
                  "down_scale must be at least 1 and leave pixels, got ", down_scale);
  check_shape(image, {shape.batch, shape.colours, shape.height, shape.width}, "image");
  check_shape(image_labels, {shape.batch, shape.classes}, "image_labels");

  const Tensor i = dense(image), c = dense(cams), present = dense(image_labels);
  std::optional<Tensor> box, maps[2];
  if (boxes) {
    check_shape(*boxes, {shape.batch, 4}, "boxes");
    STD_TORCH_CHECK(boxes->scalar_type() == ScalarType::Long, "boxes must be int64");
    check_same_device(*boxes, cams, "boxes");
    box = dense(*boxes);
  }
  const auto use_map = [&](const std::optional<Tensor>& map, const char* name, std::optional<Tensor>& used) {
    if (!map) return;
    check_shape(*map, {shape.batch, 1, shape.height, shape.width}, name);
    check_same_dtype(*map, cams, name);
    check_same_device(*map, cams, name);
    used = dense(*map);
  };
  use_map(high_map, "high", maps[0]);
  use_map(low_map, "low", maps[1]);

  Tensor labels = empty(c, {shape.batch, shape.height, shape.width}, ScalarType::Long);
  const auto typed = [&](auto zero) {
    using A = decltype(zero);
    const auto map = [&](int run) { return maps[run] ? data<A>(*maps[run]) : nullptr; };
    launch(data<A>(i), data<A>(c), flags_of(present, "image_labels"), box ? data<int64_t>(*box) : nullptr,
           Background<A>{A(high), map(0)}, Background<A>{A(low), map(1)}, mutable_data<int64_t>(labels), shape);
  };
  STD_TORCH_CHECK(c.scalar_type() == ScalarType::Float || c.scalar_type() == ScalarType::Double,
                  "cams must be float32 or float64");
  c.scalar_type() == ScalarType::Double ? typed(double{}) : typed(float{});
  return labels;
}

}  // namespace toco
