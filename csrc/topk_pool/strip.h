// What the CPU kernels of this room share: the selection for neighbouring classes of one image.
#pragma once
#include <algorithm>
#include <vector>

#include "common/buffer.h"
#include "topk_pool/topk_pool.h"

namespace toco {

constexpr int kLanes = 16;      // classes of a column: one AVX-512 register of floats
constexpr int kMostSorted = 8;  // winners that are kept in registers
constexpr int kRows = 64;       // patches that are taken together where winners are kept in registers

inline int64_t columns_of(int64_t classes) { return (classes + kLanes - 1) / kLanes; }

// Some neighbouring classes of one image, and where their results go.
template <typename T>
struct Strip {
  const T* scores;  // (N, …): `used` classes of a row, rows `stride` apart
  int64_t stride;
  const T* end;  // of the memory that may be read
  int64_t patches, used;
  int sorted;           // how many are kept, where that is the same number for all and at most kMostSorted; else 0
  const int64_t* kept;  // (columns * kLanes)
  int32_t* indices;     // (most, classes), at the first of these classes
  int64_t classes;
  double* sums;            // (columns * kLanes), zero: of the winners' scores
  Accumulate<T>* scratch;  // (strip_scratch)
};

// How many numbers a strip of so many columns needs beside its input.
inline int64_t strip_scratch(int64_t columns, Kept kept, const PoolShape& s) {
  if (!kept.counts && kept.k <= kMostSorted) return columns * kLanes * (kRows + 2 * kept.k);
  return (columns + 1) * kLanes * s.patches;
}

// Finds the winners of a strip, and adds up their scores: in double precision, which hardly ever rounds there.
template <typename T>
void pool_strip_cpu(const Strip<T>& strip);

// Pools `used` classes of image b from `first` on; `strip` says where their scores and the scratch are.
template <typename T, typename O>
void pool_classes(Strip<T> strip, int64_t b, int64_t first, int64_t used, Kept kept, O* pooled, int32_t* indices,
                  const PoolShape& s) {
  const int64_t lanes = columns_of(used) * kLanes;
  std::vector<int64_t> each(lanes, 1);
  std::vector<double> sums(lanes, 0.0);
  for (int64_t c = 0; c < used; ++c) each[c] = kept.of(b, first + c, s);
  strip.patches = s.patches;
  strip.used = used;
  strip.sorted = !kept.counts && kept.k <= kMostSorted ? int(kept.k) : 0;
  strip.kept = each.data();
  strip.indices = indices + b * s.most * s.classes + first;
  strip.classes = s.classes;
  strip.sums = sums.data();
  pool_strip_cpu(strip);
  for (int64_t c = 0; c < used; ++c) {
    pooled[b * s.classes + first + c] = O(Accumulate<O>(sums[c] / double(each[c])));
    for (int64_t place = each[c]; place < s.most; ++place) strip.indices[place * s.classes + c] = -1;
  }
}

// Calls body(b, first class, how many, scratch) in parallel: whole images, whose rows are one stream of memory, or
// columns where there are fewer images than threads.
template <typename A, typename Body>
void each_strip(const PoolShape& s, Kept kept, const Parallel& parallel, const Body& body) {
  const int64_t width = s.batch >= parallel.threads ? std::max<int64_t>(s.classes, 1) : kLanes;
  const int64_t strips = (s.classes + width - 1) / width;
  const int64_t work = s.patches * width * (kept.counts || kept.k > kMostSorted ? 32 : 4);
  parallel.loop(s.batch * strips, grain_for(work), [&](int64_t begin, int64_t end, int) {
    const Buffer<A> scratch(strip_scratch(columns_of(width), kept, s));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % strips * width;
      body(unit / strips, first, std::min(width, s.classes - first), scratch.data);
    }
  });
}

}  // namespace toco
