// Either filter of one image.
#pragma once
#include <memory>

#include "dense_energy/dense_energy.h"
#include "dense_energy/lattice.h"

namespace toco {

// Affinities and probabilities below this vanish: their products would be subnormal, on which processors are slow.
constexpr float kNothing = 1e-30f;

constexpr int64_t kGroup = 32;  // channels whose exact sums are computed together

// The sum over all pairs. Affinities are computed tile by tile and never stored.
template <typename A>
class ExactSum {
 public:
  ExactSum(const A* image, int64_t height, int64_t width, const double* scales);
  void filter(const A* maps, const A* norms, int64_t channels, const Sink<A>& sink, const Parallel& parallel) const;

 private:
  const int d_;
  const int64_t pixels_, padded_;
  const Buffer<A> features_;  // (d, padded), scaled
};

template <typename A>
class PairFilter {
 public:
  PairFilter(FilterKernel kernel, Image image, int64_t height, int64_t width, const double* scales,
             const Parallel& parallel) {
    if (kernel == FilterKernel::kExact) {
      exact_ = std::make_unique<ExactSum<A>>(static_cast<const A*>(image), height, width, scales);
      return;
    }
    Features features{static_cast<const float*>(image), height, width, {}};
    std::copy_n(scales, features.count(), features.scales);
    lattice_ = std::make_unique<Lattice>(features, parallel);
  }

  void filter(const A* maps,   // (channels, pixels)
              const A* norms,  // (pixels): multiplies maps before and after; null: nothing does
              int64_t channels, const Sink<A>& sink, const Parallel& parallel) const {
    if (lattice_)
      lattice_->filter(maps, norms, channels, sink, parallel);
    else
      exact_->filter(maps, norms, channels, sink, parallel);
  }

 private:
  std::unique_ptr<Lattice> lattice_;
  std::unique_ptr<ExactSum<A>> exact_;
};

// Image b of a batch.
template <typename A>
Image image_of(Image images, int64_t b, FilterKernel kernel, int64_t pixels) {
  if (!images) return nullptr;
  const int64_t size = kernel == FilterKernel::kLattice ? sizeof(float) : sizeof(A);
  return static_cast<const char*>(images) + b * 3 * pixels * size;
}

}  // namespace toco
