// Either filter of one image, on values that lie pixel by pixel (lattice.h).
#pragma once
#include <memory>

#include "dense_energy/dense_energy.h"
#include "dense_energy/lattice.h"

namespace toco {

// Affinities and probabilities below this vanish: their products would be subnormal, on which processors are slow.
constexpr float kNothing = 1e-30f;

constexpr int64_t kExactRows = 32;  // a multiple of them is computed at a time, and as many numbers read beyond the end

// The sum over all pairs. Affinities are computed tile by tile and never stored.
template <typename A>
class ExactSum {
 public:
  ExactSum(const A* image, int64_t height, int64_t width, const double* scales);
  void filter(const A* values, A* filtered, const A* norms, int64_t stride, const Parallel& parallel) const;

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

  void filter(const A* values,  // (pixels, stride), and kExactRows numbers more
              A* filtered,      // (pixels, stride)
              const A* norms,   // (pixels): multiplies rows before and after; null: nothing does
              int64_t stride, const Parallel& parallel) const {
    if (lattice_)
      lattice_->filter(values, filtered, norms, stride, parallel);
    else
      exact_->filter(values, filtered, norms, stride, parallel);
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

// each(b, threads) for every image: a thread per image where there are enough of them, else all threads for each.
template <typename Each>
void every_image(int64_t batch, const Parallel& parallel, const Each& each) {
  if (batch >= parallel.threads && batch > 1) {
    const Parallel alone = one_thread();
    parallel.in_turn(batch, int64_t(1) << 20, [&](int64_t b, int) { each(b, alone); });
  } else {
    for (int64_t b = 0; b < batch; ++b) each(b, parallel);
  }
}

}  // namespace toco
