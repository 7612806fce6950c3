// Blocks of pixels, which both contrasts work on, and prototypes as products of them need.
#pragma once
#include <algorithm>
#include <cmath>

#include "common/buffer.h"
#include "prototype_contrast/prototype_contrast.h"

namespace toco {

constexpr int kPixels = 64;     // of an image side by side: a block, whose channels stay in the first cache
constexpr int32_t kNobody = -1;  // the label of pixels that take no part
constexpr int32_t kWrong = -2;   // of those with a label that no class has

inline int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

// Sets of prototypes, one behind the other, in both layouts that products need; the rest of panels is zero.
template <typename A>
struct PackedPrototypes {
  int64_t rows, width;
  Buffer<A> by_class;    // (padded(rows) / 32, D, 32)
  Buffer<A> by_channel;  // (padded(D) / 32, rows, 32)

  PackedPrototypes(const A* const* sets, int64_t count, int64_t classes, int64_t width)
      : rows(count * classes), width(width), by_class(padded(rows) * width), by_channel(padded(width) * rows) {
    std::fill_n(by_class.data, padded(rows) * width, A(0));
    std::fill_n(by_channel.data, padded(width) * rows, A(0));
    for (int64_t c = 0; c < rows; ++c)
      for (int64_t d = 0; d < width; ++d) {
        const A value = sets[c / classes][c % classes * width + d];
        by_class.data[(c / 32 * width + d) * 32 + c % 32] = value;
        by_channel.data[(d / 32 * rows + c) * 32 + d % 32] = value;
      }
  }
};

// One block, in memory of its thread.
template <typename A>
struct PixelBlock {
  A *x, *gradient;     // (D, kPixels)
  A *scores, *slopes;  // (padded(rows), kPixels): products with prototypes, then derivatives by cosines
  A inverse[kPixels];  // what makes unit vectors of pixels; 0 for zero vectors, which get no gradient
  A projects[kPixels];  // 1 where the length is not constant, 0 where it is (kShortest)

  static int64_t size(int64_t rows, int64_t width) { return 2 * kPixels * (width + padded(rows)); }
  PixelBlock(A* memory, int64_t rows, int64_t width)
      : x(memory),
        gradient(x + width * kPixels),
        scores(gradient + width * kPixels),
        slopes(scores + padded(rows) * kPixels) {}
};

// A pixel whose squares float cannot add: too long, too short, or no number.
template <typename A>
inline void measure_exactly(const A* x, int64_t width, A* inverse, A* projects) {  // x: stride kPixels
  double square = 0;
  for (int64_t d = 0; d < width; ++d) square += double(x[d * kPixels]) * double(x[d * kPixels]);
  const double length = std::sqrt(square);
  *projects = length < kShortest ? A(0) : A(1);
  *inverse = length == 0 ? A(0) : A(1 / (length < kShortest ? kShortest : length));  // NaN stays
}

}  // namespace toco
