// The permutohedral lattice of one image. Spec: toco_kernels/dense_energy/lattice.py
//
// Values lie pixel by pixel, the channels of a pixel together: one index serves whole vectors of channels. Nothing is
// added to memory that another thread could add to: the sum of a point runs over its pixels in their order, so that
// the result depends neither on threads nor on how points are numbered.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/buffer.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "dense_energy/embed.h"

namespace toco {

// What distances are measured in. `scales` are 1 / sigma, of x, y and the colours.
struct Features {
  const float* image;  // (3, H, W), or null: positions alone
  int64_t height, width;
  double scales[kMostFeatures];

  int count() const { return image ? 5 : 2; }
  int64_t pixels() const { return height * width; }
};

// Numbers from one row of values to the next: its channels, or a vector of them if they are fewer. Kernels load whole
// vectors, the last of which may begin within the one before it; so rows need no padding beyond that.
template <typename A>
int64_t row_stride(int64_t channels) {
  return std::max<int64_t>(channels, vector_bytes() / sizeof(A));
}

// A row among others, and how much of it.
struct Share {
  int32_t row;
  float weight;
};

constexpr int kAhead = 16;  // rows to fetch before they are needed

// The points that have neighbours along a direction, from one end to the other of each chain of them.
struct Chains {
  std::vector<int32_t> points;  // and kAhead more, to look ahead at
  std::vector<int32_t> first;  // (chains + 1): where each begins in `points`
};

class Lattice {
 public:
  Lattice(const Features& features, const Parallel& parallel);

  template <typename A>
  void filter(const A* values,  // (pixels, stride)
              A* filtered,      // (pixels, stride)
              const A* norms,   // (pixels): multiplies rows before and after; null: nothing does
              int64_t stride, const Parallel& parallel) const;

  int64_t points() const { return points_; }

 private:
  template <typename Code>
  bool build(const Features& features, const Parallel& parallel);
  void list_touches(const Parallel& parallel);

  const int d_;
  const int64_t pixels_;
  int64_t points_ = 0;
  const Buffer<Share> corners_;             // (pixels, d + 1): points
  const Buffer<Share> touches_;             // (pixels * (d + 1)): the pixels that touch a point, point by point
  std::unique_ptr<Buffer<int32_t>> first_;  // (points + 1): where those of a point begin
  std::vector<Chains> chains_;              // (d + 1): of each direction
};

}  // namespace toco
