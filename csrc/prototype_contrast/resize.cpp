// Bilinear resizing with aligned corners, as torch.nn.functional.interpolate does it. Of a map that becomes smaller
// only what counts is read: 1 pixel of 3 from 56 × 56 to 16 × 16.
#include "common/resize.h"

#include <algorithm>
#include <vector>

#include "common/huge_pages.h"
#include "prototype_contrast/prototype_contrast.h"

namespace toco {

template <typename T>
void resize_corners_cpu(PlaneMaps<T> maps, Accumulate<T>* resized, ResizeShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const auto rows = all_between_corners<A>(s.height, s.out_height),
             columns = all_between_corners<A>(s.width, s.out_width);
  const int64_t size = s.out_height * s.out_width;
  parallel.loop(s.batch * s.channels, grain_for(8 * size), [&](int64_t begin, int64_t end, int) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const T* from = maps.data + plane / s.channels * maps.image + plane % s.channels * maps.channel;
      A* to = resized + plane * size;
      for (const Between<A>& y : rows) {
        const T *top = from + y.near * maps.row, *bottom = from + y.far * maps.row;
        for (const Between<A>& x : columns) {
          const A above = (1 - x.share) * A(top[x.near * maps.column]) + x.share * A(top[x.far * maps.column]);
          const A below = (1 - x.share) * A(bottom[x.near * maps.column]) + x.share * A(bottom[x.far * maps.column]);
          *to++ = (1 - y.share) * above + y.share * below;
        }
      }
    }
  });
}

template <typename A>
void resize_corners_backward_cpu(const A* grad, A* grad_maps, ResizeShape s, const Parallel& parallel) {
  const auto rows = all_between_corners<A>(s.height, s.out_height),
             columns = all_between_corners<A>(s.width, s.out_width);
  const int64_t size = s.out_height * s.out_width, full = s.height * s.width;
  prefer_huge_pages(grad_maps, s.batch * s.channels * full * int64_t(sizeof(A)));
  parallel.loop(s.batch * s.channels, grain_for(full + 8 * size), [&](int64_t begin, int64_t end, int) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const A* from = grad + plane * size;
      A* to = grad_maps + plane * full;
      std::fill_n(to, full, A(0));
      for (const Between<A>& y : rows) {
        A *top = to + y.near * s.width, *bottom = to + y.far * s.width;
        for (const Between<A>& x : columns) {
          const A g = *from++, above = (1 - y.share) * g, below = y.share * g;
          top[x.near] += (1 - x.share) * above;
          top[x.far] += x.share * above;
          bottom[x.near] += (1 - x.share) * below;
          bottom[x.far] += x.share * below;
        }
      }
    }
  });
}

#define INSTANTIATE(T) template void resize_corners_cpu<T>(PlaneMaps<T>, Accumulate<T>*, ResizeShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)
template void resize_corners_backward_cpu<float>(const float*, float*, ResizeShape, const Parallel&);
template void resize_corners_backward_cpu<double>(const double*, double*, ResizeShape, const Parallel&);

}  // namespace toco
