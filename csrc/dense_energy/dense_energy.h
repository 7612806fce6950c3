// Dense energy and dense CRF. Spec: toco_kernels/dense_energy/reference.py
#pragma once
#include <cstdint>
#include <vector>

#include "common/half.h"
#include "common/parallel.h"

namespace toco {

enum class FilterKernel { kLattice, kExact };

// Pixels of the maps, and of the image that they are resized to.
struct EnergyShape {
  int64_t batch, classes, height, width, image_height, image_width;

  int64_t pixels() const { return image_height * image_width; }
};

// Images are (B, 3, H, W) in float for the lattice, in Accumulate<T> for the exact kernel.
using Image = const void*;

struct EnergyOptions {
  double sigma_rgb, sigma_xy;
  FilterKernel kernel;
};

template <typename A>
void bilateral_filter_cpu(const A* values,  // (B, K, H, W)
                          Image image,      // (B, 3, H, W)
                          A* filtered,      // (B, K, H, W)
                          EnergyOptions options, EnergyShape shape, const Parallel& parallel);

template <typename T>
void dense_energy_cpu(const T* maps,             // (B, K, H, W) probabilities, or logits
                      Image image,               // (B, 3, h, w)
                      const Accumulate<T>* roi,  // (B, h, w)
                      const uint8_t* unlabeled,  // (B, h, w)
                      Accumulate<T>* loss,       // ()
                      Accumulate<T>* grad,       // (B, K, H, W), or null when not wanted
                      bool logits,               // whose softmax is resized to the image; else sizes are the same
                      EnergyOptions options, EnergyShape shape, const Parallel& parallel);

// One filter of a dense CRF.
struct PairwiseTerm {
  Image image;       // (B, 3, H, W); null: positions alone
  double scales[5];  // 1 / sigma, of x, y and the colours
  double weight;
};

template <typename A>
void mean_field_cpu(const A* unary,  // (B, K, H, W)
                    A* q,            // (B, K, H, W)
                    const std::vector<PairwiseTerm>& terms, int64_t iterations, FilterKernel kernel, EnergyShape shape,
                    const Parallel& parallel);

}  // namespace toco
