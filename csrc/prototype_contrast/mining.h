// Semi-hard prototypes of a block of pixels, compiled once per instruction set (common/for_each_isa.h).

#include "prototype_contrast/rows.h"

// The pixels' losses against the prototypes whose scores have the ranks `first` to `last`, their similarity to that of
// their label, and the derivatives of the losses times `factor`. Of equal scores the lowest class
// ranks first.
template <typename A>
TOCO_TARGET void contrast_semi_hard(const A* scores, int64_t classes, const int32_t* labels, int64_t first, int64_t last,
                                    A factor, A* losses, A* positives, A* slopes) {  // scores, slopes: (C, kPixels); losses, positives: (kPixels)
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int p = 0; p < kPixels; p += kSize) {
    V top = *(const V*)(scores + p), positive{}, sum{}, own{};
    for (int l = 0; l < kSize; ++l) positive[l] = scores[std::max(labels[p + l], 0) * kPixels + p + l];
    for (int64_t c = 1; c < classes; ++c) {
      const V z = *(const V*)(scores + c * kPixels + p);
      top = z > top ? z : top;
    }
    for (int64_t c = 0; c < classes; ++c) {
      const V z = *(const V*)(scores + c * kPixels + p);
      V rank{};
      for (int64_t o = 0; o < c; ++o) rank += *(const V*)(scores + o * kPixels + p) >= z ? V{} + 1 : V{};
      for (int64_t o = c + 1; o < classes; ++o)
        rank += *(const V*)(scores + o * kPixels + p) > z ? V{} + 1 : V{};
      V e = z - top;
      exp_nonpositive(e);
      e = rank >= A(first) ? e : V{};
      e = rank < A(last) ? e : V{};
      sum += e;
      *(V*)(slopes + c * kPixels + p) = e;
    }
    own = positive - top;
    exp_nonpositive(own);
    sum += own;
    for (int64_t c = 0; c < classes; ++c) *(V*)(slopes + c * kPixels + p) *= factor / sum;
    for (int l = 0; l < kSize; ++l) {
      losses[p + l] = A(std::log(double(sum[l])) + double(top[l]) - double(positive[l]));
      positives[p + l] = positive[l];
      if (labels[p + l] >= 0) slopes[labels[p + l] * kPixels + p + l] += factor * (own[l] / sum[l] - 1);
    }
  }
}
