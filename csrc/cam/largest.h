// The largest CAM of each pixel of a row, in which absent classes count as 0, and the label that follows from it.
#pragma once
#include <algorithm>
#include <limits>

#include "cam/cam.h"
#include "common/box.h"
#include "common/simd.h"

namespace toco {

// The classes among which the largest value is sought, in their order: the present ones, and the first absent one,
// which stands for all absent ones.
struct Candidate {
  int64_t index;
  bool present;
};

inline std::vector<Candidate> candidates(Flags image_labels, int64_t b, int64_t classes) {
  std::vector<Candidate> found;
  bool any_absent = false;
  for (int64_t c = 0; c < classes; ++c) {
    const bool present = image_labels[b * classes + c];
    if (present || !any_absent) found.push_back({c, present});
    any_absent |= !present;
  }
  return found;
}

// The largest value so far, and whose it is, counted from 1.
template <typename A>
struct Largest {
  A* value;
  int32_t* label;

  void start(int64_t pixels, const std::vector<Candidate>& classes) const {
    std::fill_n(value, pixels, -std::numeric_limits<A>::infinity());
    std::fill_n(label, pixels, int32_t(classes[0].index + 1));
  }
  TOCO_INLINE void compare(int64_t x, A with, int32_t its_label) const {
    const bool better = beats(with, value[x]);
    value[x] = better ? with : value[x];
    label[x] = better ? its_label : label[x];
  }
};

// Loops over pixels are functions of values: what a closure refers to could lie where a loop writes, and be reloaded.
template <typename A, typename High, typename Low>
TOCO_INLINE inline void label_pixels(Largest<A> largest, High high, Low low, int64_t begin, int64_t end,
                                     int64_t ignore_index, int64_t* labels) {
  for (int64_t x = begin; x < end; ++x)
    labels[x] = limited_label(largest.value[x], int64_t(largest.label[x]), high(x), low(x), ignore_index);
}

template <typename A>
TOCO_INLINE inline void mark_pixels(Largest<A> largest, A high, A low, int64_t width, uint8_t* roi) {
  for (int64_t x = 0; x < width; ++x) roi[x] = region(largest.value[x], high, low);
}

// Row y of the labels; `high` and `low` are functions of x.
template <typename A, typename High, typename Low>
void write_labels(Largest<A> largest, High high, Low low, const Box& box, int64_t y, int64_t width,
                  int64_t ignore_index, int64_t* labels) {
  const bool inside = box.y0 <= y && y < box.y1 && box.x0 < box.x1;
  const int64_t x0 = inside ? box.x0 : width, x1 = inside ? box.x1 : width;
  std::fill_n(labels, x0, ignore_index);
  best_isa([&]() TOCO_INLINE { label_pixels(largest, high, low, x0, x1, ignore_index, labels); });
  std::fill_n(labels + x1, width - x1, ignore_index);
}

template <typename A>
void write_regions(Largest<A> largest, A high, A low, int64_t width, uint8_t* roi) {
  best_isa([&]() TOCO_INLINE { mark_pixels(largest, high, low, width, roi); });
}

}  // namespace toco
