#include "pixel_correlation.h"

namespace toco {

std::tuple<Tensor, Tensor, Tensor> pixel_correlation(const Tensor& features, const Tensor& cams, bool with_grad) {
  return pixel_correlation_on(features, cams, with_grad,
                              [&](auto f, auto* c, auto* revised, auto* sums, auto* signs, CorrelationShape shape) {
                                pixel_correlation_cpu(f, c, revised, sums, signs, shape, torch_threads());
                              });
}

Tensor pixel_correlation_backward(const Tensor& grad, const Tensor& features, const Tensor& cams, const Tensor& revised,
                                  const Tensor& sums, const Tensor& signs) {
  return pixel_correlation_backward_on(
      grad, features, cams, revised, sums, signs,
      [&](auto* g, auto f, auto* c, auto* r, auto* total, auto* bits, auto* to, CorrelationShape shape) {
        pixel_correlation_backward_cpu(g, f, c, r, total, bits, to, shape, torch_threads());
      });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("pixel_correlation", TORCH_BOX(&pixel_correlation));
  m.impl("pixel_correlation_backward", TORCH_BOX(&pixel_correlation_backward));
}

}  // namespace toco
