// Refinement by affinity (PAR, PAMR). Spec: toco_kernels/affinity_refine/reference.py
#pragma once
#include <cstdint>
#include <vector>

#include "common/flags.h"
#include "common/half.h"
#include "common/parallel.h"

namespace toco {

struct RefineShape {
  int64_t batch, colours, channels, height, width;
};

enum class AffinityKind { kPar, kPamr };

template <typename T>
void affinity_refine_cpu(const Accumulate<T>* image,  // (B, colours, H, W)
                         const T* masks,              // (B, C, H, W); in the backward, the output's gradient
                         T* refined,                  // (B, C, H, W); in the backward, the gradient of the masks
                         const std::vector<int64_t>& dilations, int64_t iterations, AffinityKind kind, bool transposed,
                         RefineShape shape, const Parallel& parallel);

struct CamLabelShape {
  int64_t batch, colours, classes, height, width;
  int64_t down_scale;   // masks are refined at this fraction of the size
  int64_t max_classes;  // further classes of an image are left out; negative: none are
};

// The background's score: one number, or a map (B, H, W).
template <typename A>
struct Background {
  A score;
  const A* map;
};

template <typename A>
void refine_cam_labels_cpu(const A* image,         // (B, colours, H, W)
                           const A* cams,          // (B, C, H, W)
                           Flags image_labels,     // (B, C)
                           const int64_t* boxes,   // (B, 4) y0, y1, x0, x1, or null
                           Background<A> high, Background<A> low,
                           int64_t* labels,        // (B, H, W)
                           const std::vector<int64_t>& dilations, int64_t iterations, AffinityKind kind,
                           int64_t ignore_index, CamLabelShape shape, const Parallel& parallel);

}  // namespace toco
