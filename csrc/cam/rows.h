// One block of pixels of the segmentation loss, compiled once per instruction set (common/for_each_isa.h).
#include "common/exp.h"

// Adds the block's loss to its halves, and writes its gradient where that is wanted. Logits and gradients of a class
// are `stride` apart. Exponentials are computed once, and kept until their sums are known.
template <typename T, typename A>
TOCO_TARGET void loss_block(const T* logits, const int64_t* labels, A* grads, int64_t classes, int64_t stride,
                            int64_t pixels, const HalfWeights& weights, A* exponentials, double* halves) {
  using V = typename Vector<A>::type;
  constexpr int kStep = kVectorBytes / sizeof(A);
  A largest[kLossBlock], sum[kLossBlock], weight[kLossBlock];
  for (int64_t x = 0; x < pixels; ++x) largest[x] = A(logits[x]);
  for (int64_t c = 1; c < classes; ++c)
    for (int64_t x = 0; x < pixels; ++x) {
      const A value = A(logits[c * stride + x]);
      largest[x] = value > largest[x] ? value : largest[x];
    }
  for (int64_t x = 0; x < kLossBlock; ++x) sum[x] = 0;
  for (int64_t c = 0; c < classes; ++c) {
    A* e = exponentials + c * kLossBlock;
    for (int64_t x = 0; x < pixels; ++x) e[x] = A(logits[c * stride + x]) - largest[x];
    for (int64_t x = pixels; x < kLossBlock; ++x) e[x] = 0;
    for (int64_t x = 0; x < kLossBlock; x += kStep) {
      V power = *(const V*)(e + x);
      exp_nonpositive(power);
      *(V*)(e + x) = power;
      *(V*)(sum + x) += power;
    }
  }

  // Logarithms of sums add up to the logarithm of their product: one for several pixels.
  double products[2] = {1, 1};
  int factors = 0;
  for (int64_t x = 0; x < pixels; ++x) {
    weight[x] = A(weights.of(labels[x], classes));
    if (labels[x] == weights.ignore_index) continue;
    const int half = labels[x] != 0;
    const bool known = 0 <= labels[x] && labels[x] < classes;
    halves[half] += known ? double(largest[x]) - double(A(logits[labels[x] * stride + x])) : double(NAN);
    products[half] *= double(sum[x]);
    if (++factors == kFactors) {
      for (int i = 0; i < 2; ++i) {
        halves[i] += std::log(products[i]);
        products[i] = 1;
      }
      factors = 0;
    }
  }
  for (int i = 0; i < 2; ++i) halves[i] += std::log(products[i]);
  if (!grads) return;

  for (int64_t x = 0; x < pixels; ++x) sum[x] = weight[x] / sum[x];
  for (int64_t c = 0; c < classes; ++c) {
    const A* e = exponentials + c * kLossBlock;
    for (int64_t x = 0; x < pixels; ++x) {
      const A grad = e[x] * sum[x] - (labels[x] == c ? weight[x] : A(0));
      grads[c * stride + x] = labels[x] == weights.ignore_index ? A(0) : grad;
    }
  }
}
