// float16 and bfloat16 as storage: kernels load them, compute in float, and store them.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace toco {

TOCO_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

TOCO_HOST_DEVICE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Conversions from float round to the nearest, ties to even.
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  TOCO_HOST_DEVICE explicit BFloat16(float value) {
    const uint32_t b = bits_of_float(value);
    bits = value != value ? 0x7fc0 : uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  TOCO_HOST_DEVICE operator float() const { return float_of_bits(uint32_t(bits) << 16); }
};

struct Half {
  uint16_t bits;
  Half() = default;
  TOCO_HOST_DEVICE explicit Half(float value) {
#if defined(__CUDA_ARCH__)
    bits = __half_as_ushort(__float2half_rn(value));
#else
    const uint32_t b = bits_of_float(value), sign = b >> 16 & 0x8000, magnitude = b & 0x7fffffff;
    uint32_t half;
    if (magnitude >= 0x47800000)  // 2^16 and above, infinity, NaN
      half = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    else if (magnitude < 0x38800000)  // below 2^-14: adding 1/2 moves the subnormal's digits into place, rounded
      half = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
    else
      half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    bits = uint16_t(sign | half);
#endif
  }
  // Shifting aligns the fields; 2^112 corrects the exponent's bias, and makes subnormal halves right on the way.
  // Infinities and NaN (exponent all ones) keep their exponent all ones. No branch, so that loops vectorise.
  TOCO_HOST_DEVICE operator float() const {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));
#else
    const uint32_t magnitude = uint32_t(bits & 0x7fff) << 13;
    const uint32_t sign = uint32_t(bits & 0x8000) << 16;
    const float finite = float_of_bits(magnitude) * 0x1p112f;
    const float special = float_of_bits(magnitude | 0x7f800000);
    const float value = magnitude >= 0x0f800000 ? special : finite;
    return sign ? -value : value;
#endif
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
