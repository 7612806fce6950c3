// The segmentation loss: pixels are counted, then each thread computes a few of them, and their sums are added up in
// two steps in a fixed order.
#include "cam/loss.h"
#include "common/launch.h"
#include "common/warp.h"

namespace toco {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;    // of a thread
constexpr int kAdders = 512;  // threads of the second step

using Count = unsigned long long;

unsigned loss_blocks(const LossShape& s) { return blocks_for(s.batch * s.pixels, kThreads * kPixels); }

__global__ void clear_counts_kernel(Count* counts) { counts[threadIdx.x] = 0; }

__global__ void count_pixels_kernel(const int64_t* labels, int64_t ignore_index, Count* counts, LossShape s) {
  Count found[2] = {0, 0};
  for (int i = 0; i < kPixels; ++i) {
    const int64_t pixel = (blockIdx.x * int64_t(kPixels) + i) * kThreads + threadIdx.x;
    if (pixel >= s.batch * s.pixels || labels[pixel] == ignore_index) continue;
    found[0] += labels[pixel] == 0;
    found[1] += labels[pixel] != 0;
  }
  sum_of_warp(counts, found[0]);
  sum_of_warp(counts + 1, found[1]);
}

// sums: (threads, 2), background and objects.
template <typename T, typename A = Accumulate<T>>
__global__ void loss_kernel(const T* logits, const int64_t* labels, int64_t ignore_index, const Count* counts,
                            A* grad_logits, double* sums, LossShape s) {
  const int64_t totals[2] = {int64_t(counts[0]), int64_t(counts[1])};
  const HalfWeights weights(totals, ignore_index);
  double background = 0, objects = 0;
  for (int i = 0; i < kPixels; ++i) {
    const int64_t pixel = (blockIdx.x * int64_t(kPixels) + i) * kThreads + threadIdx.x;
    if (pixel >= s.batch * s.pixels) break;
    const int64_t label = labels[pixel], start = pixel / s.pixels * s.classes * s.pixels + pixel % s.pixels;
    const T* z = logits + start;
    if (label == ignore_index) {
      for (int64_t c = 0; grad_logits && c < s.classes; ++c) grad_logits[start + c * s.pixels] = 0;
      continue;
    }
    A largest = A(z[0]), sum = 0;
    for (int64_t c = 1; c < s.classes; ++c) largest = A(z[c * s.pixels]) > largest ? A(z[c * s.pixels]) : largest;
    for (int64_t c = 0; c < s.classes; ++c) sum += std::exp(A(z[c * s.pixels]) - largest);
    const bool known = 0 <= label && label < s.classes;
    const double loss = known ? double(largest) - double(A(z[label * s.pixels])) + double(std::log(sum)) : double(NAN);
    background += label == 0 ? loss : 0;
    objects += label == 0 ? 0 : loss;
    if (!grad_logits) continue;
    const A weight = A(weights.of(label, s.classes)), scale = weight / sum;
    for (int64_t c = 0; c < s.classes; ++c)
      grad_logits[start + c * s.pixels] = std::exp(A(z[c * s.pixels]) - largest) * scale - (c == label ? weight : A(0));
  }
  const int64_t thread = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  sums[2 * thread] = background;
  sums[2 * thread + 1] = objects;
}

// Every kAdders-th of the sums.
__global__ void add_kernel(const double* sums, double* partial, int64_t threads) {
  const int64_t first = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  double halves[2] = {0, 0};
  for (int64_t thread = first; thread < threads; thread += kAdders) {
    halves[0] += sums[2 * thread];
    halves[1] += sums[2 * thread + 1];
  }
  partial[2 * first] = halves[0];
  partial[2 * first + 1] = halves[1];
}

template <typename A>
__global__ void finish_kernel(const double* partial, const Count* counts, A* loss) {
  const int64_t totals[2] = {int64_t(counts[0]), int64_t(counts[1])};
  const HalfWeights weights(totals, 0);
  double halves[2] = {0, 0};
#pragma unroll 16
  for (int i = 0; i < kAdders; ++i) {
    halves[0] += partial[2 * i];
    halves[1] += partial[2 * i + 1];
  }
  *loss = A(halves[0] * weights.weight[0] + halves[1] * weights.weight[1]);
}

}  // namespace

int64_t segmentation_loss_scratch(LossShape s) { return 2 + 2 * kAdders + 2 * int64_t(loss_blocks(s)) * kThreads; }

template <typename T>
void segmentation_loss_cuda(const T* logits, const int64_t* labels, int64_t ignore_index, Accumulate<T>* loss,
                            Accumulate<T>* grad_logits, double* scratch, LossShape s, void* stream) {
  const char* what = "segmentation_loss";
  Count* counts = reinterpret_cast<Count*>(scratch);
  double *partial = scratch + 2, *sums = partial + 2 * kAdders;
  const unsigned blocks = loss_blocks(s);
  launch(what, stream, 1, 2, 0, clear_counts_kernel, counts);
  launch(what, stream, blocks, kThreads, 0, count_pixels_kernel, labels, ignore_index, counts, s);
  launch(what, stream, blocks, kThreads, 0, loss_kernel<T>, logits, labels, ignore_index, counts, grad_logits, sums, s);
  launch(what, stream, kAdders / kThreads, kThreads, 0, add_kernel, sums, partial, int64_t(blocks) * kThreads);
  launch(what, stream, 1, 1, 0, finish_kernel<Accumulate<T>>, partial, counts, loss);
}

#define INSTANTIATE(T)                                                                                                \
  template void segmentation_loss_cuda<T>(const T*, const int64_t*, int64_t, Accumulate<T>*, Accumulate<T>*, double*, \
                                          LossShape, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
