// float16 and bfloat16 as storage: kernels load them, compute in float, and store them.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace toco {

TOCO_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

struct BFloat16 {
  uint16_t bits;
  TOCO_HOST_DEVICE operator float() const { return float_of_bits(uint32_t(bits) << 16); }
};

struct Half {
  uint16_t bits;
  // Shifting aligns the fields; 2^112 corrects the exponent's bias, and makes subnormal halves right on the way.
  // Infinities and NaN (exponent all ones) keep their exponent all ones. No branch, so that loops vectorise.
  TOCO_HOST_DEVICE operator float() const {
    const uint32_t magnitude = uint32_t(bits & 0x7fff) << 13;
    const uint32_t sign = uint32_t(bits & 0x8000) << 16;
    const float finite = float_of_bits(magnitude) * 0x1p112f;
    const float special = float_of_bits(magnitude | 0x7f800000);
    const float value = magnitude >= 0x0f800000 ? special : finite;
    return sign ? -value : value;
  }
};

// What a kernel computes in, and what it returns sums and gradients in.
template <typename T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateType<T>::type;

}  // namespace toco
