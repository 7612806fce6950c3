// Top-K pooling of neighbouring classes, compiled once per instruction set (common/for_each_isa.h).
//
// Lanes are classes, and never look at each other. Few winners are kept sorted in registers while the patches stream
// by; for many, the k-th largest key is found by bisection, and whatever lies above it wins.

constexpr int kGroup = 4;  // rows that share a loop over lanes: it is left by a branch that nobody can predict

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

// Scores as the numbers that are computed with, a register of them; half precision as in common/half.h.
template <typename A>
TOCO_TARGET static inline void load(const A* scores, typename Keys<A>::values& values) {
  values = *(const typename Keys<A>::unaligned*)scores;
}

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

TOCO_TARGET static inline Words widened(const void* scores) {
  Halves halves;
  std::memcpy(&halves, scores, sizeof halves);
  return __builtin_convertvector(halves, Words);
}

TOCO_TARGET static inline void load(const BFloat16* scores, Keys<float>::values& values) {
  values = (Keys<float>::values)(widened(scores) << 16);
}

TOCO_TARGET static inline void load(const Half* scores, Keys<float>::values& values) {
  const Words bits = widened(scores), magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  const Words finite = (Words)((Keys<float>::values)magnitude * 0x1p112f), special = magnitude | 0x7f800000;
  values = (Keys<float>::values)((magnitude >= 0x0f800000 ? special : finite) | sign);
}

// The keys of some patches, column after column, kLanes to a row. Lanes of no class get a key below all others.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET static inline void pack_keys(const Strip<T>& strip, int64_t begin, int64_t end, Key<A>* keys) {
  using I = typename Keys<A>::type;
  constexpr int kStep = Keys<A>::kStep;
  alignas(kVectorBytes) Key<A> in_last[kLanes];  // all bits set where the last column has a class
  for (int lane = 0; lane < kLanes; ++lane) in_last[lane] = lane <= (strip.used - 1) % kLanes ? -1 : 0;
  for (int64_t n = begin; n < end; ++n, keys += kLanes) {
    Key<A>* to = keys;
    for (int64_t c = 0; c < strip.used; c += kLanes, to += (end - begin) * kLanes) {
      const T* row = strip.scores + n * strip.stride + c;
      const bool last = strip.used - c < kLanes;
      T copy[kLanes];
      if (strip.end - row < kLanes) {  // nothing beyond the tensor is read
        std::memset(static_cast<void*>(copy), 0, sizeof copy);
        std::memcpy(static_cast<void*>(copy), row, (strip.used - c) * sizeof(T));
        row = copy;
      }
      for (int v = 0; v < kLanes; v += kStep) {
        typename Keys<A>::values value;
        load(row + v, value);
        const I bits = (I)(value + A(0));  // as key_of in key.h
        I key = value == value ? bits ^ ((bits >> (8 * sizeof(A) - 1)) & kLargestKey<A>) : I{} + kLargestKey<A>;
        if (last) key = *(const I*)(in_last + v) ? key : I{} + kNoKey<A>;
        *(I*)(to + v) = key;
      }
    }
  }
}

template <typename T, typename A = Accumulate<T>>
TOCO_TARGET static inline void put_winner(const Strip<T>& strip, int64_t n, int64_t place, int64_t c) {
  strip.indices[place * strip.classes + c] = int32_t(n);
  strip.sums[c] += double(A(strip.scores[n * strip.stride + c]));
}

// k <= kMostSorted: the k best keys of each lane and their patches, best first. A later patch comes after an equal one.
template <typename A, int k>
TOCO_TARGET static inline void keep_best(const Key<A>* keys, int64_t first, int64_t rows, Key<A>* best, Key<A>* patch) {
  using I = typename Keys<A>::type;
  I b[k], p[k];
#pragma GCC unroll 8
  for (int j = 0; j < k; ++j) {
    b[j] = *(const I*)(best + j * kLanes);
    p[j] = *(const I*)(patch + j * kLanes);
  }
  for (int64_t n = 0; n < rows; n += kGroup) {
    const Key<A>* group = keys + n * kLanes;
    const int count = rows - n < kGroup ? rows - n : kGroup;
    unsigned any = 0;
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; ++i) any |= greater<A>(*(const I*)(group + (i < count ? i : 0) * kLanes), b[k - 1]);
    if (!any) continue;
    for (int i = 0; i < count; ++i) {
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
    *(I*)(best + j * kLanes) = b[j];
    *(I*)(patch + j * kLanes) = p[j];
  }
}

template <typename T, int k, typename A = Accumulate<T>>
TOCO_TARGET static void pool_sorted(const Strip<T>& strip) {
  const int64_t columns = columns_of(strip.used);
  Key<A>* keys = (Key<A>*)strip.scratch;           // (columns, kRows, kLanes)
  Key<A>* best = keys + columns * kRows * kLanes;  // (columns, k, kLanes)
  Key<A>* patch = best + columns * k * kLanes;     // (columns, k, kLanes)
  std::fill_n(best, columns * k * kLanes, kNoKey<A>);
  for (int64_t first = 0; first < strip.patches; first += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, strip.patches - first);
    pack_keys(strip, first, first + rows, keys);
    for (int64_t c = 0; c < strip.used; c += Keys<A>::kStep) {
      const int64_t column = c / kLanes, v = c % kLanes, state = column * k * kLanes + v;
      keep_best<A, k>(keys + column * rows * kLanes + v, first, rows, best + state, patch + state);
    }
  }
  for (int64_t c = 0; c < strip.used; ++c) {
    int64_t list[k];
    for (int j = 0; j < k; ++j) {  // by index
      const int64_t n = patch[(c / kLanes * k + j) * kLanes + c % kLanes];
      int i = j;
      for (; i > 0 && list[i - 1] > n; --i) list[i] = list[i - 1];
      list[i] = n;
    }
    for (int j = 0; j < k; ++j) put_winner(strip, list[j], j, c);
  }
}

// Halves low … high, up to `steps` times, around the least key that fewer than `wanted` keys of `rows` exceed, lane by
// lane: that of rank `wanted`.
template <typename A, typename I = typename Keys<A>::type>
TOCO_TARGET static void bisect(const Key<A>* keys, int64_t rows, int64_t stride, const I& wanted, int steps, I& low,
                               I& high) {
  for (; steps > 0 && greater<A>(high, low); --steps) {
    const I middle = (low & high) + ((low ^ high) >> 1);  // rounded down, without overflow
    I counts[2] = {};
    int64_t n = 0;
    for (; n + 4 <= rows; n += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) counts[i % 2] -= *(const I*)(keys + (n + i) * stride) > middle;
    for (; n < rows; ++n) counts[0] -= *(const I*)(keys + n * stride) > middle;
    const I open = low < high, enough = counts[0] + counts[1] >= wanted;
    high = open & ~enough ? middle : high;
    low = open & enough ? middle - open : low;  // + 1
  }
}

// The k-th largest key of all patches, in the lanes of `used`. A sample says roughly where it is, so that only the keys
// around there are bisected, put together in `near`.
template <typename A, typename I = typename Keys<A>::type>
TOCO_TARGET static I threshold(const Key<A>* keys, int64_t rows, const I& wanted, unsigned used, Key<A>* near) {
  constexpr int kStep = Keys<A>::kStep, kEvery = 8, kBits = 8 * sizeof(A), kRoughly = kBits / 2 + 4;
  const I lowest = I{} + kNoKey<A>, largest = I{} + kLargestKey<A>;
  const auto of_all = [&]() TOCO_TARGET {
    I low = lowest, high = largest;
    bisect<A>(keys, rows, kLanes, wanted, kBits, low, high);
    return low;
  };
  const int64_t sampled = rows / kEvery;
  if (sampled < 64) return of_all();
  I early, late;  // ranks in the sample, three deviations to either side of the one that is looked for
  for (int lane = 0; lane < kStep; ++lane) {
    const double share = double(wanted[lane]) / double(rows), rank = share * double(sampled);
    const double slack = 3 * std::sqrt(rank * (1 - share)) + 2;
    early[lane] = Key<A>(rank - slack);
    late[lane] = Key<A>(rank + slack);
  }
  for (int64_t n = 0; n < sampled; ++n) *(I*)(near + n * kStep) = *(const I*)(keys + n * kEvery * kLanes);
  I from = lowest, to = largest, unused = largest;
  bisect<A>(near, sampled, kStep, late, kRoughly, from, unused);
  unused = early > 0 ? from : largest;
  bisect<A>(near, sampled, kStep, early, kRoughly, unused, to);

  alignas(kVectorBytes) Key<A> counts[kStep] = {};
  I above = {};
  for (int64_t n = 0; n < rows; n += kGroup) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < kGroup && n + i < rows; ++i) {
      const I x = *(const I*)(keys + (n + i) * kLanes);
      above -= x > to;
      bits |= uint64_t(used & ~greater<A>(from, x) & ~greater<A>(x, to)) << (i * kStep);
    }
    for (; bits; bits &= bits - 1) {
      const int bit = __builtin_ctzll(bits), lane = bit % kStep;
      near[counts[lane]++ * kStep + lane] = keys[(n + bit / kStep) * kLanes + lane];
    }
  }
  const I found = *(const I*)counts;
  if ((greater<A>(wanted, above + found) | ~greater<A>(wanted, above)) & used)  // the sample misled
    return of_all();
  const Key<A> most = *std::max_element(counts, counts + kStep);
  for (int lane = 0; lane < kStep; ++lane)
    for (Key<A> n = counts[lane]; n < most; ++n) near[n * kStep + lane] = kNoKey<A>;
  bisect<A>(near, most, kStep, wanted - above, kBits, from, to);
  return from;
}

// Any k: whatever lies above the k-th largest key wins, and of its equals the first.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET static void pool_above_threshold(const Strip<T>& strip) {
  using I = typename Keys<A>::type;
  constexpr int kStep = Keys<A>::kStep;
  Key<A>* packed = (Key<A>*)strip.scratch;  // (columns, N, kLanes)
  Key<A>* near = packed + columns_of(strip.used) * strip.patches * kLanes;
  pack_keys(strip, 0, strip.patches, packed);
  for (int64_t c = 0; c < strip.used; c += kStep) {
    const Key<A>* keys = packed + c / kLanes * strip.patches * kLanes + c % kLanes;
    double* sums = strip.sums + c;
    const unsigned used = strip.used - c < kStep ? (1u << (strip.used - c)) - 1 : (1u << kStep) - 1;
    I wanted;
    for (int lane = 0; lane < kStep; ++lane) wanted[lane] = Key<A>(strip.kept[c + lane]);
    const I least = threshold<A>(keys, strip.patches, wanted, used, near);
    alignas(kVectorBytes) Key<A> equals[kStep];  // how many of the keys equal to the threshold win
    I above = {};
    for (int64_t n = 0; n < strip.patches; ++n) above -= *(const I*)(keys + n * kLanes) > least;
    *(I*)equals = wanted - above;
    int64_t place[kStep] = {};
    for (int64_t n = 0; n < strip.patches; n += kGroup) {
      uint64_t bits = 0, equal = 0;
      for (int64_t i = 0; i < kGroup && n + i < strip.patches; ++i) {
        const I x = *(const I*)(keys + (n + i) * kLanes);
        const unsigned reached = used & ~greater<A>(least, x);
        bits |= uint64_t(reached) << (i * kStep);
        equal |= uint64_t(reached & ~greater<A>(x, least)) << (i * kStep);
      }
      for (; equal; equal &= equal - 1) {
        const int bit = __builtin_ctzll(equal);
        if (equals[bit % kStep]-- <= 0) bits &= ~(uint64_t(1) << bit);
      }
      for (; bits; bits &= bits - 1) {
        const int bit = __builtin_ctzll(bits), lane = bit % kStep;
        const int64_t patch = n + bit / kStep;
        strip.indices[place[lane]++ * strip.classes + c + lane] = int32_t(patch);
        sums[lane] += double(score_of_key<A>(keys[patch * kLanes + lane]));
      }
    }
  }
}

template <typename T>
TOCO_TARGET void pool_strip(const Strip<T>& strip) {
  switch (strip.sorted) {
    case 1:
      return pool_sorted<T, 1>(strip);
    case 2:
      return pool_sorted<T, 2>(strip);
    case 3:
      return pool_sorted<T, 3>(strip);
    case 4:
      return pool_sorted<T, 4>(strip);
    case 5:
      return pool_sorted<T, 5>(strip);
    case 6:
      return pool_sorted<T, 6>(strip);
    case 7:
      return pool_sorted<T, 7>(strip);
    case 8:
      return pool_sorted<T, 8>(strip);
    default:
      return pool_above_threshold(strip);
  }
}
