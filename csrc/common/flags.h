// Yes or no, in whatever dtype the caller has: converting first would cost a launch.
#pragma once
#include <cstdint>

#include "common/host_device.h"

namespace toco {

struct Flags {
  enum Type { kUInt8, kInt32, kInt64, kHalf, kFloat, kDouble };  // kHalf: float16 and bfloat16
  const void* data;
  Type type;

  TOCO_HOST_DEVICE bool operator[](int64_t i) const {
    switch (type) {
      case kUInt8:
        return static_cast<const uint8_t*>(data)[i] != 0;
      case kInt32:
        return static_cast<const int32_t*>(data)[i] != 0;
      case kInt64:
        return static_cast<const int64_t*>(data)[i] != 0;
      case kHalf:
        return (static_cast<const uint16_t*>(data)[i] & 0x7fff) != 0;
      case kFloat:
        return static_cast<const float*>(data)[i] != 0;
      default:
        return static_cast<const double*>(data)[i] != 0;
    }
  }
};

}  // namespace toco
