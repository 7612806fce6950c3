// Shapes, checks and allocation of cam, the same on every device.
#pragma once
#include <optional>
#include <tuple>

#include "cam/cam.h"
#include "common.h"

namespace toco {

// Pointers of the maps, with the tensors that hold them: contiguous, and alive as long as this is.
struct DenseMaps {
  std::vector<Tensor> tensors;

  DenseMaps(const std::vector<Tensor>& maps) {
    STD_TORCH_CHECK(!maps.empty(), "maps must have at least one scale");
    const Tensor& first = maps[0];
    for (const Tensor& map : maps) {
      STD_TORCH_CHECK(map.dim() == 4, "maps must have 4 dimensions");
      STD_TORCH_CHECK(map.size(0) == first.size(0) && map.size(1) == first.size(1),
                      "maps must agree in batch and classes");
      STD_TORCH_CHECK(map.size(1) > 0 && map.size(2) > 0 && map.size(3) > 0, "maps must have classes and pixels");
      check_same_dtype(map, first, "maps");
      check_same_device(map, first, "maps");
      tensors.push_back(dense(map));
    }
    STD_TORCH_CHECK(first.size(0) % 2 == 0, "maps must hold the images and as many mirrored ones");
  }

  template <typename T>
  std::vector<ScaleMaps<T>> of() const {
    std::vector<ScaleMaps<T>> maps;
    for (const Tensor& map : tensors) maps.push_back({data<T>(map), map.size(2), map.size(3)});
    return maps;
  }
};

inline MergeShape merge_shape(const Tensor& maps, const std::vector<int64_t>& size,
                              const std::vector<int64_t>& out_size) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, "size must be two positive numbers");
  STD_TORCH_CHECK(out_size.size() == 2 && out_size[0] > 0 && out_size[1] > 0, "out_size must be two positive numbers");
  return {maps.size(0) / 2, maps.size(1), size[0], size[1], out_size[0], out_size[1]};
}

inline Tensor checked_flags(const Tensor& image_labels, const Tensor& as, int64_t batch, int64_t classes) {
  check_shape(image_labels, {batch, classes}, "image_labels");
  check_same_device(image_labels, as, "image_labels");
  return dense(image_labels);
}

inline std::optional<Tensor> checked_boxes(const std::optional<Tensor>& boxes, const Tensor& as, int64_t batch) {
  if (!boxes) return std::nullopt;
  check_shape(*boxes, {batch, 4}, "boxes");
  STD_TORCH_CHECK(boxes->scalar_type() == ScalarType::Long, "boxes must be int64");
  check_same_device(*boxes, as, "boxes");
  return dense(*boxes);
}

// launch(maps, flags or null, cams, shape)
template <typename Launch>
Tensor merge_cams_on(const std::vector<Tensor>& maps, const std::optional<Tensor>& image_labels,
                     const std::vector<int64_t>& size, const std::vector<int64_t>& out_size, Launch launch) {
  const DenseMaps m(maps);
  const Tensor& first = m.tensors[0];
  const MergeShape shape = merge_shape(first, size, out_size);
  std::optional<Tensor> present;
  if (image_labels) present = checked_flags(*image_labels, first, shape.batch, shape.classes);
  Tensor cams = empty(first, {shape.batch, shape.classes, shape.out_height, shape.out_width}, first.scalar_type());
  dispatch_floating(first.scalar_type(), "maps", [&](auto zero) {
    using T = decltype(zero);
    const Flags flags = present ? flags_of(*present, "image_labels") : Flags{};
    launch(m.of<T>(), present ? &flags : nullptr, mutable_data<T>(cams), shape);
  });
  return cams;
}

// launch(maps, flags, boxes or null, result, shape), whose result has numbers of type R.
template <typename R, typename Launch>
Tensor merge_cams_to_on(ScalarType type, const std::vector<Tensor>& maps, const Tensor& image_labels,
                        const std::optional<Tensor>& boxes, const std::vector<int64_t>& size,
                        const std::vector<int64_t>& out_size, Launch launch) {
  const DenseMaps m(maps);
  const Tensor& first = m.tensors[0];
  const MergeShape shape = merge_shape(first, size, out_size);
  const Tensor present = checked_flags(image_labels, first, shape.batch, shape.classes);
  const std::optional<Tensor> box = checked_boxes(boxes, first, shape.batch);
  Tensor result = empty(first, {shape.batch, shape.out_height, shape.out_width}, type);
  dispatch_floating(first.scalar_type(), "maps", [&](auto zero) {
    launch(m.of<decltype(zero)>(), flags_of(present, "image_labels"), box ? data<int64_t>(*box) : nullptr,
           mutable_data<R>(result), shape);
  });
  return result;
}

inline CamShape cam_shape(const Tensor& cams) {
  STD_TORCH_CHECK(cams.dim() == 4 && cams.size(1) > 0, "cams must have 4 dimensions, and at least one class");
  return {cams.size(0), cams.size(1), cams.size(2), cams.size(3)};
}

// launch(cams, flags, boxes or null, limits, labels, shape)
template <typename Launch>
Tensor cam_to_label_on(const Tensor& cams, const Tensor& image_labels, const std::optional<Tensor>& boxes, double high,
                       double low, const std::optional<Tensor>& high_map, const std::optional<Tensor>& low_map,
                       Launch launch) {
  const CamShape s = cam_shape(cams);
  const Tensor c = dense(cams), present = checked_flags(image_labels, cams, s.batch, s.classes);
  const std::optional<Tensor> box = checked_boxes(boxes, cams, s.batch);
  const auto checked_map = [&](const std::optional<Tensor>& map, const char* name) -> std::optional<Tensor> {
    if (!map) return std::nullopt;
    check_shape(*map, {s.batch, 1, s.height, s.width}, name);
    check_same_device(*map, cams, name);
    STD_TORCH_CHECK(map->scalar_type() == accumulate_type(cams.scalar_type()), name,
                    " must be float32, or float64 for float64 cams");
    return dense(*map);
  };
  const std::optional<Tensor> highs = checked_map(high_map, "high"), lows = checked_map(low_map, "low");
  Tensor labels = empty(c, {s.batch, s.height, s.width}, ScalarType::Long);
  dispatch_floating(c.scalar_type(), "cams", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const Limits<A> limits{A(high), A(low), highs ? data<A>(*highs) : nullptr, lows ? data<A>(*lows) : nullptr};
    launch(data<T>(c), flags_of(present, "image_labels"), box ? data<int64_t>(*box) : nullptr, limits,
           mutable_data<int64_t>(labels), s);
  });
  return labels;
}

// launch(cams, flags, roi, shape)
template <typename Launch>
Tensor cam_to_roi_on(const Tensor& cams, const Tensor& image_labels, Launch launch) {
  const CamShape s = cam_shape(cams);
  const Tensor c = dense(cams), present = checked_flags(image_labels, cams, s.batch, s.classes);
  Tensor roi = empty(c, {s.batch, s.height, s.width}, ScalarType::Byte);
  dispatch_floating(c.scalar_type(), "cams", [&](auto zero) {
    launch(data<decltype(zero)>(c), flags_of(present, "image_labels"), mutable_data<uint8_t>(roi), s);
  });
  return roi;
}

// launch(images, roi, draws, cut, flags, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> crop_uncertain_on(const Tensor& images, const Tensor& roi, const Tensor& draws, int64_t size,
                                             Launch launch) {
  STD_TORCH_CHECK(images.dim() == 4 && draws.dim() == 2, "images must have 4 dimensions, and draws 2");
  const CropShape s{images.size(0), images.size(1), images.size(2), images.size(3), draws.size(1), size};
  check_shape(roi, {s.batch, s.height, s.width}, "roi");
  check_shape(draws, {s.batch, s.crops}, "draws");
  check_same_device(roi, images, "roi");
  check_same_device(draws, images, "draws");
  STD_TORCH_CHECK(roi.scalar_type() == ScalarType::Byte, "roi must be uint8");
  STD_TORCH_CHECK(draws.scalar_type() == ScalarType::Double, "draws must be float64");
  const int64_t rows = s.height - size / 2 * 2, columns = s.width - size / 2 * 2;
  STD_TORCH_CHECK(size > 0 && rows > 0 && columns > 0 && s.crops <= rows * columns, "size must leave pixels for crops");
  const Tensor i = dense(images), r = dense(roi), d = dense(draws);
  Tensor cut = empty(i, {s.crops, s.batch, s.channels, size, size}, i.scalar_type());
  Tensor flags = empty(i, {s.batch, s.crops}, i.scalar_type());
  dispatch_floating(i.scalar_type(), "images", [&](auto zero) {
    using T = decltype(zero);
    launch(data<T>(i), data<uint8_t>(r), data<double>(d), mutable_data<T>(cut), mutable_data<T>(flags), s);
  });
  return {cut, flags};
}

// launch(logits, labels, loss, grad or null, shape)
template <typename Launch>
std::tuple<Tensor, Tensor> segmentation_loss_on(const Tensor& logits, const Tensor& labels, bool with_grad,
                                                Launch launch) {
  STD_TORCH_CHECK(logits.dim() == 4 && logits.size(1) > 0, "logits must have 4 dimensions, and at least one class");
  check_shape(labels, {logits.size(0), logits.size(2), logits.size(3)}, "labels");
  check_same_device(labels, logits, "labels");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "labels must be int64");
  const LossShape s{logits.size(0), logits.size(1), logits.size(2) * logits.size(3)};
  const Tensor z = dense(logits), l = dense(labels);
  const ScalarType type = accumulate_type(logits.scalar_type());
  Tensor loss = empty(z, {}, type);
  Tensor grad = with_grad ? empty(z, {z.size(0), z.size(1), z.size(2), z.size(3)}, type) : empty(z, {0}, type);
  dispatch_floating(z.scalar_type(), "logits", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(data<T>(z), data<int64_t>(l), mutable_data<A>(loss), with_grad ? mutable_data<A>(grad) : nullptr, s);
  });
  return {loss, grad};
}

}  // namespace toco
