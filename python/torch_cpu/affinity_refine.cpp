#include "affinity_refine.h"

namespace toco {

static Tensor refine(const Tensor& image, const Tensor& masks, const std::vector<int64_t>& dilations,
                     int64_t iterations, const std::string& kind, bool transposed) {
  return affinity_refine_on(image, masks, dilations, [&](auto* i, auto* m, auto* refined, RefineShape shape) {
    affinity_refine_cpu(i, m, refined, dilations, iterations, affinity_kind(kind), transposed, shape, torch_threads());
  });
}

// On the CPU affinities are kept in full precision, fast or not: half of them would have to be widened again.
Tensor affinity_refine(const Tensor& image, const Tensor& masks, std::vector<int64_t> dilations, int64_t iterations,
                       std::string kind, bool) {
  return refine(image, masks, dilations, iterations, kind, false);
}

Tensor affinity_refine_backward(const Tensor& grad, const Tensor& image, std::vector<int64_t> dilations,
                                int64_t iterations, std::string kind, bool) {
  return refine(image, grad, dilations, iterations, kind, true);
}

Tensor refine_cam_labels(const Tensor& image, const Tensor& cams, const Tensor& image_labels,
                         std::optional<Tensor> boxes, double high, double low, std::optional<Tensor> high_map,
                         std::optional<Tensor> low_map, int64_t ignore_index, int64_t down_scale,
                         std::vector<int64_t> dilations, int64_t iterations, std::string kind, int64_t max_classes) {
  return refine_cam_labels_on(
      image, cams, image_labels, boxes, high, low, high_map, low_map, down_scale, dilations, max_classes,
      [&](auto* i, auto* c, Flags present, const int64_t* box, auto with_high, auto with_low, int64_t* labels,
          const CamLabelShape& shape) {
        refine_cam_labels_cpu(i, c, present, box, with_high, with_low, labels, dilations, iterations,
                              affinity_kind(kind), ignore_index, shape, torch_threads());
      });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("affinity_refine", TORCH_BOX(&affinity_refine));
  m.impl("affinity_refine_backward", TORCH_BOX(&affinity_refine_backward));
  m.impl("refine_cam_labels", TORCH_BOX(&refine_cam_labels));
}

}  // namespace toco
