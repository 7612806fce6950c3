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
      : filter_(kernel, image, s.height, s.width, term.scales, parallel), norms_(s.height * s.width) {
    const int64_t pixels = s.height * s.width;
    const Buffer<A> ones(pixels);
    std::fill_n(ones.data, pixels, A(1));
    filter_.filter(ones.data, nullptr, 1, copy_to(norms_.data, pixels), parallel);
    for (int64_t i = 0; i < pixels; ++i) norms_.data[i] = 1 / std::sqrt(norms_.data[i] + A(1e-20));
  }

  void filter(const A* maps, int64_t channels, const Sink<A>& sink, const Parallel& parallel) const {
    filter_.filter(maps, norms_.data, channels, sink, parallel);
  }

 private:
  const PairFilter<A> filter_;
  const Buffer<A> norms_;
};

template <typename A>
void mean_field(const A* unary, A* q, const std::vector<PairwiseTerm>& terms, int64_t b, int64_t iterations,
                FilterKernel kernel, EnergyShape s, const Parallel& parallel) {
  const int64_t pixels = s.height * s.width, size = pixels * s.classes, chunks = (pixels + kPixels - 1) / kPixels;
  std::vector<std::unique_ptr<NormalisedFilter<A>>> filters;
  std::vector<A> weights;
  for (const PairwiseTerm& term : terms) {
    const Image image = image_of<A>(term.image, b, kernel, pixels);
    filters.push_back(std::make_unique<NormalisedFilter<A>>(term, image, kernel, s, parallel));
    weights.push_back(A(term.weight));
  }
  const Buffer<A> filtered(size * terms.size());
  for (int64_t iteration = 0; iteration <= iterations; ++iteration) {
    const int64_t used = iteration ? terms.size() : 0;  // at first, of the unary alone
    for (int64_t t = 0; t < used; ++t)
      filters[t]->filter(q, s.classes, copy_to(filtered.data + t * size, pixels), parallel);
    parallel.loop(chunks, grain_for(kPixels * s.classes * 8), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> planes(s.classes * kPixels);
      std::fill_n(planes.data, s.classes * kPixels, A(0));
      std::vector<const A*> from(used);
      const Sink<A> copy = copy_to(q, pixels);
      for (int64_t first = begin * kPixels; first < std::min(end * kPixels, pixels); first += kPixels) {
        const int64_t count = std::min(kPixels, pixels - first);
        for (int64_t t = 0; t < used; ++t) from[t] = filtered.data + t * size + first;
        CALL_BEST_ISA(logits_of_planes, unary + first, from.data(), weights.data(), used, pixels, s.classes, count,
                      planes.data);
        CALL_BEST_ISA(softmax_planes, planes.data, kPixels, s.classes, count);
        copy(0, s.classes, first, count, planes.data);
      }
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
    const PairFilter<A> filter(options.kernel, image_of<A>(image, b, options.kernel, pixels), s.height, s.width, scales,
                               threads);
    filter.filter(values + b * size, nullptr, s.classes, copy_to(filtered + b * size, pixels), threads);
  });
}

#define INSTANTIATE(A)                                                                                                \
  template void mean_field_cpu<A>(const A*, A*, const std::vector<PairwiseTerm>&, int64_t, FilterKernel, EnergyShape, \
                                  const Parallel&);                                                                   \
  template void bilateral_filter_cpu<A>(const A*, Image, A*, EnergyOptions, EnergyShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
