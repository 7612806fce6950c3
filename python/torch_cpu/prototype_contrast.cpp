#include "prototype_contrast.h"

namespace toco {

std::tuple<Tensor, Tensor> prototype_contrast(const Tensor& features, const Tensor& labels, const Tensor& prototypes,
                                              double temperature, int64_t ignore_index, bool with_grad) {
  return prototype_contrast_on(
      features, labels, prototypes, with_grad,
      [&](auto f, auto* l, auto* p, int64_t classes, auto* loss, auto* grad, PixelShape shape) {
        prototype_contrast_cpu(f, l, p, classes, temperature, ignore_index, loss, grad, shape, torch_threads());
      });
}

std::tuple<Tensor, Tensor> prototype_candidates(const Tensor& features, const Tensor& cams,
                                                std::optional<Tensor> present, int64_t k) {
  return prototype_candidates_on(
      features, cams, present, k,
      [&](auto f, auto* c, const Flags* present, int64_t classes, auto* scores, auto* vectors, PixelShape shape) {
        prototype_candidates_cpu(f, c, present, classes, k, scores, vectors, shape, torch_threads());
      });
}

std::tuple<Tensor, Tensor> pixel_prototype_contrast(const Tensor& features, const Tensor& other_features,
                                                    const Tensor& labels, const Tensor& other_labels,
                                                    const Tensor& prototypes, const Tensor& other_prototypes,
                                                    const Tensor& draws, double temperature) {
  return pixel_prototype_contrast_on(features, other_features, labels, other_labels, prototypes, other_prototypes,
                                     draws, [&](auto* views, int64_t classes, auto* terms, PixelShape shape) {
                                       pixel_prototype_contrast_cpu(views, classes, temperature, terms, shape,
                                                                    torch_threads());
                                     });
}

std::tuple<Tensor, Tensor> pixel_prototype_contrast_backward(const Tensor& grad, const Tensor& features,
                                                             const Tensor& other_features, const Tensor& prototypes,
                                                             const Tensor& other_prototypes, const Tensor& slopes) {
  return pixel_prototype_contrast_backward_on(
      grad, features, other_features, prototypes, other_prototypes, slopes,
      [&](auto* g, auto* views, int64_t classes, auto* first, auto* second, PixelShape shape) {
        pixel_prototype_contrast_backward_cpu(g, views, classes, first, second, shape, torch_threads());
      });
}

Tensor resize_corners(const Tensor& maps, std::vector<int64_t> size) {
  return resize_corners_on(maps, size, [&](auto planes, auto* resized, ResizeShape shape) {
    resize_corners_cpu(planes, resized, shape, torch_threads());
  });
}

Tensor resize_corners_backward(const Tensor& grad, std::vector<int64_t> size) {
  return resize_corners_backward_on(grad, size, [&](auto* g, auto* grad_maps, ResizeShape shape) {
    resize_corners_backward_cpu(g, grad_maps, shape, torch_threads());
  });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("prototype_contrast", TORCH_BOX(&prototype_contrast));
  m.impl("prototype_candidates", TORCH_BOX(&prototype_candidates));
  m.impl("pixel_prototype_contrast", TORCH_BOX(&pixel_prototype_contrast));
  m.impl("pixel_prototype_contrast_backward", TORCH_BOX(&pixel_prototype_contrast_backward));
  m.impl("resize_corners", TORCH_BOX(&resize_corners));
  m.impl("resize_corners_backward", TORCH_BOX(&resize_corners_backward));
}

}  // namespace toco
