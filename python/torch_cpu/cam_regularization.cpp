#include "cam_regularization.h"

namespace toco {

std::tuple<Tensor, Tensor, Tensor> equivariant_loss(const Tensor& cams, const Tensor& other_cams,
                                                    const Tensor& image_labels, std::vector<int64_t> view,
                                                    std::vector<int64_t> other_view, std::vector<int64_t> size,
                                                    bool with_grad, bool with_grad_other) {
  return equivariant_loss_on(cams, other_cams, image_labels, with_grad, with_grad_other,
                             equivariant_shape(cams, other_cams, image_labels, view, other_view, size),
                             [&](auto* c, auto* o, Flags labels, auto* loss, auto* grad, auto* grad_other, auto shape) {
                               equivariant_loss_cpu(c, o, labels, loss, grad, grad_other, shape, torch_threads());
                             });
}

std::tuple<Tensor, Tensor> cross_equivariant_loss(const Tensor& revised, const Tensor& other_cams,
                                                  const Tensor& image_labels, std::vector<int64_t> view,
                                                  std::vector<int64_t> other_view, std::vector<int64_t> size,
                                                  int64_t kept, bool with_grad) {
  return cross_equivariant_loss_on(revised, other_cams, image_labels, kept, with_grad,
                                   equivariant_shape(revised, other_cams, image_labels, view, other_view, size),
                                   [&](auto* r, auto* o, Flags labels, auto* loss, auto* grad, auto shape) {
                                     cross_equivariant_loss_cpu(r, o, labels, kept, loss, grad, shape, torch_threads());
                                   });
}

std::tuple<Tensor, Tensor> min_pooling_loss(const Tensor& cams, const Tensor& image_labels, std::vector<int64_t> size,
                                            bool with_grad) {
  return min_pooling_loss_on(cams, image_labels, size, with_grad,
                             [&](auto* c, Flags labels, auto* loss, auto* grad, auto shape) {
                               min_pooling_loss_cpu(c, labels, loss, grad, shape, torch_threads());
                             });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("equivariant_loss", TORCH_BOX(&equivariant_loss));
  m.impl("cross_equivariant_loss", TORCH_BOX(&cross_equivariant_loss));
  m.impl("min_pooling_loss", TORCH_BOX(&min_pooling_loss));
}

}  // namespace toco
