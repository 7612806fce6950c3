// How a class map gets from the network's grid to the size at which maps are compared.
#pragma once
#include <algorithm>
#include <vector>

#include "cam_regularization/cam_regularization.h"
#include "common/resize.h"

namespace toco {

constexpr double kRangeEpsilon = 1e-5;  // as published

// Bilinear resizing with aligned corners.
template <typename A>
struct Stretch {
  MapSize from, to;
  std::vector<Between<A>> rows, columns;

  Stretch(MapSize from, MapSize to)
      : from(from),
        to(to),
        rows(all_between_corners<A>(from.height, to.height)),
        columns(all_between_corners<A>(from.width, to.width)) {}

  // Of the maps whose columns are stretched and whose rows are not yet.
  int64_t wide() const { return from.height * to.width; }
};

// From the grid to the view, where the range is brought to 0 … 1, and from there to the size of comparison.
template <typename A>
struct Route {
  Stretch<A> view, last;

  Route(ViewShape shape, MapSize size) : view(shape.grid, shape.view), last(shape.view, size) {}

  // What `compared` and `compared_backward` need beside their arguments.
  int64_t scratch() const { return view.wide() + 2 * view.to.width + view.to.pixels(); }
};

template <typename A>
struct MapRange {
  A low, high;
  A length() const { return high - low + A(kRangeEpsilon); }
};

// 0, or no number where maps have one that is none, or infinite: a loss that looks at few of the maps adds this up.
template <typename A>
double not_finite(const A* maps, int64_t size) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += maps[i] * A(0);
  return sum;
}

// What is no number has no gradient that is one.
template <typename A>
void spoil(A loss, A* grad, int64_t size) {
  if (grad && loss != loss) std::fill_n(grad, size, loss);
}

}  // namespace toco
