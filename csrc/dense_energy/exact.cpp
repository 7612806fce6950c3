#include <algorithm>
#include <cmath>
#include <type_traits>

#include "dense_energy/pair_filter.h"

#define TOCO_PER_ISA "dense_energy/exact_rows.h"
#include "common/for_each_isa.h"

namespace toco {

template <typename A>
ExactSum<A>::ExactSum(const A* image, int64_t height, int64_t width, const double* scales)
    : d_(image ? 5 : 2),
      pixels_(height * width),
      padded_((pixels_ + kPixels - 1) / kPixels * kPixels),
      features_(d_ * padded_) {
  std::fill_n(features_.data, d_ * padded_, A(0));
  for (int64_t i = 0; i < pixels_; ++i) {
    features_.data[i] = A(i % width) * A(scales[0]);
    features_.data[padded_ + i] = A(i / width) * A(scales[1]);
    for (int k = 2; k < d_; ++k) features_.data[k * padded_ + i] = image[(k - 2) * pixels_ + i] * A(scales[k]);
  }
}

template <typename A>
void ExactSum<A>::filter(const A* maps, const A* norms, int64_t channels, const Sink<A>& sink,
                         const Parallel& parallel) const {
  const int64_t groups = (channels + kGroup - 1) / kGroup, stride = groups * kGroup;
  const Buffer<A> values(pixels_ * stride);  // the channels of one pixel after the other
  std::fill_n(values.data, pixels_ * stride, A(0));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < pixels_; ++i) values.data[i * stride + c] = maps[c * pixels_ + i];
  parallel.in_turn(padded_ / kPixels, pixels_ * stride, [&](int64_t block, int) {
    const int64_t first = block * kPixels;
    const Buffer<A> planes(stride * kPixels);
    CALL_BEST_ISA(exact_planes, features_.data, padded_, d_, pixels_, values.data, norms, groups, first, planes.data);
    sink(0, channels, first, std::min(kPixels, pixels_ - first), planes.data);
  });
}

template class ExactSum<float>;
template class ExactSum<double>;

}  // namespace toco
