// The CUDA kernels that select, and that spread a gradient over what was selected.
#pragma once
#include <climits>
#include <type_traits>

#include "common/launch.h"
#include "topk_pool/key.h"
#include "topk_pool/topk_pool.h"

namespace toco {
namespace {

constexpr int kClasses = 8;                     // of a block
constexpr int kThreads = 512;                   // of a block
constexpr int kTeam = kThreads / kClasses;      // threads that share the patches of a class
constexpr int kMostInRegisters = 8;             // winners
constexpr int kDigit = 256, kDigitGroups = 16;  // values of eight bits of a key, and how they are searched
constexpr int kStripRows = 32;                  // patches of a thread that spreads a gradient

extern __shared__ char shared[];

// The class of this thread, and its place among those that share it.
struct Seat {
  int64_t b, c;
  int lane, member;
  bool used;
  __device__ explicit Seat(const PoolShape& s) {
    const int64_t groups = (s.classes + kClasses - 1) / kClasses;
    lane = int(threadIdx.x) % kClasses;
    member = int(threadIdx.x) / kClasses;
    b = blockIdx.x / groups;
    c = blockIdx.x % groups * kClasses + lane;
    used = c < s.classes;
  }
};

template <typename K>
__device__ bool comes_before(K key, int patch, K other_key, int other_patch) {
  return key > other_key || (key == other_key && patch < other_patch);
}

// The best keys that were seen and their patches, best first, in registers.
template <typename K, int k>
struct Best {
  K keys[k];
  int patches[k];

  __device__ Best() {
#pragma unroll
    for (int j = 0; j < k; ++j) {
      keys[j] = -(sizeof(K) == 4 ? K(INT32_MAX) : K(INT64_MAX)) - 1;
      patches[j] = INT_MAX;
    }
  }
  __device__ bool takes(K key, int patch) const { return comes_before(key, patch, keys[k - 1], patches[k - 1]); }
  __device__ void insert(K key, int patch) {
#pragma unroll
    for (int j = k - 1; j >= 0; --j) {
      const bool here = comes_before(key, patch, keys[j], patches[j]);
      const bool above = j > 0 && comes_before(key, patch, keys[j > 0 ? j - 1 : 0], patches[j > 0 ? j - 1 : 0]);
      keys[j] = above ? keys[j > 0 ? j - 1 : 0] : here ? key : keys[j];
      patches[j] = above ? patches[j > 0 ? j - 1 : 0] : here ? patch : patches[j];
    }
  }
  // Lowest patch first, of the `kept` best.
  __device__ void by_patch(int kept) {
#pragma unroll
    for (int j = 0; j < k; ++j)
      if (j >= kept) patches[j] = INT_MAX;
#pragma unroll
    for (int last = k - 1; last > 0; --last)
#pragma unroll
      for (int j = 0; j < last; ++j) {
        const int low = min(patches[j], patches[j + 1]), high = max(patches[j], patches[j + 1]);
        patches[j] = low;
        patches[j + 1] = high;
      }
  }
};

// k <= most: each thread keeps the best of its patches, then threads merge theirs pairwise.
template <typename S, typename O, int most>
__global__ void __launch_bounds__(kThreads, 1)
    sorted_kernel(const S* scores, int k, O* pooled, int32_t* indices, PoolShape s) {
  using A = Accumulate<S>;
  using K = Key<A>;
  constexpr int kAtOnce = 4;  // loads in flight
  const Seat seat(s);
  const S* column = scores + seat.b * s.patches * s.classes + seat.c;
  Best<K, most> best;
  if (seat.used)
    for (int64_t first = seat.member; first < s.patches; first += kTeam * kAtOnce) {
      S values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t n = first + i * kTeam;
        values[i] = column[(n < s.patches ? n : first) * s.classes];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t n = first + i * kTeam;
        const K key = key_of(A(values[i]));
        if (n < s.patches && best.takes(key, int(n))) best.insert(key, int(n));
      }
    }

  K* keys = reinterpret_cast<K*>(shared);                         // (most, kThreads)
  int* patches = reinterpret_cast<int*>(keys + most * kThreads);  // (most, kThreads)
  for (int half = kTeam / 2; half > 0; half /= 2) {
    if (seat.member >= half && seat.member < 2 * half) {
#pragma unroll
      for (int j = 0; j < most; ++j) {
        keys[j * kThreads + threadIdx.x] = best.keys[j];
        patches[j * kThreads + threadIdx.x] = best.patches[j];
      }
    }
    __syncthreads();
    if (seat.member < half) {
      const int other = int(threadIdx.x) + half * kClasses;
      for (int j = 0; j < most; ++j) {
        const K key = keys[j * kThreads + other];
        const int patch = patches[j * kThreads + other];
        if (!best.takes(key, patch)) break;
        best.insert(key, patch);
      }
    }
    __syncthreads();
  }
  if (seat.member > 0 || !seat.used) return;
  best.by_patch(k);
  double sum = 0;
#pragma unroll
  for (int j = 0; j < most; ++j)
    if (j < k) {
      indices[(seat.b * s.most + j) * s.classes + seat.c] = best.patches[j];
      sum += double(A(column[best.patches[j] * s.classes]));
    }
  pooled[seat.b * s.classes + seat.c] = O(Accumulate<O>(sum / k));
}

// Any k: the k-th largest key is found eight bits at a time, by counting; then whatever lies above it wins, and of its
// equals the first. Every step reads the scores again: from the L2 cache, where an image's classes fit.
template <typename S, typename O>
__global__ void __launch_bounds__(kThreads, 1)
    threshold_kernel(const S* scores, Kept kept, O* pooled, int32_t* indices, PoolShape s) {
  using A = Accumulate<S>;
  using U = std::make_unsigned_t<Key<A>>;
  constexpr int kBits = 8 * sizeof(U);
  double* sums = reinterpret_cast<double*>(shared);          // (kClasses, kTeam)
  U* prefix = reinterpret_cast<U*>(sums + kThreads);         // (kClasses): of the threshold, as far as it is known
  int* missing = reinterpret_cast<int*>(prefix + kClasses);  // (kClasses): how many winners have that prefix
  int* counts = missing + kClasses;                          // (kClasses, kDigit)
  int* groups = counts + kClasses * kDigit;                  // (kClasses, kDigitGroups)
  const Seat seat(s);
  const S* column = scores + seat.b * s.patches * s.classes + seat.c;
  const auto key_at = [&](int64_t n) { return U(key_of(A(column[n * s.classes]))) ^ (U(1) << (kBits - 1)); };
  const int k = seat.used ? int(kept.of(seat.b, seat.c, s)) : 0;
  if (seat.member == 0) {
    prefix[seat.lane] = 0;
    missing[seat.lane] = k;
  }

  for (int shift = kBits - 8; shift >= 0; shift -= 8) {
    int* mine = counts + seat.lane * kDigit;
    for (int i = seat.member; i < kDigit; i += kTeam) mine[i] = 0;
    __syncthreads();
    const U known = prefix[seat.lane];
    if (seat.used)
      for (int64_t n = seat.member; n < s.patches; n += kTeam) {
        const U key = key_at(n);
        if (((key ^ known) >> shift) < kDigit) atomicAdd(&mine[(key >> shift) % kDigit], 1);
      }
    __syncthreads();
    if (seat.member < kDigitGroups) {
      int sum = 0;
      for (int i = 0; i < kDigit / kDigitGroups; ++i) sum += mine[seat.member * (kDigit / kDigitGroups) + i];
      groups[seat.lane * kDigitGroups + seat.member] = sum;
    }
    __syncthreads();
    if (seat.member == 0 && seat.used) {  // from the largest digit down
      int left = missing[seat.lane], group = kDigitGroups - 1;
      while (left > groups[seat.lane * kDigitGroups + group]) left -= groups[seat.lane * kDigitGroups + group--];
      int digit = (group + 1) * (kDigit / kDigitGroups) - 1;
      while (left > mine[digit]) left -= mine[digit--];
      missing[seat.lane] = left;
      prefix[seat.lane] = known | U(digit) << shift;
    }
    __syncthreads();
  }

  // Each thread now takes consecutive patches, so that winners are listed in their order.
  const U least = prefix[seat.lane];
  const int64_t share = (s.patches + kTeam - 1) / kTeam;
  const int64_t begin = seat.member * share, end = seat.used ? min(begin + share, s.patches) : 0;
  int above = 0, equal = 0;
  for (int64_t n = begin; n < end; ++n) {
    const U key = key_at(n);
    above += key > least;
    equal += key == least;
  }
  int* aboves = counts;             // (kClasses, kTeam), in the place of the counts
  int* equals = counts + kThreads;  // (kClasses, kTeam)
  aboves[seat.lane * kTeam + seat.member] = above;
  equals[seat.lane * kTeam + seat.member] = equal;
  __syncthreads();
  int equals_left = missing[seat.lane], place = 0;
  for (int i = 0; i < seat.member; ++i) {
    const int taken = min(equals[seat.lane * kTeam + i], equals_left);
    place += aboves[seat.lane * kTeam + i] + taken;
    equals_left -= taken;
  }
  double sum = 0;
  for (int64_t n = begin; n < end; ++n) {
    const U key = key_at(n);
    if (key < least || (key == least && equals_left-- <= 0)) continue;
    indices[(seat.b * s.most + place++) * s.classes + seat.c] = int32_t(n);
    sum += double(A(column[n * s.classes]));
  }
  sums[seat.lane * kTeam + seat.member] = sum;
  if (seat.used)
    for (int64_t i = k + seat.member; i < s.most; i += kTeam) indices[(seat.b * s.most + i) * s.classes + seat.c] = -1;
  __syncthreads();
  if (seat.member > 0 || !seat.used) return;
  for (int i = 1; i < kTeam; ++i) sum += sums[seat.lane * kTeam + i];
  pooled[seat.b * s.classes + seat.c] = O(Accumulate<O>(sum / k));
}

// A thread takes kStripRows patches of a class, and writes every one of them: the share of a winner, or zero.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 1)
    spread_kernel(const T* grad, const int32_t* indices, O* grad_scores, PoolShape s) {
  using A = Accumulate<T>;
  const int64_t strips = (s.patches + kStripRows - 1) / kStripRows;
  const int64_t item = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  const int64_t c = item % s.classes, strip = item / s.classes % strips, b = item / s.classes / strips;
  if (b >= s.batch) return;
  const int64_t begin = strip * kStripRows, end = min(begin + kStripRows, s.patches);
  const O share = O(A(grad[b * s.classes + c]) / A(winners(indices, b, c, s)));
  int64_t place = first_winner(indices, b, c, begin, s);
  const auto winner = [&] {
    return place < s.most ? int64_t(uint32_t(indices[(b * s.most + place) * s.classes + c])) : s.patches;
  };
  int64_t next = winner();
  for (int64_t n = begin; n < end; ++n) {
    const bool won = n == next;
    grad_scores[(b * s.patches + n) * s.classes + c] = won ? share : O(Accumulate<O>(0));
    if (won) {
      ++place;
      next = winner();
    }
  }
}

template <typename S, typename O, int most>
void sorted_on_device(const S* scores, int k, O* pooled, int32_t* indices, const PoolShape& s, unsigned blocks,
                      const char* what, void* stream) {
  const size_t bytes = most * kThreads * (sizeof(Key<Accumulate<S>>) + sizeof(int));
  launch(what, stream, blocks, kThreads, bytes, sorted_kernel<S, O, most>, scores, k, pooled, indices, s);
}

template <typename S, typename O>
void pool_on_device(const S* scores, Kept kept, O* pooled, int32_t* indices, const PoolShape& s, const char* what,
                    void* stream) {
  const unsigned blocks = unsigned(s.batch * ((s.classes + kClasses - 1) / kClasses));
  if (kept.counts || kept.k > kMostInRegisters) {
    const size_t bytes = kThreads * sizeof(double) + kClasses * (sizeof(Key<Accumulate<S>>) + sizeof(int)) +
                         kClasses * (kDigit + kDigitGroups) * sizeof(int);
    launch(what, stream, blocks, kThreads, bytes, threshold_kernel<S, O>, scores, kept, pooled, indices, s);
  } else if (kept.k == 1) {
    sorted_on_device<S, O, 1>(scores, 1, pooled, indices, s, blocks, what, stream);
  } else if (kept.k <= 4) {
    sorted_on_device<S, O, 4>(scores, int(kept.k), pooled, indices, s, blocks, what, stream);
  } else {
    sorted_on_device<S, O, kMostInRegisters>(scores, int(kept.k), pooled, indices, s, blocks, what, stream);
  }
}

template <typename T, typename O>
void spread_on_device(const T* grad, const int32_t* indices, O* grad_scores, const PoolShape& s, const char* what,
                      void* stream) {
  const int64_t items = s.batch * s.classes * ((s.patches + kStripRows - 1) / kStripRows);
  launch(what, stream, blocks_for(items, kThreads), kThreads, 0, spread_kernel<T, O>, grad, indices, grad_scores, s);
}

}  // namespace
}  // namespace toco
