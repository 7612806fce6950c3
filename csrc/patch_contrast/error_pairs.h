// The pair loop of the logarithmic patch contrastive error, compiled once per instruction set (common/for_each_isa.h).

#include "common/panels.h"

// The share of 32 patches, block `block` of a set, in the loss, and the gradient of their unit vectors where it is
// wanted.
template <typename A>
TOCO_TARGET void error_block(const PairSet<A>& set, int64_t block, double* loss, A* grad) {  // (kPanel, stride) or null
  alignas(64) A slopes[kPanel * kPanel];  // (j, i): cosines, then derivatives with respect to them
  const int64_t begin = block * kPanel, end = begin + kPanel;
  *loss = 0;
  if (grad) std::fill(grad, grad + kPanel * set.stride, A(0));
  // Patches in low are compared with those in high alone.
  const int64_t compared = begin < set.high ? set.count : set.high;
  for (int64_t other = 0; other < compared; other += kPanel) {
    multiply_panels(set.panels + other * set.stride, set.panels + begin * set.stride, set.stride, kPanel, slopes);
    for (int64_t j = other; j < other + kPanel; ++j)
      for (int64_t i = begin; i < end; ++i) {
        A& cosine = slopes[(j - other) * kPanel + i - begin];
        const bool i_high = i < set.high, j_high = j < set.high;
        const A sign = i_high && j_high ? A(1) : A(-1);
        const A likeness = (1 + sign * cosine) / 2;  // of what the logarithm is taken
        if (i == j || i >= set.count || j >= set.count || !(i_high || j_high)) {
          cosine = 0;
          continue;
        }
        const A weight = i_high && j_high ? set.positive : set.negative;
        if (i_high) *loss -= double(weight * std::log(likeness < A(kLeast) ? A(kLeast) : likeness));
        // Pairs within high come in both orders.
        const A orders = i_high && j_high ? A(2) : A(1);
        cosine = likeness < A(kLeast) ? 0 : -orders * weight * sign / (2 * likeness);
      }
    for (int64_t column = 0; grad && column < set.stride; column += kPanel)
      multiply_add(slopes, set.rows + other * set.stride + column, set.stride, kPanel, kPanel, grad + column,
                   set.stride);
  }
}
