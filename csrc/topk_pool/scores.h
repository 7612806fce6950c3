// Scores of patches, and the gradients of winning ones, compiled once per instruction set (common/for_each_isa.h).

#include "common/vector.h"

constexpr int64_t kChannelsPerSum = 64;

// kRows tokens times kVectors vectors of classes. Sums stay in registers over some channels, and are then added to
// those of the channels before: one sum over all would round its ever larger value once per channel.
template <typename A, int kRows, int kVectors>
TOCO_TARGET static inline void multiply(const A* tokens, const A* weight, int64_t width, int64_t stride, A* scores) {
  using V = typename Vector<A>::type;
  constexpr int kStep = Vector<A>::kSize;
  int64_t d = 0;
  do {
    V sums[kRows][kVectors] = {};
    const int64_t first = d, end = width - d < kChannelsPerSum ? width : d + kChannelsPerSum;
    for (; d < end; ++d, weight += stride) {
      V w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) w[v] = *(const V*)(weight + v * kStep);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] += tokens[r * width + d] * w[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        V* total = (V*)(scores + r * stride + v * kStep);
        *total = first ? *total + sums[r][v] : sums[r][v];
      }
  } while (d < width);
}

// The scores of consecutive tokens (rows, D), at `scores` (rows, stride): stride is that of the packed weight. A sum
// does not depend on which rows are computed together.
template <typename A>
TOCO_TARGET static void multiply_rows(const A* tokens, const A* weight, int64_t width, int64_t classes, int64_t stride,
                                      int64_t rows, A* scores) {
  constexpr int kRows = kVectorBytes == 64 ? 8 : 4, kVectors = 3, kStep = Vector<A>::kSize;
  for (int64_t n = 0; n < rows;) {
    const bool full = rows - n >= kRows;
    for (int64_t c = 0; c < classes; c += kVectors * kStep) {
      const int64_t vectors = (classes - c + kStep - 1) / kStep;
      const A *t = tokens + n * width, *w = weight + c;
      A* s = scores + n * stride + c;
      if (full && vectors >= 3)
        multiply<A, kRows, 3>(t, w, width, stride, s);
      else if (full && vectors == 2)
        multiply<A, kRows, 2>(t, w, width, stride, s);
      else if (full)
        multiply<A, kRows, 1>(t, w, width, stride, s);
      else if (vectors >= 3)
        multiply<A, 1, 3>(t, w, width, stride, s);
      else if (vectors == 2)
        multiply<A, 1, 2>(t, w, width, stride, s);
      else
        multiply<A, 1, 1>(t, w, width, stride, s);
    }
    n += full ? kRows : 1;
  }
}

// The scores of `rows` <= kTokens consecutive tokens.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET void score_rows(const T* tokens, const Packed<A>& packed, int64_t rows, A* scratch, A* scores) {
  const A* converted;
  if constexpr (sizeof(T) == sizeof(A)) {
    converted = tokens;
  } else {
    for (int64_t i = 0; i < rows * packed.width; ++i) scratch[i] = A(tokens[i]);
    converted = scratch;
  }
  multiply_rows(converted, packed.weight.data, packed.width, packed.classes, packed.stride, rows, scores);
  for (int64_t n = 0; n < rows; ++n) {
    A* row = scores + n * packed.stride;
    for (int64_t c = 0; c < packed.classes; ++c) row[c] += packed.bias.data[c];
    if (packed.softmax) softmax_row(row, packed.classes);
  }
}

// row += factor * other, over n elements.
template <typename A, typename T>
TOCO_TARGET void add_scaled(A* row, A factor, const T* other, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] += factor * A(other[i]);
}
