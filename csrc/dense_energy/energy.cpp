#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/resize.h"
#include "dense_energy/pair_filter.h"

#define TOCO_PER_ISA "dense_energy/map_rows.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

constexpr int64_t kChunk = 64;  // pixels that are transposed at a time; whole vectors

// Copies `count` pixels of each channel; planes beyond the channels are zero.
template <typename T, typename A>
void load_planes(const T* maps, int64_t map_stride, int64_t channels, int64_t count, A* planes, int64_t plane_stride,
                 int64_t stride) {
  best_isa([&]() TOCO_INLINE {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t x = 0; x < count; ++x) planes[c * plane_stride + x] = A(maps[c * map_stride + x]);
      for (int64_t x = count; x < plane_stride; ++x) planes[c * plane_stride + x] = 0;
    }
    for (int64_t i = channels * plane_stride; i < stride * plane_stride; ++i) planes[i] = 0;
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

int64_t whole_vectors(int64_t count) { return (count + kChunk - 1) / kChunk * kChunk; }

// One image: its values and gates, its filter, its share of the energy, and its gradient.
template <typename T, typename A = Accumulate<T>>
class EnergyOfImage {
 public:
  EnergyOfImage(const T* maps, const A* roi, const uint8_t* unlabeled, EnergyShape s, const Parallel& parallel)
      : maps_(maps),
        roi_(roi),
        unlabeled_(unlabeled),
        s_(s),
        parallel_(parallel),
        stride_(row_stride<A>(s.classes)),
        values_(s.pixels() * stride_ + kExactRows),
        filtered_(s.pixels() * stride_),
        gate_(s.pixels()) {
    std::fill_n(values_.data + s.pixels() * stride_, kExactRows, A(0));
  }

  void read_probabilities() {
    const int64_t pixels = s_.pixels();
    parallel_.loop((pixels + kChunk - 1) / kChunk, grain_for(kChunk * stride_), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> planes(stride_ * kChunk);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * kChunk, count = std::min(kChunk, pixels - first);
        load_planes(maps_ + first, pixels, s_.classes, count, planes.data, kChunk, stride_);
        put(planes.data, kChunk, first, count);
      }
    });
  }

  void read_logits(const Axis<A>& y_axis, const Axis<A>& x_axis) {
    const int64_t wide = whole_vectors(s_.width), narrow = whole_vectors(s_.image_width);
    parallel_.loop(s_.image_height, grain_for(stride_ * s_.width * 8), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> scratch(stride_ * (2 * wide + narrow) + wide);
      A* rows[2] = {scratch.data, scratch.data + stride_ * wide};
      A *resized = rows[1] + stride_ * wide, *mixed = resized + stride_ * narrow;
      std::fill_n(resized, stride_ * narrow, A(0));
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
            A* out = resized + c * narrow;
            for (int64_t x = 0; x < s_.width; ++x) mixed[x] = (1 - share) * top[x] + share * bottom[x];
            for (int64_t x = 0; x < s_.image_width; ++x)
              out[x] = (1 - x_axis.share.data[x]) * mixed[x_axis.near.data[x]] +
                       x_axis.share.data[x] * mixed[x_axis.far.data[x]];
          }
        });
        put(resized, narrow, y * s_.image_width, s_.image_width);
      }
    });
  }

  // Returns the energy; afterwards filtered_ holds the gradient of the values that were read, times `scale`.
  double filter(const PairFilter<A>& filter, A scale) {
    filter.filter(values_.data, filtered_.data, nullptr, stride_, parallel_);
    const int64_t pixels = s_.pixels(), chunks = (pixels + kChunk - 1) / kChunk;
    const Buffer<double> energies(chunks);
    parallel_.loop(chunks, grain_for(kChunk * stride_), [&](int64_t begin, int64_t end, int) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * kChunk, count = std::min(kChunk, pixels - first);
        CALL_BEST_ISA(energy_of_rows, values_.data + first * stride_, filtered_.data + first * stride_, stride_,
                      s_.classes, count, gate_.data + first, roi_ + first, scale, energies.data + chunk);
      }
    });
    double energy = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) energy += energies.data[chunk];
    return energy;
  }

  void write_gradient(A* grad) const {
    const int64_t pixels = s_.pixels();
    parallel_.loop((pixels + kChunk - 1) / kChunk, grain_for(kChunk * stride_), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> planes(stride_ * kChunk);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * kChunk, count = std::min(kChunk, pixels - first);
        CALL_BEST_ISA(rows_to_planes, filtered_.data + first * stride_, stride_, count, planes.data, kChunk);
        for (int64_t c = 0; c < s_.classes; ++c)
          std::copy_n(planes.data + c * kChunk, count, grad + c * pixels + first);
      }
    });
  }

  // Back through the resizing and the softmax, whose probabilities are computed again: cheaper than to keep them.
  void write_gradient_of_logits(const Axis<A>& y_axis, const Axis<A>& x_axis, A* grad) const {
    const int64_t wide = whole_vectors(s_.width), narrow = whole_vectors(s_.image_width);
    const Buffer<A> planes(s_.image_height * stride_ * narrow);  // (h, stride, narrow)
    parallel_.loop(s_.image_height, grain_for(stride_ * s_.image_width), [&](int64_t begin, int64_t end, int) {
      for (int64_t y = begin; y < end; ++y)
        CALL_BEST_ISA(rows_to_planes, filtered_.data + y * s_.image_width * stride_, stride_, s_.image_width,
                      planes.data + y * stride_ * narrow, narrow);
    });
    parallel_.loop(s_.height, grain_for(stride_ * s_.width * 8), [&](int64_t begin, int64_t end, int) {
      const Buffer<A> scratch(2 * stride_ * wide + narrow);
      A *probabilities = scratch.data, *grads = probabilities + stride_ * wide, *mixed = grads + stride_ * wide;
      std::fill_n(grads, stride_ * wide, A(0));
      for (int64_t y = begin; y < end; ++y) {
        softmax_row(y, probabilities, wide);
        best_isa([&]() TOCO_INLINE {
          for (int64_t c = 0; c < s_.classes; ++c) {
            for (int64_t x = 0; x < s_.image_width; ++x) mixed[x] = 0;
            for (int64_t k = 0; k < y_axis.most; ++k) {
              const A weight = y_axis.weight->data[k * s_.height + y];
              const A* plane = planes.data + (y_axis.source->data[k * s_.height + y] * stride_ + c) * narrow;
              if (weight != 0)
                for (int64_t x = 0; x < s_.image_width; ++x) mixed[x] += weight * plane[x];
            }
            A* out = grads + c * wide;
            for (int64_t x = 0; x < s_.width; ++x) out[x] = 0;
            for (int64_t k = 0; k < x_axis.most; ++k) {
              const A* weight = x_axis.weight->data + k * s_.width;
              const int32_t* source = x_axis.source->data + k * s_.width;
              for (int64_t x = 0; x < s_.width; ++x) out[x] += weight[x] * mixed[source[x]];
            }
          }
        });
        CALL_BEST_ISA(softmax_backward, probabilities, grads, wide, s_.classes, s_.width);
        for (int64_t c = 0; c < s_.classes; ++c)
          std::copy_n(grads + c * wide, s_.width, grad + (c * s_.height + y) * s_.width);
      }
    });
  }

 private:
  // Gates the planes of `count` pixels and keeps them as rows.
  void put(A* planes, int64_t plane_stride, int64_t first, int64_t count) {
    CALL_BEST_ISA(gate_planes, planes, plane_stride, s_.classes, count, roi_ + first, unlabeled_ + first,
                  gate_.data + first);
    CALL_BEST_ISA(planes_to_rows, planes, plane_stride, stride_, count, values_.data + first * stride_);
  }

  void softmax_row(int64_t y, A* planes, int64_t wide) const {
    load_planes(maps_ + y * s_.width, s_.height * s_.width, s_.classes, s_.width, planes, wide, stride_);
    CALL_BEST_ISA(softmax_planes, planes, wide, s_.classes, s_.width);
  }

  const T* maps_;
  const A* roi_;
  const uint8_t* unlabeled_;
  const EnergyShape s_;
  const Parallel& parallel_;
  const int64_t stride_;
  const Buffer<A> values_, filtered_;  // (pixels, stride)
  const Buffer<A> gate_;               // (pixels)
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
  every_image(s.batch, parallel, [&](int64_t b, const Parallel& threads) {
    const int64_t pixels = s.pixels(), size = s.classes * s.height * s.width;
    const PairFilter<A> filter(options.kernel, image_of<A>(image, b, options.kernel, pixels), s.image_height,
                               s.image_width, scales, threads);
    EnergyOfImage<T> energy(maps + b * size, roi + b * pixels, unlabeled + b * pixels, s, threads);
    if (logits)
      energy.read_logits(y_axis, x_axis);
    else
      energy.read_probabilities();
    energies.data[b] = energy.filter(filter, A(-2) / A(s.batch));
    if (grad && logits) energy.write_gradient_of_logits(y_axis, x_axis, grad + b * size);
    if (grad && !logits) energy.write_gradient(grad + b * size);
  });
  double sum = 0;
  for (int64_t b = 0; b < s.batch; ++b) sum += energies.data[b];
  *loss = A(-sum / std::max<int64_t>(s.batch, 1));
}

#define INSTANTIATE(T)                                                                                     \
  template void dense_energy_cpu<T>(const T*, Image, const Accumulate<T>*, const uint8_t*, Accumulate<T>*, \
                                    Accumulate<T>*, bool, EnergyOptions, EnergyShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
