#include "cam.h"

#include "torch_cuda/stream.h"

namespace toco {

static const Tensor& first_of(const std::vector<Tensor>& maps) {
  STD_TORCH_CHECK(!maps.empty() && maps.size() <= kMaxCudaScales, "maps must have 1 to ", kMaxCudaScales,
                  " scales on CUDA, got ", maps.size());
  return maps[0];
}

// Memory for the bounds of the maps.
static Tensor bounds_of(const std::vector<Tensor>& maps, const MergeShape& s) {
  return empty(maps[0], {merge_bounds(s)}, accumulate_type(maps[0].scalar_type()));
}

Tensor merge_cams(std::vector<Tensor> maps, std::optional<Tensor> image_labels, std::vector<int64_t> size,
                  std::vector<int64_t> out_size) {
  const OnDeviceOf device(first_of(maps));
  return merge_cams_on(maps, image_labels, size, out_size,
                       [&](const auto& m, const Flags* present, auto* cams, auto s) {
                         using A = Accumulate<std::remove_pointer_t<decltype(cams)>>;
                         const Tensor bounds = bounds_of(maps, s);
                         merge_cams_cuda(m, present, cams, mutable_data<A>(bounds), s, device.stream);
                       });
}

Tensor merge_cams_to_labels(std::vector<Tensor> maps, const Tensor& image_labels, std::optional<Tensor> boxes,
                            std::vector<int64_t> size, std::vector<int64_t> out_size, double high, double low,
                            int64_t ignore_index) {
  const OnDeviceOf device(first_of(maps));
  return merge_cams_to_on<int64_t>(ScalarType::Long, maps, image_labels, boxes, size, out_size,
                                   [&](const auto& m, Flags present, const int64_t* box, int64_t* labels, auto s) {
                                     using A = Accumulate<std::remove_cv_t<std::remove_pointer_t<decltype(m[0].data)>>>;
                                     const Tensor bounds = bounds_of(maps, s);
                                     merge_cams_to_labels_cuda(m, present, box, labels, high, low, ignore_index,
                                                               mutable_data<A>(bounds), s, device.stream);
                                   });
}

Tensor merge_cams_to_roi(std::vector<Tensor> maps, const Tensor& image_labels, std::vector<int64_t> size,
                         std::vector<int64_t> out_size, double high, double low) {
  const OnDeviceOf device(first_of(maps));
  return merge_cams_to_on<uint8_t>(ScalarType::Byte, maps, image_labels, std::nullopt, size, out_size,
                                   [&](const auto& m, Flags present, const int64_t*, uint8_t* roi, auto s) {
                                     using A = Accumulate<std::remove_cv_t<std::remove_pointer_t<decltype(m[0].data)>>>;
                                     const Tensor bounds = bounds_of(maps, s);
                                     merge_cams_to_roi_cuda(m, present, roi, high, low, mutable_data<A>(bounds), s,
                                                            device.stream);
                                   });
}

Tensor cam_to_label(const Tensor& cams, const Tensor& image_labels, std::optional<Tensor> boxes, double high,
                    double low, std::optional<Tensor> high_map, std::optional<Tensor> low_map, int64_t ignore_index) {
  const OnDeviceOf device(cams);
  return cam_to_label_on(cams, image_labels, boxes, high, low, high_map, low_map,
                         [&](auto* c, Flags present, const int64_t* box, auto limits, int64_t* labels, auto s) {
                           cam_to_label_cuda(c, present, box, limits, labels, ignore_index, s, device.stream);
                         });
}

Tensor cam_to_roi(const Tensor& cams, const Tensor& image_labels, double high, double low) {
  const OnDeviceOf device(cams);
  return cam_to_roi_on(cams, image_labels, [&](auto* c, Flags present, uint8_t* roi, auto s) {
    cam_to_roi_cuda(c, present, high, low, roi, s, device.stream);
  });
}

std::tuple<Tensor, Tensor> crop_uncertain(const Tensor& images, const Tensor& roi, const Tensor& draws, int64_t size) {
  const OnDeviceOf device(images);
  return crop_uncertain_on(images, roi, draws, size, [&](auto* i, auto* r, auto* d, auto* cut, auto* flags, auto s) {
    const Tensor scratch = empty(images, {crop_scratch(s)}, ScalarType::Long);
    crop_uncertain_cuda(i, r, d, cut, flags, mutable_data<int64_t>(scratch), s, device.stream);
  });
}

std::tuple<Tensor, Tensor> segmentation_loss(const Tensor& logits, const Tensor& labels, int64_t ignore_index,
                                             bool with_grad) {
  const OnDeviceOf device(logits);
  return segmentation_loss_on(logits, labels, with_grad, [&](auto* z, auto* l, auto* loss, auto* grad, auto s) {
    const Tensor scratch = empty(logits, {segmentation_loss_scratch(s)}, ScalarType::Double);
    segmentation_loss_cuda(z, l, ignore_index, loss, grad, mutable_data<double>(scratch), s, device.stream);
  });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CUDA, m) {
  m.impl("merge_cams", TORCH_BOX(&merge_cams));
  m.impl("merge_cams_to_labels", TORCH_BOX(&merge_cams_to_labels));
  m.impl("merge_cams_to_roi", TORCH_BOX(&merge_cams_to_roi));
  m.impl("cam_to_label", TORCH_BOX(&cam_to_label));
  m.impl("cam_to_roi", TORCH_BOX(&cam_to_roi));
  m.impl("crop_uncertain", TORCH_BOX(&crop_uncertain));
  m.impl("segmentation_loss", TORCH_BOX(&segmentation_loss));
}

}  // namespace toco
