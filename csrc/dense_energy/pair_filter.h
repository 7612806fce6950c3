// Either filter of one image: it takes maps in, and is read a few pixels at a time.
#pragma once
#include <memory>

#include "dense_energy/dense_energy.h"
#include "dense_energy/lattice.h"

namespace toco {

// Affinities and probabilities below this vanish: their products would be subnormal, on which processors are slow.
constexpr float kNothing = 1e-30f;

// So many channels are multiplied together by exact affinities. Planes of either filter have room for a multiple of
// them.
constexpr int64_t kGroup = 32;
static_assert(kGroup % kLanes == 0);

inline int64_t whole_groups(int64_t channels) { return (channels + kGroup - 1) / kGroup * kGroup; }

// The sum over all pairs. Affinities are computed tile by tile and never stored.
template <typename A>
class ExactSum {
 public:
  ExactSum(const A* image, int64_t height, int64_t width, const double* scales);

  // Values pixel by pixel, (pixels, whole_groups(channels)).
  void spread(const A* maps, int64_t channels, A* values) const;
  void read(const A* values, const A* norms, int64_t channels, int64_t first, int64_t count, A* planes) const;

 private:
  const int d_;
  const int64_t pixels_, padded_;
  const Buffer<A> features_;  // (d, padded), scaled
};

template <typename A>
class PairFilter {
 public:
  PairFilter(FilterKernel kernel, Image image, int64_t height, int64_t width, const double* scales, int64_t channels,
             const Parallel& parallel)
      : channels_(channels), work_((kernel == FilterKernel::kExact ? height * width : 8) * channels) {
    if (kernel == FilterKernel::kExact) {
      exact_ = std::make_unique<ExactSum<A>>(static_cast<const A*>(image), height, width, scales);
      spread_ = std::make_unique<Buffer<A>>(height * width * whole_groups(channels));
      return;
    }
    Features features{static_cast<const float*>(image), height, width, {}};
    std::copy_n(scales, features.count(), features.scales);
    lattice_ = std::make_unique<Lattice>(features, parallel);
    spread_ = std::make_unique<Buffer<A>>(lattice_->points() * blocks_of(channels) * kLanes);
  }

  // Takes in maps (channels, pixels), of at most as many channels as were announced.
  void spread(const A* maps,   // (channels, pixels)
              const A* norms,  // (pixels): multiplies maps before and after; null: nothing does
              int64_t channels, const Parallel& parallel) {
    norms_ = norms, channels_ = channels;
    if (lattice_)
      lattice_->spread(maps, norms, channels, spread_->data, parallel);
    else
      exact_->spread(maps, channels, spread_->data);
  }

  // Planes (channels, kPixels), and room for whole_groups of them, of the `count` <= kPixels pixels from `first` on.
  void read(int64_t first, int64_t count, A* planes) const {
    if (lattice_)
      lattice_->read(spread_->data, norms_, channels_, first, count, planes);
    else
      exact_->read(spread_->data, norms_, channels_, first, count, planes);
  }

  // Of reading one pixel, in multiply-adds.
  int64_t work() const { return work_; }

 private:
  std::unique_ptr<Lattice> lattice_;
  std::unique_ptr<ExactSum<A>> exact_;
  std::unique_ptr<Buffer<A>> spread_;
  int64_t channels_;
  const int64_t work_;
  const A* norms_ = nullptr;
};

// each(first, count, planes) for all pixels, kPixels at a time; planes are scratch for whole_groups(channels).
template <typename A, typename Each>
void every_few_pixels(int64_t pixels, int64_t channels, int64_t work, const Parallel& parallel, const Each& each) {
  parallel.loop((pixels + kPixels - 1) / kPixels, grain_for(kPixels * work), [&](int64_t begin, int64_t end, int) {
    const Buffer<A> planes(whole_groups(channels) * kPixels);
    for (int64_t first = begin * kPixels; first < std::min(end * kPixels, pixels); first += kPixels)
      each(first, std::min(kPixels, pixels - first), planes.data);
  });
}

// Planes (channels, kPixels) to maps (channels, pixels).
template <typename A>
void put_planes(const A* planes, int64_t channels, int64_t pixels, int64_t first, int64_t count, A* maps) {
  for (int64_t c = 0; c < channels; ++c) std::copy_n(planes + c * kPixels, count, maps + c * pixels + first);
}

// Image b of a batch.
template <typename A>
Image image_of(Image images, int64_t b, FilterKernel kernel, int64_t pixels) {
  if (!images) return nullptr;
  const int64_t size = kernel == FilterKernel::kLattice ? sizeof(float) : sizeof(A);
  return static_cast<const char*>(images) + b * 3 * pixels * size;
}

}  // namespace toco
