// The classifier and its gradient on the GPU, in float32 on the ordinary cores: tensor cores are not used yet. Scores
// pass through memory, where they stay in the L2 cache.
#include <cmath>

#include "topk_pool/cuda_select.h"

namespace toco {
namespace {

constexpr int kTileRows = 64, kTileClasses = 32;
constexpr int kTileDepth = 32;     // channels of a tile, and of one sum: a sum over all would round once per channel
constexpr int kTileThreads = 256;  // each has 4 rows and 2 classes
constexpr int kRowThreads = 128;   // of a block that has one token
constexpr int kAtOnce = 8;         // loads in flight

// scores (rows, C) = tokens (rows, D) * weight (D, C) + bias
template <typename T, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kTileThreads, 1)
    score_kernel(Classifier<T> classifier, A* scores, int64_t rows, int64_t classes) {
  A* tokens = reinterpret_cast<A*>(shared);           // (kTileDepth, kTileRows + 1)
  A* weight = tokens + kTileDepth * (kTileRows + 1);  // (kTileDepth, kTileClasses)
  const int thread = int(threadIdx.x);
  const int64_t first_row = int64_t(blockIdx.x) * kTileRows, first_class = int64_t(blockIdx.y) * kTileClasses;
  const int row = thread / 16 * 4, column = thread % 16 * 2;
  A totals[4][2] = {};
  for (int64_t depth = 0; depth < classifier.width; depth += kTileDepth) {
    for (int i = thread; i < kTileRows * kTileDepth; i += kTileThreads) {
      const int64_t n = first_row + i / kTileDepth, d = depth + i % kTileDepth;
      const bool inside = n < rows && d < classifier.width;
      tokens[i % kTileDepth * (kTileRows + 1) + i / kTileDepth] =
          inside ? A(classifier.tokens[n * classifier.width + d]) : A(0);
    }
    for (int i = thread; i < kTileClasses * kTileDepth; i += kTileThreads) {
      const int64_t c = first_class + i % kTileClasses, d = depth + i / kTileClasses;
      weight[i] = c < classes && d < classifier.width ? A(classifier.weight[d * classes + c]) : A(0);
    }
    __syncthreads();
    A sums[4][2] = {};
#pragma unroll 8
    for (int d = 0; d < kTileDepth; ++d) {
      const A w[2] = {weight[d * kTileClasses + column], weight[d * kTileClasses + column + 1]};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const A x = tokens[d * (kTileRows + 1) + row + r];
        sums[r][0] += x * w[0];
        sums[r][1] += x * w[1];
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int i = 0; i < 2; ++i) totals[r][i] += sums[r][i];
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t n = first_row + row + r, c = first_class + column + i;
      if (n < rows && c < classes)
        scores[n * classes + c] = totals[r][i] + (classifier.bias ? A(classifier.bias[c]) : A(0));
    }
}

// Logits to probabilities, in place: a thread per row.
template <typename A>
__global__ void __launch_bounds__(kTileThreads, 1) softmax_kernel(A* scores, int64_t rows, int64_t classes) {
  const int64_t n = blockIdx.x * int64_t(kTileThreads) + threadIdx.x;
  if (n >= rows) return;
  A* row = scores + n * classes;
  A largest = row[0], sum = 0;
  for (int64_t c = 1; c < classes; ++c) largest = row[c] > largest ? row[c] : largest;
  for (int64_t c = 0; c < classes; ++c) sum += row[c] = std::exp(row[c] - largest);
  for (int64_t c = 0; c < classes; ++c) row[c] /= sum;
}

// A block per patch. Where it won for some class: through the softmax, then back through the classifier. Where it did
// not, its token is not read, and its gradient is zero.
template <typename T, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kRowThreads, 1)
    row_kernel(Classifier<T> classifier, A* grad_scores, T* grad_tokens, int64_t classes) {
  A* grads = reinterpret_cast<A*>(shared);  // (C)
  A* z = grads + classes;                   // (C), with a softmax alone
  const int64_t n = blockIdx.x, width = classifier.width;
  grad_scores += n * classes;
  bool won = false;
  for (int64_t c = 0; c < classes; ++c) won |= grad_scores[c] != 0;
  if (!won) {
    if (grad_tokens)
      for (int64_t d = threadIdx.x; d < width; d += kRowThreads) grad_tokens[n * width + d] = T(A(0));
    return;
  }
  for (int64_t c = threadIdx.x; c < classes; c += kRowThreads) {
    grads[c] = grad_scores[c];
    if (!classifier.softmax) continue;
    A total = 0;
    for (int64_t depth = 0; depth < width; depth += kTileDepth) {
      const int64_t end = width - depth < kTileDepth ? width : depth + kTileDepth;
      A sum = 0;
      for (int64_t d = depth; d < end; ++d)
        sum += A(classifier.tokens[n * width + d]) * A(classifier.weight[d * classes + c]);
      total += sum;
    }
    z[c] = total + (classifier.bias ? A(classifier.bias[c]) : A(0));
  }
  __syncthreads();
  if (classifier.softmax) {
    A largest = z[0], sum = 0, mean = 0;
    for (int64_t c = 1; c < classes; ++c) largest = z[c] > largest ? z[c] : largest;
    for (int64_t c = 0; c < classes; ++c) {
      const A e = std::exp(z[c] - largest);
      sum += e;
      mean += e * grads[c];
    }
    mean /= sum;
    __syncthreads();
    for (int64_t c = threadIdx.x; c < classes; c += kRowThreads) {
      grads[c] = std::exp(z[c] - largest) / sum * (grads[c] - mean);
      grad_scores[c] = grads[c];
    }
    __syncthreads();
  }
  if (grad_tokens)
    for (int64_t d = threadIdx.x; d < width; d += kRowThreads) {
      A sum = 0;
      for (int64_t c = 0; c < classes; ++c)
        if (grads[c] != 0) sum += grads[c] * A(classifier.weight[d * classes + c]);
      grad_tokens[n * width + d] = T(sum);
    }
}

// Sums over the winning patches of image blockIdx.z for class blockIdx.y: (B, C, D), and (B, C) for the bias.
template <typename T, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kTileThreads, 1)
    partial_kernel(Classifier<T> classifier, const A* grad_scores, A* partials, PoolShape s) {
  const int64_t d = blockIdx.x * int64_t(kTileThreads) + threadIdx.x, c = blockIdx.y % s.classes;
  const int64_t b = blockIdx.z, width = classifier.width;
  if (d > width) return;  // the one at the end is for the bias
  const T* tokens = classifier.tokens + b * s.patches * width;
  grad_scores += b * s.patches * s.classes + c;
  A sum = 0;
  for (int64_t first = 0; first < s.patches; first += kAtOnce) {
    A grads[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) grads[i] = first + i < s.patches ? grad_scores[(first + i) * s.classes] : A(0);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (grads[i] != 0) sum += d < width ? grads[i] * A(tokens[(first + i) * width + d]) : grads[i];
  }
  partials[(b * s.classes + c) * (width + 1) + d] = sum;
}

// Images are added in their order.
template <typename T, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kTileThreads, 1)
    total_kernel(const A* partials, T* grad_weight, T* grad_bias, int64_t width, PoolShape s) {
  const int64_t item = blockIdx.x * int64_t(kTileThreads) + threadIdx.x, d = item / s.classes, c = item % s.classes;
  if (d > width) return;
  A sum = 0;
  for (int64_t b = 0; b < s.batch; ++b) sum += partials[(b * s.classes + c) * (width + 1) + d];
  (d < width ? grad_weight[d * s.classes + c] : grad_bias[c]) = T(sum);
}

}  // namespace

template <typename T>
void linear_topk_pool_cuda(Classifier<T> classifier, Kept kept, T* pooled, int32_t* indices, Accumulate<T>* scores,
                           PoolShape s, void* stream) {
  using A = Accumulate<T>;
  const char* what = "linear_topk_pool";
  const int64_t rows = s.batch * s.patches;
  const size_t bytes = kTileDepth * (kTileRows + 1 + kTileClasses) * sizeof(A);
  launch(what, stream, dim3(blocks_for(rows, kTileRows), blocks_for(s.classes, kTileClasses)), kTileThreads, bytes,
         score_kernel<T>, classifier, scores, rows, s.classes);
  if (classifier.softmax && s.classes > 0)
    launch(what, stream, blocks_for(rows, kTileThreads), kTileThreads, 0, softmax_kernel<A>, scores, rows, s.classes);
  pool_on_device(static_cast<const A*>(scores), kept, pooled, indices, s, what, stream);
}

template <typename T>
void linear_topk_pool_backward_cuda(const T* grad, Classifier<T> classifier, const int32_t* indices, T* grad_tokens,
                                    T* grad_weight, T* grad_bias, Accumulate<T>* grad_scores, Accumulate<T>* partials,
                                    PoolShape s, void* stream) {
  using A = Accumulate<T>;
  const char* what = "linear_topk_pool_backward";
  spread_on_device(grad, indices, grad_scores, s, what, stream);
  if (grad_tokens || classifier.softmax)
    launch(what, stream, unsigned(s.batch * s.patches), kRowThreads, 2 * s.classes * sizeof(A), row_kernel<T>,
           classifier, grad_scores, grad_tokens, s.classes);
  launch(what, stream, dim3(blocks_for(classifier.width + 1, kTileThreads), unsigned(s.classes), unsigned(s.batch)),
         kTileThreads, 0, partial_kernel<T>, classifier, static_cast<const A*>(grad_scores), partials, s);
  launch(what, stream, blocks_for((classifier.width + 1) * s.classes, kTileThreads), kTileThreads, 0, total_kernel<T>,
         static_cast<const A*>(partials), grad_weight, grad_bias, classifier.width, s);
}

#define INSTANTIATE(T)                                                                                                 \
  template void linear_topk_pool_cuda<T>(Classifier<T>, Kept, T*, int32_t*, Accumulate<T>*, PoolShape, void*);         \
  template void linear_topk_pool_backward_cuda<T>(const T*, Classifier<T>, const int32_t*, T*, T*, T*, Accumulate<T>*, \
                                                  Accumulate<T>*, PoolShape, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
