// Rows of maps: transposing, softmax, gates; compiled once per instruction set (common/for_each_isa.h).
//
// `planes` hold a few pixels of one channel after the other; `rows` the channels of one pixel after the other
// (lattice.h). Both have `stride` channels, of which those beyond the last are zero.

#include "common/exp.h"
#include "common/panels.h"

template <typename A>
TOCO_TARGET void rows_to_planes(const A* rows, int64_t stride, int64_t count, A* planes, int64_t plane_stride) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t x = 0; x < count; x += kSize)
    for (int64_t begin = 0; begin < stride; begin += kSize) {
      const int64_t c = std::min(begin, stride - kSize);
      V square[kSize];
#pragma GCC unroll 16
      for (int r = 0; r < kSize; ++r) square[r] = *(const U*)(rows + std::min(x + r, count - 1) * stride + c);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int r = 0; r < kSize; ++r) *(U*)(planes + (c + r) * plane_stride + x) = square[r];
    }
}

template <typename A>
TOCO_TARGET void planes_to_rows(const A* planes, int64_t plane_stride, int64_t stride, int64_t count, A* rows) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t x = 0; x < count; x += kSize)
    for (int64_t begin = 0; begin < stride; begin += kSize) {
      const int64_t c = std::min(begin, stride - kSize);
      V square[kSize];
#pragma GCC unroll 16
      for (int r = 0; r < kSize; ++r) square[r] = *(const U*)(planes + (c + r) * plane_stride + x);
      transpose<A>(square);
      if (x + kSize <= count) {
#pragma GCC unroll 16
        for (int r = 0; r < kSize; ++r) *(U*)(rows + (x + r) * stride + c) = square[r];
      } else {
        for (int64_t r = 0; x + r < count; ++r) *(U*)(rows + (x + r) * stride + c) = square[r];
      }
    }
}

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

// planes = planes * (grads - sum over channels of planes * grads): the softmax's backward, written where grads are.
template <typename A>
TOCO_TARGET void softmax_backward(const A* planes, A* grads, int64_t plane_stride, int64_t channels, int64_t count) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t x = 0; x < count; x += kSize) {
    V sum = {};
    for (int64_t c = 0; c < channels; ++c)
      sum += *(const V*)(planes + c * plane_stride + x) * *(const V*)(grads + c * plane_stride + x);
    for (int64_t c = 0; c < channels; ++c) {
      V& grad = *(V*)(grads + c * plane_stride + x);
      grad = *(const V*)(planes + c * plane_stride + x) * (grad - sum);
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
TOCO_TARGET void energy_of_rows(const A* values, A* filtered, int64_t stride, int64_t channels, int64_t count,
                                const A* gate, const A* roi, A scale, double* energy) {
  double sum = 0;
  for (int64_t x = 0; x < count; ++x) {
    const A* value = values + x * stride;
    A* row = filtered + x * stride;
    A dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < channels; ++c) dot += value[c] * row[c];
    sum += double(gate[x] * dot);
    const A factor = scale * gate[x] * roi[x];
    for (int64_t c = 0; c < stride; ++c) row[c] *= factor;
  }
  *energy = sum;
}

// One step of mean field for `count` pixels: q = softmax(logits + sum over terms of weight * filtered).
//
// What whole vectors leave of a row is in one more, which ends with it (lattice.h): it repeats channels, or has lanes
// that are none.
template <typename A>
TOCO_TARGET void mean_field_rows(const A* logits, const A* const* filtered, const A* weights, int terms, A* q,
                                 int64_t stride, int64_t channels, int64_t count) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Index;
  typedef Index I __attribute__((vector_size(kVectorBytes)));
  constexpr int kSize = Vector<A>::kSize;
  const int64_t whole = channels / kSize * kSize, last = stride - kSize;
  I real, fresh;  // lanes of the last vector that are channels, and in no whole vector
  for (int l = 0; l < kSize; ++l) real[l] = last + l < channels ? -1 : 0, fresh[l] = last + l >= whole ? real[l] : 0;

  const auto logit_at = [&](int64_t at) TOCO_INLINE {
    V logit = *(const U*)(logits + at);
    for (int t = 0; t < terms; ++t) logit += weights[t] * *(const U*)(filtered[t] + at);
    return logit;
  };
  const auto exponential = [](V e) TOCO_INLINE {
    exp_nonpositive(e);
    return e < A(kNothing) ? V{} : e;
  };

  for (int64_t x = 0; x < count; x += kSize) {
    const int pixels = std::min<int64_t>(kSize, count - x);
    V largest[kSize], sums[kSize] = {}, lasts[kSize];
    for (int r = 0; r < kSize; ++r) {
      const int64_t at = (x + std::min(r, pixels - 1)) * stride;
      lasts[r] = logit_at(at + last);
      largest[r] = real ? lasts[r] : V{} - A(1e30);
      for (int64_t c = 0; c < whole; c += kSize) {
        const V logit = logit_at(at + c);
        largest[r] = logit < largest[r] ? largest[r] : logit;
        *(U*)(q + at + c) = logit;
      }
    }
    transpose<A>(largest);
    for (int r = 1; r < kSize; ++r) largest[0] = largest[r] < largest[0] ? largest[0] : largest[r];
    for (int r = 0; r < pixels; ++r) {
      const A most = largest[0][r];
      lasts[r] = exponential(lasts[r] - most);
      sums[r] = fresh ? lasts[r] : V{};
      for (int64_t c = 0; c < whole; c += kSize) {
        U& at = *(U*)(q + (x + r) * stride + c);
        at = exponential(at - most);
        sums[r] += at;
      }
    }
    transpose<A>(sums);
    for (int r = 1; r < kSize; ++r) sums[0] += sums[r];
    const V shares = 1 / sums[0];
    for (int r = 0; r < pixels; ++r) {
      A* row = q + (x + r) * stride;
      for (int64_t c = 0; c < whole; c += kSize) *(U*)(row + c) *= shares[r];
      *(U*)(row + last) = real ? lasts[r] * shares[r] : V{};
    }
  }
}
