#include "dense_energy.h"

namespace toco {

constexpr FilterKernel kLattice = FilterKernel::kLattice, kExact = FilterKernel::kExact;

template <FilterKernel kernel, bool logits>
std::tuple<Tensor, Tensor> dense_energy(const Tensor& maps, const Tensor& image, const Tensor& roi,
                                        const Tensor& unlabeled, double sigma_rgb, double sigma_xy, bool with_grad) {
  return dense_energy_on(maps, image, roi, unlabeled, kernel, logits, with_grad,
                         [&](auto* m, Image i, auto* r, auto* u, auto* loss, auto* grad, EnergyShape shape) {
                           dense_energy_cpu(m, i, r, u, loss, grad, logits, {sigma_rgb, sigma_xy, kernel}, shape,
                                            torch_threads());
                         });
}

template <FilterKernel kernel>
Tensor bilateral_filter(const Tensor& values, const Tensor& image, double sigma_rgb, double sigma_xy) {
  return dense_filter_on(values, image, kernel, [&](auto* v, Image i, auto* filtered, EnergyShape shape) {
    bilateral_filter_cpu(v, i, filtered, {sigma_rgb, sigma_xy, kernel}, shape, torch_threads());
  });
}

template <FilterKernel kernel>
Tensor dense_crf(const Tensor& unary, const Tensor& image, int64_t iterations, std::vector<double> gaussian,
                 std::vector<double> bilateral) {
  STD_TORCH_CHECK(gaussian.size() == 2 && bilateral.size() == 3 && iterations >= 0,
                  "gaussian must be two numbers, bilateral three, and iterations not negative");
  return dense_filter_on(unary, image, kernel, [&](auto* u, Image i, auto* q, EnergyShape shape) {
    const double near = 1 / gaussian[0], xy = 1 / bilateral[0], rgb = 1 / bilateral[1];
    const std::vector<PairwiseTerm> terms = {{nullptr, {near, near}, gaussian[1]},
                                             {i, {xy, xy, rgb, rgb, rgb}, bilateral[2]}};
    mean_field_cpu(u, q, terms, iterations, kernel, shape, torch_threads());
  });
}

STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CPU, m) {
  m.impl("lattice_energy", TORCH_BOX((&dense_energy<kLattice, false>)));
  m.impl("exact_energy", TORCH_BOX((&dense_energy<kExact, false>)));
  m.impl("lattice_energy_from_logits", TORCH_BOX((&dense_energy<kLattice, true>)));
  m.impl("exact_energy_from_logits", TORCH_BOX((&dense_energy<kExact, true>)));
  m.impl("lattice_filter", TORCH_BOX(&bilateral_filter<kLattice>));
  m.impl("exact_filter", TORCH_BOX(&bilateral_filter<kExact>));
  m.impl("lattice_crf", TORCH_BOX(&dense_crf<kLattice>));
  m.impl("exact_crf", TORCH_BOX(&dense_crf<kExact>));
}

}  // namespace toco
