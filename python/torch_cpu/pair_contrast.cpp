#include "pair_contrast.h"

#include <string>

namespace toco {

std::tuple<Tensor, Tensor> affinity_loss(const Tensor& features, const Tensor& labels, int64_t grid_width,
                                         int64_t radius, double scale, bool normalize, bool center,
                                         int64_t ignore_index, bool with_grad) {
  const AffinityRule rule{grid_width, radius, scale, normalize, center, ignore_index};
  return affinity_loss_on(features, labels, rule, with_grad,
                          [&](auto f, auto* l, auto* loss, auto* grad, PairShape shape) {
                            affinity_loss_cpu(f, l, rule, loss, grad, shape, torch_threads());
                          });
}

std::tuple<Tensor, Tensor, Tensor> contrast(const Tensor& x, const Tensor& y, const Tensor& labels_x,
                                            const Tensor& labels_y, std::string form, double scale, bool normalize,
                                            int64_t ignore_index, bool with_grad_x, bool with_grad_y) {
  STD_TORCH_CHECK(form == "abs_cos" || form == "sigmoid" || form == "info_nce",
                  "form must be 'abs_cos', 'sigmoid' or 'info_nce'");
  const PairForm kind = form == "abs_cos"   ? PairForm::kAbsCos
                        : form == "sigmoid" ? PairForm::kSigmoid
                                            : PairForm::kInfoNce;
  const ContrastRule rule{kind, scale, normalize, ignore_index};
  return contrast_on(x, y, labels_x, labels_y, with_grad_x, with_grad_y,
                     [&](auto tx, auto ty, auto* lx, auto* ly, auto* loss, auto* gx, auto* gy, PairShape shape) {
                       contrast_cpu(tx, ty, lx, ly, rule, loss, gx, gy, shape, torch_threads());
                     });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("affinity_loss", TORCH_BOX(&affinity_loss));
  m.impl("contrast", TORCH_BOX(&contrast));
}

}  // namespace toco
