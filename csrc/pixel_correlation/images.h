// What passes over the pairs of an image's pixels need. Pixels are filled up to whole blocks with zeros.
#pragma once
#include <algorithm>
#include <cmath>

#include "common/buffer.h"
#include "pixel_correlation/pixel_correlation.h"

namespace toco {

constexpr int kBlockPanels = 4;  // a block of pixels is as many panels of 32

inline int64_t whole(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <typename A>
struct CorrelationImage {
  int64_t pixels, width, classes;
  A *panels, *norms;  // (N / 32, D, 32) features over norm + 1e-5; (N)

  // Of the forward. The class after the last has the score 1 everywhere: what it gathers is the sum of similarities.
  A* maps;          // ((C + 1) / 32, N, 32)
  A* gathered;      // (N / 32, padded C + 1, 32)
  uint32_t* signs;  // (N, words); null when not wanted

  // Of the backward: the derivative by the cosine of i and j is <left[i], right[j]> where that is positive.
  A *left, *right;             // (N / 32, 2 (C + 1), 32)
  A* by_pixel;                 // (D / 32, N, 32), the same as panels
  const uint32_t* kept_signs;  // (N, words)
  A* grad;                     // (D, N)

  int64_t blocks() const { return (pixels + 32 * kBlockPanels - 1) / (32 * kBlockPanels); }
  int64_t padded() const { return blocks() * 32 * kBlockPanels; }
  int64_t words() const { return (pixels + 31) / 32; }
  int64_t stride() const { return whole(classes + 1, 32); }
};

}  // namespace toco
