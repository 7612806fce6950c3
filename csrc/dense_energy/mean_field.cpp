#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>

#include "dense_energy/pair_filter.h"

#define TOCO_PER_ISA "dense_energy/map_rows.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

constexpr int64_t kChunk = 64;  // pixels that are transposed at a time; whole vectors

// Maps of one image pixel by pixel, and back.
template <typename A>
void to_rows(const A* maps, int64_t pixels, int64_t channels, A scale, A* rows, int64_t stride,
             const Parallel& parallel) {
  parallel.loop((pixels + kChunk - 1) / kChunk, grain_for(kChunk * stride), [&](int64_t begin, int64_t end, int) {
    const Buffer<A> planes(stride * kChunk);
    std::fill_n(planes.data, stride * kChunk, A(0));
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunk, count = std::min(kChunk, pixels - first);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t x = 0; x < count; ++x) planes.data[c * kChunk + x] = scale * maps[c * pixels + first + x];
      CALL_BEST_ISA(planes_to_rows, planes.data, kChunk, stride, count, rows + first * stride);
    }
  });
}

template <typename A>
void to_maps(const A* rows, int64_t stride, int64_t pixels, int64_t channels, A* maps, const Parallel& parallel) {
  parallel.loop((pixels + kChunk - 1) / kChunk, grain_for(kChunk * stride), [&](int64_t begin, int64_t end, int) {
    const Buffer<A> planes(stride * kChunk);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunk, count = std::min(kChunk, pixels - first);
      CALL_BEST_ISA(rows_to_planes, rows + first * stride, stride, count, planes.data, kChunk);
      for (int64_t c = 0; c < channels; ++c) std::copy_n(planes.data + c * kChunk, count, maps + c * pixels + first);
    }
  });
}

// A filter between two multiplications by 1 / sqrt(filter of ones).
template <typename A>
class NormalisedFilter {
 public:
  NormalisedFilter(const PairwiseTerm& term, Image image, FilterKernel kernel, EnergyShape s, const Parallel& parallel)
      : filter_(kernel, image, s.height, s.width, term.scales, parallel), norms_(s.height * s.width) {
    const int64_t pixels = s.height * s.width, stride = row_stride<A>(1);
    const Buffer<A> ones(pixels * stride + kExactRows), sums(pixels * stride);
    std::fill_n(ones.data, pixels * stride + kExactRows, A(1));
    filter_.filter(ones.data, sums.data, nullptr, stride, parallel);
    for (int64_t i = 0; i < pixels; ++i) norms_.data[i] = 1 / std::sqrt(sums.data[i * stride] + A(1e-20));
  }

  void filter(const A* values, A* filtered, int64_t stride, const Parallel& parallel) const {
    filter_.filter(values, filtered, norms_.data, stride, parallel);
  }

 private:
  const PairFilter<A> filter_;
  const Buffer<A> norms_;
};

template <typename A>
void mean_field(const A* unary, A* q, const std::vector<PairwiseTerm>& terms, int64_t b, int64_t iterations,
                FilterKernel kernel, EnergyShape s, const Parallel& parallel) {
  const int64_t pixels = s.height * s.width, stride = row_stride<A>(s.classes), size = pixels * stride;
  std::vector<std::unique_ptr<NormalisedFilter<A>>> filters;
  std::vector<A> weights;
  for (const PairwiseTerm& term : terms) {
    const Image image = image_of<A>(term.image, b, kernel, pixels);
    filters.push_back(std::make_unique<NormalisedFilter<A>>(term, image, kernel, s, parallel));
    weights.push_back(A(term.weight));
  }
  const Buffer<A> logits(size), rows(size + kExactRows), filtered(size * terms.size());
  std::vector<const A*> filtered_rows(terms.size());
  std::fill_n(rows.data + size, kExactRows, A(0));
  to_rows(unary, pixels, s.classes, A(-1), logits.data, stride, parallel);
  for (int64_t iteration = 0; iteration <= iterations; ++iteration) {
    const int used = iteration ? int(terms.size()) : 0;  // at first, of the unary alone
    for (int t = 0; t < used; ++t) filters[t]->filter(rows.data, filtered.data + t * size, stride, parallel);
    parallel.loop((pixels + kChunk - 1) / kChunk, grain_for(kChunk * stride), [&](int64_t begin, int64_t end, int) {
      std::vector<const A*> from(used);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * kChunk, count = std::min(kChunk, pixels - first);
        for (int t = 0; t < used; ++t) from[t] = filtered.data + t * size + first * stride;
        CALL_BEST_ISA(mean_field_rows, logits.data + first * stride, from.data(), weights.data(), used,
                      rows.data + first * stride, stride, s.classes, count);
      }
    });
  }
  to_maps(rows.data, stride, pixels, s.classes, q, parallel);
}

}  // namespace

template <typename A>
void mean_field_cpu(const A* unary, A* q, const std::vector<PairwiseTerm>& terms, int64_t iterations,
                    FilterKernel kernel, EnergyShape s, const Parallel& parallel) {
  const int64_t size = s.classes * s.height * s.width;
  every_image(s.batch, parallel, [&](int64_t b, const Parallel& threads) {
    mean_field(unary + b * size, q + b * size, terms, b, iterations, kernel, s, threads);
  });
}

template <typename A>
void bilateral_filter_cpu(const A* values, Image image, A* filtered, EnergyOptions options, EnergyShape s,
                          const Parallel& parallel) {
  const int64_t pixels = s.height * s.width, stride = row_stride<A>(s.classes);
  const double xy = 1 / options.sigma_xy, rgb = 1 / options.sigma_rgb;
  const double scales[5] = {xy, xy, rgb, rgb, rgb};
  every_image(s.batch, parallel, [&](int64_t b, const Parallel& threads) {
    const Buffer<A> rows(pixels * stride + kExactRows), sums(pixels * stride);
    std::fill_n(rows.data + pixels * stride, kExactRows, A(0));
    to_rows(values + b * s.classes * pixels, pixels, s.classes, A(1), rows.data, stride, threads);
    const PairFilter<A> filter(options.kernel, image_of<A>(image, b, options.kernel, pixels), s.height, s.width, scales,
                               threads);
    filter.filter(rows.data, sums.data, nullptr, stride, threads);
    to_maps(sums.data, stride, pixels, s.classes, filtered + b * s.classes * pixels, threads);
  });
}

#define INSTANTIATE(A)                                                                                                \
  template void mean_field_cpu<A>(const A*, A*, const std::vector<PairwiseTerm>&, int64_t, FilterKernel, EnergyShape, \
                                  const Parallel&);                                                                   \
  template void bilateral_filter_cpu<A>(const A*, Image, A*, EnergyOptions, EnergyShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
