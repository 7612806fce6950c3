#include "patch_contrast/contrastive_error.h"

#include <algorithm>
#include <type_traits>

#include "common/huge_pages.h"

#define TOCO_PER_ISA "patch_contrast/error_pairs.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

constexpr int kPanel = portable::kPanel;

// The classes that images show, and the sureness of every patch; weights make means of means out of sums over pairs.
template <typename A>
std::vector<PresentClass<A>> present_classes(const A* scores, Flags classes, int64_t class_count, double threshold,
                                             PatchShape s, const Parallel& parallel) {
  std::vector<PresentClass<A>> present;
  std::vector<int64_t> channel;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < class_count; ++c)
      if (classes[b * class_count + c]) {
        present.emplace_back(b, s.patches);
        channel.push_back(c);
      }
  const A above = A(threshold), below = A(1 - threshold);
  parallel.loop(present.size(), grain_for(4 * s.patches), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      PresentClass<A>& p = present[i];
      const A* score = scores + p.image * s.patches * class_count + channel[i];
      for (int64_t n = 0; n < s.patches; ++n, score += class_count) {
        p.sureness[n] = *score > above ? Sureness::kHigh : *score < below ? Sureness::kLow : Sureness::kNone;
        p.high += p.sureness[n] == Sureness::kHigh;
        p.low += p.sureness[n] == Sureness::kLow;
      }
    }
  });
  double positives = 0, negatives = 0;
  for (const PresentClass<A>& p : present) {
    positives += p.high > 1;
    negatives += p.high > 0 && p.low > 0;
  }
  for (PresentClass<A>& p : present) {
    if (p.high > 1) p.positive = A(1 / (positives * double(p.high) * double(p.high - 1)));
    if (p.high > 0 && p.low > 0) p.negative = A(1 / (negatives * double(p.high) * double(p.low)));
  }
  return present;
}

// Sums of unit vectors take the place of pairs: with u the sum over high and v the sum over low,
//
//     sum over i != j in high of (1 - s_ij) / 2  =  (n (n - 1) - |u|^2 + sum |f|^2) / 2
//     sum over high and low of (1 + s_ij) / 2    =  (n m + <u, v>) / 2
template <typename T, typename A = Accumulate<T>>
double linear_error(Tokens<T> tokens, const std::vector<PresentClass<A>>& present,
                    const std::vector<Length<A>>& lengths, A* grad_tokens, PatchShape s, const Parallel& parallel) {
  constexpr int64_t kStrip = 128;
  const int64_t strips = (s.width + kStrip - 1) / kStrip, count = present.size();
  // In double: |u|^2 and the number of patches are nearly equal where patches differ.
  const Buffer<double> sums(count * 2 * s.width);
  std::vector<int64_t> first(s.batch + 1);  // of an image's classes
  for (const PresentClass<A>& p : present) ++first[p.image + 1];
  for (int64_t b = 0; b < s.batch; ++b) first[b + 1] += first[b];

  parallel.loop(s.batch * strips, grain_for(s.patches * kStrip), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / strips, channel = i % strips * kStrip;
      const int64_t channels = std::min(kStrip, s.width - channel);
      for (int64_t c = first[b]; c < first[b + 1]; ++c)
        for (int low = 0; low < 2; ++low) std::fill_n(sums.data + (c * 2 + low) * s.width + channel, channels, 0.0);
      best_isa([&]() TOCO_INLINE {
        for (int64_t n = 0; n < s.patches; ++n)
          for (int64_t c = first[b]; c < first[b + 1]; ++c) {
            const Sureness sure = present[c].sureness[n];
            if (sure == Sureness::kNone) continue;
            const T* token = tokens.at(b, n) + channel;
            const A scale = lengths[b * s.patches + n].inverse;
            double* sum = sums.data + (c * 2 + (sure == Sureness::kLow)) * s.width + channel;
            for (int64_t d = 0; d < channels; ++d) sum[d] += double(A(token[d]) * scale);
          }
      });
    }
  });

  double loss = 0;
  for (int64_t c = 0; c < count; ++c) {
    const PresentClass<A>& p = present[c];
    const double *u = sums.data + c * 2 * s.width, *v = u + s.width;
    double square = 0, product = 0, own = 0;
    for (int64_t d = 0; d < s.width; ++d) {
      square += u[d] * u[d];
      product += u[d] * v[d];
    }
    for (int64_t n = 0; n < s.patches; ++n)
      if (p.sureness[n] == Sureness::kHigh) own += lengths[p.image * s.patches + n].square;
    loss += p.positive * (double(p.high) * double(p.high - 1) - square + own) / 2;
    loss += p.negative * (double(p.high) * double(p.low) + product) / 2;
  }
  if (!grad_tokens) return loss;

  parallel.loop(s.batch * s.patches, grain_for(8 * s.width), [&](int64_t begin, int64_t end, int) {
    best_isa([&]() TOCO_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / s.patches, n = i % s.patches;
        const T* token = tokens.at(b, n);
        const Length<A> length = lengths[i];
        A* grad = grad_tokens + i * s.width;
        std::fill_n(grad, s.width, A(0));
        if (length.inverse == 0) continue;  // not used, or without direction
        for (int64_t c = first[b]; c < first[b + 1]; ++c) {
          const PresentClass<A>& p = present[c];
          const double *u = sums.data + c * 2 * s.width, *v = u + s.width;
          if (p.sureness[n] == Sureness::kNone) continue;
          if (p.sureness[n] == Sureness::kLow)
            for (int64_t d = 0; d < s.width; ++d) grad[d] += p.negative / 2 * A(u[d]);
          else
            for (int64_t d = 0; d < s.width; ++d)
              grad[d] += p.negative / 2 * A(v[d]) - p.positive * A(u[d] - double(A(token[d]) * length.inverse));
        }
        gradient_of_token(token, length, s.width, grad);
      }
    });
  });
  return loss;
}

// Class after class, by tiles of pairs; grad_tokens holds gradients of unit vectors until the end.
template <typename T, typename A = Accumulate<T>>
double logarithmic_error(Tokens<T> tokens, const std::vector<PresentClass<A>>& present,
                         const std::vector<Length<A>>& lengths, A* grad_tokens, PatchShape s,
                         const Parallel& parallel) {
  const int64_t stride = (s.width + kPanel - 1) / kPanel * kPanel, size = s.batch * s.patches * s.width;
  const int64_t most = (s.patches + kPanel - 1) / kPanel * kPanel;
  const Buffer<A> panels(most * stride), rows(most * stride), blocks(parallel.threads * kPanel * stride);
  if (grad_tokens) std::fill_n(grad_tokens, size, A(0));
  double loss = 0;
  for (const PresentClass<A>& p : present) {
    std::vector<int64_t> order;
    for (const Sureness sure : {Sureness::kHigh, Sureness::kLow})
      for (int64_t n = 0; n < s.patches; ++n)
        if (p.sureness[n] == sure) order.push_back(n);
    if (p.high == 0 || order.size() < 2) continue;
    const int64_t count = order.size(), panel_count = (count + kPanel - 1) / kPanel;
    parallel.loop(panel_count, grain_for(2 * kPanel * stride), [&](int64_t begin, int64_t end, int) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const A* sources[kPanel];
        A ones[kPanel];
        for (int64_t i = 0; i < kPanel; ++i) {
          const int64_t position = panel * kPanel + i;
          A* row = rows.data + position * stride;
          std::fill_n(row, stride, A(0));
          sources[i] = row;
          ones[i] = 1;
          if (position >= count) continue;
          const T* token = tokens.at(p.image, order[position]);
          const A scale = lengths[p.image * s.patches + order[position]].inverse;
          for (int64_t d = 0; d < s.width; ++d) row[d] = A(token[d]) * scale;
        }
        CALL_BEST_ISA(pack_panel, sources, ones, kPanel, stride, panels.data + panel * kPanel * stride);
      }
    });
    const PairSet<A> set{p.high, count, stride, panels.data, rows.data, p.positive, p.negative};
    std::vector<double> losses(panel_count);
    parallel.in_turn(panel_count, kPanel * count * stride * 2, [&](int64_t block, int thread) {
      A* grad = grad_tokens ? blocks.data + thread * kPanel * stride : nullptr;
      CALL_BEST_ISA(error_block, set, block, &losses[block], grad);
      const int64_t begin = block * kPanel;
      for (int64_t i = begin; grad_tokens && i < std::min(begin + kPanel, count); ++i) {
        A* row = grad_tokens + (p.image * s.patches + order[i]) * s.width;
        for (int64_t d = 0; d < s.width; ++d) row[d] += grad[(i - begin) * stride + d];
      }
    });
    for (const double share : losses) loss += share;
  }
  if (grad_tokens)
    parallel.loop(s.batch * s.patches, grain_for(4 * s.width), [&](int64_t begin, int64_t end, int) {
      best_isa([&]() TOCO_INLINE {
        for (int64_t i = begin; i < end; ++i) {
          A* grad = grad_tokens + i * s.width;
          if (lengths[i].inverse == 0)  // not used, or without direction
            std::fill_n(grad, s.width, A(0));
          else
            gradient_of_token(tokens.at(i / s.patches, i % s.patches), lengths[i], s.width, grad);
        }
      });
    });
  return loss;
}

}  // namespace

template <typename T>
void patch_contrastive_error_cpu(Tokens<T> tokens, const Accumulate<T>* scores, Flags classes, int64_t class_count,
                                 double threshold, bool logarithmic, Accumulate<T>* loss, Accumulate<T>* grad_tokens,
                                 PatchShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const std::vector<PresentClass<A>> present = present_classes(scores, classes, class_count, threshold, s, parallel);
  std::vector<uint8_t> used(s.batch * s.patches);
  for (const PresentClass<A>& p : present)
    for (int64_t n = 0; n < s.patches; ++n) used[p.image * s.patches + n] |= p.sureness[n] != Sureness::kNone;

  std::vector<Length<A>> lengths(s.batch * s.patches);
  parallel.loop(s.batch * s.patches, grain_for(s.width), [&](int64_t begin, int64_t end, int) {
    best_isa([&]() TOCO_INLINE {
      for (int64_t i = begin; i < end; ++i)
        if (used[i]) lengths[i] = length_of(tokens.at(i / s.patches, i % s.patches), s.width, kShortest);
    });
  });
  if (grad_tokens) prefer_huge_pages(grad_tokens, s.batch * s.patches * s.width * int64_t(sizeof(A)));
  *loss = A(logarithmic ? logarithmic_error(tokens, present, lengths, grad_tokens, s, parallel)
                        : linear_error(tokens, present, lengths, grad_tokens, s, parallel));
}

#define INSTANTIATE(T)                                                                                        \
  template void patch_contrastive_error_cpu<T>(Tokens<T>, const Accumulate<T>*, Flags, int64_t, double, bool, \
                                               Accumulate<T>*, Accumulate<T>*, PatchShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
