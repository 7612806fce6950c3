// Refinement by affinity (PAR, PAMR). Spec: toco_kernels/affinity_refine/reference.py
#pragma once
#include <cstdint>
#include <vector>

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

}  // namespace toco
