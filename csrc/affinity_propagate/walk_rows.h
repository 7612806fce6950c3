// One step of the random walk on one row of some classes; compiled once per instruction set.

#include "common/vector.h"

// Each pixel becomes the mean of itself and of both neighbours of every pair, by their weights; computed as a change of
// its score, so that pixels without neighbours keep theirs to the last bit, however many steps follow.
template <typename A, int kClasses>
TOCO_TARGET void walk_row(const WalkPlanes<A>& planes, const A* from, A* to, int64_t row) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  const int64_t plane = planes.size;
  for (int64_t p = row; p < row + planes.width; p += kSize) {
    V sums[kClasses] = {};
    for (int k = 0; k < planes.pairs; ++k) {
      const int64_t step = planes.steps[k];
      const A *ahead = from + p + step, *behind = from + p - step;
      const V to_ahead = *(const V*)(planes.weights + k * plane + p);
      const V to_behind = *(const U*)(planes.weights + k * plane + p - step);
#pragma GCC unroll 8
      for (int c = 0; c < kClasses; ++c) {
        sums[c] += to_ahead * *(const U*)(ahead + c * plane);
        sums[c] += to_behind * *(const U*)(behind + c * plane);
      }
    }
    const V scale = *(const V*)(planes.scales + p), sum = *(const V*)(planes.sums + p);
#pragma GCC unroll 8
    for (int c = 0; c < kClasses; ++c) {
      const V x = *(const V*)(from + c * plane + p);
      *(V*)(to + c * plane + p) = x + (sums[c] - sum * x) * scale;
    }
  }
}

template <typename A, int kClasses = 8>
TOCO_TARGET void walk_row_of(int classes, const WalkPlanes<A>& planes, const A* from, A* to, int64_t row) {
  if (classes == kClasses) return walk_row<A, kClasses>(planes, from, to, row);
  if constexpr (kClasses > 1) walk_row_of<A, kClasses - 1>(classes, planes, from, to, row);
}
