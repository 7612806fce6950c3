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
    const A* ahead = rows + shares[t + kAhead].row * stride;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(ahead + offsets[v]);
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

// Rows that will be wanted soon: they lie anywhere, and no hardware guesses where.
template <typename A>
TOCO_TARGET static inline void prefetch_row(const A* row, int64_t stride) {
  for (int64_t c = 0; c < stride; c += 64 / sizeof(A)) __builtin_prefetch(row + c, 1);
  __builtin_prefetch(row + stride - 1, 1);
}

// Along one chain of points, in place: value + (value of the point before + value of the point after) / 2.
template <typename A, int kVectors>
TOCO_TARGET static inline void blur_chain(A* lattice, int64_t stride, const int32_t* points, int64_t count,
                                          const int64_t* offsets) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  V before[kVectors] = {}, value[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) value[v] = *(const U*)(lattice + points[0] * stride + offsets[v]);
  for (int64_t t = 0; t < count; ++t) {
    prefetch_row(lattice + points[t + kAhead] * stride, stride);
    V after[kVectors] = {};
    if (t + 1 < count)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) after[v] = *(const U*)(lattice + points[t + 1] * stride + offsets[v]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      *(U*)(lattice + points[t] * stride + offsets[v]) = value[v] + A(0.5) * (before[v] + after[v]);
      before[v] = value[v];
      value[v] = after[v];
    }
  }
}

// Chains begin … end of a direction. Vectors that share channels belong to one call of blur_chain: what one of them has
// changed would be changed again. So the vectors of a row are split evenly, never into all but one and one.
template <typename A>
TOCO_TARGET void blur_chains(A* lattice, const int32_t* points, const int32_t* first, int64_t stride, int64_t begin,
                             int64_t end) {
  constexpr int kSize = Vector<A>::kSize, kMost = 4;
  const int64_t vectors = (stride + kSize - 1) / kSize, groups = (vectors + kMost - 1) / kMost;
  for (int64_t chain = begin; chain < end; ++chain) {
    const int32_t* of_chain = points + first[chain];
    const int64_t count = first[chain + 1] - first[chain];
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t from = vectors * g / groups, size = vectors * (g + 1) / groups - from;
      int64_t offsets[kMost];
      for (int v = 0; v < size; ++v) offsets[v] = std::min((from + v) * kSize, stride - kSize);
      switch (size) {
        case 1:
          blur_chain<A, 1>(lattice, stride, of_chain, count, offsets);
          break;
        case 2:
          blur_chain<A, 2>(lattice, stride, of_chain, count, offsets);
          break;
        case 3:
          blur_chain<A, 3>(lattice, stride, of_chain, count, offsets);
          break;
        default:
          blur_chain<A, 4>(lattice, stride, of_chain, count, offsets);
      }
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
