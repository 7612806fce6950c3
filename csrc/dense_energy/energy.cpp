#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/resize.h"
#include "dense_energy/pair_filter.h"

#define TOCO_PER_ISA "dense_energy/planes.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

// Copies `count` pixels of each channel, and zeros up to the next plane. Planes of the maps are far apart.
template <typename T, typename A>
void load_planes(const T* maps, int64_t map_stride, int64_t channels, int64_t count, A* planes, int64_t plane_stride) {
  constexpr int64_t kPlanesAhead = 3;
  best_isa([&]() TOCO_INLINE {
    for (int64_t c = 0; c < channels; ++c) {
      const T* map = maps + c * map_stride;
      if (c + kPlanesAhead < channels)
        for (int64_t x = 0; x < count; x += 64 / sizeof(T)) __builtin_prefetch(map + kPlanesAhead * map_stride + x);
      for (int64_t x = 0; x < count; ++x) planes[c * plane_stride + x] = A(map[x]);
      for (int64_t x = count; x < plane_stride; ++x) planes[c * plane_stride + x] = 0;
    }
  });
}

// How an axis is resized, and how gradients go back: position i of `from` receives from up to `most` others.
template <typename A>
struct Axis {
  int64_t from, to, most = 0;
  Buffer<int32_t> near, far;                // (to)
  Buffer<A> share;                          // (to): of far
  std::unique_ptr<Buffer<int32_t>> source;  // (most, from)
  std::unique_ptr<Buffer<A>> weight;        // (most, from), 0 where there are fewer

  // As published; without tables, which are gathered one by one.
  bool halves() const { return from == 2 * to; }

  Axis(int64_t from, int64_t to) : from(from), to(to), near(to), far(to), share(to) {
    const Buffer<int64_t> received(from);
    std::fill_n(received.data, from, 0);
    for (int64_t i = 0; i < to; ++i) {
      const Between<A> at = between<A>(i, from, to);
      near.data[i] = int32_t(at.near), far.data[i] = int32_t(at.far), share.data[i] = at.share;
      most = std::max({most, ++received.data[at.near], ++received.data[at.far]});
    }
    source = std::make_unique<Buffer<int32_t>>(most * from);
    weight = std::make_unique<Buffer<A>>(most * from);
    std::fill_n(source->data, most * from, 0);
    std::fill_n(weight->data, most * from, A(0));
    std::fill_n(received.data, from, 0);
    for (int64_t i = 0; i < to; ++i) {
      receive(received.data, near.data[i], i, 1 - share.data[i]);
      receive(received.data, far.data[i], i, share.data[i]);
    }
  }

 private:
  void receive(int64_t* received, int64_t at, int64_t i, A share) {
    const int64_t slot = received[at]++ * from + at;
    source->data[slot] = int32_t(i);
    weight->data[slot] = share;
  }
};

int64_t whole_vectors(int64_t count) { return (count + kPixels - 1) / kPixels * kPixels; }

// One image: its values and gates, its share of the energy, and its gradient.
template <typename T, typename A = Accumulate<T>>
class EnergyOfImage {
 public:
  EnergyOfImage(const T* maps, const A* roi, const uint8_t* unlabeled, EnergyShape s, const Parallel& parallel)
      : maps_(maps),
        roi_(roi),
        unlabeled_(unlabeled),
        s_(s),
        parallel_(parallel),
        values_(s.classes * s.pixels()),
        gate_(s.pixels()) {}

  void read_probabilities() {
    const int64_t pixels = s_.pixels();
    parallel_.loop(pixels, grain_for(s_.classes * 4), [&](int64_t begin, int64_t end, int) {
      best_isa([&]() TOCO_INLINE {
        for (int64_t c = 0; c < s_.classes; ++c)
          for (int64_t i = begin; i < end; ++i) values_.data[c * pixels + i] = A(maps_[c * pixels + i]);
      });
      put_gate(begin, end - begin);
    });
  }

  void read_logits(const Axis<A>& y_axis, const Axis<A>& x_axis) {
    const int64_t wide = whole_vectors(s_.width);
    parallel_.loop(s_.image_height, grain_for(s_.classes * s_.width * 8), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> scratch(s_.classes * 2 * wide + wide);
      A *rows[2] = {scratch.data, scratch.data + s_.classes * wide}, *mixed = rows[1] + s_.classes * wide;
      int64_t held[2] = {-1, -1};
      for (int64_t y = begin; y < end; ++y) {
        const int64_t wanted[2] = {y_axis.near.data[y], y_axis.far.data[y]};
        if (held[1] == wanted[0]) std::swap(rows[0], rows[1]), std::swap(held[0], held[1]);
        for (int side = 0; side < 2; ++side)
          if (held[side] != wanted[side]) softmax_row(wanted[side], rows[side], wide), held[side] = wanted[side];
        best_isa([&]() TOCO_INLINE {
          const A share = y_axis.share.data[y];
          for (int64_t c = 0; c < s_.classes; ++c) {
            const A *top = rows[0] + c * wide, *bottom = rows[1] + c * wide;
            A* out = values_.data + c * s_.pixels() + y * s_.image_width;
            for (int64_t x = 0; x < s_.width; ++x) mixed[x] = (1 - share) * top[x] + share * bottom[x];
            if (x_axis.halves()) {
              for (int64_t x = 0; x < s_.image_width; ++x) out[x] = A(0.5) * (mixed[2 * x] + mixed[2 * x + 1]);
            } else {
              for (int64_t x = 0; x < s_.image_width; ++x)
                out[x] = (1 - x_axis.share.data[x]) * mixed[x_axis.near.data[x]] +
                         x_axis.share.data[x] * mixed[x_axis.far.data[x]];
            }
          }
        });
        put_gate(y * s_.image_width, s_.image_width);
      }
    });
  }

  // Returns the energy. `grad` (classes, pixels), where it is wanted, gets that of the values, times `scale`.
  double energy(PairFilter<A>& filter, A scale, A* grad) {
    const int64_t pixels = s_.pixels();
    const Buffer<double> energies((pixels + kPixels - 1) / kPixels);  // added up in one order, whichever was first
    filter.spread(values_.data, nullptr, s_.classes, parallel_);
    const auto few = [&](int64_t first, int64_t count, A* planes) {
      filter.read(first, count, planes);
      CALL_BEST_ISA(energy_of_planes, values_.data + first, pixels, planes, s_.classes, count, gate_.data + first,
                    roi_ + first, scale, energies.data + first / kPixels);
      if (grad) put_planes(planes, s_.classes, pixels, first, count, grad);
    };
    every_few_pixels<A>(pixels, s_.classes, filter.work(), parallel_, few);
    double sum = 0;
    for (int64_t first = 0; first < pixels; first += kPixels) sum += energies.data[first / kPixels];
    return sum;
  }

  // Back through the resizing and the softmax, whose probabilities are computed again: cheaper than to keep them.
  void write_gradient_of_logits(const Axis<A>& y_axis, const Axis<A>& x_axis, const A* grad_values, A* grad) const {
    const int64_t wide = whole_vectors(s_.width), narrow = whole_vectors(s_.image_width);
    parallel_.loop(s_.height, grain_for(s_.classes * s_.width * 8), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> scratch(2 * s_.classes * wide + narrow);
      A *probabilities = scratch.data, *grads = probabilities + s_.classes * wide, *mixed = grads + s_.classes * wide;
      std::fill_n(grads, s_.classes * wide, A(0));
      for (int64_t y = begin; y < end; ++y) {
        softmax_row(y, probabilities, wide);
        best_isa([&]() TOCO_INLINE {
          for (int64_t c = 0; c < s_.classes; ++c) {
            for (int64_t x = 0; x < s_.image_width; ++x) mixed[x] = 0;
            for (int64_t k = 0; k < y_axis.most; ++k) {
              const A weight = y_axis.weight->data[k * s_.height + y];
              const A* plane = grad_values + c * s_.pixels() + y_axis.source->data[k * s_.height + y] * s_.image_width;
              if (weight != 0)
                for (int64_t x = 0; x < s_.image_width; ++x) mixed[x] += weight * plane[x];
            }
            A* out = grads + c * wide;
            if (x_axis.halves()) {
              for (int64_t x = 0; x < s_.image_width; ++x) out[2 * x] = out[2 * x + 1] = A(0.5) * mixed[x];
              continue;
            }
            for (int64_t x = 0; x < s_.width; ++x) out[x] = 0;
            for (int64_t k = 0; k < x_axis.most; ++k) {
              const A* weight = x_axis.weight->data + k * s_.width;
              const int32_t* source = x_axis.source->data + k * s_.width;
              for (int64_t x = 0; x < s_.width; ++x) out[x] += weight[x] ? weight[x] * mixed[source[x]] : A(0);
            }
          }
        });
        CALL_BEST_ISA(softmax_backward, probabilities, grads, wide, s_.classes, s_.width, grad + y * s_.width,
                      s_.height * s_.width);
      }
    });
  }

 private:
  void put_gate(int64_t first, int64_t count) {
    CALL_BEST_ISA(gate_planes, values_.data + first, s_.pixels(), s_.classes, count, roi_ + first, unlabeled_ + first,
                  gate_.data + first);
  }

  void softmax_row(int64_t y, A* planes, int64_t wide) const {
    load_planes(maps_ + y * s_.width, s_.height * s_.width, s_.classes, s_.width, planes, wide);
    CALL_BEST_ISA(softmax_planes, planes, wide, s_.classes, s_.width);
  }

  const T* maps_;
  const A* roi_;
  const uint8_t* unlabeled_;
  const EnergyShape s_;
  const Parallel& parallel_;
  const Buffer<A> values_;  // (classes, pixels)
  const Buffer<A> gate_;    // (pixels)
};

}  // namespace

template <typename T>
void dense_energy_cpu(const T* maps, Image image, const Accumulate<T>* roi, const uint8_t* unlabeled,
                      Accumulate<T>* loss, Accumulate<T>* grad, bool logits, EnergyOptions options, EnergyShape s,
                      const Parallel& parallel) {
  using A = Accumulate<T>;
  const double xy = 1 / options.sigma_xy, rgb = 1 / options.sigma_rgb;
  const double scales[5] = {xy, xy, rgb, rgb, rgb};
  const Axis<A> y_axis(s.height, s.image_height), x_axis(s.width, s.image_width);
  const Buffer<double> energies(s.batch);
  if (grad) prefer_huge_pages(grad, s.batch * s.classes * s.height * s.width * sizeof(A));
  every(s.batch, parallel, [&](int64_t b, const Parallel& threads) {
    const int64_t pixels = s.pixels(), size = s.classes * s.height * s.width;
    PairFilter<A> filter(options.kernel, image_of<A>(image, b, options.kernel, pixels), s.image_height, s.image_width,
                         scales, s.classes, threads);
    EnergyOfImage<T> of_image(maps + b * size, roi + b * pixels, unlabeled + b * pixels, s, threads);
    const A scale = A(-2) / A(s.batch);
    if (logits) {
      of_image.read_logits(y_axis, x_axis);
      const Buffer<A> grad_values(grad ? s.classes * pixels : 0);
      energies.data[b] = of_image.energy(filter, scale, grad ? grad_values.data : nullptr);
      if (grad) of_image.write_gradient_of_logits(y_axis, x_axis, grad_values.data, grad + b * size);
    } else {
      of_image.read_probabilities();
      energies.data[b] = of_image.energy(filter, scale, grad ? grad + b * size : nullptr);
    }
  });
  double sum = 0;
  for (int64_t b = 0; b < s.batch; ++b) sum += energies.data[b];
  *loss = A((0 - sum) / std::max<int64_t>(s.batch, 1));  // 0 of no images, and not -0
}

#define INSTANTIATE(T)                                                                                     \
  template void dense_energy_cpu<T>(const T*, Image, const Accumulate<T>*, const uint8_t*, Accumulate<T>*, \
                                    Accumulate<T>*, bool, EnergyOptions, EnergyShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
