#include <type_traits>
#include <vector>

#include "common/huge_pages.h"
#include "pixel_correlation/images.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TOCO_PER_ISA "pixel_correlation/tiles.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

constexpr int kPanel = portable::kPanel;

// Images that are worked on together, and memory for what they need: few, so that it stays in the cache.
template <typename A>
class Group {
 public:
  std::vector<CorrelationImage<A>> images;

  Group(CorrelationShape s, int64_t count, bool backward)
      : images(count, CorrelationImage<A>{s.pixels, s.width, s.classes, nullptr, nullptr, nullptr, nullptr, nullptr,
                                          nullptr, nullptr, nullptr, nullptr, nullptr}),
        panel_size_(images.empty() ? 0 : images[0].padded() * s.width),
        norm_size_(images.empty() ? 0 : images[0].padded()),
        map_size_(images.empty() ? 0 : images[0].padded() * (backward ? 2 * (s.classes + 1) : images[0].stride())),
        turned_size_(images.empty() || !backward ? 0 : images[0].padded() * whole(s.width, kPanel)),
        panels_(count * panel_size_),
        norms_(count * norm_size_),
        first_(count * map_size_),
        second_(count * map_size_),
        turned_(count * turned_size_) {
    for (int64_t i = 0; i < count; ++i) {
      CorrelationImage<A>& image = images[i];
      image.panels = panels_.data + i * panel_size_;
      image.norms = norms_.data + i * norm_size_;
      (backward ? image.left : image.maps) = first_.data + i * map_size_;
      (backward ? image.right : image.gathered) = second_.data + i * map_size_;
      image.by_pixel = turned_.data + i * turned_size_;
    }
  }

 private:
  int64_t panel_size_, norm_size_, map_size_, turned_size_;
  Buffer<A> panels_, norms_, first_, second_, turned_;
};

int64_t group_size(CorrelationShape s, const Parallel& parallel) {
  return std::min(s.batch, std::max<int64_t>((parallel.threads + 1) / 2, 1024 / (s.pixels + 1)));
}

template <typename T, typename A = Accumulate<T>>
void pack_panel_of(FeatureMaps<T> features, int64_t b, int64_t p, CorrelationImage<A>& image) {
  const int count = int(std::max<int64_t>(std::min<int64_t>(kPanel, image.pixels - p * kPanel), 0));
  CALL_BEST_ISA(pack_pixels, features.at(b, p * kPanel), features.channel, features.pixel, image.width, count,
                image.panels + p * image.width * kPanel, image.norms + p * kPanel);
}

// The pairs of blocks of one round, in which each block meets one other: no two threads write to the same pixels, and
// every pixel gathers from the others in the order of the rounds.
std::vector<std::pair<int64_t, int64_t>> round_of(int64_t blocks, int64_t round) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t row = 0; row < blocks; ++row)
    if (const int64_t column = (round - row + blocks) % blocks; row <= column) pairs.emplace_back(row, column);
  return pairs;
}

// The maps of a panel of pixels, and room for what it gathers.
template <typename T, typename A = Accumulate<T>>
void start_panel(const T* cams, int64_t p, CorrelationImage<A>& image) {  // (C, N)
  const int64_t classes = image.classes, stride = image.stride();
  for (int64_t c = 0; c < stride; ++c)
    for (int64_t i = 0; i < kPanel; ++i) {
      const int64_t n = p * kPanel + i;
      const A value = n >= image.pixels || c > classes ? A(0) : c == classes ? A(1) : A(cams[c * image.pixels + n]);
      image.maps[(c / kPanel * image.padded() + n) * kPanel + c % kPanel] = value;
    }
  std::fill_n(image.gathered + p * stride * kPanel, stride * kPanel, A(0));
}

// The two factors of derivatives by cosines, for a panel of pixels.
template <typename T, typename A = Accumulate<T>>
void start_panel_backward(const A* grad, const T* cams, const A* revised, const A* sums, int64_t p,
                          CorrelationImage<A>& image) {  // (C, N), (C, N), (C, N), (N)
  const int64_t classes = image.classes, half = (classes + 1) * kPanel;
  A *left = image.left + p * 2 * half, *right = image.right + p * 2 * half;
  for (int64_t i = 0; i < kPanel; ++i) {
    const int64_t n = p * kPanel + i;
    const bool inside = n < image.pixels;
    A along = 0;
    for (int64_t c = 0; c <= classes; ++c) {
      A score = 0, slope = 0;
      if (inside && c < classes) {
        score = A(cams[c * image.pixels + n]);
        slope = grad[c * image.pixels + n] / sums[n];
        along += slope * revised[c * image.pixels + n];
      } else if (inside) {
        score = 1;
        slope = -along;
      }
      left[c * kPanel + i] = right[half + c * kPanel + i] = score;
      left[half + c * kPanel + i] = right[c * kPanel + i] = slope;
    }
  }
}

}  // namespace

template <typename T>
void pixel_correlation_cpu(FeatureMaps<T> features, const T* cams, Accumulate<T>* revised, Accumulate<T>* sums,
                           uint32_t* signs, CorrelationShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const int64_t many = group_size(s, parallel);
  Group<A> group(s, many, false);
  const int64_t plane = s.classes * s.pixels;
  for (int64_t first = 0; first < s.batch; first += many) {
    const int64_t count = std::min(many, s.batch - first);
    const int64_t blocks = group.images[0].blocks(), panels = blocks * kBlockPanels;
    for (int64_t i = 0; i < count; ++i)
      group.images[i].signs = signs ? signs + (first + i) * s.pixels * s.words() : nullptr;
    parallel.loop(count * panels, grain_for(4 * kPanel * s.width), [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; ++k) {
        CorrelationImage<A>& image = group.images[k / panels];
        pack_panel_of(features, first + k / panels, k % panels, image);
        start_panel(cams + (first + k / panels) * plane, k % panels, image);
      }
    });
    for (int64_t round = 0; round < blocks; ++round) {
      const auto pairs = round_of(blocks, round);
      const int64_t size = int64_t(pairs.size());
      parallel.in_turn(count * size, 16 * kPanel * kPanel * s.width, [&](int64_t k, int) {
        CALL_BEST_ISA(correlate_blocks, group.images[k / size], pairs[k % size].first, pairs[k % size].second);
      });
    }
    parallel.loop(count * s.words(), grain_for(2 * kPanel * s.classes), [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t b = first + k / s.words(), p = k % s.words();
        const CorrelationImage<A>& image = group.images[k / s.words()];
        const A* gathered = image.gathered + p * image.stride() * kPanel;
        for (int64_t i = 0; i < kPanel && p * kPanel + i < s.pixels; ++i) {
          const int64_t n = p * kPanel + i;
          const A sum = gathered[s.classes * kPanel + i] + A(kAdded);
          if (sums) sums[b * s.pixels + n] = sum;
          for (int64_t c = 0; c < s.classes; ++c)
            revised[b * plane + c * s.pixels + n] = gathered[c * kPanel + i] / sum;
        }
      }
    });
  }
}

template <typename T>
void pixel_correlation_backward_cpu(const Accumulate<T>* grad, FeatureMaps<T> features, const T* cams,
                                    const Accumulate<T>* revised, const Accumulate<T>* sums, const uint32_t* signs,
                                    Accumulate<T>* grad_features, CorrelationShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const int64_t many = group_size(s, parallel);
  Group<A> group(s, many, true);
  const int64_t plane = s.classes * s.pixels, scratch_size = whole(s.width, kPanel) * kPanel;
  const Buffer<A> scratch(parallel.threads * scratch_size);
  prefer_huge_pages(grad_features, s.batch * s.width * s.pixels * int64_t(sizeof(A)));
  for (int64_t first = 0; first < s.batch; first += many) {
    const int64_t count = std::min(many, s.batch - first);
    const int64_t blocks = group.images[0].blocks(), panels = blocks * kBlockPanels;
    for (int64_t i = 0; i < count; ++i) {
      group.images[i].kept_signs = signs + (first + i) * s.pixels * s.words();
      group.images[i].grad = grad_features + (first + i) * s.width * s.pixels;
    }
    parallel.loop(count * panels, grain_for(8 * kPanel * s.width), [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t b = first + k / panels, p = k % panels;
        CorrelationImage<A>& image = group.images[k / panels];
        pack_panel_of(features, b, p, image);
        CALL_BEST_ISA(turn_panel, image, p);
        start_panel_backward(grad + b * plane, cams + b * plane, revised + b * plane, sums + b * s.pixels, p, image);
      }
    });
    parallel.in_turn(count * blocks, 4 * kPanel * s.pixels * s.width, [&](int64_t k, int thread) {
      CALL_BEST_ISA(correlation_gradient, group.images[k / blocks], k % blocks, scratch.data + thread * scratch_size);
    });
  }
}

#define INSTANTIATE(T)                                                                                         \
  template void pixel_correlation_cpu<T>(FeatureMaps<T>, const T*, Accumulate<T>*, Accumulate<T>*, uint32_t*,  \
                                         CorrelationShape, const Parallel&);                                   \
  template void pixel_correlation_backward_cpu<T>(const Accumulate<T>*, FeatureMaps<T>, const T*,              \
                                                  const Accumulate<T>*, const Accumulate<T>*, const uint32_t*, \
                                                  Accumulate<T>*, CorrelationShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
