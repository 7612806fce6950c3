#include "patch_contrast.h"

namespace toco {

std::tuple<Tensor, Tensor> patch_token_contrast(const Tensor& tokens, const Tensor& labels, std::optional<Tensor> pairs,
                                                int64_t ignore_index, bool with_grad) {
  return patch_token_contrast_on(tokens, labels, pairs, with_grad,
                                 [&](auto t, auto* l, auto* p, auto* loss, auto* grad, PatchShape shape) {
                                   patch_token_contrast_cpu(t, l, p, ignore_index, loss, grad, shape, torch_threads());
                                 });
}

std::tuple<Tensor, Tensor> patch_contrastive_error(const Tensor& tokens, const Tensor& scores, const Tensor& classes,
                                                   double threshold, std::string form, bool with_grad) {
  STD_TORCH_CHECK(form == "linear" || form == "log", "form must be 'linear' or 'log'");
  return patch_contrastive_error_on(
      tokens, scores, classes, with_grad,
      [&](auto t, auto* s, Flags c, int64_t class_count, auto* loss, auto* grad, PatchShape shape) {
        patch_contrastive_error_cpu(t, s, c, class_count, threshold, form == "log", loss, grad, shape, torch_threads());
      });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("patch_token_contrast", TORCH_BOX(&patch_token_contrast));
  m.impl("patch_contrastive_error", TORCH_BOX(&patch_contrastive_error));
}

}  // namespace toco
