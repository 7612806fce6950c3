// One map of one class as it is compared, compiled once per instruction set (common/for_each_isa.h).

#include "cam_regularization/stretch.h"

template <typename A>
TOCO_TARGET void range_of(const A* wide, const Stretch<A>& stretch, A* row, MapRange<A>* range) {
  A low = std::numeric_limits<A>::max(), high = 0;
  for (const Between<A>& y : stretch.rows) {
    stretched_row(wide, y, stretch.to.width, row);
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t x = 0; x < stretch.to.width; ++x) {
      low = row[x] < low ? row[x] : low;
      high = row[x] > high ? row[x] : high;
    }
  }
  *range = {low, high};
}

// A row of the view, its range brought to 0 … 1.
template <typename A>
TOCO_TARGET void normalised_row(const A* wide, Between<A> y, int64_t width, MapRange<A> range, A* row) {
  stretched_row(wide, y, width, row);
  const A length = range.length();
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) {
    const A above = row[x] - range.low - A(kRangeEpsilon);
    const A value = above / length;
    row[x] = above < 0 ? A(0) : value;
  }
}

// The map as it is compared; and its range, which the backward needs.
template <typename A>
TOCO_TARGET void compared(const A* map, const Route<A>& route, A* scratch, MapRange<A>* range, A* out) {
  const Stretch<A>&view = route.view, &last = route.last;
  const int64_t width = view.to.width;
  A *wide = scratch, *near = wide + view.wide(), *far = near + width;
  widen(map, view, wide);
  range_of(wide, view, near, range);
  for (const Between<A>& y : last.rows) {
    normalised_row(wide, view.rows[y.near], width, *range, near);
    normalised_row(wide, view.rows[y.far], width, *range, far);
    for (const Between<A>& x : last.columns) {
      const A above = near[x.near] + x.share * (near[x.far] - near[x.near]);
      const A below = far[x.near] + x.share * (far[x.far] - far[x.near]);
      *out++ = above + y.share * (below - above);
    }
  }
}

// The gradient in the map, of that in what `compared` made of it.
//
//     v = max(0, r - low - epsilon) / length,   length = high - low + epsilon
//     dv/dlow = v / length - [v > 0] / length,  dv/dhigh = -v / length,   shared by all pixels that are as low or high
template <typename A>
TOCO_TARGET void compared_backward(const A* map, const Route<A>& route, MapRange<A> range, const A* grad_out,
                                   A* scratch, A* grad) {
  const Stretch<A>&view = route.view, &last = route.last;
  const int64_t width = view.to.width, pixels = view.to.pixels();
  A *wide = scratch, *row = wide + view.wide(), *grad_row = row + width, *grad_view = grad_row + width;
  std::fill_n(grad_view, pixels, A(0));
  for (const Between<A>& y : last.rows) {
    std::fill_n(grad_row, width, A(0));
    for (const Between<A>& x : last.columns) {
      const A far = x.share * *grad_out;
      grad_row[x.near] += *grad_out++ - far;
      grad_row[x.far] += far;
    }
    A *near = grad_view + y.near * width, *far = grad_view + y.far * width;
    for (int64_t x = 0; x < width; ++x) {
      const A below = y.share * grad_row[x];
      near[x] += grad_row[x] - below;
      far[x] += below;
    }
  }

  widen(map, view, wide);
  const A length = range.length();
  double of_active = 0, of_values = 0;
  int64_t lows = 0, highs = 0;
  for (int64_t y = 0; y < view.to.height; ++y) {
    stretched_row(wide, view.rows[y], width, row);
    A* g = grad_view + y * width;
#pragma omp simd
    for (int64_t x = 0; x < width; ++x) {
      const A own = g[x] / length;
      g[x] = row[x] - range.low - A(kRangeEpsilon) > 0 ? own : A(0);
    }
    A active = 0, values = 0;
    int low = 0, high = 0;
#pragma omp simd reduction(+ : active, values, low, high)
    for (int64_t x = 0; x < width; ++x) {
      active += g[x];
      values += (row[x] - range.low - A(kRangeEpsilon)) * g[x];
      low += row[x] == range.low;
      high += row[x] == range.high;
    }
    of_active += active, of_values += values / length;
    lows += low, highs += high;
  }
  const A of_low = lows ? A((of_values - of_active) / lows) : A(0);
  const A of_high = highs ? A(-of_values / highs) : A(0);
  for (int64_t y = 0; y < view.to.height; ++y) {
    stretched_row(wide, view.rows[y], width, row);
    A* g = grad_view + y * width;
#pragma omp simd
    for (int64_t x = 0; x < width; ++x) {
      const A slope = g[x] + (row[x] == range.low ? of_low : A(0)) + (row[x] == range.high ? of_high : A(0));
      g[x] = row[x] > 0 ? slope : A(0);
    }
  }
  stretch_backward(grad_view, view, wide, grad);
}
