// How surely each pixel shows any class, compiled once per instruction set (common/for_each_isa.h).

#include "cam_regularization/stretch.h"

// Enter a map into the largest score of each pixel, and into how many maps have it.
template <typename A>
TOCO_TARGET void show(const A* map, const Stretch<A>& stretch, A* wide, A* row, A* shown, A* winners) {
  const int64_t width = stretch.to.width;
  widen(map, stretch, wide);
  for (const Between<A>& y : stretch.rows) {
    stretched_row(wide, y, width, row);
#pragma omp simd
    for (int64_t x = 0; x < width; ++x) {
      winners[x] = row[x] > shown[x] ? A(1) : winners[x] + (row[x] == shown[x] ? A(1) : A(0));
      shown[x] = row[x] > shown[x] ? row[x] : shown[x];
    }
    shown += width, winners += width;
  }
}

// The gradient in a map: `slopes` where it has the pixel's largest score. `view` is of the view's size.
template <typename A>
TOCO_TARGET void show_backward(const A* map, const Stretch<A>& stretch, const A* shown, const A* slopes, A* wide,
                               A* view, A* grad) {
  const int64_t width = stretch.to.width;
  widen(map, stretch, wide);
  A* row = view;
  for (const Between<A>& y : stretch.rows) {
    stretched_row(wide, y, width, row);
#pragma omp simd
    for (int64_t x = 0; x < width; ++x) row[x] = row[x] == shown[x] ? slopes[x] : A(0);
    row += width, shown += width, slopes += width;
  }
  stretch_backward(view, stretch, wide, grad);
}
