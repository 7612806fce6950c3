// Class-token contrast. Spec: toco_kernels/class_contrast/reference.py
#pragma once
#include <cstdint>

#include "common/flags.h"
#include "common/half.h"
#include "common/parallel.h"

namespace toco {

struct ClassContrastShape {
  int64_t batch, crops, width;
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
