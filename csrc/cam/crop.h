// Where crops are cut, from random numbers; the same on CPU and GPU.
#pragma once
#include "cam/cam.h"

namespace toco {

constexpr float kSurelyNegative = 0.2f;  // crops whose mean region is at most this show background

// The middle of an image: pixels that a crop can be cut around.
struct Window {
  int64_t margin, height, width;
  TOCO_HOST_DEVICE explicit Window(const CropShape& s)
      : margin(s.size / 2), height(s.height - s.size / 2 * 2), width(s.width - s.size / 2 * 2) {}
};

// Number `crop` of those drawn without replacement from `count`, which is the position in the whole, and not among what
// earlier draws left. `draws` are the image's; `chosen` has room for crop + 1 numbers, and keeps them in order.
TOCO_HOST_DEVICE int64_t draw_one(const double* draws, int64_t crop, int64_t count, int64_t* chosen) {
  int64_t position = 0;
  for (int64_t i = 0; i <= crop; ++i) {
    const int64_t left = count - i, drawn = int64_t(draws[i] * double(left));
    position = drawn < left ? drawn : left - 1;
    int64_t place = 0;
    for (; place < i && chosen[place] <= position; ++place) ++position;  // pass over those that are gone
    for (int64_t k = i; k > place; --k) chosen[k] = chosen[k - 1];
    chosen[place] = position;
  }
  return position;
}

}  // namespace toco
