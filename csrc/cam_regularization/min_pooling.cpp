// SEAM's adaptive min pooling: the quarter of an image's pixels that show its classes least.
#include <algorithm>
#include <limits>
#include <vector>

#include "cam_regularization/route.h"
#include "common/buffer.h"

#define TOCO_PER_ISA "cam_regularization/shown.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

// The `kept` smallest of some scores: those below a threshold, and of those equal to it as much as is missing.
template <typename A>
struct Smallest {
  A threshold, weight_on_it;
  double sum = 0;

  Smallest(const A* scores, int64_t count, int64_t kept) {
    Buffer<A> sorted(count);
    std::copy_n(scores, count, sorted.data);
    std::nth_element(sorted.data, sorted.data + kept - 1, sorted.data + count);
    threshold = sorted.data[kept - 1];
    int64_t below = 0, equal = 0;
    for (int64_t i = 0; i < count; ++i) {
      below += scores[i] < threshold;
      equal += scores[i] == threshold;
      sum += scores[i] < threshold ? scores[i] : A(0);
    }
    sum += double(threshold) * double(kept - below);
    weight_on_it = A(kept - below) / A(std::max<int64_t>(equal, 1));
  }

  A weight(A score) const { return score < threshold ? A(1) : score == threshold ? weight_on_it : A(0); }
};

}  // namespace

template <typename A>
void min_pooling_loss_cpu(const A* cams, Flags image_labels, A* loss, A* grad_cams, const MinPoolingShape& s,
                          const Parallel& parallel) {
  const Stretch<A> stretch(s.maps.grid, s.maps.view);
  const int64_t pixels = s.maps.view.pixels(), grid = s.maps.grid.pixels(), kept = pixels / 4;
  const double share = 1.0 / (double(kept) * double(std::max<int64_t>(s.batch, 1)));
  std::vector<double> sums(s.batch, 0.0);

  parallel.in_turn(s.batch, s.classes * pixels, [&](int64_t b, int) {
    Buffer<A> shown(pixels), winners(pixels), view(pixels), wide(stretch.wide());
    std::fill_n(shown.data, pixels, A(0));
    std::fill_n(winners.data, pixels, A(1));
    for (int64_t c = 0; c < s.classes; ++c)
      if (image_labels[b * s.classes + c])
        CALL_BEST_ISA(show, cams + (b * s.classes + c) * grid, stretch, wide.data, view.data, shown.data, winners.data);
    const Smallest<A> smallest(shown.data, pixels, kept);
    sums[b] = smallest.sum + not_finite(cams + b * s.classes * grid, s.classes * grid);
    if (!grad_cams) return;

    for (int64_t p = 0; p < pixels; ++p)  // what a pixel hands to each class that shows it
      winners.data[p] = shown.data[p] > 0 ? A(share) * smallest.weight(shown.data[p]) / winners.data[p] : A(0);
    for (int64_t c = 0; c < s.classes; ++c) {
      A* grad = grad_cams + (b * s.classes + c) * grid;
      if (image_labels[b * s.classes + c]) {
        CALL_BEST_ISA(show_backward, cams + (b * s.classes + c) * grid, stretch, shown.data, winners.data, wide.data,
                      view.data, grad);
      } else {
        std::fill_n(grad, grid, A(0));
      }
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  *loss = A(total * share);
  spoil(*loss, grad_cams, s.batch * s.classes * grid);
}

#define INSTANTIATE(A) \
  template void min_pooling_loss_cpu<A>(const A*, Flags, A*, A*, const MinPoolingShape&, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
