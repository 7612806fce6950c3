// Crops around pixels that are not surely part of an object.
#include <algorithm>

#include "cam/crop.h"
#include "common/buffer.h"
#include "common/simd.h"

namespace toco {
namespace {

// How many pixels of each row of the window are candidates; their sum.
int64_t count_candidates(const uint8_t* roi, const CropShape& s, const Window& window, int64_t* in_row) {
  int64_t count = 0;
  best_isa([&]() TOCO_INLINE {
    for (int64_t y = 0; y < window.height; ++y) {
      const uint8_t* row = roi + (window.margin + y) * s.width + window.margin;
      int32_t found = 0;
      for (int64_t x = 0; x < window.width; ++x) found += row[x] <= 1;
      count += in_row[y] = found;
    }
  });
  return count;
}

}  // namespace

template <typename T>
void crop_uncertain_cpu(const T* images, const uint8_t* roi, const double* draws, T* cut, T* flags, CropShape s,
                        const Parallel& parallel) {
  const Window window(s);
  const Buffer<int64_t> corners(2 * s.batch * s.crops);  // y, x
  parallel.loop(s.batch, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<int64_t> in_row(window.height), chosen(s.crops);
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* regions = roi + b * s.height * s.width;
      int64_t count = count_candidates(regions, s, window, in_row.data());
      const bool everywhere = count < s.crops;
      if (everywhere) count = window.height * window.width;
      for (int64_t i = 0; i < s.crops; ++i) {
        int64_t position = draw_one(draws + b * s.crops, i, count, chosen.data()), y = 0, x = 0;
        if (everywhere) {
          y = position / window.width;
          x = position % window.width;
        } else {
          for (; position >= in_row[y]; ++y) position -= in_row[y];
          const uint8_t* row = regions + (window.margin + y) * s.width + window.margin;
          for (position += row[0] <= 1 ? 0 : 1; position > 0;) position -= row[++x] <= 1 ? 1 : 0;
        }
        corners.data[2 * (b * s.crops + i)] = y;
        corners.data[2 * (b * s.crops + i) + 1] = x;
      }
    }
  });
  const int64_t area = s.size * s.size;
  parallel.loop(s.batch * s.crops, grain_for(area * s.channels), [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item % s.batch, i = item / s.batch;  // in the order of the result
      const int64_t* corner = corners.data + 2 * (b * s.crops + i);
      const int64_t first = corner[0] * s.width + corner[1];
      for (int64_t c = 0; c < s.channels; ++c)
        for (int64_t y = 0; y < s.size; ++y)
          std::copy_n(images + (b * s.channels + c) * s.height * s.width + first + y * s.width, s.size,
                      cut + ((item * s.channels + c) * s.size + y) * s.size);
      int64_t sum = 0;
      best_isa([&]() TOCO_INLINE {
        for (int64_t y = 0; y < s.size; ++y) {
          const uint8_t* row = roi + b * s.height * s.width + first + y * s.width;
          int32_t of_row = 0;
          for (int64_t x = 0; x < s.size; ++x) of_row += row[x];
          sum += of_row;
        }
      });
      flags[b * s.crops + i] = T(Accumulate<T>(float(sum) / float(area) <= kSurelyNegative ? 0 : 1));
    }
  });
}

#define INSTANTIATE(T) \
  template void crop_uncertain_cpu<T>(const T*, const uint8_t*, const double*, T*, T*, CropShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
