// The pair loops of the patch-token contrast, compiled once per instruction set (common/for_each_isa.h).

#include "common/panels.h"

constexpr int kPanels = kTile / kPanel;

// Bit j is set where x[j] < 0, and where x[j] == 0.
struct Signs {
  uint32_t negative, zero;
};

template <typename A>
TOCO_TARGET static inline Signs signs_of(const A* x) {  // (kPanel)
  Signs signs{0, 0};
#if defined(__x86_64__)
  if constexpr (kVectorBytes == 64 && sizeof(A) == 4) {
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16), nought = _mm512_setzero_ps();
    signs.negative =
        _mm512_cmp_ps_mask(low, nought, _CMP_LT_OQ) | uint32_t(_mm512_cmp_ps_mask(high, nought, _CMP_LT_OQ)) << 16;
    signs.zero = _mm512_cmp_ps_mask(low, nought, _CMP_EQ_OQ) | uint32_t(_mm512_cmp_ps_mask(high, nought, _CMP_EQ_OQ))
                                                                   << 16;
    return signs;
  }
#endif
  for (int j = 0; j < kPanel; ++j) {
    signs.negative |= uint32_t(x[j] < 0) << j;
    signs.zero |= uint32_t(x[j] == 0) << j;
  }
  return signs;
}

// Transposes a square of 32 x 32 bits: bit j of word i becomes bit i of word j.
TOCO_TARGET static inline void transpose_bits(uint32_t* words) {
  uint32_t mask = 0x0000ffff;
  for (int half = 16; half; half /= 2, mask ^= mask << half)
    for (int i = 0; i < 32; ++i)
      if (!(i & half)) {
        const uint32_t exchanged = (words[i] >> half ^ words[i + half]) & mask;
        words[i] ^= exchanged << half;
        words[i + half] ^= exchanged;
      }
}

// What the tokens along one side of a tile gather from it.
template <typename A>
struct Side {
  A sums[kTile] = {};  // of w |s|
  uint64_t negative[kTile] = {}, zero[kTile] = {};
};

// Weighs the cosines of panel p's tokens with panel q's, and notes their signs: for p's tokens in `left` and, unless p
// is q, for q's in `right`.
template <typename A>
TOCO_TARGET static inline void weigh_panels(A* cosines, const ContrastImage<A>& image, Weights<A> weights, int64_t p,
                                            int64_t q, Side<A>& left, Side<A>& right) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize, kVectors = kPanel / kSize;
  const A *left_ids = image.ids.data() + p * kPanel, *right_ids = image.ids.data() + q * kPanel;
  const int rows = int(std::min<int64_t>(kPanel, image.count - p * kPanel));
  const int64_t columns = image.count - q * kPanel;
  const uint32_t valid = columns < kPanel ? (uint32_t(1) << columns) - 1 : ~uint32_t(0);
  const int p_at = p % kPanels * kPanel, q_at = q % kPanels * kPanel;
  uint32_t negative[kPanel] = {}, zero[kPanel] = {};
  V column[kVectors] = {};
  for (int i = 0; i < rows; ++i) {
    A* row = cosines + i * kPanel;
    if (p == q) row[i] = 0;
    if (image.negative) {
      const Signs signs = signs_of(row);
      negative[i] = signs.negative;
      zero[i] = signs.zero & valid & ~(p == q ? uint32_t(1) << i : 0);
    }
    V sum{};
    for (int v = 0; v < kVectors; ++v) {
      const V cosine = *(const V*)(row + v * kSize);
      const auto alike = *(const U*)(right_ids + v * kSize) == left_ids[i];
      const V weighed = (alike ? V{} + weights.same : V{} + weights.different) * (cosine < 0 ? -cosine : cosine);
      sum += weighed;
      column[v] += weighed;
    }
    for (int l = 0; l < kSize; ++l) left.sums[p_at + i] += sum[l];
    left.negative[p_at + i] |= uint64_t(negative[i]) << q_at;
    left.zero[p_at + i] |= uint64_t(zero[i]) << q_at;
  }
  if (p == q) return;
  transpose_bits(negative);
  transpose_bits(zero);
  for (int j = 0; j < kPanel; ++j) {
    right.sums[q_at + j] += column[j / kSize][j % kSize];
    right.negative[q_at + j] |= uint64_t(negative[j]) << p_at;
    right.zero[q_at + j] |= uint64_t(zero[j]) << p_at;
  }
}

// The cosines of panel p's tokens with panel q's, of as many tokens of p as there are.
template <typename A>
TOCO_TARGET static inline void multiply_tokens(const ContrastImage<A>& image, int64_t p, int64_t q, int64_t width,
                                               A* cosines) {
  const int rows = int(std::min<int64_t>(kPanel, image.count - p * kPanel));
  if (image.panels) {
    multiply_panels(image.panels + p * width * kPanel, image.panels + q * width * kPanel, width, rows, cosines);
    return;
  }
  if constexpr (sizeof(A) == sizeof(float)) {
    const int64_t pairs = (width + 1) / 2;
    multiply_bf16_panels(image.bf16_panels + p * pairs * kPanel, image.bf16_panels + q * pairs * kPanel, pairs, rows,
                         cosines);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < kPanel; ++j)
        cosines[i * kPanel + j] *= image.scales[p * kPanel + i] * image.scales[q * kPanel + j];
  }
}

// All pairs of a token in tile `row` with one in tile `column` >= row.
template <typename A>
TOCO_TARGET void contrast_tile(const ContrastImage<A>& image, Weights<A> weights, int64_t width, int64_t row,
                               int64_t column) {
  alignas(64) A cosines[kPanel * kPanel];
  Side<A> rows, columns;
  Side<A>& across = row == column ? rows : columns;
  for (int64_t left = row * kPanels; left < (row + 1) * kPanels; ++left)
    for (int64_t right = std::max(left, column * kPanels); right < (column + 1) * kPanels; ++right) {
      if (right * kPanel >= image.count) continue;
      // The panel with fewer tokens gives the rows: missing ones cost nothing.
      const bool swap = (right + 1) * kPanel > image.count;
      const int64_t p = swap ? right : left, q = swap ? left : right;
      multiply_tokens(image, p, q, width, cosines);
      weigh_panels(cosines, image, weights, p, q, swap ? across : rows, swap ? rows : across);
    }
  const auto store = [&](const Side<A>& side, int64_t of, int64_t with) TOCO_INLINE {
    const int64_t at = with * image.padded() + of * kTile;
    std::copy(side.sums, side.sums + kTile, image.sums + at);
    if (!image.negative) return;
    std::copy(side.negative, side.negative + kTile, image.negative + at);
    std::copy(side.zero, side.zero + kTile, image.zero + at);
  };
  store(rows, row, column);
  if (row != column) store(columns, column, row);
}

constexpr int64_t kAhead = 8;  // tokens

// The sums of every subset of four vectors; bit k of the index says whether the k-th belongs to it.
template <typename V>
TOCO_TARGET static inline __attribute__((always_inline)) void subset_sums(const V* four, V* sums) {  // (16)
  V s[16] = {};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 8
    for (int subset = 0; subset < 1 << k; ++subset) s[subset | 1 << k] = s[subset] + four[k];
  }
#pragma GCC unroll 16
  for (int subset = 0; subset < 16; ++subset) sums[subset] = s[subset];
}

// The sum of those of 64 vectors whose bit is set, from the sums of the subsets of every four.
template <typename V>
TOCO_TARGET static inline __attribute__((always_inline)) void add_selected(const V* subsets, uint64_t bits, V weight,
                                                                           V& sum) {
  V even = subsets[bits & 15], odd = subsets[16 + (bits >> 4 & 15)];
#pragma GCC unroll 8
  for (int four = 2; four < 16; four += 2) {
    even += subsets[four * 16 + (bits >> 4 * four & 15)];
    odd += subsets[four * 16 + 16 + (bits >> (4 * four + 4) & 15)];
  }
  sum += weight * (even + odd);
}

// The bits of the tokens in `range` within a tile's word.
TOCO_TARGET static inline uint64_t bits_in(Range range, int64_t tile) {
  const int64_t begin = std::max<int64_t>(range.begin - tile * kTile, 0);
  const int64_t end = std::min<int64_t>(range.end - tile * kTile, kTile);
  if (begin >= end) return 0;
  return (end == kTile ? ~uint64_t(0) : (uint64_t(1) << end) - 1) & ~((uint64_t(1) << begin) - 1);
}

// Some channels of the gradient of every unit vector of an image: kStrips vectors of them, from `channel` on.
//
// Token i's is the sum over j of w_ij sign(s_ij) x_j. With sign = 1 - 2 [s < 0] - [s = 0], the 1 needs no more than the
// sum of each class, and the rest is a sum over a subset of the tokens: a quarter of the additions, because the sums of
// all subsets of four tokens are made beforehand, for all i together.
template <typename T, typename A>
TOCO_TARGET void contrast_gradient(const ContrastImage<A>& image, Weights<A> weights, const T* tokens, int64_t stride,
                                   int64_t width, int64_t channel, A* scratch, A* grad) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  const int64_t padded = image.padded(), channels = std::min<int64_t>(kStrips * kSize, width - channel);
  const int64_t strips = (channels + kSize - 1) / kSize, whole = channels / kSize;
  V* subsets = (V*)scratch;            // (kTile / 4, 16)
  V* units = subsets + kTile * 4;      // (strips, padded)
  V* sums = units + kStrips * padded;  // (strips, padded)
  const V same = V{} + weights.same, different = V{} + weights.different;

  // Rows of tokens are far apart: the processor does not guess the next one.
  const auto ahead = [&](const auto* rows, int64_t i, int64_t row_stride) TOCO_INLINE {
    if (i + kAhead < image.count)
      for (int64_t d = 0; d < channels; d += 64 / sizeof(*rows))
        __builtin_prefetch(rows + image.order[i + kAhead] * row_stride + channel + d);
  };
  for (int64_t i = 0; i < padded; ++i) {
    ahead(tokens, i, stride);
    const T* token = i < image.count ? tokens + image.order[i] * stride + channel : nullptr;
    for (int64_t strip = 0; strip < strips; ++strip) {
      V unit{};
      if (token) {
        const int64_t rest = std::min<int64_t>(channels - strip * kSize, kSize);
        if constexpr (sizeof(T) == sizeof(A)) {
          if (rest == kSize) unit = *(const U*)(token + strip * kSize);
        }
        if (sizeof(T) != sizeof(A) || rest < kSize)
          for (int64_t d = 0; d < rest; ++d) unit[d] = A(token[strip * kSize + d]);
        unit *= image.lengths[i].inverse;
      }
      units[strip * padded + i] = unit;
    }
  }

  for (int64_t strip = 0; strip < strips; ++strip, units += padded, sums += padded) {
    // In double: where tokens share a direction, these sums are nearly all of the gradient, and then nearly cancel.
    double total[kSize] = {};
    for (int64_t i = 0; i < image.count; ++i)
      for (int l = 0; l < kSize; ++l) total[l] += double(units[i][l]);
    for (const Range range : image.classes) {
      double own[kSize] = {};
      for (int64_t i = range.begin; i < range.end; ++i)
        for (int l = 0; l < kSize; ++l) own[l] += double(units[i][l]);
      for (int64_t i = range.begin; i < range.end; ++i)
        for (int l = 0; l < kSize; ++l)
          sums[i][l] = A(double(weights.different) * (total[l] - own[l]) +
                         double(weights.same) * (own[l] - double(units[i][l])));
    }
    for (int64_t tile = 0; tile < image.tiles(); ++tile) {
      for (int four = 0; four < kTile / 4; ++four) subset_sums(units + tile * kTile + 4 * four, subsets + 16 * four);
      const uint64_t *negative = image.negative + tile * padded, *zero = image.zero + tile * padded;
      for (const Range range : image.classes) {
        const uint64_t own = bits_in(range, tile);
        for (int64_t i = range.begin; i < range.end; ++i) {
          if (negative[i] & own) add_selected(subsets, negative[i] & own, -2 * same, sums[i]);
          if (negative[i] & ~own) add_selected(subsets, negative[i] & ~own, -2 * different, sums[i]);
          if (zero[i]) {
            add_selected(subsets, zero[i] & own, -same, sums[i]);
            add_selected(subsets, zero[i] & ~own, -different, sums[i]);
          }
        }
      }
    }
  }
  units -= strips * padded;
  sums -= strips * padded;

  for (int64_t i = 0; i < image.count; ++i) {
    ahead(grad, i, width);
    A* row = grad + image.order[i] * width + channel;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const V gradient = 2 * sums[strip * padded + i];
      if (strip < whole)
        *(U*)(row + strip * kSize) = gradient;
      else
        for (int64_t d = strip * kSize; d < channels; ++d) row[d] = gradient[d - strip * kSize];
    }
  }
}
