// Where pixels lie in the permutohedral lattice. Spec: embed() in toco_kernels/dense_energy/lattice.py
//
// The corners of a simplex have the remainders 0, 1, … d modulo d + 1. Corner 0 is `whole` times d + 1, and `order`
// says which coordinate changes from each corner to the next.
#pragma once
#include <cstdint>

namespace toco {

constexpr int kMostFeatures = 5;      // x, y and three colours
constexpr int64_t kEmbedded = 128;    // pixels at a time
constexpr float kFarthest = 1 << 21;  // lattice units; float32 has no digits left there to interpolate with

struct Embedded {
  alignas(64) float features[kMostFeatures][kEmbedded];     // in: x, y, colours
  alignas(64) float weights[kMostFeatures + 1][kEmbedded];  // out: of each corner; NaN beyond kFarthest
  alignas(64) int32_t whole[kMostFeatures][kEmbedded];
  alignas(64) int32_t order[kEmbedded];  // four bits for each rank: the coordinate that has it
};

// `factors` (d) turn features into lattice units; see lattice_factors.
void embed(int d, const float* factors, Embedded& pixels);

}  // namespace toco
