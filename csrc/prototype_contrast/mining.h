// One view of a step, compiled once per instruction set (common/for_each_isa.h).

#include "prototype_contrast/rows.h"

// The losses of a column's pixels against the prototypes whose scores have the ranks `first` to `last`, their
// similarity to that of their label, and the derivatives of the losses times `factor`. Of equal scores the lowest class
// ranks first.
template <typename A>
TOCO_TARGET static void contrast_semi_hard(const A* scores, int64_t classes, const int32_t* labels, int64_t first,
                                           int64_t last, A factor, A* losses, A* positives,
                                           A* slopes) {  // scores, slopes: (C, lanes); losses, positives: (lanes)
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  V top = *(const V*)scores, positive{}, sum{};
  for (int l = 0; l < kSize; ++l) positive[l] = scores[std::max(labels[l], 0) * kSize + l];
  for (int64_t c = 1; c < classes; ++c) {
    const V z = *(const V*)(scores + c * kSize);
    top = z > top ? z : top;
  }
  for (int64_t c = 0; c < classes; ++c) {
    const V z = *(const V*)(scores + c * kSize);
    V rank{};
    for (int64_t o = 0; o < c; ++o) rank += *(const V*)(scores + o * kSize) >= z ? V{} + 1 : V{};
    for (int64_t o = c + 1; o < classes; ++o) rank += *(const V*)(scores + o * kSize) > z ? V{} + 1 : V{};
    V e = z - top;
    exp_nonpositive(e);
    e = rank >= A(first) ? e : V{};
    e = rank < A(last) ? e : V{};
    sum += e;
    *(V*)(slopes + c * kSize) = e;
  }
  V own = positive - top;
  exp_nonpositive(own);
  sum += own;
  for (int64_t c = 0; c < classes; ++c) *(V*)(slopes + c * kSize) *= factor / sum;
  for (int l = 0; l < kSize; ++l) {
    losses[l] = A(std::log(double(sum[l])) + double(top[l]) - double(positive[l]));
    positives[l] = positive[l];
    if (labels[l] >= 0) slopes[labels[l] * kSize + l] += factor * (own[l] / sum[l] - 1);
  }
}

// Terms, and slopes (3, C, count) with `plane` between terms and `stride` between classes. Labels are this view's, and
// the other's. Each slope of a cross term is multiplied by `weight`, each mined one by `half`.
template <typename A>
TOCO_TARGET void contrast_views(const FeatureMaps<A>& features, const A* from, const int32_t (*labels)[kPixels],
                                int count, const PackedPrototypes<A>& prototypes, double temperature, A weight, A half,
                                int64_t first, int64_t last, Column<A>& column, PixelTerms<A>* terms, A* slopes,
                                int64_t plane, int64_t stride) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  constexpr int64_t kBytes = sizeof(A);
  const int64_t width = prototypes.width, classes = prototypes.rows / 2;
  load_columns(from, features.channel, features.pixel, width, labels[0], count, column.all);
  for (int p = 0; p < count; p += kSize) {
    column.x = column.all + p * width;
    const Soon<A> soon{(const char*)(from + kPixels), features.channel * kBytes, kSize * kBytes,
                       uint64_t(p / kSize * width)};
    score_column(prototypes, temperature, soon, column);
    const A* others = column.scores + classes * kSize;
    const auto store = [&](int term) TOCO_TARGET {
      for (int64_t c = 0; c < classes; ++c)
        for (int l = 0; l < kSize && p + l < count; ++l)
          slopes[term * plane + c * stride + p + l] = column.slopes[c * kSize + l];
    };
    terms->losses[0] += cross_entropy(others, classes, labels[0] + p, V{} + weight, column.slopes);
    store(0);
    terms->losses[1] += cross_entropy(column.scores, classes, labels[1] + p, V{} + weight, column.slopes);
    store(1);
    contrast_semi_hard(column.scores, classes, labels[0] + p, first, last, half, terms->mined + p, terms->positives + p,
                       column.slopes);
    store(2);
  }
}

// The gradient of some pixels of a view from the slopes of its terms.
template <typename A>
TOCO_TARGET void contrast_views_backward(const A* grad, const FeatureMaps<A>& features, const A* from,
                                         const int32_t* labels, int count, const PackedPrototypes<A>& prototypes,
                                         const A* slopes, int64_t plane, Column<A>& column, A* to, int64_t stride) {
  constexpr int kSize = Vector<A>::kSize;
  const int64_t width = prototypes.width, classes = prototypes.rows / 2;
  load_columns(from, features.channel, features.pixel, width, labels, count, column.all);
  for (int p = 0; p < count; p += kSize) {
    column.x = column.all + p * width;
    measure_column(width, 1.0, column);
    for (int64_t c = 0; c < classes; ++c)
      for (int l = 0; l < kSize; ++l) {
        const A* slope = slopes + c * stride + p + l;
        const bool inside = p + l < count;
        const A own = inside ? grad[1] * slope[plane] + grad[2] * slope[2 * plane] : A(0);
        column.slopes[c * kSize + l] = own * column.inverse[l];
        column.slopes[(classes + c) * kSize + l] = inside ? grad[0] * *slope * column.inverse[l] : A(0);
      }
    gradient_column(prototypes, column, column.rows + p);
  }
  store_rows(column.rows, width, count, to, stride);
}
