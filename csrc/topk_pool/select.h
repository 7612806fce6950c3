// Top-K pooling of kLanes neighbouring classes, compiled once per instruction set (common/for_each_isa.h).
//
// Lanes are classes, and never look at each other. Few winners are kept sorted in registers while the patches stream
// by; for many, the k-th largest key is found by bisection, and whatever lies above it wins.

// As many keys as a register holds.
template <typename A>
struct Keys {
  typedef Key<A> type __attribute__((vector_size(kVectorBytes)));
  typedef A values __attribute__((vector_size(kVectorBytes)));
  typedef A unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(A))));
  static constexpr int kStep = kVectorBytes / sizeof(A);
};

// A bit per lane: whether a > b there.
template <typename A, typename I = typename Keys<A>::type>
TOCO_TARGET static inline unsigned greater(const I& a, const I& b) {
#if defined(__x86_64__)
  if constexpr (sizeof(A) == 4 && kVectorBytes == 64) return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
  if constexpr (sizeof(A) == 4 && kVectorBytes == 32) return _mm256_movemask_ps((__m256)(a > b));
  if constexpr (sizeof(A) == 4 && kVectorBytes == 16) return _mm_movemask_ps((__m128)(a > b));
#endif
  unsigned bits = 0;
  for (int lane = 0; lane < Keys<A>::kStep; ++lane) bits |= unsigned(a[lane] > b[lane]) << lane;
  return bits;
}

// The keys of some classes and all patches, kLanes to a row. Lanes beyond `used` get a key below all others.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET static inline void pack_keys(const Column<T>& column, int64_t begin, int64_t end, Key<A>* keys) {
  using I = typename Keys<A>::type;
  constexpr int kStep = Keys<A>::kStep;
  alignas(64) Key<A> used[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) used[lane] = lane < column.used ? -1 : 0;
  for (int64_t n = begin; n < end; ++n, keys += kLanes) {
    const T* row = column.scores + n * column.stride;
    A copy[kLanes] = {};
    const A* values = copy;
    if (column.end - row < kLanes) {  // nothing beyond the tensor is read
      for (int lane = 0; lane < column.used; ++lane) copy[lane] = A(row[lane]);
    } else if constexpr (sizeof(T) == sizeof(A)) {
      values = row;
    } else {
      for (int lane = 0; lane < kLanes; ++lane) copy[lane] = A(row[lane]);
    }
    for (int v = 0; v < kLanes / kStep; ++v) {
      const typename Keys<A>::values value = *(const typename Keys<A>::unaligned*)(values + v * kStep);
      const I bits = (I)(value + A(0));  // as key_of in key.h
      const I key = value == value ? bits ^ ((bits >> (8 * sizeof(A) - 1)) & kLargestKey<A>) : I{} + kLargestKey<A>;
      *(I*)(keys + v * kStep) = *(const I*)(used + v * kStep) ? key : I{} + kNoKey<A>;
    }
  }
}

template <typename T, typename A = Accumulate<T>>
TOCO_TARGET static inline void put_winner(const Column<T>& column, int64_t n, int64_t place, int lane, double* sums) {
  column.indices[place * column.classes + lane] = int32_t(n);
  sums[lane] += double(A(column.scores[n * column.stride + lane]));
}

// k <= kMostSorted: the k best keys of each lane and their patches, best first. A later patch comes after an equal one.
template <typename T, int k, typename A = Accumulate<T>>
TOCO_TARGET static void pool_sorted(const Column<T>& column, double* sums) {
  using I = typename Keys<A>::type;
  constexpr int kStep = Keys<A>::kStep, kRows = 64, kGroup = 4;
  alignas(64) Key<A> keys[kRows * kLanes];
  alignas(64) Key<A> best[k * kLanes], patch[k * kLanes];
  for (int i = 0; i < k * kLanes; ++i) best[i] = kNoKey<A>;
  for (int64_t first = 0; first < column.patches; first += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, column.patches - first);
    pack_keys(column, first, first + rows, keys);
    for (int64_t i = rows * kLanes; i % (kGroup * kLanes); ++i) keys[i] = kNoKey<A>;
    for (int v = 0; v < column.used; v += kStep) {
      I b[k], p[k];
#pragma GCC unroll 8
      for (int j = 0; j < k; ++j) {
        b[j] = *(const I*)(best + j * kLanes + v);
        p[j] = *(const I*)(patch + j * kLanes + v);
      }
      for (int64_t n = 0; n < rows; n += kGroup) {
        const Key<A>* group = keys + n * kLanes + v;
        unsigned any = 0;
#pragma GCC unroll 4
        for (int i = 0; i < kGroup; ++i) any |= greater<A>(*(const I*)(group + i * kLanes), b[k - 1]);
        if (!any) continue;
        for (int i = 0; i < kGroup; ++i) {
          const I x = *(const I*)(group + i * kLanes);
          if (!greater<A>(x, b[k - 1])) continue;
          const I here = I{} + Key<A>(first + n + i);
#pragma GCC unroll 8
          for (int j = k - 1; j > 0; --j) {
            const I above = x > b[j - 1], level = x > b[j];
            p[j] = above ? p[j - 1] : level ? here : p[j];
            b[j] = above ? b[j - 1] : level ? x : b[j];
          }
          const I level = x > b[0];
          p[0] = level ? here : p[0];
          b[0] = level ? x : b[0];
        }
      }
#pragma GCC unroll 8
      for (int j = 0; j < k; ++j) {
        *(I*)(best + j * kLanes + v) = b[j];
        *(I*)(patch + j * kLanes + v) = p[j];
      }
    }
  }
  for (int lane = 0; lane < column.used; ++lane) {
    int64_t list[k];
    for (int j = 0; j < k; ++j) {  // by index
      int64_t n = patch[j * kLanes + lane];
      int i = j;
      for (; i > 0 && list[i - 1] > n; --i) list[i] = list[i - 1];
      list[i] = n;
    }
    for (int j = 0; j < k; ++j) put_winner(column, list[j], j, lane, sums);
  }
}

// The least key in low … high that fewer than `wanted` keys of `rows` exceed, lane by lane: that of rank `wanted`.
template <typename A, typename I = typename Keys<A>::type>
TOCO_TARGET static I kth_largest(const Key<A>* keys, int64_t rows, int64_t stride, const I& wanted, I low, I high) {
  while (greater<A>(high, low)) {
    const I middle = (low & high) + ((low ^ high) >> 1);  // rounded down, without overflow
    I counts[2] = {};
    int64_t n = 0;
    for (; n + 4 <= rows; n += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) counts[i % 2] -= *(const I*)(keys + (n + i) * stride) > middle;
    for (; n < rows; ++n) counts[0] -= *(const I*)(keys + n * stride) > middle;
    const I open = low < high, enough = counts[0] + counts[1] >= wanted;
    high = open & ~enough ? middle : high;
    low = open & enough ? middle + 1 : low;
  }
  return low;
}

// The k-th largest key of all patches, in the lanes of `used`. A sample says roughly where it is, so that only the keys
// around there are bisected, put together in `near`.
template <typename A, typename I = typename Keys<A>::type>
TOCO_TARGET static I threshold(const Key<A>* keys, int64_t rows, const I& wanted, unsigned used, Key<A>* near) {
  constexpr int kStep = Keys<A>::kStep, kEvery = 8;
  const I lowest = I{} + kNoKey<A>, largest = I{} + kLargestKey<A>;
  const int64_t sampled = rows / kEvery;
  if (sampled < 64) return kth_largest<A>(keys, rows, kLanes, wanted, lowest, largest);
  I early, late;  // ranks in the sample, three deviations to either side of the one that is looked for
  for (int lane = 0; lane < kStep; ++lane) {
    const double share = double(wanted[lane]) / double(rows), rank = share * double(sampled);
    const double slack = 3 * std::sqrt(rank * (1 - share)) + 2;
    early[lane] = Key<A>(rank - slack);
    late[lane] = Key<A>(rank + slack);
  }
  const I from = kth_largest<A>(keys, sampled, kEvery * kLanes, late, lowest, largest);  // the lowest if too late
  const I to = kth_largest<A>(keys, sampled, kEvery * kLanes, early, from, largest);     // the largest if too early

  alignas(kVectorBytes) Key<A> counts[kStep] = {};
  I above = {};
  for (int64_t n = 0; n < rows; ++n) {
    const I x = *(const I*)(keys + n * kLanes);
    above -= x > to;
    for (unsigned bits = used & ~greater<A>(from, x) & ~greater<A>(x, to); bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      near[counts[lane]++ * kStep + lane] = keys[n * kLanes + lane];
    }
  }
  const I found = *(const I*)counts;
  if ((greater<A>(wanted, above + found) | ~greater<A>(wanted, above)) & used)  // the sample misled
    return kth_largest<A>(keys, rows, kLanes, wanted, lowest, largest);
  const Key<A> most = *std::max_element(counts, counts + kStep);
  for (int lane = 0; lane < kStep; ++lane)
    for (Key<A> n = counts[lane]; n < most; ++n) near[n * kStep + lane] = kNoKey<A>;
  return kth_largest<A>(near, most, kStep, wanted - above, from, to);
}

// Any k: whatever lies above the k-th largest key wins, and of its equals the first.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET static void pool_above_threshold(const Column<T>& column, double* sums) {
  using I = typename Keys<A>::type;
  constexpr int kStep = Keys<A>::kStep;
  const Buffer<Key<A>> keys(column.patches * kLanes), near(column.patches * kStep);
  pack_keys(column, 0, column.patches, keys.data);
  for (int v = 0; v < column.used; v += kStep) {
    const unsigned used = column.used - v < kStep ? (1u << (column.used - v)) - 1 : (1u << kStep) - 1;
    I wanted;
    for (int lane = 0; lane < kStep; ++lane) wanted[lane] = Key<A>(column.kept[v + lane]);
    const I least = threshold<A>(keys.data + v, column.patches, wanted, used, near.data);
    I equals = wanted;  // how many of the keys equal to the threshold win
    for (int64_t n = 0; n < column.patches; ++n) equals += *(const I*)(keys.data + n * kLanes + v) > least;
    int64_t place[kStep] = {};
    for (int64_t n = 0; n < column.patches; ++n) {
      const I x = *(const I*)(keys.data + n * kLanes + v);
      unsigned bits = used & ~greater<A>(least, x);
      for (unsigned equal = bits & ~greater<A>(x, least); equal; equal &= equal - 1) {
        const int lane = __builtin_ctz(equal);
        if (equals[lane] <= 0) bits &= ~(1u << lane);
        equals[lane] -= 1;
      }
      for (; bits; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        put_winner(column, n, place[lane]++, v + lane, sums);
      }
    }
  }
}

template <typename T>
TOCO_TARGET void pool_column(const Column<T>& column, double* sums) {
  switch (column.sorted) {
    case 1:
      return pool_sorted<T, 1>(column, sums);
    case 2:
      return pool_sorted<T, 2>(column, sums);
    case 3:
      return pool_sorted<T, 3>(column, sums);
    case 4:
      return pool_sorted<T, 4>(column, sums);
    case 5:
      return pool_sorted<T, 5>(column, sums);
    case 6:
      return pool_sorted<T, 6>(column, sums);
    case 7:
      return pool_sorted<T, 7>(column, sums);
    case 8:
      return pool_sorted<T, 8>(column, sums);
    default:
      return pool_above_threshold(column, sums);
  }
}
