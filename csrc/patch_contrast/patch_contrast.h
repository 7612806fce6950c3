// Contrasts of patch tokens. Spec: toco_kernels/patch_contrast/reference.py
#pragma once
#include <cstdint>

#include "common/flags.h"
#include "common/half.h"
#include "common/parallel.h"
#include "common/tokens.h"

namespace toco {

struct PatchShape {
  int64_t batch, patches, width;
};

constexpr double kShortest = 1e-8;  // a norm below this counts as this

template <typename T>
void patch_token_contrast_cpu(Tokens<T> tokens,            // (B, N, D)
                              const int64_t* labels,       // (B, N)
                              const int64_t* pairs,        // (2) of the joined batch, or null: count them here
                              int64_t ignore_index,        //
                              Accumulate<T>* loss,         // ()
                              Accumulate<T>* grad_tokens,  // (B, N, D), or null when not wanted
                              PatchShape shape, const Parallel& parallel);

template <typename T>
void patch_contrastive_error_cpu(Tokens<T> tokens,             // (B, N, D)
                                 const Accumulate<T>* scores,  // (B, N, C)
                                 Flags classes,                // (B, C)
                                 int64_t class_count,          // C
                                 double threshold,             //
                                 bool logarithmic,             //
                                 Accumulate<T>* loss,          // ()
                                 Accumulate<T>* grad_tokens,   // (B, N, D), or null when not wanted
                                 PatchShape shape, const Parallel& parallel);

}  // namespace toco
