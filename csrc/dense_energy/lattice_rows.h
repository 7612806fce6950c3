// Splat, blur and slice on rows of channels, compiled once per instruction set (common/for_each_isa.h).
//
// The vectors of a row begin at 0, kSize, … and the last one where it ends with the row: see row_stride in lattice.h.

#include "common/vector.h"

// sums[v] = sum over `count` rows of weight * row, for kVectors vectors that begin at `offsets`.
template <typename A, int kVectors>
TOCO_TARGET static inline void weighted_rows(const A* rows, int64_t stride, const Share* shares, const A* norms,
                                             int64_t count, const int64_t* offsets, A scale, A* out) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  V sums[kVectors] = {};
  for (int64_t t = 0; t < count; ++t) {
    const A* row = rows + shares[t].row * stride;
    A weight = A(shares[t].weight);
    if (norms) weight *= norms[shares[t].row];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] += weight * *(const U*)(row + offsets[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) *(U*)(out + offsets[v]) = sums[v] * scale;
}

// The same for a whole row, as many vectors at a time as registers allow.
template <typename A>
TOCO_TARGET static inline void weighted_row(const A* rows, int64_t stride, const Share* shares, const A* norms,
                                            int64_t count, A scale, A* out) {
  constexpr int kSize = Vector<A>::kSize, kMost = 6;
  for (int64_t begin = 0; begin < stride; begin += kMost * kSize) {
    int64_t offsets[kMost];
    for (int v = 0; v < kMost; ++v) offsets[v] = std::min(begin + v * kSize, stride - kSize);
    switch (std::min<int64_t>(kMost, (stride - begin + kSize - 1) / kSize)) {
      case 1:
        weighted_rows<A, 1>(rows, stride, shares, norms, count, offsets, scale, out);
        break;
      case 2:
        weighted_rows<A, 2>(rows, stride, shares, norms, count, offsets, scale, out);
        break;
      case 3:
        weighted_rows<A, 3>(rows, stride, shares, norms, count, offsets, scale, out);
        break;
      case 4:
        weighted_rows<A, 4>(rows, stride, shares, norms, count, offsets, scale, out);
        break;
      case 5:
        weighted_rows<A, 5>(rows, stride, shares, norms, count, offsets, scale, out);
        break;
      default:
        weighted_rows<A, 6>(rows, stride, shares, norms, count, offsets, scale, out);
    }
  }
}

// Points begin … end of the lattice, from the pixels that touch them.
template <typename A>
TOCO_TARGET void splat_points(const A* values, const int32_t* first, const Share* touches, const A* norms, A* lattice,
                              int64_t stride, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p)
    weighted_row(values, stride, touches + first[p], norms, first[p + 1] - first[p], A(1), lattice + p * stride);
}

// to = from + (from at one neighbour + from at the other) / 2
template <typename A>
TOCO_TARGET void blur_points(const A* from, const int32_t* neighbours, A* to, int64_t stride, int64_t begin,
                             int64_t end) {
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t p = begin; p < end; ++p) {
    const A* one = from + neighbours[2 * p] * stride;
    const A* other = from + neighbours[2 * p + 1] * stride;
    for (int64_t begin = 0; begin < stride; begin += kSize) {
      const int64_t c = std::min(begin, stride - kSize);
      *(U*)(to + p * stride + c) =
          *(const U*)(from + p * stride + c) + A(0.5) * (*(const U*)(one + c) + *(const U*)(other + c));
    }
  }
}

// Pixels begin … end, from the corners of their simplices.
template <typename A>
TOCO_TARGET void slice_pixels(const A* lattice, const Share* corners, int count, const A* norms, A* filtered,
                              int64_t stride, int64_t begin, int64_t end) {
  const A alpha = 1 / (1 + A(1) / A(1 << (count - 1)));
  for (int64_t i = begin; i < end; ++i)
    weighted_row(lattice, stride, corners + i * count, (const A*)nullptr, count, norms ? alpha * norms[i] : alpha,
                 filtered + i * stride);
}
