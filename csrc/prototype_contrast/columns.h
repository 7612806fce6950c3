// Prototypes as products of them need, and memory for one column of pixels: as many as a register has lanes.
#pragma once
#include <algorithm>
#include <cmath>

#include "common/buffer.h"
#include "common/simd.h"
#include "prototype_contrast/prototype_contrast.h"

namespace toco {

constexpr int kPixels = 64;      // of an image, that one task takes; a whole number of columns
constexpr int32_t kNobody = -1;  // the label of pixels that take no part
constexpr int32_t kWrong = -2;   // of those with a label that no class has

// Sets of prototypes, one behind the other, in chunks of as many classes as there are registers for sums. The last
// chunk is filled up with zeros.
template <typename A>
struct PackedPrototypes {
  int64_t rows, width, chunk;  // chunk: classes in one
  Buffer<A> data;              // (chunks, D, chunk)

  PackedPrototypes(const A* const* sets, int64_t count, int64_t classes, int64_t width)
      : rows(count * classes), width(width), chunk(chunk_for(rows)), data(padded() * width) {
    std::fill_n(data.data, padded() * width, A(0));
    for (int64_t c = 0; c < rows; ++c)
      for (int64_t d = 0; d < width; ++d)
        data.data[(c / chunk * width + d) * chunk + c % chunk] = sets[c / classes][c % classes * width + d];
  }

  int64_t padded() const { return (rows + chunk - 1) / chunk * chunk; }

 private:
  // 21 classes are one chunk of 21 where there are 32 registers, three of 7 where there are 16. Sizes of the longer
  // chunks are multiples of 3, so that fewer have to be compiled.
  static int64_t chunk_for(int64_t rows) {
    const bool many = isa_in_use() == Isa::kAvx512;
    const int64_t most = many ? 24 : 8, step = many ? 3 : 1, chunks = (rows + most - 1) / most;
    return ((rows + chunks - 1) / chunks + step - 1) / step * step;
  }
};

template <typename A>
struct Column {
  static constexpr int kMostLanes = 64 / sizeof(A);

  A *all, *rows;       // (kPixels / lanes, D, lanes), (D, kPixels): features and gradients of the columns of a task
  A *x, *gradient;     // (D, lanes)
  A *scores, *slopes;  // (padded rows, lanes): cosines over temperature, and derivatives of the loss
  alignas(64) A inverse[kMostLanes];   // what makes unit vectors of pixels; 0 for zero vectors, which get no gradient
  alignas(64) A scales[kMostLanes];    // the same, over temperature
  alignas(64) A projects[kMostLanes];  // 1 where the length is not constant, 0 where it is (kShortest)

  static int64_t size(const PackedPrototypes<A>& prototypes) {
    return (kMostLanes + 2 * kPixels) * prototypes.width + 2 * kMostLanes * prototypes.padded();
  }
  Column(A* memory, const PackedPrototypes<A>& prototypes)
      : all(memory),
        rows(all + prototypes.width * kPixels),
        x(all),
        gradient(rows + prototypes.width * kPixels),
        scores(gradient + prototypes.width * kMostLanes),
        slopes(scores + prototypes.padded() * kMostLanes) {
    std::fill_n(slopes, prototypes.padded() * kMostLanes, A(0));  // those of the filling stay zero
  }
};

// Of a pixel whose squares float cannot add: too long, too short, or no number.
template <typename A>
inline double length_exactly(const A* x, int64_t width, int64_t stride) {
  double square = 0;
  for (int64_t d = 0; d < width; ++d) square += double(x[d * stride]) * double(x[d * stride]);
  return std::sqrt(square);
}

// What some pixels of a view, at most kPixels, add to the terms of a step.
template <typename A>
struct PixelTerms {
  double losses[2] = {};                           // across prototypes, across CAMs: sums over pixels
  A mined[kPixels] = {}, positives[kPixels] = {};  // losses and similarities for mining
};

}  // namespace toco
