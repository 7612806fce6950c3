// What the CPU kernels of this room share: the selection for neighbouring classes of one image.
#pragma once
#include "topk_pool/topk_pool.h"

namespace toco {

constexpr int kLanes = 16;      // classes of a column: one AVX-512 register of floats
constexpr int kMostSorted = 8;  // winners that are kept in registers

// Some neighbouring classes of one image, and where their results go.
template <typename T>
struct Column {
  const T* scores;  // (N, …): `used` classes of a row, rows `stride` apart
  int64_t stride;
  const T* end;  // of the memory that may be read
  int used;      // at most kLanes
  int sorted;    // how many are kept, where that is the same number for all and at most kMostSorted; else 0
  int64_t patches;
  int64_t kept[kLanes];
  int32_t* indices;  // (most, C), at the first of these classes
  int64_t classes;
};

// The winners of a column, and the sum of their scores: in double precision, which hardly ever rounds there.
template <typename T>
void pool_column_cpu(const Column<T>& column, double* sums);  // (kLanes)

// Pools the classes from `first` on, at most kLanes of them, of image b; `column` says where their scores are.
template <typename T, typename O>
void pool_classes(Column<T> column, int64_t b, int64_t first, Kept kept, O* pooled, int32_t* indices,
                  const PoolShape& s) {
  column.used = int(s.classes - first < kLanes ? s.classes - first : kLanes);
  column.sorted = !kept.counts && kept.k <= kMostSorted ? int(kept.k) : 0;
  column.patches = s.patches;
  column.classes = s.classes;
  column.indices = indices + b * s.most * s.classes + first;
  for (int lane = 0; lane < kLanes; ++lane)
    column.kept[lane] = lane < column.used ? kept.of(b, first + lane, s) : 1;
  double sums[kLanes] = {};
  pool_column_cpu(column, sums);
  for (int lane = 0; lane < column.used; ++lane) {
    pooled[b * s.classes + first + lane] = O(Accumulate<O>(sums[lane] / double(column.kept[lane])));
    for (int64_t place = column.kept[lane]; place < s.most; ++place)
      column.indices[place * s.classes + lane] = -1;
  }
}

inline int64_t columns_of(int64_t classes) { return (classes + kLanes - 1) / kLanes; }

}  // namespace toco
