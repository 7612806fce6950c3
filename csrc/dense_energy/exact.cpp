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
      padded_((pixels_ + kExactRows - 1) / kExactRows * kExactRows),
      features_(d_ * padded_) {
  std::fill_n(features_.data, d_ * padded_, A(0));
  for (int64_t i = 0; i < pixels_; ++i) {
    features_.data[i] = A(i % width) * A(scales[0]);
    features_.data[padded_ + i] = A(i / width) * A(scales[1]);
    for (int k = 2; k < d_; ++k) features_.data[k * padded_ + i] = image[(k - 2) * pixels_ + i] * A(scales[k]);
  }
}

template <typename A>
void ExactSum<A>::filter(const A* values, A* filtered, const A* norms, int64_t stride, const Parallel& parallel) const {
  parallel.in_turn(padded_ / kExactRows, pixels_ * stride, [&](int64_t block, int) {
    CALL_BEST_ISA(exact_rows, features_.data, padded_, d_, pixels_, values, norms, filtered, stride,
                  block * kExactRows);
  });
}

template class ExactSum<float>;
template class ExactSum<double>;

}  // namespace toco
