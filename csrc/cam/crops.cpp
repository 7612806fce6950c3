// Crops around pixels that are not surely part of an object.
#include <algorithm>

#include "cam/crop.h"
#include "common/simd.h"

namespace toco {
namespace {

// How many pixels of each row of the window are candidates; their sum.
int64_t count_candidates(const uint8_t* roi, const CropShape& s, const Window& window, int32_t* in_row) {
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
  std::vector<CropCorner> corners(s.batch * s.crops);
  parallel.loop(s.batch, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<int32_t> in_row(window.height);
    std::vector<int64_t> chosen(s.crops);
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* regions = roi + b * s.height * s.width;
      const int64_t candidates = count_candidates(regions, s, window, in_row.data());
      const bool everywhere = candidates < s.crops;
      for (int64_t i = 0; i < s.crops; ++i) {
        const int64_t count = everywhere ? window.height * window.width : candidates;
        const int64_t position = draw_next(draws[b * s.crops + i], count, i, chosen.data());
        corners[b * s.crops + i] = find_candidate(regions, in_row.data(), position, everywhere, s, window);
      }
    }
  });
  parallel.loop(s.batch * s.crops, grain_for(s.size * s.size * s.channels), [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item % s.batch, i = item / s.batch;  // in the order of the result
      const CropCorner corner = corners[b * s.crops + i];
      const int64_t first = corner.y * s.width + corner.x;
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
      flags[b * s.crops + i] = T(Accumulate<T>(flag_of(sum, s.size)));
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
