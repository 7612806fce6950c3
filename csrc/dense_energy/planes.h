// Planes of a few pixels: softmax, gates, energies; compiled once per instruction set (common/for_each_isa.h).

#include "common/exp.h"

// Softmax over `channels` planes of `count` pixels, rounded up to whole vectors.
template <typename A>
TOCO_TARGET void softmax_planes(A* planes, int64_t plane_stride, int64_t channels, int64_t count) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t x = 0; x < count; x += kSize) {
    V largest = *(const V*)(planes + x), sum = {};
    for (int64_t c = 1; c < channels; ++c) {
      const V value = *(const V*)(planes + c * plane_stride + x);
      largest = value > largest ? value : largest;
    }
    for (int64_t c = 0; c < channels; ++c) {
      V e = *(const V*)(planes + c * plane_stride + x) - largest;
      exp_nonpositive(e);
      e = e < A(kNothing) ? V{} : e;
      sum += e;
      *(V*)(planes + c * plane_stride + x) = e;
    }
    const V share = 1 / sum;
    for (int64_t c = 0; c < channels; ++c) *(V*)(planes + c * plane_stride + x) *= share;
  }
}

// The softmax's backward: probabilities * (grads - sum over channels of probabilities * grads), to the same pixels of
// every channel of the maps.
template <typename A>
TOCO_TARGET void softmax_backward(const A* probabilities, const A* grads, int64_t plane_stride, int64_t channels,
                                  int64_t count, A* maps, int64_t map_stride) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t x = 0; x < count; x += kSize) {
    V sum = {};
    for (int64_t c = 0; c < channels; ++c)
      sum += *(const V*)(probabilities + c * plane_stride + x) * *(const V*)(grads + c * plane_stride + x);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = c * plane_stride + x;
      const V grad = *(const V*)(probabilities + at) * (*(const V*)(grads + at) - sum);
      if (x + kSize <= count) {
        *(U*)(maps + c * map_stride + x) = grad;
      } else {
        for (int64_t i = 0; x + i < count; ++i) maps[c * map_stride + x + i] = grad[i];
      }
    }
  }
}

// gate = 1 where unlabeled, else max(roi - largest probability, 0); the probabilities are multiplied by roi.
template <typename A>
TOCO_TARGET void gate_planes(A* planes, int64_t plane_stride, int64_t channels, int64_t count, const A* roi,
                             const uint8_t* unlabeled, A* gate) {
  for (int64_t x = 0; x < count; ++x) gate[x] = planes[x];
  for (int64_t c = 1; c < channels; ++c) {
    const A* plane = planes + c * plane_stride;
    for (int64_t x = 0; x < count; ++x) gate[x] = plane[x] > gate[x] || plane[x] != plane[x] ? plane[x] : gate[x];
  }
  for (int64_t x = 0; x < count; ++x) {
    const A open = roi[x] - gate[x];
    gate[x] = unlabeled[x] ? A(1) : open < 0 ? A(0) : open;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < count; ++x) planes[c * plane_stride + x] *= roi[x];
}

// The sum over pixels of gate * <values, filtered>; then filtered *= scale * gate * roi.
template <typename A>
TOCO_TARGET void energy_of_planes(const A* values, int64_t value_stride, A* filtered, int64_t channels, int64_t count,
                                  const A* gate, const A* roi, A scale, double* energy) {
  alignas(64) A dots[kPixels] = {}, factors[kPixels];
  for (int64_t x = 0; x < count; ++x) factors[x] = scale * gate[x] * roi[x];
  for (int64_t c = 0; c < channels; ++c) {
    const A* value = values + c * value_stride;
    A* plane = filtered + c * kPixels;
    for (int64_t x = 0; x < count; ++x) {
      dots[x] += value[x] * plane[x];
      plane[x] *= factors[x];
    }
  }
  double sum = 0;
  for (int64_t x = 0; x < count; ++x) sum += double(gate[x] * dots[x]);
  *energy = sum;
}

// planes = -maps, and zeros beyond `count` pixels.
template <typename A>
TOCO_TARGET void load_negative(const A* maps, int64_t stride, int64_t channels, int64_t count, A* planes) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = 0; x < count; ++x) planes[c * kPixels + x] = -maps[c * stride + x];
    for (int64_t x = count; x < kPixels; ++x) planes[c * kPixels + x] = 0;
  }
}

// planes += weight * others.
template <typename A>
TOCO_TARGET void add_planes(const A* others, A weight, int64_t channels, A* planes) {
  for (int64_t i = 0; i < channels * kPixels; ++i) planes[i] += weight * others[i];
}
