#include "class_contrast.h"

#include "torch_cuda/stream.h"

namespace toco {

std::tuple<Tensor, Tensor> class_token_contrast(const Tensor& student, const Tensor& teacher, const Tensor& flags,
                                                double temperature, bool with_grad) {
  const OnDeviceOf device(student);
  return class_token_contrast_on(student, teacher, flags, with_grad,
                                 [&](auto* s, auto* t, Flags f, auto* loss, auto* grad, auto* scratch, auto shape) {
                                   class_token_contrast_cuda(s, t, f, temperature, loss, grad, scratch, shape,
                                                             device.stream);
                                 });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CUDA, m) { m.impl("class_token_contrast", TORCH_BOX(&class_token_contrast)); }

}  // namespace toco
