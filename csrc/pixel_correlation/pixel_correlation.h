// SEAM's pixel correlation. Spec: toco_kernels/pixel_correlation/reference.py
#pragma once
#include <cstdint>

#include "common/feature_maps.h"
#include "common/half.h"
#include "common/parallel.h"

namespace toco {

struct CorrelationShape {
  int64_t batch, width, classes, pixels;
  int64_t words() const { return (pixels + 31) / 32; }  // of the signs of a pixel's cosines
};

constexpr double kAdded = 1e-5;  // to norms, and to sums of similarities

template <typename T>
void pixel_correlation_cpu(FeatureMaps<T> features,  // (B, D, N)
                           const T* cams,            // (B, C, N)
                           Accumulate<T>* revised,   // (B, C, N)
                           Accumulate<T>* sums,      // (B, N) of similarities; or null, with signs
                           uint32_t* signs,          // (B, N, words): bit j of a pixel's is set where its cosine is > 0
                           CorrelationShape shape, const Parallel& parallel);

template <typename T>
void pixel_correlation_backward_cpu(const Accumulate<T>* grad,     // (B, C, N)
                                    FeatureMaps<T> features,       // (B, D, N)
                                    const T* cams,                 // (B, C, N)
                                    const Accumulate<T>* revised,  // (B, C, N)
                                    const Accumulate<T>* sums,     // (B, N)
                                    const uint32_t* signs,         // (B, N, words)
                                    Accumulate<T>* grad_features,  // (B, D, N)
                                    CorrelationShape shape, const Parallel& parallel);

}  // namespace toco
