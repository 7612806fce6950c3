// Bilinear resizing without aligned corners, as torch.nn.functional.interpolate does it; the same on CPU and GPU.
#pragma once
#include <cstdint>

#include "common/host_device.h"

namespace toco {

// Position i of `to` lies between two of `from`: (1 - share) * near + share * far.
template <typename A>
struct Between {
  int64_t near, far;
  A share;
};

template <typename A>
TOCO_HOST_DEVICE Between<A> between(int64_t i, int64_t from, int64_t to) {
  const A source = (A(i) + A(0.5)) * (A(from) / A(to)) - A(0.5);
  const A inside = source > 0 ? source : A(0);
  const int64_t floor = int64_t(inside), near = floor < from - 1 ? floor : from - 1;
  return {near, near < from - 1 ? near + 1 : near, inside - A(near)};
}

// The resized value at (y, x); rows of `plane` are `stride` apart.
template <typename A>
TOCO_HOST_DEVICE A bilinear(const A* plane, int64_t stride, Between<A> y, Between<A> x) {
  const A* top = plane + y.near * stride;
  const A* bottom = plane + y.far * stride;
  return (1 - y.share) * ((1 - x.share) * top[x.near] + x.share * top[x.far]) +
         y.share * ((1 - x.share) * bottom[x.near] + x.share * bottom[x.far]);
}

}  // namespace toco
