// Propagation of class maps by attention and by a random walk. Spec: toco_kernels/affinity_propagate/reference.py
#pragma once
#include <cstdint>

#include "common/half.h"
#include "common/parallel.h"

namespace toco {

struct AttentionShape {
  int64_t batch, heads, pixels, keys, width, classes;  // keys >= pixels: the first ones carry no score
};

// Queries or keys of all images and heads, in any layout.
template <typename T>
struct HeadTokens {
  const T* data;                        // (B, heads, N, D)
  int64_t image, head, token, channel;  // strides
};

template <typename T>
void propagate_attention_cpu(const T* cams,              // (B, C, N)
                             HeadTokens<T> queries,      // (B, heads, N, D)
                             HeadTokens<T> keys,         // (B, heads, K, D)
                             int64_t steps,              //
                             int64_t sinkhorn,           // rounds of columns, then rows; 0: as the softmax leaves them
                             Accumulate<T>* propagated,  // (B, C, N)
                             AttentionShape shape, const Parallel& parallel);

struct WalkShape {
  int64_t batch, channels, classes, height, width;  // one channel of edges, or affinities to as many neighbours
  int64_t radius, steps;
  double beta;
};

template <typename T>
void random_walk_cpu(const T* edges,         // (B, 1 or P, H, W)
                     const T* cams,          // (B, C, H, W)
                     Accumulate<T>* walked,  // (B, C, H, W)
                     WalkShape shape, const Parallel& parallel);

// The union of the bounding boxes of the regions above a threshold, of each map.
template <typename T>
void component_boxes_cpu(const T* cams,     // (maps, H, W)
                         double threshold,  // of the map's maximum
                         uint8_t* boxes,    // (maps, H, W) 0 or 1
                         int64_t maps, int64_t height, int64_t width, const Parallel& parallel);

}  // namespace toco
