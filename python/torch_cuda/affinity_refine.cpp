#include "affinity_refine.h"

#include "torch_cuda/stream.h"

namespace toco {

static void check_limits(const Tensor& image, const std::vector<int64_t>& dilations) {
  STD_TORCH_CHECK(8 * dilations.size() <= kMaxCudaNeighbours, "dilations must be at most ", kMaxCudaNeighbours / 8,
                  " on CUDA, got ", dilations.size());
  STD_TORCH_CHECK(image.size(1) <= kMaxCudaColours, "image must have at most ", kMaxCudaColours,
                  " colours on CUDA, got ", image.size(1));
}

// Images whose weights fit into half of a large L2 cache together.
static int64_t images_at_once(int64_t bytes_of_one, int64_t batch) {
  constexpr int64_t kCache = int64_t(32) << 20, kMaxGrid = 65535;
  return std::max<int64_t>(1, std::min({batch, kMaxGrid, kCache / std::max<int64_t>(1, bytes_of_one)}));
}

static Tensor refine(const Tensor& image, const Tensor& masks, const std::vector<int64_t>& dilations,
                     int64_t iterations, const std::string& kind, bool fast, bool transposed) {
  check_limits(image, dilations);
  const OnDeviceOf device(masks);
  const bool half = masks.scalar_type() == ScalarType::Half || masks.scalar_type() == ScalarType::BFloat16;
  const bool half_weights = half || (fast && masks.scalar_type() != ScalarType::Double);
  const ScalarType type = accumulate_type(masks.scalar_type());
  return affinity_refine_on(image, masks, dilations, [&](auto* i, auto* m, auto* refined, RefineShape s) {
    const ScalarType weight_type = half_weights ? ScalarType::Half : type;
    const int64_t neighbours = 8 * int64_t(dilations.size()), bytes = half_weights                 ? 2
                                                                      : type == ScalarType::Double ? 8
                                                                                                   : 4;
    const int64_t chunk = images_at_once(neighbours * s.height * s.width * bytes, s.batch);
    Tensor weights = empty(image, {chunk, neighbours, s.height, s.width}, weight_type);
    Tensor buffers = empty(image, {2, chunk, s.channels, s.height, s.width}, type);
    affinity_refine_cuda(
        i, m, refined, dilations, iterations, affinity_kind(kind), transposed, half_weights, weights.data_ptr(),
        mutable_data<std::remove_const_t<std::remove_pointer_t<decltype(i)>>>(buffers), chunk, s, device.stream);
  });
}

Tensor affinity_refine(const Tensor& image, const Tensor& masks, std::vector<int64_t> dilations, int64_t iterations,
                       std::string kind, bool fast) {
  return refine(image, masks, dilations, iterations, kind, fast, false);
}

Tensor affinity_refine_backward(const Tensor& grad, const Tensor& image, std::vector<int64_t> dilations,
                                int64_t iterations, std::string kind, bool fast) {
  return refine(image, grad, dilations, iterations, kind, fast, true);
}

Tensor refine_cam_labels(const Tensor& image, const Tensor& cams, const Tensor& image_labels,
                         std::optional<Tensor> boxes, double high, double low, std::optional<Tensor> high_map,
                         std::optional<Tensor> low_map, int64_t ignore_index, int64_t down_scale,
                         std::vector<int64_t> dilations, int64_t iterations, std::string kind, int64_t max_classes) {
  check_limits(image, dilations);
  const OnDeviceOf device(cams);
  return refine_cam_labels_on(
      image, cams, image_labels, boxes, high, low, high_map, low_map, down_scale, dilations, max_classes,
      [&](auto* i, auto* c, Flags present, const int64_t* box, auto with_high, auto with_low, int64_t* labels,
          const CamLabelShape& s) {
        using A = std::remove_const_t<std::remove_pointer_t<decltype(c)>>;
        Tensor classes = empty(cams, {s.batch, 1 + s.classes}, ScalarType::Int);
        Tensor used = empty(cams, {s.batch}, ScalarType::Int);
        present_classes_cuda(present, mutable_data<int32_t>(classes), mutable_data<int32_t>(used), s, device.stream);
        const int64_t most = max_classes < 0 ? most_used_cuda(data<int32_t>(used), s.batch, device.stream)
                                             : 1 + std::min(max_classes, s.classes);
        const RefineShape small{s.batch, s.colours, 2 * most, s.height / s.down_scale, s.width / s.down_scale};
        const ScalarType type = cams.scalar_type();
        Tensor weights = empty(cams, {s.batch, 8 * int64_t(dilations.size()), small.height, small.width}, type);
        Tensor image_at_size = empty(cams, {s.batch, s.colours, small.height, small.width}, type);
        Tensor buffers = empty(cams, {2, s.batch, small.channels, small.height, small.width}, type);
        refine_cam_labels_cuda(i, c, data<int32_t>(classes), data<int32_t>(used), box, with_high, with_low, labels,
                               dilations, iterations, affinity_kind(kind), ignore_index, mutable_data<A>(weights),
                               mutable_data<A>(image_at_size), mutable_data<A>(buffers), small, s, device.stream);
      });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CUDA, m) {
  m.impl("affinity_refine", TORCH_BOX(&affinity_refine));
  m.impl("affinity_refine_backward", TORCH_BOX(&affinity_refine_backward));
  m.impl("refine_cam_labels", TORCH_BOX(&refine_cam_labels));
}

}  // namespace toco
