// The tokens of one image on one side of its pairs: which take part, packed for products.
#pragma once
#include <algorithm>
#include <vector>

#include "common/buffer.h"
#include "common/unit_rows.h"
#include "pair_contrast/pair_contrast.h"

namespace toco {

constexpr int64_t kBlock = 32;            // tokens that are packed together, a panel of common/panels.h
constexpr int64_t kTogether = 2;          // blocks whose pairs are multiplied before their gradient is added up
constexpr double kShortestToken = 1e-12;  // a norm below this counts as this

// The rows and columns of the grid that a block's tokens lie in.
struct Extent {
  int32_t top, bottom, left, right;  // inclusive

  bool within(const Extent& other, int64_t radius) const {  // whether any two of their tokens can be a pair
    return top - other.bottom <= radius && other.top - bottom <= radius && left - other.right <= radius &&
           other.left - right <= radius;
  }
  bool surely_within(const Extent& other, int64_t radius) const {  // whether all are
    return bottom - other.top <= radius && other.bottom - top <= radius && right - other.left <= radius &&
           other.right - left <= radius;
  }
};

template <typename A>
struct Side {
  int64_t count = 0;               // tokens that take part
  std::vector<int32_t> order;      // (N) those, then the others
  std::vector<A> ids;              // (padded) the number of a token's label
  std::vector<A> row, column;      // (padded) its place in the grid; empty without a radius
  std::vector<Extent> extents;     // (blocks); empty without a radius
  std::vector<Length<A>> lengths;  // (N) in `order`; of the others only where somebody needs them

  // (padded) of InfoNCE's anchors: the largest score, one over the sum of exponentials relative to it, and one over the
  // number of positives.
  std::vector<A> tops, shares, pulls;

  // In buffers that the images share:
  A* panels;  // (blocks, stride, kBlock)
  A* strips;  // (stride / kBlock, padded, kBlock): the same numbers, token by token

  int64_t blocks() const { return (count + kBlock - 1) / kBlock; }
  int64_t padded() const { return blocks() * kBlock; }
};

// How scores come from products, and what pairs weigh.
template <typename A>
struct PairRule {
  A scale, shift;     // score = scale * product - shift
  A same, different;  // weights of a pair
  int64_t radius;     // < 0: any
};

// What a block of tokens gathers from all of the other side.
struct PairSums {
  double losses[kBlock], slopes[kBlock];
};

// Multiples of a block: products need no edges.
inline int64_t stride_of(int64_t width) { return (width + kBlock - 1) / kBlock * kBlock; }

// Numbers that one thread needs beside its block's gradient: a tile, or the rows of a block before they are packed.
inline int64_t scratch_of(int64_t stride) { return std::max(kTogether * kBlock, stride) * kBlock; }

// The labels of tokens that take part, sorted, each once: a label's place is its number.
inline std::vector<int64_t> distinct(std::vector<int64_t> labels) {
  std::sort(labels.begin(), labels.end());
  labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
  return labels;
}

template <typename A>
void number_labels(const int64_t* labels, const std::vector<int64_t>& distinct, Side<A>& side) {
  side.ids.assign(side.padded(), A(-1));
  for (int64_t i = 0; i < side.count; ++i)
    side.ids[i] = A(std::lower_bound(distinct.begin(), distinct.end(), labels[side.order[i]]) - distinct.begin());
}

// Measures and packs the tokens of one block, as unit vectors where `normalize`; of tokens that take no part the length
// alone, where `all`. `rows` is scratch.
template <typename T, typename A = Accumulate<T>>
void pack_block(Tokens<T> tokens, int64_t image, int64_t width, bool normalize, bool all, int64_t block, Side<A>& side,
                A* rows);

// A block of the left side against all of the right: its sums, and the gradient of its tokens where it is wanted, which
// is (stride / kBlock, kBlock, kBlock). `tile` is scratch.
template <typename A>
PairSums pair_block(PairForm form, const Side<A>& left, const Side<A>& right, const PairRule<A>& rule, int64_t block,
                    int64_t width, A* tile, A* grad);

// InfoNCE of a block of anchors.
struct AnchorSums {
  double tops[kBlock], totals[kBlock];  // the largest score, and the sum of exponentials relative to it
  double positives[kBlock];             // the sum of positives' scores
};

// Its sums; `grad` becomes Σ_j softmax_ij y_j with y from `right`'s strips.
template <typename A>
AnchorSums anchor_block(const Side<A>& left, const Side<A>& right, A scale, int64_t block, int64_t width, A* tile,
                        A* grad);

// The same from the other side: `grad` becomes Σ_i (softmax_ij - 1 / |P_i| where j is in P_i) x_i for a block of those
// that anchors are compared with.
template <typename A>
void compared_block(const Side<A>& left, const Side<A>& anchors, A scale, int64_t block, int64_t width, A* tile,
                    A* grad);

// Sides' panels and strips, one behind the other; as large as the largest group needs.
template <typename A>
class SideBuffers {
 public:
  SideBuffers(int64_t tokens, int64_t stride) : stride_(stride), panels_(tokens * stride), strips_(tokens * stride) {}

  void give_to(std::vector<Side<A>>& sides, int64_t begin, int64_t end) {
    int64_t used = 0;
    for (int64_t b = begin; b < end; ++b) {
      sides[b].panels = panels_.data + used * stride_;
      sides[b].strips = strips_.data + used * stride_;
      used += sides[b].padded();
    }
  }

 private:
  int64_t stride_;
  Buffer<A> panels_, strips_;
};

struct BlockPlace {
  int64_t image, block;
};

template <typename A>
std::vector<BlockPlace> places_of(const std::vector<Side<A>>& sides, int64_t begin, int64_t end) {
  std::vector<BlockPlace> places;
  for (int64_t b = begin; b < end; ++b)
    for (int64_t block = 0; block < sides[b].blocks(); ++block) places.push_back({b, block});
  return places;
}

}  // namespace toco
