// Positions in the lattice, compiled once per instruction set (common/for_each_isa.h), and without contraction to
// fused multiply-adds: every operation rounds as it does in the reference.

#include "common/vector.h"

template <int d>
TOCO_TARGET void embed_rows(const float* factors, Embedded& pixels) {
  using V = Vector<float>::type;
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  constexpr int kSize = Vector<float>::kSize;
  constexpr float kShare = float(1.0 / (d + 1));
  for (int64_t p = 0; p < kEmbedded; p += kSize) {
    V elevated[d + 1], total = {};
#pragma GCC unroll 8
    for (int j = d; j > 0; --j) {
      const V scaled = *(const V*)(pixels.features[j - 1] + p) * factors[j - 1];
      elevated[j] = total - scaled * float(j);
      total += scaled;
    }
    elevated[0] = total;
    I within = I{} - 1;
#pragma GCC unroll 8
    for (int i = 0; i <= d; ++i) within &= (elevated[i] < kFarthest) & (elevated[i] > -kFarthest);

    V whole[d + 1], rest[d + 1], sum = {};
    I rank[d + 1] = {};
#pragma GCC unroll 8
    for (int i = 0; i <= d; ++i) {
      elevated[i] = (V)((I)elevated[i] & within);
      whole[i] = elevated[i] * kShare + 0x1.8p23f - 0x1.8p23f;  // rounds, half to even
      sum += whole[i];
      rest[i] = elevated[i] - whole[i] * float(d + 1);
    }
#pragma GCC unroll 8
    for (int i = 0; i < d; ++i)
#pragma GCC unroll 8
      for (int j = i + 1; j <= d; ++j) {
        const I less = rest[i] < rest[j];  // -1 where true
        rank[i] -= less;
        rank[j] += less + 1;
      }

    const I above = __builtin_convertvector(sum, I);
    I order = {};
    V shares[d + 1] = {};
#pragma GCC unroll 8
    for (int i = 0; i <= d; ++i) {
      rank[i] += above;
      const I low = rank[i]<0, high = rank[i]> d;
      whole[i] += __builtin_convertvector(high - low, V);
      rank[i] += (high - low) * (d + 1);
      order |= (I{} + i) << (rank[i] * 4);
      const V share = (elevated[i] - whole[i] * float(d + 1)) * kShare;
#pragma GCC unroll 8
      for (int r = 0; r <= d; ++r) shares[r] = (V)((I)shares[r] | ((I)share & (rank[i] == r)));
    }
    const I nan = ~within & 0x7fc00000;  // bits that make a number one
    *(V*)(pixels.weights[0] + p) = (V)((I)(1.0f - shares[0] + shares[d]) | nan);
#pragma GCC unroll 8
    for (int k = 1; k <= d; ++k) *(V*)(pixels.weights[k] + p) = (V)((I)(shares[d - k] - shares[d - k + 1]) | nan);
#pragma GCC unroll 8
    for (int i = 0; i < d; ++i) *(I*)(pixels.whole[i] + p) = __builtin_convertvector(whole[i], I);
    *(I*)(pixels.order + p) = order;
  }
}
