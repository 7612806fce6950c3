// Boxes are y0, y1, x0, x1 and mean what they mean in a Python slice: half-open, clamped, negative from the end.
#pragma once
#include <cstdint>

#include "common/host_device.h"

namespace toco {

struct Box {
  int64_t y0, y1, x0, x1;
  TOCO_HOST_DEVICE bool holds(int64_t y, int64_t x) const { return y0 <= y && y < y1 && x0 <= x && x < x1; }
};

TOCO_HOST_DEVICE int64_t slice_bound(int64_t bound, int64_t size) {
  const int64_t from_start = bound < 0 ? bound + size : bound;
  return from_start < 0 ? 0 : from_start > size ? size : from_start;
}

// Box b of `boxes` (B, 4); the whole image when there are none.
TOCO_HOST_DEVICE Box box_of(const int64_t* boxes, int64_t b, int64_t height, int64_t width) {
  if (!boxes) return {0, height, 0, width};
  boxes += 4 * b;
  return {slice_bound(boxes[0], height), slice_bound(boxes[1], height), slice_bound(boxes[2], width),
          slice_bound(boxes[3], width)};
}

}  // namespace toco
