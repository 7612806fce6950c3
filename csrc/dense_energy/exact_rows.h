// The sum over all pairs for kPixels pixels, compiled once per instruction set (common/for_each_isa.h).

#include "common/exp.h"
#include "common/panels.h"

// Planes of the pixels from `first` on: affinities to kDepth pixels at a time, times their values.
template <typename A>
TOCO_TARGET void exact_planes(const A* features, int64_t padded, int d, int64_t pixels, const A* values, const A* norms,
                              int64_t groups, int64_t first, A* planes) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  static_assert(kPanel == kGroup && kPixels % kPanel == 0);
  const Buffer<A> scratch(kDepth * kPanel + groups * kPanel * kPanel);
  A *affinities = scratch.data, *products = scratch.data + kDepth * kPanel;
  for (int64_t part = 0; part < kPixels; part += kPanel) {
    std::fill_n(products, groups * kPanel * kPanel, A(0));
    for (int64_t start = 0; start < pixels; start += kDepth) {
      const int64_t depth = std::min(kDepth, pixels - start);
      for (int64_t j = 0; j < depth; ++j) {
        V squares[kPanel / kSize] = {};
        for (int k = 0; k < d; ++k) {
          const A other = features[k * padded + start + j];
#pragma GCC unroll 16
          for (int v = 0; v < kPanel / kSize; ++v) {
            const V difference = *(const V*)(features + k * padded + first + part + v * kSize) - other;
            squares[v] += difference * difference;
          }
        }
#pragma GCC unroll 16
        for (int v = 0; v < kPanel / kSize; ++v) {
          squares[v] *= A(-0.5);
          exp_nonpositive(squares[v]);
          squares[v] = squares[v] < A(kNothing) ? V{} : squares[v];
          *(V*)(affinities + j * kPanel + v * kSize) = norms ? squares[v] * norms[start + j] : squares[v];
        }
      }
      for (int64_t g = 0; g < groups; ++g)
        multiply_add(affinities, values + (start * groups + g) * kPanel, groups * kPanel, depth, kPanel,
                     products + g * kPanel * kPanel, kPanel);
    }
    for (int64_t i = 0; i < kPanel; ++i) {
      const A norm = norms && first + part + i < pixels ? norms[first + part + i] : A(1);
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t c = 0; c < kPanel; ++c)
          planes[(g * kPanel + c) * kPixels + part + i] = norm * products[(g * kPanel + i) * kPanel + c];
    }
  }
}
