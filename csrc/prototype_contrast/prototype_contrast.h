// Contrast of pixels with prototypes of classes. Spec: toco_kernels/prototype_contrast/reference.py
#pragma once
#include <cstdint>

#include "common/feature_maps.h"
#include "common/flags.h"
#include "common/half.h"
#include "common/parallel.h"

namespace toco {

struct PixelShape {
  int64_t batch, width, pixels;
};

constexpr double kShortest = 1e-12;  // a norm below this counts as this

template <typename T>
void prototype_contrast_cpu(FeatureMaps<T> features,          // (B, D, P)
                            const int64_t* labels,            // (B, P)
                            const Accumulate<T>* prototypes,  // (C, D)
                            int64_t classes,                  // C
                            double temperature,               //
                            int64_t ignore_index,             //
                            Accumulate<T>* loss,              // ()
                            Accumulate<T>* grad_features,     // (B, D, P), or null when not wanted
                            PixelShape shape, const Parallel& parallel);

// The `kept` pixels with the largest scores of each class, best first; of equal ones, the lowest pixel of the lowest
// image. Where there are fewer, scores of -inf and zero vectors follow.
template <typename T>
void prototype_candidates_cpu(FeatureMaps<T> features,    // (B, D, P)
                              const Accumulate<T>* cams,  // (B, C, P)
                              const Flags* present,       // (B, C): whose pixels count; null: all
                              int64_t classes,            // C
                              int64_t kept,               // k
                              Accumulate<T>* scores,      // (C, k)
                              Accumulate<T>* vectors,     // (C, k, D)
                              PixelShape shape, const Parallel& parallel);

// One of the two views of pixel_prototype_contrast.
template <typename A>
struct View {
  FeatureMaps<A> features;  // (B, D, P)
  const int64_t* labels;    // (B, P)
  const A* prototypes;      // (C, D)
  const A* draws;           // (B, P)
  A* slopes;                // (3, B, C, P): derivatives of the three terms by cosines
};

template <typename A>
void pixel_prototype_contrast_cpu(const View<A>* views,  // (2)
                                  int64_t classes,       // C
                                  double temperature,    //
                                  A* terms,              // (3)
                                  PixelShape shape, const Parallel& parallel);

template <typename A>
void pixel_prototype_contrast_backward_cpu(const A* grad,         // (3)
                                           const View<A>* views,  // (2), of which labels and draws are not read
                                           int64_t classes,       // C
                                           A* grad_features,      // (B, D, P)
                                           A* grad_other,         // (B, D, P)
                                           PixelShape shape, const Parallel& parallel);

struct ResizeShape {
  int64_t batch, channels, height, width, out_height, out_width;
};

// Maps of any layout; these are strides.
template <typename T>
struct PlaneMaps {
  const T* data;  // (B, D, H, W)
  int64_t image, channel, row, column;
};

template <typename T>
void resize_corners_cpu(PlaneMaps<T> maps,       // (B, D, H, W)
                        Accumulate<T>* resized,  // (B, D, h, w)
                        ResizeShape shape, const Parallel& parallel);

template <typename A>
void resize_corners_backward_cpu(const A* grad,  // (B, D, h, w)
                                 A* grad_maps,   // (B, D, H, W)
                                 ResizeShape shape, const Parallel& parallel);

}  // namespace toco
