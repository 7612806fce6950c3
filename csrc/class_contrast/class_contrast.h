// Class-token contrast. Spec: toco_kernels/class_contrast/reference.py
#pragma once
#include <cstdint>

#include "common/half.h"
#include "common/host_device.h"
#include "common/parallel.h"

namespace toco {

struct ClassContrastShape {
  int64_t batch, crops, width;
};

// Flags come in whatever dtype the caller has; converting them first would cost a launch.
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

// The crops' logits and their gradients, and each image's share of the loss.
inline int64_t class_contrast_scratch(ClassContrastShape s) { return s.batch * (4 * s.crops + 1); }

template <typename T>
void class_token_contrast_cpu(const T* student,             // (crops, B, D)
                              const T* teacher,             // (2, B, D)
                              Flags flags,                  // (B, crops)
                              double temperature,           //
                              Accumulate<T>* loss,          // ()
                              Accumulate<T>* grad_student,  // (crops, B, D), or null when not wanted
                              Accumulate<T>* scratch,       // (class_contrast_scratch)
                              ClassContrastShape shape, const Parallel& parallel);

template <typename T>
void class_token_contrast_cuda(const T* student, const T* teacher, Flags flags, double temperature, Accumulate<T>* loss,
                               Accumulate<T>* grad_student, Accumulate<T>* scratch, ClassContrastShape shape,
                               void* stream);

}  // namespace toco
