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

// The next of several positions below `count`, none of which is drawn twice: `chosen` holds the `drawn` earlier ones in
// ascending order, and has room for this one. What is drawn is its number among those that are left.
TOCO_HOST_DEVICE int64_t draw_next(double draw, int64_t count, int64_t drawn, int64_t* chosen) {
  const int64_t left = count - drawn;
  // Draws outside [0, 1) are the nearest inside, NaN is 0: an integer that cannot hold them is never asked to.
  const int64_t number = draw >= 1 ? left - 1 : draw > 0 ? int64_t(draw * double(left)) : 0;
  int64_t position = number < left ? number : left - 1, place = 0;
  for (; place < drawn && chosen[place] <= position; ++place) ++position;
  for (int64_t i = drawn; i > place; --i) chosen[i] = chosen[i - 1];
  chosen[place] = position;
  return position;
}

// The corner of a crop in the window, which is its candidate's place there.
struct CropCorner {
  int64_t y, x;
};

// Where candidate number `position` of an image is, row by row, by the candidates in each row of its window; any pixel
// is one if there are fewer than crops of them.
TOCO_HOST_DEVICE CropCorner find_candidate(const uint8_t* roi,     // (H, W)
                                           const int32_t* in_row,  // (rows of the window)
                                           int64_t position, bool everywhere, const CropShape& s,
                                           const Window& window) {
  if (everywhere) return {position / window.width, position % window.width};
  CropCorner corner{0, 0};
  for (; position >= in_row[corner.y]; ++corner.y) position -= in_row[corner.y];
  const uint8_t* row = roi + (window.margin + corner.y) * s.width + window.margin;
  for (; position > 0 || row[corner.x] > 1; ++corner.x) position -= row[corner.x] <= 1;
  return corner;
}

// Whether the mean region of a crop says that it may show an object.
TOCO_HOST_DEVICE int flag_of(int64_t sum, int64_t size) {
  return float(sum) / float(size * size) <= kSurelyNegative ? 0 : 1;
}

}  // namespace toco
