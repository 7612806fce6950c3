#include "affinity_refine.h"

namespace toco {

static Tensor refine(const Tensor& image, const Tensor& masks, const std::vector<int64_t>& dilations,
                     int64_t iterations, const std::string& kind, bool transposed) {
  return affinity_refine_on(image, masks, dilations, [&](auto* i, auto* m, auto* refined, RefineShape shape) {
    affinity_refine_cpu(i, m, refined, dilations, iterations, affinity_kind(kind), transposed, shape, torch_threads());
  });
}

// On the CPU affinities are kept in full precision, fast or not: half of them would have to be widened again.
Tensor affinity_refine(const Tensor& image, const Tensor& masks, std::vector<int64_t> dilations, int64_t iterations,
                       std::string kind, bool) {
  return refine(image, masks, dilations, iterations, kind, false);
}

Tensor affinity_refine_backward(const Tensor& grad, const Tensor& image, std::vector<int64_t> dilations,
                                int64_t iterations, std::string kind, bool) {
  return refine(image, grad, dilations, iterations, kind, true);
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("affinity_refine", TORCH_BOX(&affinity_refine));
  m.impl("affinity_refine_backward", TORCH_BOX(&affinity_refine_backward));
}

}  // namespace toco
