// Stretching one map of one class, for what is compiled once per instruction set (common/for_each_isa.h).
//
// `wide` is the map with its columns stretched: each row of the stretched map is then a line between two of its rows.

template <typename A>
TOCO_TARGET void widen(const A* map, const Stretch<A>& stretch, A* wide) {
  for (int64_t y = 0; y < stretch.from.height; ++y, map += stretch.from.width)
    for (const Between<A>& x : stretch.columns) *wide++ = map[x.near] + x.share * (map[x.far] - map[x.near]);
}

// A row of the stretched map, not negative. It is computed again and again, and must be the same to the bit each time:
// hence never inlined, and one product that can be fused with one sum.
template <typename A>
TOCO_TARGET __attribute__((noinline)) void stretched_row(const A* wide, Between<A> y, int64_t width, A* row) {
  const A *top = wide + y.near * width, *bottom = wide + y.far * width;
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) {
    const A value = top[x] + y.share * (bottom[x] - top[x]);
    row[x] = value < 0 ? A(0) : value;
  }
}

// The gradient in the map whose stretched rows have the gradient `view`, of the view's size.
template <typename A>
TOCO_TARGET void stretch_backward(const A* view, const Stretch<A>& stretch, A* wide, A* grad) {
  const int64_t width = stretch.to.width;
  std::fill_n(wide, stretch.wide(), A(0));
  for (const Between<A>& y : stretch.rows) {
    A *top = wide + y.near * width, *bottom = wide + y.far * width;
    if (top == bottom) {
#pragma omp simd
      for (int64_t x = 0; x < width; ++x) top[x] += view[x];
    } else {
#pragma omp simd
      for (int64_t x = 0; x < width; ++x) {
        const A below = y.share * view[x];
        top[x] += view[x] - below;
        bottom[x] += below;
      }
    }
    view += width;
  }
  std::fill_n(grad, stretch.from.pixels(), A(0));
  for (int64_t y = 0; y < stretch.from.height; ++y, wide += width, grad += stretch.from.width)
    for (int64_t i = 0; i < width; ++i) {
      const Between<A> x = stretch.columns[i];
      const A far = x.share * wide[i];
      grad[x.near] += wide[i] - far;
      grad[x.far] += far;
    }
}
