#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "affinity_propagate/affinity_propagate.h"
#include "common/buffer.h"

namespace toco {

// The planes of an image lie amid zeros: nobody asks whether a neighbour is outside. Rows begin at a cache line, and
// share the zeros between them.
template <typename A>
struct WalkPlanes {
  int64_t stride, size, width;  // of a row, of a plane, of what is computed of a row: whole cache lines
  int pairs;
  const int64_t* steps;  // (pairs) from a pixel to its neighbour
  A* weights;            // (pairs, size)
  A* sums;               // (size): of a pixel's weights, without its own, which is 1
  A* scales;             // (size): 1 / (1 + sum), 0 outside
};

}  // namespace toco

#define TOCO_PER_ISA "affinity_propagate/walk_rows.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

constexpr int64_t kClasses = 8;  // that share the loads of weights
constexpr int64_t kLine = 16;    // numbers

int64_t whole(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// The (y, x) of neighbours within the radius, one of each pair.
std::vector<std::pair<int64_t, int64_t>> offsets_of(int64_t radius) {
  std::vector<std::pair<int64_t, int64_t>> found;
  for (int64_t y = 0; y < radius; ++y)
    for (int64_t x = y ? 1 - radius : 1; x < radius; ++x)
      if (y * y + x * x < radius * radius) found.emplace_back(y, x);
  return found;
}

// The strongest edge on the way from a pixel to its neighbour: of the pixels less than 1 away from the line.
template <typename T>
double strongest_edge(const T* edges, int64_t width, int64_t y, int64_t x) {
  double strongest = double(edges[0]);
  for (int64_t v = 0; v <= y; ++v)
    for (int64_t u = std::min<int64_t>(x, 0); u <= std::max<int64_t>(x, 0); ++u)
      if ((y * u - x * v) * (y * u - x * v) < y * y + x * x) {
        const double edge = double(edges[v * width + u]);
        if (!(edge <= strongest)) strongest = edge;  // keeps NaN, unless another comes
        if (strongest != strongest) return strongest;
      }
  return strongest;
}

double power(double base, double exponent) {
  if (exponent != std::floor(exponent) || exponent > 64) return std::pow(base, exponent);
  double result = 1;
  for (int64_t e = int64_t(exponent); e; e /= 2, base *= base)
    if (e % 2) result *= base;
  return result;
}

template <typename T, typename A = Accumulate<T>>
class Walk {
 public:
  explicit Walk(WalkShape s)
      : shape_(s),
        offsets_(offsets_of(s.radius)),
        halo_(whole(s.radius - 1, kLine)),
        stride_(whole(s.width, kLine) + halo_),
        size_(whole((s.height + 2 * (s.radius - 1)) * stride_ + 2 * halo_, kLine)),
        weights_(int64_t(offsets_.size()) * size_),
        sums_(size_),
        scales_(size_) {
    for (const auto& [y, x] : offsets_) steps_.push_back(y * stride_ + x);
    std::fill_n(weights_.data, int64_t(offsets_.size()) * size_, A(0));
    std::fill_n(sums_.data, size_, A(0));
    std::fill_n(scales_.data, size_, A(0));
  }

  // Weights of an image's pairs, from (channels, H, W).
  void weigh(const T* edges, const Parallel& parallel) {
    const int64_t height = shape_.height, width = shape_.width, pairs = int64_t(offsets_.size());
    parallel.loop(pairs, grain_for(32 * height * width), [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; ++k) {
        const auto [y, x] = offsets_[k];
        for (int64_t v = 0; v < height - y; ++v)
          for (int64_t u = std::max<int64_t>(-x, 0); u < width - std::max<int64_t>(x, 0); ++u) {
            const double affinity = shape_.channels == 1 ? 1 - strongest_edge(edges + v * width + u, width, y, x)
                                                         : double(edges[(k * height + v) * width + u]);
            weights_.data[k * size_ + at(v, u)] = A(power(affinity, shape_.beta));
          }
      }
    });
    for (int64_t v = 0; v < height; ++v)
      for (int64_t u = 0; u < width; ++u) {
        double sum = 0;
        for (int64_t k = 0; k < pairs; ++k)
          sum += double(weights_.data[k * size_ + at(v, u)]) + double(weights_.data[k * size_ + at(v, u) - steps_[k]]);
        sums_.data[at(v, u)] = A(sum);
        scales_.data[at(v, u)] = A(1 / (1 + sum));
      }
  }

  // All steps of one image: classes in a few blocks, each of which walks alone where there are enough of them.
  void walk(const T* edges, const T* cams, A* walked, const Parallel& parallel) const {
    const int64_t classes = shape_.classes, pixels = shape_.height * shape_.width;
    const int64_t blocks = std::min(whole((classes + kClasses - 1) / kClasses, parallel.threads), classes);
    const WalkPlanes<A> planes{
        stride_,    size_,       whole(shape_.width, kLine), int(offsets_.size()), steps_.data(), weights_.data,
        sums_.data, scales_.data};
    every(blocks, parallel, [&](int64_t block, const Parallel& threads) {
      const int64_t first = block * classes / blocks, count = (block + 1) * classes / blocks - first;
      const Buffer<A> maps(2 * count * size_);
      std::fill_n(maps.data, 2 * count * size_, A(0));
      A *from = maps.data, *to = maps.data + count * size_;
      each_pixel(count, [&](int64_t c, int64_t i, int64_t place) {
        const A score = A(cams[(first + c) * pixels + i]);
        from[place] = shape_.channels == 1 ? score * (1 - A(edges[i])) : score;
      });
      for (int64_t step = 0; step < shape_.steps; ++step, std::swap(from, to))
        threads.loop(shape_.height, grain_for(2 * planes.pairs * count * shape_.width),
                     [&](int64_t begin, int64_t end, int) {
                       for (int64_t v = begin; v < end; ++v)
                         CALL_BEST_ISA(walk_row_of, int(count), planes, from, to, at(v, 0));
                     });
      each_pixel(count, [&](int64_t c, int64_t i, int64_t place) { walked[(first + c) * pixels + i] = from[place]; });
    });
  }

 private:
  int64_t at(int64_t v, int64_t u) const { return (v + shape_.radius - 1) * stride_ + halo_ + u; }

  // each(class, pixel, its place in the planes of these classes)
  template <typename Each>
  void each_pixel(int64_t classes, const Each& each) const {
    for (int64_t c = 0; c < classes; ++c)
      for (int64_t v = 0; v < shape_.height; ++v)
        for (int64_t u = 0; u < shape_.width; ++u) each(c, v * shape_.width + u, c * size_ + at(v, u));
  }

  const WalkShape shape_;
  const std::vector<std::pair<int64_t, int64_t>> offsets_;
  const int64_t halo_, stride_, size_;
  std::vector<int64_t> steps_;
  const Buffer<A> weights_, sums_, scales_;
};

}  // namespace

template <typename T>
void random_walk_cpu(const T* edges, const T* cams, Accumulate<T>* walked, WalkShape s, const Parallel& parallel) {
  const int64_t pixels = s.height * s.width;
  if (s.batch * s.classes * pixels == 0) return;
  Walk<T> walk(s);
  for (int64_t b = 0; b < s.batch; ++b) {
    walk.weigh(edges + b * s.channels * pixels, parallel);
    const int64_t plane = b * s.classes * pixels;
    walk.walk(edges + b * s.channels * pixels, cams + plane, walked + plane, parallel);
  }
}

#define INSTANTIATE(T) template void random_walk_cpu<T>(const T*, const T*, Accumulate<T>*, WalkShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
