#include <cmath>

#include "common/huge_pages.h"
#include "common/simd.h"
#include "pair_contrast/side.h"

namespace toco {
namespace {

template <typename T>
struct Input {
  Tokens<T> tokens;
  const int64_t* labels;
  Accumulate<T>* grad;  // or null
  int64_t count;        // tokens of an image
};

// What an image's labels say.
struct Labels {
  std::vector<int64_t> distinct, x, y;  // each label, and how many tokens have it
};

template <typename A>
void take_part(const int64_t* labels, int64_t tokens, int64_t ignore_index, const Labels* anchors, Side<A>& side) {
  side.order.resize(tokens);
  for (int64_t n = 0; n < tokens; ++n) side.order[n] = int32_t(n);
  const auto out = std::stable_partition(side.order.begin(), side.order.end(), [&](int32_t n) {
    if (labels[n] == ignore_index) return false;
    if (!anchors) return true;
    return anchors->y[std::lower_bound(anchors->distinct.begin(), anchors->distinct.end(), labels[n]) -
                      anchors->distinct.begin()] > 0;
  });
  side.count = out - side.order.begin();
  side.lengths.resize(tokens);
}

// Which tokens of an image take part. In InfoNCE an x must have a positive.
template <typename T, typename A = Accumulate<T>>
Labels arrange(const Input<T>& x, const Input<T>& y, int64_t b, const ContrastRule& rule, Side<A>& left,
               Side<A>& right) {
  Labels found;
  const int64_t *labels_x = x.labels + b * x.count, *labels_y = y.labels + b * y.count;
  std::vector<int64_t> all;
  for (const auto& [labels, count] : {std::pair(labels_x, x.count), std::pair(labels_y, y.count)})
    std::copy_if(labels, labels + count, std::back_inserter(all), [&](int64_t l) { return l != rule.ignore_index; });
  found.distinct = distinct(std::move(all));
  found.x.resize(found.distinct.size());
  found.y.resize(found.distinct.size());
  take_part(labels_y, y.count, rule.ignore_index, nullptr, right);
  number_labels(labels_y, found.distinct, right);
  for (int64_t i = 0; i < right.count; ++i) ++found.y[int64_t(right.ids[i])];
  take_part(labels_x, x.count, rule.ignore_index, rule.form == PairForm::kInfoNce ? &found : nullptr, left);
  number_labels(labels_x, found.distinct, left);
  for (int64_t i = 0; i < left.count; ++i) ++found.x[int64_t(left.ids[i])];
  if (rule.form == PairForm::kInfoNce)
    for (std::vector<A>* of_anchors : {&left.tops, &left.shares, &left.pulls}) of_anchors->assign(left.padded(), A(0));
  return found;
}

// Subtracts the mean of packed tokens from their strips. What pulls an anchor and what pushes it are both averages, so
// that changes nothing, but that their difference is exact where tokens share a direction.
template <typename A>
void subtract_mean(Side<A>& side, int64_t strip) {
  A* rows = side.strips + strip * side.padded() * kBlock;
  double sum[kBlock] = {};
  A mean[kBlock];
  for (int64_t i = 0; i < side.count; ++i)
    for (int64_t d = 0; d < kBlock; ++d) sum[d] += double(rows[i * kBlock + d]);
  for (int64_t d = 0; d < kBlock; ++d) mean[d] = A(sum[d] / double(side.count));
  for (int64_t i = 0; i < side.count; ++i)
    for (int64_t d = 0; d < kBlock; ++d) rows[i * kBlock + d] -= mean[d];
}

// Sums of packed tokens by label, in double: what pulls.
template <typename A>
void add_by_label(const Side<A>& side, int64_t stride, int64_t strip, double* sums) {  // (labels, stride)
  const A* row = side.strips + strip * side.padded() * kBlock;
  for (int64_t i = 0; i < side.count; ++i, row += kBlock) {
    double* sum = sums + int64_t(side.ids[i]) * stride + strip * kBlock;
    for (int64_t d = 0; d < kBlock; ++d) sum[d] += double(row[d]);
  }
}

// One image at a time: its tokens stay in the cache, and its blocks are enough for all threads.
template <typename T, typename A = Accumulate<T>>
class ImageContrast {
 public:
  ImageContrast(const Input<T>& x, const Input<T>& y, const ContrastRule& rule, PairShape s, const Parallel& parallel)
      : x_(x), y_(y), rule_(rule), s_(s), parallel_(parallel) {}

  // Weights of pairs, or of an anchor.
  PairRule<A> weights;
  double share = 0;

  double operator()(int64_t b, Side<A>& left, Side<A>& right, const Labels& labels) {
    left.panels = left_panels_.data;
    left.strips = left_strips_.data;
    right.panels = right_panels_.data;
    right.strips = right_strips_.data;
    pack(x_, b, left);
    pack(y_, b, right);
    double loss = 0;
    if (rule_.form == PairForm::kInfoNce) {
      loss = anchors(b, left, right, labels);
      if (y_.grad) compared(b, left, right);
    } else {
      loss = pairs(x_, b, left, right, true);
      if (y_.grad) pairs(y_, b, right, left, false);
    }
    return loss;
  }

 private:
  A* scratch(int thread) const { return scratch_.data + thread * (scratch_of(stride_) + stride_ * kBlock); }

  void pack(const Input<T>& input, int64_t b, Side<A>& side) const {
    parallel_.loop(side.blocks(), grain_for(4 * kBlock * s_.width), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t block = begin; block < end; ++block)
        pack_block(input.tokens, b, s_.width, rule_.normalize, false, block, side, scratch(thread));
    });
  }

  // each(block, tile, block's gradient or null) -> the block's share of the loss; their sum.
  template <typename Each>
  double blocks(const Input<T>& input, const Side<A>& left, const Side<A>& right, const Each& each) const {
    std::vector<double> losses(left.blocks());
    parallel_.in_turn(left.blocks(), 2 * kBlock * right.count * s_.width, [&](int64_t block, int thread) {
      A* tile = scratch(thread);
      losses[block] = each(block, tile, input.grad ? tile + scratch_of(stride_) : nullptr);
    });
    double total = 0;
    for (const double loss : losses) total += loss;
    return total;
  }

  // The gradient of a block's tokens: factor times what was added up, then what pull(label's number, row) makes of it.
  template <typename Pull>
  void store(const Input<T>& input, int64_t b, const Side<A>& side, int64_t block, A factor, const A* grad,
             const Pull& pull) const {
    if (!grad) return;
    for (int64_t k = 0; k < std::min(kBlock, side.count - block * kBlock); ++k) {
      const int64_t at = block * kBlock + k, n = side.order[at];
      A* row = input.grad + (b * input.count + n) * s_.width;
      for (int64_t d = 0; d < s_.width; ++d) row[d] = factor * grad[(d / kBlock * kBlock + k) * kBlock + d % kBlock];
      pull(int64_t(side.ids[at]), row);
      if (rule_.normalize)
        best_isa([&]() TOCO_INLINE { gradient_of_token(input.tokens.at(b, n), side.lengths[at], s_.width, row); });
    }
  }

  double pairs(const Input<T>& input, int64_t b, const Side<A>& left, const Side<A>& right, bool with_loss) const {
    return blocks(input, left, right, [&](int64_t block, A* tile, A* grad) {
      const PairSums sums = pair_block(rule_.form, left, right, weights, block, s_.width, tile, grad);
      store(input, b, left, block, A(1), grad, [](int64_t, A*) {});
      double loss = 0;
      for (int64_t k = 0; with_loss && k < std::min(kBlock, left.count - block * kBlock); ++k) loss += sums.losses[k];
      return loss;
    });
  }

  double anchors(int64_t b, Side<A>& left, Side<A>& right, const Labels& labels) {
    const double scale = share * rule_.scale;
    if (x_.grad && left.count) {
      sums_.assign(labels.distinct.size() * stride_, 0.0);
      parallel_.loop(stride_ / kBlock, grain_for(2 * right.count * kBlock), [&](int64_t begin, int64_t end, int) {
        for (int64_t strip = begin; strip < end; ++strip) {
          subtract_mean(right, strip);
          add_by_label(right, stride_, strip, sums_.data());
        }
      });
    }
    return blocks(x_, left, right, [&](int64_t block, A* tile, A* grad) {
      const AnchorSums sums = anchor_block(left, right, A(rule_.scale), block, s_.width, tile, grad);
      double loss = 0;
      for (int64_t k = 0; k < std::min(kBlock, left.count - block * kBlock); ++k) {
        const int64_t at = block * kBlock + k;
        const double pull = 1 / double(labels.y[int64_t(left.ids[at])]);
        left.tops[at] = A(sums.tops[k]);
        left.shares[at] = A(1 / sums.totals[k]);
        left.pulls[at] = A(pull);
        loss += share * (sums.tops[k] - sums.positives[k] * pull + std::log(sums.totals[k]));
      }
      store(x_, b, left, block, A(1), grad, [&](int64_t label, A* row) {
        const double pull = 1 / double(labels.y[label]), *sum = sums_.data() + label * stride_;
        for (int64_t d = 0; d < s_.width; ++d) row[d] = A(scale) * (row[d] - A(pull * sum[d]));
      });
      return loss;
    });
  }

  void compared(int64_t b, const Side<A>& left, const Side<A>& right) const {
    blocks(y_, right, left, [&](int64_t block, A* tile, A* grad) {
      compared_block(right, left, A(rule_.scale), block, s_.width, tile, grad);
      store(y_, b, right, block, A(share * rule_.scale), grad, [](int64_t, A*) {});
      return 0.0;
    });
  }

  const Input<T>& x_;
  const Input<T>& y_;
  const ContrastRule& rule_;
  PairShape s_;
  const Parallel& parallel_;
  int64_t stride_ = stride_of(s_.width);
  Buffer<A> left_panels_{stride_of(s_.x_count) * stride_}, left_strips_{stride_of(s_.x_count) * stride_};
  Buffer<A> right_panels_{stride_of(s_.y_count) * stride_}, right_strips_{stride_of(s_.y_count) * stride_};
  Buffer<A> scratch_{parallel_.threads * (scratch_of(stride_) + stride_ * kBlock)};
  std::vector<double> sums_;
};

}  // namespace

template <typename T>
void contrast_cpu(Tokens<T> x_tokens, Tokens<T> y_tokens, const int64_t* labels_x, const int64_t* labels_y,
                  ContrastRule rule, Accumulate<T>* loss, Accumulate<T>* grad_x, Accumulate<T>* grad_y, PairShape s,
                  const Parallel& parallel) {
  using A = Accumulate<T>;
  const Input<T> x{x_tokens, labels_x, grad_x, s.x_count}, y{y_tokens, labels_y, grad_y, s.y_count};
  std::vector<Side<A>> left(s.batch), right(s.batch);
  std::vector<Labels> labels(s.batch);
  parallel.loop(s.batch, grain_for((s.x_count + s.y_count) * 64), [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) labels[b] = arrange(x, y, b, rule, left[b], right[b]);
  });
  int64_t same = 0, all = 0, anchors = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    all += left[b].count * right[b].count;
    anchors += left[b].count;
    for (size_t l = 0; l < labels[b].distinct.size(); ++l) same += labels[b].x[l] * labels[b].y[l];
  }
  for (const Input<T>& input : {x, y})  // tokens that take no part
    if (input.grad) {
      const int64_t size = s.batch * input.count * s.width;
      prefer_huge_pages(input.grad, size * int64_t(sizeof(A)));
      std::fill_n(input.grad, size, A(0));
    }
  ImageContrast<T> contrast(x, y, rule, s, parallel);
  contrast.weights = {A(rule.scale), A(0), A(0.5 / double(same + 1)), A(0.5 / double(all - same + 1)), -1};
  contrast.share = anchors ? 1 / double(anchors) : 0;
  double total = rule.form == PairForm::kAbsCos ? 0.5 : 0;
  for (int64_t b = 0; b < s.batch; ++b) total += contrast(b, left[b], right[b], labels[b]);
  *loss = A(total);
}

#define INSTANTIATE(T)                                                                                              \
  template void contrast_cpu<T>(Tokens<T>, Tokens<T>, const int64_t*, const int64_t*, ContrastRule, Accumulate<T>*, \
                                Accumulate<T>*, Accumulate<T>*, PairShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
