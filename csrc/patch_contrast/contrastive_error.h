// Which patches of an image are sure to show a class, and which are sure not to.
#pragma once
#include <vector>

#include "common/buffer.h"
#include "common/unit_rows.h"
#include "patch_contrast/patch_contrast.h"

namespace toco {

constexpr double kLeast = 1e-6;  // of what a logarithm is taken of

enum class Sureness : int8_t { kNone, kHigh, kLow };

// One class that an image shows.
template <typename A>
struct PresentClass {
  int64_t image, high = 0, low = 0;
  std::vector<Sureness> sureness;  // (N)
  A positive = 0, negative = 0;    // weight of one pair in the loss

  PresentClass(int64_t image, int64_t patches) : image(image), sureness(patches, Sureness::kNone) {}
};

// The patches of a class, those in high first, in both layouts that products need.
template <typename A>
struct PairSet {
  int64_t high, count;   // patches in high, in both
  int64_t stride;        // channels, filled up to whole panels
  const A* panels;       // (padded / kPanel, stride, kPanel) unit vectors
  const A* rows;         // (padded, stride) the same
  A positive, negative;  // weight of one pair in the loss
};

}  // namespace toco
