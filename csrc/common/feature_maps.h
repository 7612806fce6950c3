// Features of pixels in any layout.
#pragma once
#include <cstdint>

namespace toco {

template <typename T>
struct FeatureMaps {
  const T* data;                  // (B, D, P)
  int64_t image, channel, pixel;  // strides

  const T* at(int64_t b, int64_t p) const { return data + b * image + p * pixel; }
};

}  // namespace toco
