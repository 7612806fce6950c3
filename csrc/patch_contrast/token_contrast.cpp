#include "patch_contrast/token_contrast.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

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
  image.row_sums.resize(image.padded());
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
void pack_pairs(const BFloat16* const* tokens, int64_t begin, int count, int64_t width, ContrastImage<A>& image,
                BFloat16* rows) {
  const int64_t pairs = (width + 1) / 2;
  const int32_t* sources[kPanel];
  const std::vector<int32_t> ones(kPanel, 1);
  best_isa([&]() TOCO_INLINE {
    for (int i = 0; i < count; ++i) {
      const A inverse = image.lengths[begin + i].inverse;
      int exponent = 0;
      if (std::isnormal(inverse)) std::frexp(inverse, &exponent);
      const float power = std::ldexp(1.0f, exponent);
      image.scales[begin + i] = inverse / power;
      BFloat16* row = rows + i * 2 * pairs;
      for (int64_t d = 0; d < width; ++d) row[d] = BFloat16(float(tokens[i][d]) * power);
      if (width % 2) row[width] = BFloat16(0.0f);
      sources[i] = (const int32_t*)row;
    }
  });
  CALL_BEST_ISA(pack_panel, sources, ones.data(), count, pairs, (int32_t*)(image.pairs + begin * pairs));
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
      image.lengths[begin + i] = length_of(sources[i], s.width);
      scales[i] = image.lengths[begin + i].inverse;
      if (image.panels) units[i] = converted(sources[i], s.width, rows + i * s.width);
    }
  });
  if (begin < image.padded()) {
    if constexpr (std::is_same_v<T, BFloat16>)
      if (image.pairs) pack_pairs(sources, begin, count, s.width, image, (BFloat16*)rows);
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

// The sums over tiles, in their order; their total is the image's share of the loss.
template <typename A>
double add_tiles(ContrastImage<A>& image) {
  double total = 0;
  for (int64_t i = 0; i < image.count; ++i) {
    A sum = 0;
    for (int64_t tile = 0; tile < image.tiles(); ++tile) sum += image.sums[tile * image.padded() + i];
    image.row_sums[i] = sum;
    total += double(sum);
  }
  return total;
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

  // Where each image's part of the buffers and of the work begins.
  struct Offsets {
    int64_t tokens, words, tiles;
  };
  std::vector<Offsets> first(s.batch + 1);
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t padded = images[b].padded(), tiles = images[b].tiles();
    first[b + 1] = {first[b].tokens + padded, first[b].words + tiles * padded,
                    first[b].tiles + tiles * (tiles + 1) / 2};
  }
  const Offsets all = first[s.batch];
  const bool in_pairs = std::is_same_v<T, BFloat16> && has_bf16_dots();
  const int64_t pairs_width = (s.width + 1) / 2;
  const Buffer<A> panels(in_pairs ? 0 : all.tokens * s.width), sums(all.words);
  const Buffer<BFloat16Pair> token_pairs(in_pairs ? all.tokens * pairs_width : 0);
  const Buffer<uint64_t> negative(grad_tokens ? all.words : 0), zero(grad_tokens ? all.words : 0);
  for (int64_t b = 0; b < s.batch; ++b) {
    images[b].panels = in_pairs ? nullptr : panels.data + first[b].tokens * s.width;
    images[b].pairs = in_pairs ? token_pairs.data + first[b].tokens * pairs_width : nullptr;
    if (in_pairs) images[b].scales.assign(images[b].padded(), 0);
    images[b].sums = sums.data + first[b].words;
    images[b].negative = grad_tokens ? negative.data + first[b].words : nullptr;
    images[b].zero = grad_tokens ? zero.data + first[b].words : nullptr;
  }

  const int64_t image_size = s.patches * s.width, panel_count = (s.patches + kTile - 1) / kTile * (kTile / kPanel);
  const bool convert = sizeof(T) != sizeof(A);
  parallel.loop(s.batch * panel_count, grain_for(4 * kPanel * s.width), [&](int64_t begin, int64_t end, int) {
    const Buffer<A> rows(convert ? kPanel * (s.width + 1) : 0);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / panel_count;
      A* grad = grad_tokens ? grad_tokens + b * image_size : nullptr;
      pack_tokens(tokens, b, images[b], i % panel_count, s, rows.data, grad);
    }
  });

  parallel.in_turn(all.tiles, kTile * kTile * s.width, [&](int64_t i, int) {
    const int64_t b = std::upper_bound(first.begin(), first.end(), i,
                                       [](int64_t i, const Offsets& offsets) { return i < offsets.tiles; }) -
                      first.begin() - 1;
    int64_t row = 0, column = i - first[b].tiles;
    for (; column >= images[b].tiles() - row; ++row) column -= images[b].tiles() - row;
    CALL_BEST_ISA(contrast_tile, images[b], weights, s.width, row, row + column);
  });

  double total = 0.5;
  for (ContrastImage<A>& image : images) total += add_tiles(image);
  *loss = A(total);
  if (!grad_tokens) return;

  const int64_t lanes = vector_bytes() / int64_t(sizeof(A)), step = kStrips * lanes;
  const int64_t steps = (s.width + step - 1) / step;
  int64_t longest = 0;
  for (const ContrastImage<A>& image : images) longest = std::max(longest, image.padded());
  const int64_t scratch_size = (kTile * 4 + 2 * longest * kStrips) * lanes;
  const Buffer<A> scratch(parallel.threads * scratch_size);
  parallel.in_turn(s.batch * steps, longest * longest * step / 4, [&](int64_t i, int thread) {
    const int64_t b = i / steps, channel = i % steps * step;
    CALL_BEST_ISA(contrast_gradient, images[b], weights, tokens.at(b, 0), tokens.patch, s.width, channel,
                  scratch.data + thread * scratch_size, grad_tokens + b * image_size);
  });
}

#define INSTANTIATE(T)                                                                                          \
  template void patch_token_contrast_cpu<T>(Tokens<T>, const int64_t*, const int64_t*, int64_t, Accumulate<T>*, \
                                            Accumulate<T>*, PatchShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
