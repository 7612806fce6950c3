// Cross-entropy in which background and objects weigh the same; loss and gradient from one reading of the logits.
#include "cam/loss.h"

#include <algorithm>
#include <cmath>

#include "common/buffer.h"

#define TOCO_PER_ISA "cam/rows.h"
#include "common/for_each_isa.h"

namespace toco {

template <typename T>
void segmentation_loss_cpu(const T* logits, const int64_t* labels, int64_t ignore_index, Accumulate<T>* loss,
                           Accumulate<T>* grad_logits, LossShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const int64_t blocks = (s.pixels + kLossBlock - 1) / kLossBlock;
  struct Share {
    int64_t counts[2];
    double halves[2];
  };
  std::vector<Share> shares(s.batch * blocks);
  const auto each_block = [&](int64_t work, const auto& body) {
    parallel.loop(s.batch * blocks, grain_for(work), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> exponentials(s.classes * kLossBlock);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / blocks, first = i % blocks * kLossBlock;
        body(shares[i], b * s.pixels + first, b * s.classes * s.pixels + first, std::min(kLossBlock, s.pixels - first),
             exponentials.data);
      }
    });
  };

  each_block(kLossBlock, [&](Share& share, int64_t pixel, int64_t, int64_t pixels, A*) {
    share = {};
    best_isa([&]() TOCO_INLINE {
      int64_t background = 0, ignored = 0;
      for (int64_t x = 0; x < pixels; ++x) {
        ignored += labels[pixel + x] == ignore_index;
        background += labels[pixel + x] == 0 && labels[pixel + x] != ignore_index;
      }
      share.counts[0] = background;
      share.counts[1] = pixels - ignored - background;
    });
  });
  int64_t counts[2] = {};
  for (const Share& share : shares)
    for (int half = 0; half < 2; ++half) counts[half] += share.counts[half];
  const HalfWeights weights(counts, ignore_index);

  each_block(kLossBlock * s.classes * 8,
             [&](Share& share, int64_t pixel, int64_t logit, int64_t pixels, A* exponentials) {
               A* grads = grad_logits ? grad_logits + logit : nullptr;
               CALL_BEST_ISA(loss_block, logits + logit, labels + pixel, grads, s.classes, s.pixels, pixels, weights,
                             exponentials, share.halves);
             });
  double halves[2] = {};
  for (const Share& share : shares)
    for (int half = 0; half < 2; ++half) halves[half] += share.halves[half];
  *loss = A(halves[0] * weights.weight[0] + halves[1] * weights.weight[1]);
}

#define INSTANTIATE(T)                                                                                                 \
  template void segmentation_loss_cpu<T>(const T*, const int64_t*, int64_t, Accumulate<T>*, Accumulate<T>*, LossShape, \
                                         const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
