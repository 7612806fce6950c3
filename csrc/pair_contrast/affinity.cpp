#include <numeric>

#include "common/huge_pages.h"
#include "common/simd.h"
#include "pair_contrast/side.h"

namespace toco {
namespace {

constexpr int64_t kDown = 4, kAcross = 8;  // a block's tokens lie in as compact a part of the grid as can be

// Tokens of blocks that are compact in the grid, where distance matters, or else one by one; those that take part
// first.
template <typename A>
void arrange(const int64_t* labels, int64_t tokens, const AffinityRule& rule, Side<A>& side) {
  side.order.resize(tokens);
  std::iota(side.order.begin(), side.order.end(), 0);
  const auto key = [&](int32_t n) {
    const int64_t row = n / rule.grid_width, column = n % rule.grid_width;
    return row / kDown * rule.grid_width * kDown + column / kAcross * kAcross * kDown;  // of the part of the grid
  };
  if (rule.radius >= 0)
    std::stable_sort(side.order.begin(), side.order.end(), [&](int32_t m, int32_t n) { return key(m) < key(n); });
  const auto ignored = std::stable_partition(side.order.begin(), side.order.end(),
                                             [&](int32_t n) { return labels[n] != rule.ignore_index; });
  side.count = ignored - side.order.begin();
  side.lengths.resize(tokens);
  std::vector<int64_t> seen(side.count);
  for (int64_t i = 0; i < side.count; ++i) seen[i] = labels[side.order[i]];
  number_labels(labels, distinct(std::move(seen)), side);
  if (rule.radius < 0) return;
  side.row.assign(side.padded(), A(0));
  side.column.assign(side.padded(), A(0));
  for (int64_t i = 0; i < side.count; ++i) {
    const int32_t row = int32_t(side.order[i] / rule.grid_width), column = int32_t(side.order[i] % rule.grid_width);
    side.row[i] = A(row);
    side.column[i] = A(column);
    if (i % kBlock == 0) side.extents.push_back({row, row, column, column});
    Extent& e = side.extents.back();
    e = {std::min(e.top, row), std::max(e.bottom, row), std::min(e.left, column), std::max(e.right, column)};
  }
}

struct Pairs {
  int64_t same = 0, all = 0;
};

// How many pairs of each kind there are: of one row of the grid with all rows within the radius, ...
template <typename A>
Pairs count_near(const std::vector<int32_t>& ids, int64_t row, int64_t rows, const AffinityRule& rule) {
  Pairs pairs;
  best_isa([&]() TOCO_INLINE {
    for (int64_t x = 0; x < rule.grid_width; ++x) {
      const int32_t id = ids[row * rule.grid_width + x];
      if (id < 0) continue;
      const int64_t left = std::max<int64_t>(x - rule.radius, 0),
                    right = std::min(x + rule.radius + 1, rule.grid_width);
      for (int64_t y = std::max<int64_t>(row - rule.radius, 0); y < std::min(row + rule.radius + 1, rows); ++y) {
        int32_t same = 0, all = 0;
        for (int64_t i = y * rule.grid_width + left; i < y * rule.grid_width + right; ++i) {
          same += ids[i] == id;
          all += ids[i] >= 0;
        }
        pairs.same += same;
        pairs.all += all;
      }
    }
  });
  return pairs;
}

// ... or of a whole image at any distance.
template <typename A>
Pairs count_all(const Side<A>& side) {
  std::vector<int64_t> counts(side.count);
  for (int64_t i = 0; i < side.count; ++i) ++counts[int64_t(side.ids[i])];
  Pairs pairs{0, side.count * side.count};
  for (const int64_t count : counts) pairs.same += count * count;
  return pairs;
}

template <typename A>
Pairs count_pairs(const std::vector<Side<A>>& sides, int64_t tokens, const AffinityRule& rule,
                  const Parallel& parallel) {
  const int64_t rows = rule.radius < 0 ? 1 : tokens ? tokens / rule.grid_width : 0, batch = sides.size();
  std::vector<Pairs> found(batch * rows);
  std::vector<std::vector<int32_t>> ids(rule.radius < 0 ? 0 : batch, std::vector<int32_t>(tokens, -1));
  for (int64_t b = 0; b < int64_t(ids.size()); ++b)
    for (int64_t i = 0; i < sides[b].count; ++i) ids[b][sides[b].order[i]] = int32_t(sides[b].ids[i]);
  const int64_t reach = 2 * std::max<int64_t>(rule.radius, 0) + 1;
  parallel.loop(batch * rows, grain_for(rule.grid_width * reach * reach / 8), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      found[i] = rule.radius < 0 ? count_all(sides[i]) : count_near<A>(ids[i / rows], i % rows, rows, rule);
  });
  Pairs total;
  for (const Pairs& pairs : found) {
    total.same += pairs.same;
    total.all += pairs.all;
  }
  return total;
}

// Of all tokens of an image, in double: the square of their sum is the sum over all pairs.
template <typename T, typename A = Accumulate<T>>
void add_tokens(Tokens<T> tokens, int64_t image, const AffinityRule& rule, PairShape s, double* sum) {
  std::fill_n(sum, s.width, 0.0);
  best_isa([&]() TOCO_INLINE {
    for (int64_t n = 0; n < s.x_count; ++n) {
      const T* token = tokens.at(image, n);
      const A scale = rule.normalize ? length_of(token, s.width, kShortestToken).inverse : A(1);
      for (int64_t d = 0; d < s.width; ++d) sum[d] += double(A(token[d]) * scale);
    }
  });
}

}  // namespace

template <typename T>
void affinity_loss_cpu(Tokens<T> features, const int64_t* labels, AffinityRule rule, Accumulate<T>* loss,
                       Accumulate<T>* grad_features, PairShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  std::vector<Side<A>> sides(s.batch);
  parallel.loop(s.batch, grain_for(s.x_count * 64), [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) arrange(labels + b * s.x_count, s.x_count, rule, sides[b]);
  });
  const Pairs pairs = count_pairs(sides, s.x_count, rule, parallel);

  const Buffer<double> totals(rule.center ? s.batch * s.width : 0);
  const double all_pairs = double(s.batch) * double(s.x_count) * double(s.x_count);
  double mean = 0;
  if (rule.center && all_pairs > 0) {
    parallel.loop(s.batch, grain_for(s.x_count * s.width), [&](int64_t begin, int64_t end, int) {
      for (int64_t b = begin; b < end; ++b) add_tokens(features, b, rule, s, totals.data + b * s.width);
    });
    for (int64_t i = 0; i < s.batch * s.width; ++i) mean += totals.data[i] * totals.data[i];
    mean /= all_pairs;
  }
  const PairRule<A> weights{A(rule.scale), A(rule.scale * mean), A(0.5 / double(pairs.same + 1)),
                            A(0.5 / double(pairs.all - pairs.same + 1)), rule.radius};

  // Few images at a time, so that their tokens stay in the cache.
  const int64_t group = std::max<int64_t>((parallel.threads + 1) / 2, 1024 / (s.x_count + 1));
  const int64_t stride = stride_of(s.width), padded = (s.x_count + kBlock - 1) / kBlock * kBlock;
  SideBuffers<A> buffers(std::min(group, s.batch) * padded, stride);
  const int64_t scratch_size = scratch_of(stride) + stride * kBlock;
  const Buffer<A> scratch(parallel.threads * scratch_size);
  if (grad_features) prefer_huge_pages(grad_features, s.batch * s.x_count * s.width * int64_t(sizeof(A)));
  double total = 0, slopes = 0;
  for (int64_t first = 0; first < s.batch; first += group) {
    const int64_t end_image = std::min(first + group, s.batch);
    buffers.give_to(sides, first, end_image);
    parallel.loop((end_image - first) * (padded / kBlock), grain_for(4 * kBlock * s.width),
                  [&](int64_t begin, int64_t end, int thread) {
                    for (int64_t i = begin; i < end; ++i) {
                      const int64_t b = first + i / (padded / kBlock);
                      pack_block(features, b, s.width, rule.normalize, rule.center, i % (padded / kBlock), sides[b],
                                 scratch.data + thread * scratch_size);
                    }
                  });
    const std::vector<BlockPlace> places = places_of(sides, first, end_image);
    std::vector<double> losses(places.size()), steepness(places.size());
    parallel.in_turn(places.size(), 2 * kBlock * s.x_count * s.width, [&](int64_t i, int thread) {
      const Side<A>& side = sides[places[i].image];
      const int64_t block = places[i].block;
      A *tile = scratch.data + thread * scratch_size, *grad = tile + scratch_of(stride);
      const PairSums sums =
          pair_block(PairForm::kSigmoid, side, side, weights, block, s.width, tile, grad_features ? grad : nullptr);
      for (int64_t k = 0; k < std::min(kBlock, side.count - block * kBlock); ++k) {
        losses[i] += sums.losses[k];
        steepness[i] += sums.slopes[k];
        if (!grad_features) continue;
        // A pair is met from both sides, and so is its derivative.
        A* row = grad_features + (places[i].image * s.x_count + side.order[block * kBlock + k]) * s.width;
        for (int64_t d = 0; d < s.width; ++d) row[d] = 2 * grad[(d / kBlock * kBlock + k) * kBlock + d % kBlock];
      }
    });
    for (size_t i = 0; i < places.size(); ++i) {
      total += losses[i];
      slopes += steepness[i];
    }
  }
  *loss = A(total);
  if (!grad_features) return;

  // The mean falls from every score.
  const double by_mean = all_pairs > 0 ? -2 * slopes / all_pairs : 0;
  parallel.loop(s.batch * s.x_count, grain_for(8 * s.width), [&](int64_t begin, int64_t end, int) {
    best_isa([&]() TOCO_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / s.x_count, at = i % s.x_count, n = sides[b].order[at];
        A* row = grad_features + (b * s.x_count + n) * s.width;
        if (at >= sides[b].count) std::fill_n(row, s.width, A(0));
        const double* sum = totals.data + b * s.width;
        for (int64_t d = 0; rule.center && d < s.width; ++d) row[d] += A(by_mean * sum[d]);
        if (rule.normalize && (rule.center || at < sides[b].count))
          gradient_of_token(features.at(b, n), sides[b].lengths[at], s.width, row);
      }
    });
  });
}

#define INSTANTIATE(T)                                                                                        \
  template void affinity_loss_cpu<T>(Tokens<T>, const int64_t*, AffinityRule, Accumulate<T>*, Accumulate<T>*, \
                                     PairShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
