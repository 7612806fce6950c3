// What a pixel weighs in the segmentation loss; the same on CPU and GPU.
#pragma once
#include <cmath>

#include "cam/cam.h"

namespace toco {

constexpr int64_t kLossBlock = 256;  // pixels whose losses are one sum
constexpr int kFactors = 32;         // sums of at most C exponentials each, whose product no double overflows

struct HalfWeights {
  double weight[2];  // of a background pixel, and of one of an object
  int64_t ignore_index;

  TOCO_HOST_DEVICE HalfWeights(const int64_t* counts, int64_t ignored) : ignore_index(ignored) {
    for (int half = 0; half < 2; ++half) weight[half] = counts[half] > 0 ? 0.5 / double(counts[half]) : 0;
  }
  // A label that is none makes its pixel NaN: nobody is to wait for the device to hear of it.
  TOCO_HOST_DEVICE double of(int64_t label, int64_t classes) const {
    return label == ignore_index           ? 0
           : 0 <= label && label < classes ? (label == 0 ? weight[0] : weight[1])
                                           : double(NAN);
  }
};

}  // namespace toco
