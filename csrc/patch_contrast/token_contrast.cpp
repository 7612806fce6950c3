#include "patch_contrast/token_contrast.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "common/huge_pages.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TOCO_PER_ISA "patch_contrast/token_pairs.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

constexpr int kPanel = portable::kPanel;

// Tokens that take part first, those of a label together.
template <typename A>
void sort_by_label(const int64_t* labels, int64_t patches, int64_t ignore_index, ContrastImage<A>& image) {
  image.order.resize(patches);
  std::iota(image.order.begin(), image.order.end(), 0);
  const auto ignored = std::stable_partition(image.order.begin(), image.order.end(),
                                             [&](int32_t n) { return labels[n] != ignore_index; });
  std::stable_sort(image.order.begin(), ignored, [&](int32_t m, int32_t n) { return labels[m] < labels[n]; });
  image.count = ignored - image.order.begin();
  image.ids.assign(image.padded(), 0);
  for (int64_t i = 0; i < image.count; ++i) {
    if (i == 0 || labels[image.order[i]] != labels[image.order[i - 1]]) image.classes.push_back({i, i});
    image.classes.back().end = i + 1;
    image.ids[i] = A(image.classes.size());
  }
  image.lengths.resize(image.count);
}

template <typename A>
Weights<A> weights_of(const std::vector<ContrastImage<A>>& images, const int64_t* pairs) {
  int64_t same = 0, all = 0;
  for (const ContrastImage<A>& image : images) {
    all += image.count * (image.count - 1);
    for (const Range range : image.classes) same += (range.end - range.begin) * (range.end - range.begin - 1);
  }
  if (!pairs) return {A(-0.5 / double(same + 1)), A(0.5 / double(all - same + 1))};
  return {A(-0.5 / double(pairs[0] + 1)), A(0.5 / double(pairs[1] + 1))};
}

// bfloat16 tokens as they are, but for a power of two that keeps their products within range.
template <typename A>
void pack_bf16(const BFloat16* const* tokens, int64_t begin, int count, int64_t width, ContrastImage<A>& image,
               int32_t* rows) {
  const int64_t pairs = (width + 1) / 2;
  const int32_t *sources[kPanel], *ones = [] {
    static const std::vector<int32_t> ones(kPanel, 1);
    return ones.data();
  }();
  best_isa([&]() TOCO_INLINE {
    for (int i = 0; i < count; ++i) {
      const A inverse = image.lengths[begin + i].inverse;
      int exponent = 0;
      if (std::isnormal(inverse)) std::frexp(inverse, &exponent);
      const float power = std::ldexp(1.0f, exponent);
      image.scales[begin + i] = inverse / power;
      int32_t* row = rows + i * pairs;
      for (int64_t k = 0; k < pairs; ++k) {
        const uint32_t low = BFloat16(float(tokens[i][2 * k]) * power).bits;
        const uint32_t high = 2 * k + 1 < width ? BFloat16(float(tokens[i][2 * k + 1]) * power).bits : 0;
        row[k] = int32_t(low | high << 16);
      }
      sources[i] = row;
    }
  });
  CALL_BEST_ISA(pack_panel, sources, ones, count, pairs, (int32_t*)(image.bf16_panels + begin * pairs));
}

// One panel of tokens; the gradient of tokens that take no part. `rows` holds kPanel converted tokens.
template <typename T, typename A = Accumulate<T>>
void pack_tokens(Tokens<T> tokens, int64_t b, ContrastImage<A>& image, int64_t panel, PatchShape s, A* rows, A* grad) {
  const int64_t begin = panel * kPanel, end = std::min(begin + kPanel, s.patches);
  const int count = int(std::max<int64_t>(std::min(end, image.count) - begin, 0));
  const T* sources[kPanel];
  const A* units[kPanel];
  A scales[kPanel];
  best_isa([&]() TOCO_INLINE {
    for (int i = 0; i < count; ++i) {
      sources[i] = tokens.at(b, image.order[begin + i]);
      image.lengths[begin + i] = length_of(sources[i], s.width, kShortest);
      scales[i] = image.lengths[begin + i].inverse;
      if (image.panels) units[i] = converted(sources[i], s.width, rows + i * s.width);
    }
  });
  if (begin < image.padded()) {
    if constexpr (std::is_same_v<T, BFloat16>)
      if (image.bf16_panels) pack_bf16(sources, begin, count, s.width, image, (int32_t*)rows);
    if (image.panels) {
      CALL_BEST_ISA(pack_panel, units, scales, count, s.width, image.panels + begin * s.width);
    }
  }
  if (grad)
    for (int64_t i = begin + count; i < end; ++i) {
      A* row = grad + image.order[i] * s.width;
      std::fill(row, row + s.width, A(0));
    }
}

// The image's share of the loss.
template <typename A>
double add_tiles(const ContrastImage<A>& image) {
  double total = 0;
  for (int64_t tile = 0; tile < image.tiles(); ++tile)
    for (int64_t i = 0; i < image.count; ++i) total += double(image.sums[tile * image.padded() + i]);
  return total;
}

// What the images of a group leave in memory, one behind the other; allocated for the largest group.
template <typename A>
class GroupBuffers {
 public:
  GroupBuffers(const std::vector<ContrastImage<A>>& images, int64_t group, int64_t width, bool signs, bool bf16)
      : width_(width), in_bf16_(bf16), with_signs_(signs), largest_(largest(images, group)) {}

  void give_to(ContrastImage<A>* begin, ContrastImage<A>* end) {
    int64_t tokens = 0, words = 0;
    for (ContrastImage<A>* image = begin; image < end; ++image) {
      image->panels = in_bf16_ ? nullptr : panels_.data + tokens * width_;
      image->bf16_panels = in_bf16_ ? bf16_panels_.data + tokens * ((width_ + 1) / 2) : nullptr;
      image->sums = sums_.data + words;
      image->negative = with_signs_ ? negative_.data + words : nullptr;
      image->zero = with_signs_ ? zero_.data + words : nullptr;
      if (in_bf16_) image->scales.assign(image->padded(), 0);
      tokens += image->padded();
      words += image->tiles() * image->padded();
    }
  }

 private:
  struct Sizes {
    int64_t tokens = 0, words = 0;
  };

  static Sizes largest(const std::vector<ContrastImage<A>>& images, int64_t group) {
    Sizes largest;
    for (size_t first = 0; first < images.size(); first += group) {
      Sizes sizes;
      for (size_t b = first; b < std::min(first + group, images.size()); ++b) {
        sizes.tokens += images[b].padded();
        sizes.words += images[b].tiles() * images[b].padded();
      }
      largest = {std::max(largest.tokens, sizes.tokens), std::max(largest.words, sizes.words)};
    }
    return largest;
  }

  int64_t width_;
  bool in_bf16_, with_signs_;
  Sizes largest_;
  Buffer<A> panels_{in_bf16_ ? 0 : largest_.tokens * width_}, sums_{largest_.words};
  Buffer<BFloat16Pair> bf16_panels_{in_bf16_ ? largest_.tokens * ((width_ + 1) / 2) : 0};
  Buffer<uint64_t> negative_{with_signs_ ? largest_.words : 0}, zero_{with_signs_ ? largest_.words : 0};
};

// All pairs of tiles of a group of images.
template <typename A>
void contrast_tiles(std::vector<ContrastImage<A>>& images, int64_t begin, int64_t end, Weights<A> weights,
                    int64_t width, const Parallel& parallel) {
  std::vector<int64_t> first{0};  // pair of each image
  for (int64_t b = begin; b < end; ++b) first.push_back(first.back() + images[b].tiles() * (images[b].tiles() + 1) / 2);
  parallel.in_turn(first.back(), kTile * kTile * width, [&](int64_t i, int) {
    const int64_t b = std::upper_bound(first.begin(), first.end(), i) - first.begin() - 1;
    const ContrastImage<A>& image = images[begin + b];
    int64_t row = 0, column = i - first[b];
    for (; column >= image.tiles() - row; ++row) column -= image.tiles() - row;
    CALL_BEST_ISA(contrast_tile, image, weights, width, row, row + column);
  });
}

}  // namespace

template <typename T>
void patch_token_contrast_cpu(Tokens<T> tokens, const int64_t* labels, const int64_t* pairs, int64_t ignore_index,
                              Accumulate<T>* loss, Accumulate<T>* grad_tokens, PatchShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  std::vector<ContrastImage<A>> images(s.batch);
  parallel.loop(s.batch, grain_for(s.patches * 32), [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) sort_by_label(labels + b * s.patches, s.patches, ignore_index, images[b]);
  });
  const Weights<A> weights = weights_of(images, pairs);

  // Few images at a time, so that their tokens are still in the cache when the gradient needs them.
  const int64_t group = std::max<int64_t>((parallel.threads + 1) / 2, 1024 / (s.patches + 1));
  const int64_t image_size = s.patches * s.width;
  GroupBuffers<A> buffers(images, group, s.width, grad_tokens, std::is_same_v<T, BFloat16> && has_bf16_dots());
  const int64_t panel_count = (s.patches + kTile - 1) / kTile * (kTile / kPanel);
  const int64_t lanes = vector_bytes() / int64_t(sizeof(A)), step = kStrips * lanes;
  const int64_t steps = (s.width + step - 1) / step;
  int64_t longest = 0;
  for (const ContrastImage<A>& image : images) longest = std::max(longest, image.padded());
  const int64_t row_scratch = sizeof(T) == sizeof(A) ? 0 : kPanel * (s.width + 1);
  const int64_t gradient_scratch = grad_tokens ? (kTile * 4 + 2 * longest * kStrips) * lanes : 0;
  const int64_t scratch_size = std::max(row_scratch, gradient_scratch);
  const Buffer<A> scratch(parallel.threads * scratch_size);

  if (grad_tokens) prefer_huge_pages(grad_tokens, s.batch * image_size * int64_t(sizeof(A)));
  double total = 0.5;
  for (int64_t first = 0; first < s.batch; first += group) {
    const int64_t count = std::min(group, s.batch - first);
    buffers.give_to(&images[first], &images[first] + count);
    parallel.loop(count * panel_count, grain_for(4 * kPanel * s.width), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = first + i / panel_count;
        A* grad = grad_tokens ? grad_tokens + b * image_size : nullptr;
        pack_tokens(tokens, b, images[b], i % panel_count, s, scratch.data + thread * scratch_size, grad);
      }
    });
    contrast_tiles(images, first, first + count, weights, s.width, parallel);
    for (int64_t b = first; b < first + count; ++b) total += add_tiles(images[b]);
    if (!grad_tokens) continue;
    parallel.in_turn(count * steps, longest * longest * step / 4, [&](int64_t i, int thread) {
      const int64_t b = first + i / steps, channel = i % steps * step;
      CALL_BEST_ISA(contrast_gradient, images[b], weights, tokens.at(b, 0), tokens.patch, s.width, channel,
                    scratch.data + thread * scratch_size, grad_tokens + b * image_size);
    });
    parallel.loop(count * s.patches, grain_for(4 * s.width), [&](int64_t begin, int64_t end, int) {
      best_isa([&]() TOCO_INLINE {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = first + i / s.patches, at = i % s.patches;
          if (at >= images[b].count) continue;
          const int64_t n = images[b].order[at];
          gradient_of_token(tokens.at(b, n), images[b].lengths[at], s.width,
                            grad_tokens + (b * s.patches + n) * s.width);
        }
      });
    });
  }
  *loss = A(total);
}

#define INSTANTIATE(T)                                                                                          \
  template void patch_token_contrast_cpu<T>(Tokens<T>, const int64_t*, const int64_t*, int64_t, Accumulate<T>*, \
                                            Accumulate<T>*, PatchShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
