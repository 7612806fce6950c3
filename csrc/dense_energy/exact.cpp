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
void ExactSum<A>::spread(const A* maps, int64_t channels, A* values) const {
  const int64_t stride = whole_groups(channels);
  for (int64_t i = 0; i < pixels_; ++i)
    for (int64_t c = 0; c < stride; ++c) values[i * stride + c] = c < channels ? maps[c * pixels_ + i] : A(0);
}

template <typename A>
void ExactSum<A>::read(const A* values, const A* norms, int64_t channels, int64_t first, int64_t, A* planes) const {
  CALL_BEST_ISA(exact_planes, features_.data, padded_, d_, pixels_, values, norms, whole_groups(channels) / kGroup,
                first, planes);
}

template class ExactSum<float>;
template class ExactSum<double>;

}  // namespace toco
