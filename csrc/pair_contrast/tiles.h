// Tiles of pairs, compiled once per instruction set (common/for_each_isa.h). A tile has a row for each token of the
// right side, kBlock wide: the tokens of the left side's block lie side by side in vectors.

#include "common/exp.h"
#include "common/panels.h"

static_assert(kPanel == kBlock, "a block is a panel");

constexpr int64_t kDeep = 64;  // columns of two panels that stay in the first cache beside a tile

// The products of a block of the left side with a block of the right.
template <typename A>
TOCO_TARGET static inline int multiply_blocks(const Side<A>& left, const Side<A>& right, int64_t block, int64_t other,
                                              int64_t width, int64_t stride, A* tile) {
  const int rows = int(std::min(kBlock, right.count - other * kBlock));
  const A *above = right.panels + other * stride * kBlock, *beside = left.panels + block * stride * kBlock;
  std::fill(tile, tile + kBlock * kBlock, A(0));
  for (int64_t k = 0; k < width; k += kDeep)
    multiply_add(above + k * kPanel, beside + k * kPanel, kPanel, std::min(kDeep, width - k), rows, tile, kPanel);
  return rows;
}

// grad += slopesᵀ · tokens, for `depth` tokens of the right side from block `first` on.
template <typename A>
TOCO_TARGET static inline void add_gradient(const Side<A>& right, int64_t first, int depth, int64_t stride,
                                            const A* slopes,
                                            A* grad) {  // (depth, kBlock), (stride / kBlock, kBlock, kBlock)
  for (int64_t strip = 0; strip < stride / kBlock; ++strip)
    multiply_add(slopes, right.strips + (strip * right.padded() + first * kBlock) * kBlock, kBlock, depth, int(kBlock),
                 grad + strip * kBlock * kBlock, kBlock);
}

// Turns products into derivatives by them, and adds up losses. Pairs beyond the radius weigh nothing where `kNear`.
template <PairForm form, bool kNear, typename A>
TOCO_TARGET static inline void weigh(const Side<A>& left, const Side<A>& right, const PairRule<A>& rule, int64_t block,
                                     int64_t first, int rows, A* tile, PairSums& sums) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize, kVectors = kBlock / kSize;
  const A radius = A(rule.radius);
  const int64_t at = block * kBlock;
  V losses[kVectors] = {}, slopes[kVectors] = {};
  for (int v = 0; v < kVectors; ++v) {
    const V ids = *(const U*)(left.ids.data() + at + v * kSize);
    V row{}, column{};
    if constexpr (kNear) {
      row = *(const U*)(left.row.data() + at + v * kSize);
      column = *(const U*)(left.column.data() + at + v * kSize);
    }
    for (int j = 0; j < rows; ++j) {
      V& product = *(V*)(tile + j * kBlock + v * kSize);
      const int64_t other = first * kBlock + j;
      const auto alike = ids == right.ids[other];
      V weight = alike ? V{} + rule.same : V{} + rule.different;
      if constexpr (kNear) {
        const V down = row - right.row[other], across = column - right.column[other];
        weight = (down <= radius) & (down >= -radius) & (across <= radius) & (across >= -radius) ? weight : V{};
      }
      const V z = product * rule.scale - rule.shift, negative = -z, absolute = z < 0 ? negative : z;
      const V turned = -weight, towards = alike ? turned : weight;  // the sign of likeness in the loss
      if constexpr (form == PairForm::kAbsCos) {
        losses[v] += towards * absolute;
        const V back = -towards, none = towards * z;  // 0, or NaN
        product = rule.scale * (z > 0 ? towards : z < 0 ? back : none);
      } else {
        V e = -absolute;
        exp_nonpositive(e);
        const V large = 1 / (1 + e), small = e * large;  // sigmoids of |z| and of -|z|
        const V distance = alike ? negative : z;
        losses[v] += weight * (distance < 0 ? small : large);
        product = rule.scale * towards * (large * small);
      }
      slopes[v] += product;
    }
  }
  for (int v = 0; v < kVectors; ++v)
    for (int l = 0; l < kSize; ++l) {
      sums.losses[v * kSize + l] += double(losses[v][l]);
      sums.slopes[v * kSize + l] += double(slopes[v][l]);
    }
}

// A block of the left side against all of the right: its sums, and the gradient of its tokens where it is wanted.
template <PairForm form, typename A>
TOCO_TARGET static inline void pair_block_of(const Side<A>& left, const Side<A>& right, const PairRule<A>& rule,
                                             int64_t block, int64_t width, int64_t stride, A* tile, PairSums& sums,
                                             A* grad) {
  if (grad) std::fill(grad, grad + stride * kBlock, A(0));
  const auto apart = [&](int64_t other) TOCO_INLINE {
    return rule.radius >= 0 && !left.extents[block].within(right.extents[other], rule.radius);
  };
  for (int64_t other = 0; other < right.blocks();) {
    if (apart(other)) {
      ++other;
      continue;
    }
    const int64_t first = other;
    int depth = 0;
    for (; other < right.blocks() && other < first + kTogether && !apart(other); ++other) {
      A* scores = tile + (other - first) * kBlock * kBlock;
      const int rows = multiply_blocks(left, right, block, other, width, stride, scores);
      if (rule.radius >= 0 && !left.extents[block].surely_within(right.extents[other], rule.radius))
        weigh<form, true>(left, right, rule, block, other, rows, scores, sums);
      else
        weigh<form, false>(left, right, rule, block, other, rows, scores, sums);
      depth += rows;
    }
    if (grad) add_gradient(right, first, depth, stride, tile, grad);
  }
}

template <typename A>
TOCO_TARGET void pair_tiles(PairForm form, const Side<A>& left, const Side<A>& right, const PairRule<A>& rule,
                            int64_t block, int64_t width, int64_t stride, A* tile, PairSums& sums, A* grad) {
  if (form == PairForm::kAbsCos)
    pair_block_of<PairForm::kAbsCos>(left, right, rule, block, width, stride, tile, sums, grad);
  else
    pair_block_of<PairForm::kSigmoid>(left, right, rule, block, width, stride, tile, sums, grad);
}

// InfoNCE of a block of anchors. As in flash attention, exponentials are relative to the largest score so far, and what
// was added up shrinks when a larger one comes.
template <typename A>
TOCO_TARGET void anchor_tiles(const Side<A>& left, const Side<A>& right, A scale, int64_t block, int64_t width,
                              int64_t stride, A* tile, AnchorSums& sums, A* grad) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize, kVectors = kBlock / kSize;
  if (grad) std::fill(grad, grad + stride * kBlock, A(0));
  V top[kVectors];
  for (int v = 0; v < kVectors; ++v) top[v] = V{} - A(INFINITY);
  for (int64_t first = 0; first < right.blocks(); first += kTogether) {
    int depth = 0;
    for (int64_t other = first; other < std::min(first + kTogether, right.blocks()); ++other)
      depth += multiply_blocks(left, right, block, other, width, stride, tile + (other - first) * kBlock * kBlock);
    alignas(kVectorBytes) A shrink[kBlock];
    bool shrinks = false;
    for (int v = 0; v < kVectors; ++v) {
      const V ids = *(const U*)(left.ids.data() + block * kBlock + v * kSize);
      V highest = top[v], positive{}, total{};
      for (int j = 0; j < depth; ++j) {
        V& z = *(V*)(tile + j * kBlock + v * kSize);
        z *= scale;
        highest = z > highest ? z : highest;
        positive += ids == right.ids[first * kBlock + j] ? z : V{};
      }
      V factor = top[v] - highest;
      for (int l = 0; l < kSize; ++l) shrinks |= first > 0 && factor[l] < 0;
      exp_nonpositive(factor);
      *(V*)(shrink + v * kSize) = factor;
      for (int j = 0; j < depth; ++j) {
        V& z = *(V*)(tile + j * kBlock + v * kSize);
        z -= highest;
        exp_nonpositive(z);
        total += z;
      }
      top[v] = highest;
      for (int l = 0; l < kSize; ++l) {
        double& sum = sums.totals[v * kSize + l];
        sum = (first ? sum * double(factor[l]) : 0.0) + double(total[l]);
        sums.positives[v * kSize + l] += double(positive[l]);
      }
    }
    if (!grad) continue;
    for (int64_t k = 0; shrinks && k < stride * kBlock; k += kSize) *(V*)(grad + k) *= shrink[k / kBlock % kBlock];
    add_gradient(right, first, depth, stride, tile, grad);
  }
  for (int i = 0; i < kBlock; ++i) {
    sums.tops[i] = double(top[i / kSize][i % kSize]);
    const A share = A(1 / sums.totals[i]);
    for (int64_t k = 0; grad && k < stride; ++k) grad[k / kBlock * kBlock * kBlock + i * kBlock + k % kBlock] *= share;
  }
}

template <typename A>
TOCO_TARGET void compared_tiles(const Side<A>& left, const Side<A>& anchors, A scale, int64_t block, int64_t width,
                                int64_t stride, A* tile, A* grad) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  std::fill(grad, grad + stride * kBlock, A(0));
  for (int64_t first = 0; first < anchors.blocks(); first += kTogether) {
    int depth = 0;
    for (int64_t other = first; other < std::min(first + kTogether, anchors.blocks()); ++other)
      depth += multiply_blocks(left, anchors, block, other, width, stride, tile + (other - first) * kBlock * kBlock);
    // Rounded before the largest is subtracted, as that was.
    for (int64_t k = 0; k < depth * kBlock; k += kSize) *(V*)(tile + k) *= scale;
    for (int j = 0; j < depth; ++j) {
      const int64_t i = first * kBlock + j;
      for (int64_t k = 0; k < kBlock; k += kSize) {
        V& z = *(V*)(tile + j * kBlock + k);
        V e = z - anchors.tops[i];
        exp_nonpositive(e);
        const V pull =
            *(const U*)(left.ids.data() + block * kBlock + k) == anchors.ids[i] ? V{} + anchors.pulls[i] : V{};
        z = e * anchors.shares[i] - pull;
      }
    }
    add_gradient(anchors, first, depth, stride, tile, grad);
  }
}
