// Bilinear resizing as torch.nn.functional.interpolate does it, without aligned corners unless a name says so; the same
// on CPU and GPU.
#pragma once
#include <cstdint>
#include <vector>

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

// Where all positions of `to` lie. Compilers round a source position on an integer differently, depending on the
// instruction set: who needs a position twice, to make room for a row and then to find it, takes both from one table.
template <typename A>
std::vector<Between<A>> all_between(int64_t from, int64_t to) {
  std::vector<Between<A>> positions;
  for (int64_t i = 0; i < to; ++i) positions.push_back(between<A>(i, from, to));
  return positions;
}

// The same with aligned corners.
template <typename A>
std::vector<Between<A>> all_between_corners(int64_t from, int64_t to) {
  std::vector<Between<A>> positions;
  const A scale = to > 1 ? A(from - 1) / A(to - 1) : A(0);
  for (int64_t i = 0; i < to; ++i) {
    const A source = scale * A(i);
    const int64_t floor = int64_t(source), near = floor < from - 1 ? floor : from - 1;
    positions.push_back({near, near < from - 1 ? near + 1 : near, source - A(near)});
  }
  return positions;
}

// The resized value at (y, x); rows of `plane` are `stride` apart.
template <typename T, typename A>
TOCO_HOST_DEVICE A bilinear(const T* plane, int64_t stride, Between<A> y, Between<A> x) {
  const T* top = plane + y.near * stride;
  const T* bottom = plane + y.far * stride;
  return (1 - y.share) * ((1 - x.share) * A(top[x.near]) + x.share * A(top[x.far])) +
         y.share * ((1 - x.share) * A(bottom[x.near]) + x.share * A(bottom[x.far]));
}

}  // namespace toco
