// Refinement by affinity (PAR, PAMR), and CAMs to refined labels. Spec: toco_kernels/affinity_refine/reference.py
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

// `transposed` averages the other way, as the backward does: masks are then the output's gradient, and refined the
// gradient of the masks.
template <typename T>
void affinity_refine_cpu(const Accumulate<T>* image,  // (B, colours, H, W)
                         const T* masks,              // (B, C, H, W)
                         T* refined,                  // (B, C, H, W)
                         const std::vector<int64_t>& dilations, int64_t iterations, AffinityKind kind, bool transposed,
                         RefineShape shape, const Parallel& parallel);

constexpr int kMaxCudaNeighbours = 8 * 24;  // they travel as a kernel argument
constexpr int kMaxCudaColours = 24;         // one number of each for every thread of a block, in shared memory

template <typename T>
void affinity_refine_cuda(const Accumulate<T>* image, const T* masks, T* refined, const std::vector<int64_t>& dilations,
                          int64_t iterations, AffinityKind kind, bool transposed, bool half_weights,
                          void* weights,           // (chunk, P, H, W) Half or Accumulate<T>
                          Accumulate<T>* buffers,  // (2, chunk, C, H, W)
                          int64_t chunk,           // images whose weights are kept at once
                          RefineShape shape, void* stream);

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
void refine_cam_labels_cpu(const A* image,        // (B, colours, H, W)
                           const A* cams,         // (B, C, H, W)
                           Flags image_labels,    // (B, C)
                           const int64_t* boxes,  // (B, 4) y0, y1, x0, x1, or null
                           Background<A> high, Background<A> low,
                           int64_t* labels,  // (B, H, W)
                           const std::vector<int64_t>& dilations, int64_t iterations, AffinityKind kind,
                           int64_t ignore_index, CamLabelShape shape, const Parallel& parallel);

// On CUDA in two steps, between which the caller allocates for the image with most classes.
void present_classes_cuda(Flags image_labels,  // (B, C)
                          int32_t* classes,    // (B, 1 + C): background, then the present ones
                          int32_t* used,       // (B): how many
                          CamLabelShape shape, void* stream);

int64_t most_used_cuda(const int32_t* used, int64_t batch, void* stream);  // waits for the stream

template <typename A>
void refine_cam_labels_cuda(const A* image, const A* cams, const int32_t* classes, const int32_t* used,
                            const int64_t* boxes, Background<A> high, Background<A> low, int64_t* labels,
                            const std::vector<int64_t>& dilations, int64_t iterations, AffinityKind kind,
                            int64_t ignore_index,
                            A* weights,         // (B, P, h, w)
                            A* small_image,     // (B, colours, h, w)
                            A* buffers,         // (2, B, channels, h, w)
                            RefineShape small,  // the reduced size, and 2 * most used channels
                            CamLabelShape shape, void* stream);

}  // namespace toco
