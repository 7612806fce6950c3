#include "cam.h"

namespace toco {

Tensor merge_cams(std::vector<Tensor> maps, std::optional<Tensor> image_labels, std::vector<int64_t> size,
                  std::vector<int64_t> out_size) {
  return merge_cams_on(maps, image_labels, size, out_size,
                       [&](const auto& m, const Flags* present, auto* cams, auto s) {
                         merge_cams_cpu(m, present, cams, s, torch_threads());
                       });
}

Tensor merge_cams_to_labels(std::vector<Tensor> maps, const Tensor& image_labels, std::optional<Tensor> boxes,
                            std::vector<int64_t> size, std::vector<int64_t> out_size, double high, double low,
                            int64_t ignore_index) {
  return merge_cams_to_on<int64_t>(ScalarType::Long, maps, image_labels, boxes, size, out_size,
                                   [&](const auto& m, Flags present, const int64_t* box, int64_t* labels, auto s) {
                                     merge_cams_to_labels_cpu(m, present, box, labels, high, low, ignore_index, s,
                                                              torch_threads());
                                   });
}

Tensor merge_cams_to_roi(std::vector<Tensor> maps, const Tensor& image_labels, std::vector<int64_t> size,
                         std::vector<int64_t> out_size, double high, double low) {
  return merge_cams_to_on<uint8_t>(ScalarType::Byte, maps, image_labels, std::nullopt, size, out_size,
                                   [&](const auto& m, Flags present, const int64_t*, uint8_t* roi, auto s) {
                                     merge_cams_to_roi_cpu(m, present, roi, high, low, s, torch_threads());
                                   });
}

Tensor cam_to_label(const Tensor& cams, const Tensor& image_labels, std::optional<Tensor> boxes, double high,
                    double low, std::optional<Tensor> high_map, std::optional<Tensor> low_map, int64_t ignore_index) {
  return cam_to_label_on(cams, image_labels, boxes, high, low, high_map, low_map,
                         [&](auto* c, Flags present, const int64_t* box, auto limits, int64_t* labels, auto s) {
                           cam_to_label_cpu(c, present, box, limits, labels, ignore_index, s, torch_threads());
                         });
}

Tensor cam_to_roi(const Tensor& cams, const Tensor& image_labels, double high, double low) {
  return cam_to_roi_on(cams, image_labels, [&](auto* c, Flags present, uint8_t* roi, auto s) {
    cam_to_roi_cpu(c, present, high, low, roi, s, torch_threads());
  });
}

std::tuple<Tensor, Tensor> crop_uncertain(const Tensor& images, const Tensor& roi, const Tensor& draws, int64_t size) {
  return crop_uncertain_on(images, roi, draws, size, [&](auto* i, auto* r, auto* d, auto* cut, auto* flags, auto s) {
    crop_uncertain_cpu(i, r, d, cut, flags, s, torch_threads());
  });
}

std::tuple<Tensor, Tensor> segmentation_loss(const Tensor& logits, const Tensor& labels, int64_t ignore_index,
                                             bool with_grad) {
  return segmentation_loss_on(logits, labels, with_grad, [&](auto* z, auto* l, auto* loss, auto* grad, auto s) {
    segmentation_loss_cpu(z, l, ignore_index, loss, grad, s, torch_threads());
  });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("merge_cams", TORCH_BOX(&merge_cams));
  m.impl("merge_cams_to_labels", TORCH_BOX(&merge_cams_to_labels));
  m.impl("merge_cams_to_roi", TORCH_BOX(&merge_cams_to_roi));
  m.impl("cam_to_label", TORCH_BOX(&cam_to_label));
  m.impl("cam_to_roi", TORCH_BOX(&cam_to_roi));
  m.impl("crop_uncertain", TORCH_BOX(&crop_uncertain));
  m.impl("segmentation_loss", TORCH_BOX(&segmentation_loss));
}

}  // namespace toco
