// The loops over a block of pixels, compiled once per instruction set (common/for_each_isa.h). Lanes are pixels.

#include "common/exp.h"
#include "common/panels.h"

// Pixels of an image as a block; those without a label, and those beyond `count`, are zero: they are never looked at.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET void load_pixels(const T* from, int64_t channel, int64_t pixel, int64_t width, const int32_t* labels,
                             int count, A* x) {
  bool whole = count == kPixels && pixel == 1;
  for (int p = 0; p < count; ++p) whole &= labels[p] != kNobody;
  for (int64_t d = 0; d < width; ++d, from += channel, x += kPixels)
    if (whole)
      for (int p = 0; p < kPixels; ++p) x[p] = A(from[p]);
    else {
      for (int p = 0; p < count; ++p) x[p] = labels[p] != kNobody ? A(from[p * pixel]) : A(0);
      for (int p = count; p < kPixels; ++p) x[p] = A(0);
    }
}

template <typename A>
TOCO_TARGET void measure_pixels(int64_t width, PixelBlock<A>& block) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int p = 0; p < kPixels; p += kSize) {
    V square{};
    for (int64_t d = 0; d < width;) {
      V part{};
      for (const int64_t end = std::min<int64_t>(d + 32, width); d < end; ++d) {
        const V x = *(const V*)(block.x + d * kPixels + p);
        part += x * x;
      }
      square += part;
    }
    for (int l = 0; l < kSize; ++l) {
      if (square[l] > A(1e-24) && square[l] < A(1e36)) {
        block.inverse[p + l] = 1 / std::sqrt(square[l]);
        block.projects[p + l] = 1;
      } else {
        measure_exactly(block.x + p + l, width, &block.inverse[p + l], &block.projects[p + l]);
      }
    }
  }
}

// products[i, p] = Σ_k left[k, i] * right[k, p], with `left` in panels of 32 rows that are `depth` long.
template <typename A>
TOCO_TARGET void multiply_block(const A* left, const A* right, int64_t depth, int64_t rows, A* products) {
  for (int64_t i = 0; i < rows; i += kPanel, left += depth * kPanel, products += kPanel * kPixels) {
    std::fill(products, products + kPanel * kPixels, A(0));
    const int count = int(std::min<int64_t>(kPanel, rows - i));
    for (int64_t k = 0; k < depth; k += kDepth)
      for (int p = 0; p < kPixels; p += kPanel)
        multiply_add(left + k * kPanel, right + k * kPixels + p, kPixels, std::min(kDepth, depth - k), count,
                     products + p, kPixels);
  }
}

// Cosines of pixels and prototypes over temperature.
template <typename A>
TOCO_TARGET void score_block(const PackedPrototypes<A>& prototypes, A temperature, PixelBlock<A>& block) {
  measure_pixels(prototypes.width, block);
  multiply_block(prototypes.by_class.data, block.x, prototypes.width, prototypes.rows, block.scores);
  alignas(kVectorBytes) A scales[kPixels];
  for (int p = 0; p < kPixels; ++p) scales[p] = block.inverse[p] / temperature;
  for (int64_t c = 0; c < prototypes.rows; ++c)
    for (int p = 0; p < kPixels; ++p) block.scores[c * kPixels + p] *= scales[p];
}

// Σ of log(x[p]) over pixels. Sums of exponentials are between 1 and the number of classes: eight of them make a double.
template <typename A>
TOCO_TARGET static inline double sum_of_logs(const A* x) {  // (kPixels)
  double total = 0;
  for (int p = 0; p < kPixels; p += 8) {
    double product = 1;
    for (int l = 0; l < 8; ++l) product *= double(x[p + l]);
    total += std::log(product);
  }
  return total;
}

// The sum of -log softmax(scores)[label] over the block's pixels, and its derivatives times `factors`, where slopes are
// wanted.
template <typename A>
TOCO_TARGET void cross_entropy(const A* scores, int64_t classes, const int32_t* labels, const A* factors, double* loss,
                               A* slopes) {  // scores, slopes: (C, kPixels)
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  alignas(kVectorBytes) A sums[kPixels];
  double linear = 0;
  for (int p = 0; p < kPixels; p += kSize) {
    const V factor = *(const V*)(factors + p);
    V top = *(const V*)(scores + p), sum{};
    for (int64_t c = 1; c < classes; ++c) {
      const V z = *(const V*)(scores + c * kPixels + p);
      top = z > top ? z : top;
    }
    for (int64_t c = 0; c < classes; ++c) {
      V e = *(const V*)(scores + c * kPixels + p) - top;
      exp_nonpositive(e);
      sum += e;
      if (slopes) *(V*)(slopes + c * kPixels + p) = e;
    }
    const V share = factor / sum;
    for (int64_t c = 0; slopes && c < classes; ++c) *(V*)(slopes + c * kPixels + p) *= share;
    for (int l = 0; l < kSize; ++l) {
      const int32_t label = labels[p + l];
      sums[p + l] = label == kNobody ? A(1) : sum[l];
      if (label == kWrong) linear = NAN;
      if (label < 0) continue;
      linear += double(top[l]) - double(scores[label * kPixels + p + l]);
      if (slopes) slopes[label * kPixels + p + l] -= factor[l];
    }
  }
  *loss = linear + sum_of_logs(sums);
}

// The gradient of pixels from slopes by their cosines, which must hold the factor `inverse`, into (D, count) numbers
// `stride` apart. What lies along a pixel is removed as computed, not as theory has it: features that share a direction
// have nearly all of their gradient there.
template <typename A>
TOCO_TARGET void gradient_block(const PackedPrototypes<A>& prototypes, PixelBlock<A>& block, int count, A* to,
                                int64_t stride) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  const int64_t width = prototypes.width;
  multiply_block(prototypes.by_channel.data, block.slopes, prototypes.rows, width, block.gradient);
  alignas(kVectorBytes) A shares[kPixels] = {};
  // Twice: what rounding left of it the first time can be all that there is, where pixels are their own prototypes.
  for (int again = 0; again < 2; ++again)
    for (int p = 0; p < kPixels; p += kSize) {
      const V share = *(const V*)(shares + p);
      V along{};
      for (int64_t d = 0; d < width;) {
        V part{};
        for (const int64_t end = std::min<int64_t>(d + 32, width); d < end; ++d) {
          V &g = *(V*)(block.gradient + d * kPixels + p), x = *(const V*)(block.x + d * kPixels + p);
          if (again) g -= share * x;
          part += g * x;
        }
        along += part;
      }
      for (int l = 0; l < kSize; ++l)
        shares[p + l] = block.projects[p + l] != 0 ? along[l] * block.inverse[p + l] * block.inverse[p + l] : A(0);
    }
  for (int64_t d = 0; d < width; ++d, to += stride) {
    const A *g = block.gradient + d * kPixels, *x = block.x + d * kPixels;
    if (count == kPixels)
      for (int p = 0; p < kPixels; ++p) to[p] = g[p] - shares[p] * x[p];
    else
      for (int p = 0; p < count; ++p) to[p] = g[p] - shares[p] * x[p];
  }
}
