#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>

#include "dense_energy/pair_filter.h"

#define TOCO_PER_ISA "dense_energy/planes.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

// A filter between two multiplications by 1 / sqrt(filter of ones).
template <typename A>
class NormalisedFilter {
 public:
  NormalisedFilter(const PairwiseTerm& term, Image image, FilterKernel kernel, EnergyShape s, const Parallel& parallel)
      : filter_(kernel, image, s.height, s.width, term.scales, s.classes, parallel), norms_(s.pixels()) {
    std::fill_n(norms_.data, s.pixels(), A(1));
    filter_.spread(norms_.data, nullptr, 1, parallel);
    every_few_pixels<A>(s.pixels(), 1, filter_.work(), parallel, [&](int64_t first, int64_t count, A* planes) {
      filter_.read(first, count, planes);
      for (int64_t i = 0; i < count; ++i) norms_.data[first + i] = 1 / std::sqrt(planes[i] + A(1e-20));
    });
  }

  void spread(const A* maps, int64_t channels, const Parallel& parallel) {
    filter_.spread(maps, norms_.data, channels, parallel);
  }
  void read(int64_t first, int64_t count, A* planes) const { filter_.read(first, count, planes); }
  int64_t work() const { return filter_.work(); }

 private:
  PairFilter<A> filter_;
  const Buffer<A> norms_;
};

template <typename A>
void mean_field(const A* unary, A* q, const std::vector<PairwiseTerm>& terms, int64_t b, int64_t iterations,
                FilterKernel kernel, EnergyShape s, const Parallel& parallel) {
  const int64_t pixels = s.pixels();
  std::vector<std::unique_ptr<NormalisedFilter<A>>> filters;
  int64_t work = s.classes * 16;
  for (const PairwiseTerm& term : iterations ? terms : std::vector<PairwiseTerm>())
    filters.push_back(
        std::make_unique<NormalisedFilter<A>>(term, image_of<A>(term.image, b, kernel, pixels), kernel, s, parallel));
  for (const auto& filter : filters) work += filter->work();
  for (int64_t iteration = 0; iteration <= iterations; ++iteration) {
    const size_t used = iteration ? terms.size() : 0;  // at first, of the unary alone
    for (size_t t = 0; t < used; ++t) filters[t]->spread(q, s.classes, parallel);
    every_few_pixels<A>(pixels, 2 * whole_groups(s.classes), work, parallel,
                        [&](int64_t first, int64_t count, A* planes) {
                          A* filtered = planes + whole_groups(s.classes) * kPixels;
                          CALL_BEST_ISA(load_negative, unary + first, pixels, s.classes, count, planes);
                          for (size_t t = 0; t < used; ++t) {
                            filters[t]->read(first, count, filtered);
                            CALL_BEST_ISA(add_planes, filtered, A(terms[t].weight), s.classes, planes);
                          }
                          CALL_BEST_ISA(softmax_planes, planes, kPixels, s.classes, count);
                          put_planes(planes, s.classes, pixels, first, count, q);
                        });
  }
}

}  // namespace

template <typename A>
void mean_field_cpu(const A* unary, A* q, const std::vector<PairwiseTerm>& terms, int64_t iterations,
                    FilterKernel kernel, EnergyShape s, const Parallel& parallel) {
  const int64_t size = s.classes * s.height * s.width;
  every(s.batch, parallel, [&](int64_t b, const Parallel& threads) {
    mean_field(unary + b * size, q + b * size, terms, b, iterations, kernel, s, threads);
  });
}

template <typename A>
void bilateral_filter_cpu(const A* values, Image image, A* filtered, EnergyOptions options, EnergyShape s,
                          const Parallel& parallel) {
  const int64_t pixels = s.height * s.width, size = s.classes * pixels;
  const double xy = 1 / options.sigma_xy, rgb = 1 / options.sigma_rgb;
  const double scales[5] = {xy, xy, rgb, rgb, rgb};
  every(s.batch, parallel, [&](int64_t b, const Parallel& threads) {
    PairFilter<A> filter(options.kernel, image_of<A>(image, b, options.kernel, pixels), s.height, s.width, scales,
                         s.classes, threads);
    filter.spread(values + b * size, nullptr, s.classes, threads);
    every_few_pixels<A>(pixels, s.classes, filter.work(), threads, [&](int64_t first, int64_t count, A* planes) {
      filter.read(first, count, planes);
      put_planes(planes, s.classes, pixels, first, count, filtered + b * size);
    });
  });
}

#define INSTANTIATE(A)                                                                                                \
  template void mean_field_cpu<A>(const A*, A*, const std::vector<PairwiseTerm>&, int64_t, FilterKernel, EnergyShape, \
                                  const Parallel&);                                                                   \
  template void bilateral_filter_cpu<A>(const A*, Image, A*, EnergyOptions, EnergyShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
