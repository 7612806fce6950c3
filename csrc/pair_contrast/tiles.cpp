#include <cmath>

#include "pair_contrast/side.h"

#define TOCO_PER_ISA "pair_contrast/tiles.h"
#include "common/for_each_isa.h"

namespace toco {

template <typename T, typename A>
void pack_block(Tokens<T> tokens, int64_t image, int64_t width, bool normalize, bool all, int64_t block, Side<A>& side,
                A* rows) {
  const int64_t begin = block * kBlock, stride = stride_of(width),
                end = std::min<int64_t>(begin + kBlock, side.order.size());
  const int count = int(std::max<int64_t>(std::min(end, side.count) - begin, 0));
  const A* sources[kBlock];
  A ones[kBlock];
  best_isa([&]() TOCO_INLINE {
    for (int64_t i = 0; i < end - begin; ++i) {
      if (i >= count && !all) break;
      const T* token = tokens.at(image, side.order[begin + i]);
      Length<A>& length = side.lengths[begin + i];
      length = {1, 0, true};
      if (normalize) length = length_of(token, width, kShortestToken);
      if (i >= count) continue;
      A* row = rows + i * stride;
      for (int64_t d = 0; d < width; ++d) row[d] = A(token[d]) * length.inverse;
      std::fill(row + width, row + stride, A(0));
      sources[i] = row;
      ones[i] = 1;
    }
  });
  if (!count) return;
  CALL_BEST_ISA(pack_panel, sources, ones, count, stride, side.panels + begin * stride);
  for (int64_t strip = 0; strip < stride / kBlock; ++strip) {
    A* to = side.strips + (strip * side.padded() + begin) * kBlock;
    for (int64_t i = 0; i < count; ++i, to += kBlock) std::copy_n(sources[i] + strip * kBlock, kBlock, to);
    std::fill_n(to, (kBlock - count) * kBlock, A(0));
  }
}

template <typename A>
PairSums pair_block(PairForm form, const Side<A>& left, const Side<A>& right, const PairRule<A>& rule, int64_t block,
                    int64_t width, A* tile, A* grad) {
  PairSums sums{};
  CALL_BEST_ISA(pair_tiles, form, left, right, rule, block, width, stride_of(width), tile, sums, grad);
  return sums;
}

template <typename A>
AnchorSums anchor_block(const Side<A>& left, const Side<A>& right, A scale, int64_t block, int64_t width, A* tile,
                        A* grad) {
  AnchorSums sums{};
  CALL_BEST_ISA(anchor_tiles, left, right, scale, block, width, stride_of(width), tile, sums, grad);
  return sums;
}

template <typename A>
void compared_block(const Side<A>& left, const Side<A>& anchors, A scale, int64_t block, int64_t width, A* tile,
                    A* grad) {
  CALL_BEST_ISA(compared_tiles, left, anchors, scale, block, width, stride_of(width), tile, grad);
}

#define INSTANTIATE(T) \
  template void pack_block<T>(Tokens<T>, int64_t, int64_t, bool, bool, int64_t, Side<Accumulate<T>>&, Accumulate<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

#define INSTANTIATE(A)                                                                                                \
  template PairSums pair_block<A>(PairForm, const Side<A>&, const Side<A>&, const PairRule<A>&, int64_t, int64_t, A*, \
                                  A*);                                                                                \
  template AnchorSums anchor_block<A>(const Side<A>&, const Side<A>&, A, int64_t, int64_t, A*, A*);                   \
  template void compared_block<A>(const Side<A>&, const Side<A>&, A, int64_t, int64_t, A*, A*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
