// Top-K pooling with its classifier: the scores of an image stay in the cache, and are gone when it is pooled.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/buffer.h"
#include "common/huge_pages.h"
#include "topk_pool/strip.h"

namespace toco {
namespace {

constexpr int64_t kTokens = 32;  // that are scored at once

const Parallel kAlone{1, [](int64_t size, int64_t, const Body& body) { body(0, size, 0); }};

// The classifier as the kernels read it: classes filled up to whole columns with zeros.
template <typename A>
struct Packed {
  int64_t width, classes, stride;
  bool softmax;
  Buffer<A> weight;  // (D, stride)
  Buffer<A> bias;    // (stride)

  template <typename T>
  Packed(const Classifier<T>& classifier, int64_t classes)
      : width(classifier.width),
        classes(classes),
        stride(columns_of(classes) * kLanes),
        softmax(classifier.softmax),
        weight(width * stride),
        bias(stride) {
    for (int64_t d = 0; d <= width; ++d) {
      const T* from = d < width ? classifier.weight + d * classes : classifier.bias;
      A* to = d < width ? weight.data + d * stride : bias.data;
      for (int64_t c = 0; c < stride; ++c) to[c] = from && c < classes ? A(from[c]) : A(0);
    }
  }
};

// Logits to probabilities, in place.
template <typename A>
void softmax_row(A* row, int64_t classes) {
  A largest = row[0], sum = 0;
  for (int64_t c = 1; c < classes; ++c) largest = row[c] > largest ? row[c] : largest;
  for (int64_t c = 0; c < classes; ++c) sum += row[c] = std::exp(row[c] - largest);
  const A share = 1 / sum;
  for (int64_t c = 0; c < classes; ++c) row[c] *= share;
}

}  // namespace
}  // namespace toco

#define TOCO_PER_ISA "topk_pool/scores.h"
#include "common/for_each_isa.h"

namespace toco {

template <typename T>
void linear_topk_pool_cpu(Classifier<T> classifier, Kept kept, T* pooled, int32_t* indices, PoolShape s,
                          const Parallel& parallel) {
  using A = Accumulate<T>;
  const Packed<A> packed(classifier, s.classes);
  const int64_t tiles = (s.patches + kTokens - 1) / kTokens;
  const auto image = [&](int64_t b, A* scores, const Parallel& inside) {
    inside.loop(tiles, grain_for(kTokens * packed.width * packed.stride), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> scratch(sizeof(T) == sizeof(A) ? 1 : kTokens * packed.width);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t n = tile * kTokens, rows = std::min(kTokens, s.patches - n);
        const T* tokens = classifier.tokens + (b * s.patches + n) * packed.width;
        CALL_BEST_ISA(score_rows, tokens, packed, rows, scratch.data, scores + n * packed.stride);
      }
    });
    const PoolShape one{1, s.patches, s.classes, s.most};
    each_strip<A>(one, kept, inside, [&](int64_t, int64_t first, int64_t used, A* scratch) {
      Strip<A> strip{};
      strip.scores = scores + first;
      strip.stride = packed.stride;
      strip.end = scores + s.patches * packed.stride;
      strip.scratch = scratch;
      pool_classes(strip, b, first, used, kept, pooled, indices, s);
    });
  };
  if (s.batch >= parallel.threads) {
    parallel.loop(s.batch, 1, [&](int64_t begin, int64_t end, int) {
      const Buffer<A> scores(s.patches * packed.stride);
      for (int64_t b = begin; b < end; ++b) image(b, scores.data, kAlone);
    });
  } else {
    const Buffer<A> scores(s.patches * packed.stride);
    for (int64_t b = 0; b < s.batch; ++b) image(b, scores.data, parallel);
  }
}

// The gradient with respect to the scores, for the winning patches of one image; other patches have none.
template <typename A>
struct WinningRows {
  std::vector<int64_t> patches;  // ascending
  std::vector<A> grads;          // (patches, C)
};

template <typename T, typename A>
static void winning_rows(const T* grad, const Classifier<T>& classifier, const Packed<A>& packed,
                         const int32_t* indices, int64_t b, const PoolShape& s, WinningRows<A>& rows) {
  std::vector<int64_t> place(s.patches, -1);
  std::vector<int64_t> kept(s.classes);
  const int32_t* list = indices + b * s.most * s.classes;
  // Calls body(c, n) for each winner. Lists are sorted, but the operator can be called with any: none may write beyond.
  const auto each_winner = [&](const auto& body) {
    for (int64_t c = 0; c < s.classes; ++c)
      for (int64_t i = 0; i < kept[c]; ++i)
        if (const uint32_t n = uint32_t(list[i * s.classes + c]); n < uint64_t(s.patches)) body(c, n);
  };
  for (int64_t c = 0; c < s.classes; ++c) kept[c] = winners(indices, b, c, s);
  each_winner([&](int64_t, int64_t n) { place[n] = 0; });
  for (int64_t n = 0; n < s.patches; ++n)
    if (place[n] == 0) {
      place[n] = int64_t(rows.patches.size());
      rows.patches.push_back(n);
    }
  rows.grads.assign(rows.patches.size() * s.classes, A(0));
  each_winner(
      [&](int64_t c, int64_t n) { rows.grads[place[n] * s.classes + c] = A(grad[b * s.classes + c]) / A(kept[c]); });
  if (!packed.softmax) return;
  const Buffer<A> scratch(packed.width), z(packed.stride);
  for (size_t i = 0; i < rows.patches.size(); ++i) {  // their probabilities once more, bit for bit
    const T* token = classifier.tokens + (b * s.patches + rows.patches[i]) * packed.width;
    CALL_BEST_ISA(score_rows, token, packed, int64_t(1), scratch.data, z.data);
    A* g = rows.grads.data() + i * s.classes;
    A sum = 0;
    for (int64_t c = 0; c < s.classes; ++c) sum += z.data[c] * g[c];
    for (int64_t c = 0; c < s.classes; ++c) g[c] = z.data[c] * (g[c] - sum);
  }
}

// grad_tokens[n] = sum over classes of grads[n, c] * weight[:, c] for the winning patches, zero for the others.
template <typename T, typename A>
static void spread_rows(const WinningRows<A>& rows, const A* transposed, int64_t width, int64_t begin, int64_t end,
                        int64_t classes, T* grad_tokens) {
  const Buffer<A> sum(width);
  size_t next = std::lower_bound(rows.patches.begin(), rows.patches.end(), begin) - rows.patches.begin();
  for (int64_t n = begin; n < end; ++n) {
    T* to = grad_tokens + n * width;
    if (next == rows.patches.size() || rows.patches[next] != n) {
      std::memset(static_cast<void*>(to), 0, width * sizeof(T));
      continue;
    }
    std::fill_n(sum.data, width, A(0));
    for (int64_t c = 0; c < classes; ++c)
      if (const A g = rows.grads[next * classes + c]; g != 0)
        CALL_BEST_ISA(add_scaled, sum.data, g, transposed + c * width, width);
    for (int64_t d = 0; d < width; ++d) to[d] = T(sum.data[d]);
    ++next;
  }
}

template <typename T>
void linear_topk_pool_backward_cpu(const T* grad, Classifier<T> classifier, const int32_t* indices, T* grad_tokens,
                                   T* grad_weight, T* grad_bias, PoolShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const int64_t width = classifier.width;
  const Packed<A> packed(classifier, s.classes);
  std::vector<WinningRows<A>> rows(s.batch);
  parallel.loop(s.batch, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) winning_rows(grad, classifier, packed, indices, b, s, rows[b]);
  });

  if (grad_tokens) {
    prefer_huge_pages(grad_tokens, s.batch * s.patches * width * int64_t(sizeof(T)));
    const Buffer<A> transposed(s.classes * width);
    for (int64_t c = 0; c < s.classes; ++c)
      for (int64_t d = 0; d < width; ++d) transposed.data[c * width + d] = packed.weight.data[d * packed.stride + c];
    const int64_t tiles = (s.patches + kTokens - 1) / kTokens;
    parallel.loop(s.batch * tiles, grain_for(kTokens * width), [&](int64_t begin, int64_t end, int) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / tiles, n = unit % tiles * kTokens;
        spread_rows(rows[b], transposed.data, width, n, std::min(n + kTokens, s.patches), s.classes,
                    grad_tokens + b * s.patches * width);
      }
    });
  }

  // grad_weight, some channels at a time: images are added to each other in their order, so threads change no bit.
  constexpr int64_t kChannels = 64;
  const int64_t slices = (width + kChannels - 1) / kChannels;
  parallel.loop(slices, grain_for(s.batch * s.most * s.classes * kChannels), [&](int64_t begin, int64_t end, int) {
    const Buffer<A> image(s.classes * kChannels), total(s.classes * kChannels);
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t d = slice * kChannels, size = std::min(kChannels, width - d);
      std::fill_n(total.data, s.classes * kChannels, A(0));
      for (int64_t b = 0; b < s.batch; ++b) {
        std::fill_n(image.data, s.classes * kChannels, A(0));
        for (size_t i = 0; i < rows[b].patches.size(); ++i) {
          const T* token = classifier.tokens + (b * s.patches + rows[b].patches[i]) * width + d;
          for (int64_t c = 0; c < s.classes; ++c)
            if (const A g = rows[b].grads[i * s.classes + c]; g != 0)
              CALL_BEST_ISA(add_scaled, image.data + c * kChannels, g, token, size);
        }
        CALL_BEST_ISA(add_scaled, total.data, A(1), image.data, s.classes * kChannels);
      }
      for (int64_t i = 0; i < size; ++i)
        for (int64_t c = 0; c < s.classes; ++c) grad_weight[(d + i) * s.classes + c] = T(total.data[c * kChannels + i]);
    }
  });

  for (int64_t c = 0; c < s.classes; ++c) {
    double sum = 0;
    for (const WinningRows<A>& image : rows)
      for (size_t i = 0; i < image.patches.size(); ++i) sum += double(image.grads[i * s.classes + c]);
    grad_bias[c] = T(A(sum));
  }
}

#define INSTANTIATE(T)                                                                                           \
  template void linear_topk_pool_cpu<T>(Classifier<T>, Kept, T*, int32_t*, PoolShape, const Parallel&);          \
  template void linear_topk_pool_backward_cpu<T>(const T*, Classifier<T>, const int32_t*, T*, T*, T*, PoolShape, \
                                                 const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
