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

// The `kept` smallest of some scores: those below a threshold, and the first of those on it.
template <typename A>
struct Smallest {
  A threshold;
  int64_t on_it;
  double sum = 0;

  Smallest(const A* scores, int64_t count, int64_t kept) : on_it(kept) {
    Buffer<A> sorted(count);
    std::copy_n(scores, count, sorted.data);
    std::nth_element(sorted.data, sorted.data + kept - 1, sorted.data + count);
    threshold = sorted.data[kept - 1];
    for (int64_t i = 0; i < count; ++i)
      if (scores[i] < threshold) {
        sum += scores[i];
        --on_it;
      }
    sum += double(threshold) * double(on_it);
  }
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
    sums[b] = smallest.sum + double(not_finite(cams + b * s.classes * grid, s.classes * grid));
    if (!grad_cams) return;

    int64_t left = smallest.on_it;
    for (int64_t p = 0; p < pixels; ++p) {  // what a pixel hands to each class that shows it
      const A score = shown.data[p];
      const bool chosen = score < smallest.threshold || (score == smallest.threshold && left-- > 0);
      winners.data[p] = chosen && score > 0 ? A(share) / winners.data[p] : A(0);
    }
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
}

#define INSTANTIATE(A) \
  template void min_pooling_loss_cpu<A>(const A*, Flags, A*, A*, const MinPoolingShape&, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
