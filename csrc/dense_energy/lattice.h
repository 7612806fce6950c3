// The permutohedral lattice of one image. Spec: toco_kernels/dense_energy/lattice.py
//
// Maps are filtered kLanes channels at a time: a point of the lattice is a cache line of them, and pixels pass through
// the first cache on their way from the maps to the points and back. Points sum up their pixels in order, on one
// thread for each kLanes channels, so that the result depends neither on threads nor on how points are numbered.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/buffer.h"
#include "common/parallel.h"
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

// A corner of a pixel's simplex, and the pixel's weight there.
struct Corner {
  int32_t point;
  float weight;
};

constexpr int64_t kPixels = 64;  // at a time: whole vectors of every instruction set
constexpr int64_t kLanes = 16;   // channels
constexpr int kAhead = 16;       // points to fetch before they are needed

// The points that have neighbours along a direction, from one end to the other of each chain of them.
struct Chains {
  std::vector<int32_t> points;  // and kAhead more, to look ahead at
  std::vector<int32_t> first;   // (chains + 1): where each begins in `points`
};

inline int64_t blocks_of(int64_t channels) { return (channels + kLanes - 1) / kLanes; }

class Lattice {
 public:
  Lattice(const Features& features, const Parallel& parallel);

  // Splat and blur: what maps (channels, pixels) are at the points, (blocks of kLanes channels, points, kLanes). As
  // many threads splat as there are blocks; all of them blur.
  template <typename A>
  void spread(const A* maps, const A* norms, int64_t channels, A* points, const Parallel& parallel) const;

  // Slice: planes (channels, kPixels) of `count` pixels, those from `first` on.
  template <typename A>
  void read(const A* points, const A* norms, int64_t channels, int64_t first, int64_t count, A* planes) const;

  int64_t points() const { return points_; }

 private:
  template <typename Code>
  bool build(const Features& features, const Parallel& parallel);

  const int d_;
  const int64_t pixels_;
  int64_t points_ = 0;
  const Buffer<Corner> corners_;  // (pixels, d + 1)
  std::vector<Chains> chains_;    // (d + 1): of each direction
};

}  // namespace toco
