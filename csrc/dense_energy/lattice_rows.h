// Splat, blur and slice of kLanes channels, compiled once per instruction set (common/for_each_isa.h).

#include "common/panels.h"

// (rows, columns) -> (columns, rows), which are multiples of a vector's size.
template <typename A>
TOCO_TARGET static inline void transpose_matrix(const A* from, int64_t rows, int64_t columns, A* to) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t r = 0; r < rows; r += kSize)
    for (int64_t c = 0; c < columns; c += kSize) {
      V square[kSize];
#pragma GCC unroll 16
      for (int i = 0; i < kSize; ++i) square[i] = *(const V*)(from + (r + i) * columns + c);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kSize; ++i) *(V*)(to + (c + i) * rows + r) = square[i];
    }
}

// Points lie anywhere, and no hardware guesses where.
template <typename A>
TOCO_TARGET static inline void prefetch_point(const A* point) {
#pragma GCC unroll 8
  for (int64_t c = 0; c < kLanes; c += 64 / sizeof(A)) __builtin_prefetch(point + c, 1);
}

// Adds all pixels of `channels` maps to the corners of their simplices.
template <typename A>
TOCO_TARGET void splat(const A* maps, int64_t pixels, int64_t channels, const A* norms, const Corner* corners,
                       int count, A* points) {
  using V = typename Vector<A>::type;
  constexpr int kVectors = kLanes * sizeof(A) / kVectorBytes;
  alignas(64) A planes[kLanes * kPixels] = {}, rows[kPixels * kLanes];
  for (int64_t first = 0; first < pixels; first += kPixels) {
    const int64_t some = std::min(kPixels, pixels - first);
    for (int64_t c = 0; c < channels; ++c) {
      const A* map = maps + c * pixels + first;
      A* plane = planes + c * kPixels;
      if (norms) {
        for (int64_t x = 0; x < some; ++x) plane[x] = map[x] * norms[first + x];
      } else {
        for (int64_t x = 0; x < some; ++x) plane[x] = map[x];
      }
    }
    transpose_matrix(planes, kLanes, kPixels, rows);
    for (int64_t x = 0; x < some; ++x) {
      const Corner* corner = corners + (first + x) * count;
      V row[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) row[v] = ((const V*)(rows + x * kLanes))[v];
      for (int k = 0; k < count; ++k) {
        V* point = (V*)(points + corner[k].point * kLanes);
        const A weight = A(corner[k].weight);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) point[v] += weight * row[v];
      }
    }
  }
}

// Chains begin … end of a direction, in place: value + (value of the point before + value of the point after) / 2.
template <typename A>
TOCO_TARGET void blur(A* points, const int32_t* chained, const int32_t* first, int64_t begin, int64_t end) {
  using V = typename Vector<A>::type;
  constexpr int kVectors = kLanes * sizeof(A) / kVectorBytes;
  for (int64_t chain = begin; chain < end; ++chain) {
    V before[kVectors] = {}, value[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) value[v] = ((const V*)(points + chained[first[chain]] * kLanes))[v];
    for (int32_t t = first[chain]; t < first[chain + 1]; ++t) {
      prefetch_point(points + chained[t + kAhead] * kLanes);
      V after[kVectors] = {};
      if (t + 1 < first[chain + 1])
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) after[v] = ((const V*)(points + chained[t + 1] * kLanes))[v];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        ((V*)(points + chained[t] * kLanes))[v] = value[v] + A(0.5) * (before[v] + after[v]);
        before[v] = value[v];
        value[v] = after[v];
      }
    }
  }
}

// Planes (kLanes, kPixels) of `some` pixels from `first` on, from the corners of their simplices.
template <typename A>
TOCO_TARGET void slice(const A* points, const Corner* corners, int count, const A* norms, int64_t first, int64_t some,
                       A* planes) {
  using V = typename Vector<A>::type;
  constexpr int kVectors = kLanes * sizeof(A) / kVectorBytes;
  const A alpha = 1 / (1 + A(1) / A(1 << (count - 1)));
  alignas(64) A rows[kPixels * kLanes];
  for (int64_t x = 0; x < some; ++x) {
    const Corner* corner = corners + (first + x) * count;
    V sums[kVectors] = {};
    for (int k = 0; k < count; ++k) {
      const A weight = A(corner[k].weight);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[v] += weight * ((const V*)(points + corner[k].point * kLanes))[v];
    }
    const A scale = norms ? alpha * norms[first + x] : alpha;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) ((V*)(rows + x * kLanes))[v] = scale * sums[v];
  }
  std::fill(rows + some * kLanes, rows + kPixels * kLanes, A(0));
  transpose_matrix(rows, kPixels, kLanes, planes);
}
