#include "class_contrast.h"

namespace toco {

std::tuple<Tensor, Tensor> class_token_contrast(const Tensor& student, const Tensor& teacher, const Tensor& flags,
                                                double temperature, bool with_grad) {
  return class_token_contrast_on(student, teacher, flags, with_grad,
                                 [&](auto* s, auto* t, Flags f, auto* loss, auto* grad, auto* scratch, auto shape) {
                                   class_token_contrast_cpu(s, t, f, temperature, loss, grad, scratch, shape,
                                                            torch_threads());
                                 });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) { m.impl("class_token_contrast", TORCH_BOX(&class_token_contrast)); }

}  // namespace toco
