// One image of the patch-token contrast: which tokens take part, and what the passes over their pairs leave behind.
#pragma once
#include <vector>

#include "common/bf16_dots.h"
#include "common/buffer.h"
#include "common/unit_rows.h"
#include "patch_contrast/patch_contrast.h"

namespace toco {

constexpr int64_t kTile = 64;   // tokens along each side of a tile of pairs: the signs of a row's pairs are one word
constexpr int64_t kStrips = 4;  // vectors of channels that one task computes the gradient of

struct Range {
  int64_t begin, end;
};

template <typename A>
struct ContrastImage {
  int64_t count = 0;               // tokens that take part
  std::vector<int32_t> order;      // (N) tokens that take part, those of a label together; then the ignored ones
  std::vector<Range> classes;      // where the tokens of each label are, in `order`
  std::vector<A> ids;              // (padded) the number of a token's class
  std::vector<Length<A>> lengths;  // (count)
  std::vector<A> scales;           // (padded) of a token in bf16_panels: times this it has length 1

  // In buffers that the images share:
  A* panels;                  // (padded / kPanel, D, kPanel) unit vectors; null where bf16_panels are
  BFloat16Pair* bf16_panels;  // (padded / kPanel, (D + 1) / 2, kPanel) bfloat16 tokens; null where `panels` are
  A* sums;                    // (tiles, padded) row_sums, by tile
  uint64_t* negative;         // (tiles, padded) where cosines of a row are < 0; null when no gradient is wanted
  uint64_t* zero;             // (tiles, padded) where they are exactly 0

  int64_t tiles() const { return (count + kTile - 1) / kTile; }
  int64_t padded() const { return tiles() * kTile; }
};

// Weights of a pair's |cosine| in the loss.
template <typename A>
struct Weights {
  A same, different;
};

}  // namespace toco
