// Mean of the k largest over N per class, alone and with its classifier. Spec: toco_kernels/topk_pool/reference.py
//
// Winners are listed by index, lowest first: the order of sums does not depend on how they were found, and whoever
// spreads a gradient walks through memory once.
#pragma once
#include <cstdint>

#include "common/half.h"
#include "common/host_device.h"
#include "common/parallel.h"

namespace toco {

struct PoolShape {
  int64_t batch, patches, classes;
  int64_t most;  // rows of the indices: K, or the number of patches where each class has a k of its own
};

// How many patches a class keeps: the same number for all, or one of (B, C), brought into the range that has a meaning.
struct Kept {
  int64_t k;
  const int64_t* counts;  // (B, C), or null

  TOCO_HOST_DEVICE int64_t of(int64_t b, int64_t c, const PoolShape& s) const {
    if (!counts) return k;
    const int64_t count = counts[b * s.classes + c];
    return count < 1 ? 1 : count > s.patches ? s.patches : count;
  }
};

template <typename T>
void topk_pool_cpu(const T* scores,   // (B, N, C)
                   Kept kept,         //
                   T* pooled,         // (B, C)
                   int32_t* indices,  // (B, most, C), lowest first; -1 where a class keeps fewer
                   PoolShape shape, const Parallel& parallel);

// The gradient of the mean: grad / k at the winners, zero elsewhere.
template <typename T>
void topk_pool_backward_cpu(const T* grad,           // (B, C)
                            const int32_t* indices,  // (B, most, C)
                            T* grad_scores,          // (B, N, C)
                            PoolShape shape, const Parallel& parallel);

// The same, of the scores that a classifier gives: tokens * weight + bias, or their softmax over classes. Sums over
// channels and the softmax are computed in Accumulate<T>.
template <typename T>
struct Classifier {
  const T* tokens;  // (B, N, D)
  const T* weight;  // (D, C)
  const T* bias;    // (C), or null
  int64_t width;    // D
  bool softmax;
};

template <typename T>
void linear_topk_pool_cpu(Classifier<T> classifier, Kept kept, T* pooled, int32_t* indices, PoolShape shape,
                          const Parallel& parallel);

template <typename T>
void linear_topk_pool_backward_cpu(const T* grad,  // (B, C)
                                   Classifier<T> classifier,
                                   const int32_t* indices,  // (B, most, C)
                                   T* grad_tokens,          // (B, N, D), or null when not wanted
                                   T* grad_weight,          // (D, C)
                                   T* grad_bias,            // (C)
                                   PoolShape shape, const Parallel& parallel);

template <typename T>
void topk_pool_cuda(const T* scores, Kept kept, T* pooled, int32_t* indices, PoolShape shape, void* stream);

template <typename T>
void topk_pool_backward_cuda(const T* grad, const int32_t* indices, T* grad_scores, PoolShape shape, void* stream);

template <typename T>
void linear_topk_pool_cuda(Classifier<T> classifier, Kept kept, T* pooled, int32_t* indices,
                           Accumulate<T>* scores,  // (B, N, C)
                           PoolShape shape, void* stream);

// Sums over the patches of each image, for the weight and behind it for the bias.
inline int64_t linear_partials(int64_t width, const PoolShape& s) { return s.batch * s.classes * (width + 1); }

template <typename T>
void linear_topk_pool_backward_cuda(const T* grad, Classifier<T> classifier, const int32_t* indices, T* grad_tokens,
                                    T* grad_weight, T* grad_bias,
                                    Accumulate<T>* grad_scores,  // (B, N, C)
                                    Accumulate<T>* partials,     // (linear_partials)
                                    PoolShape shape, void* stream);

// How many patches class c of image b kept, and the first of them that is not below patch n.
TOCO_HOST_DEVICE int64_t first_winner(const int32_t* indices, int64_t b, int64_t c, int64_t n, const PoolShape& s) {
  const uint32_t* list = reinterpret_cast<const uint32_t*>(indices) + b * s.most * s.classes + c;  // -1 is the largest
  int64_t low = 0, high = s.most;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (list[middle * s.classes] < uint64_t(n))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

TOCO_HOST_DEVICE int64_t winners(const int32_t* indices, int64_t b, int64_t c, const PoolShape& s) {
  return first_winner(indices, b, c, s.patches, s);
}

}  // namespace toco
