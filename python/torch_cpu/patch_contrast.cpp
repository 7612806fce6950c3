#include "patch_contrast.h"

namespace toco {

std::tuple<Tensor, Tensor> patch_token_contrast(const Tensor& tokens, const Tensor& labels,
                                                std::optional<Tensor> pairs, int64_t ignore_index, bool with_grad) {
  return patch_token_contrast_on(tokens, labels, pairs, with_grad,
                                 [&](auto t, auto* l, auto* p, auto* loss, auto* grad, PatchShape shape) {
                                   patch_token_contrast_cpu(t, l, p, ignore_index, loss, grad, shape, torch_threads());
                                 });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) { m.impl("patch_token_contrast", TORCH_BOX(&patch_token_contrast)); }

}  // namespace toco
