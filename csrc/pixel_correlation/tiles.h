// The loops over pairs of pixels, compiled once per instruction set (common/for_each_isa.h).

#include "common/panels.h"

constexpr int kTileSize = kPanel * kPanel;

// Negative numbers become 0; bit j of the result is set where x[j] > 0.
template <typename A>
TOCO_TARGET static inline uint32_t keep_positive(A* x) {  // (kPanel)
  using V = typename Vector<A>::type;
  uint32_t bits = 0;
  for (int j = 0; j < kPanel; j += Vector<A>::kSize) {
    V& v = *(V*)(x + j);
#if defined(__x86_64__)
    if constexpr (kVectorBytes == 64 && sizeof(A) == 4) {
      bits |= uint32_t(_mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ)) << j;
      v = v < 0 ? V{} : v;  // lets NaN through
      continue;
    }
#endif
    for (int l = 0; l < Vector<A>::kSize; ++l) bits |= uint32_t(v[l] > 0) << (j + l);
    v = v < 0 ? V{} : v;
  }
  return bits;
}

template <typename A>
TOCO_TARGET static inline void transpose_tile(const A* from, A* to) {  // (kPanel, kPanel)
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int i = 0; i < kPanel; i += kSize)
    for (int j = 0; j < kPanel; j += kSize) {
      V square[kSize];
#pragma GCC unroll 16
      for (int r = 0; r < kSize; ++r) square[r] = *(const V*)(from + (i + r) * kPanel + j);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int r = 0; r < kSize; ++r) *(V*)(to + (j + r) * kPanel + i) = square[r];
    }
}

// Panel q gathers the maps of panel p, weighted by similarities (p, q).
template <typename A>
TOCO_TARGET static inline void gather_maps(const CorrelationImage<A>& image, int64_t p, int64_t q, const A* similar) {
  for (int64_t c = 0; c <= image.classes; c += kPanel)
    multiply_add(image.maps + (c / kPanel * image.padded() + p * kPanel) * kPanel, similar, kPanel, kPanel,
                 int(std::min<int64_t>(kPanel, image.classes + 1 - c)),
                 image.gathered + (q * image.stride() + c) * kPanel, kPanel);
}

// All pairs of a pixel in block `row` with one in block `column` >= row; each cosine is computed once.
template <typename A>
TOCO_TARGET void correlate_blocks(const CorrelationImage<A>& image, int64_t row, int64_t column) {
  alignas(64) A similar[kTileSize], transposed[kTileSize];
  const int64_t words = image.words();
  for (int64_t p = row * kBlockPanels; p < (row + 1) * kBlockPanels && p < words; ++p)
    for (int64_t q = std::max(p, column * kBlockPanels); q < (column + 1) * kBlockPanels && q < words; ++q) {
      multiply_panels(image.panels + p * image.width * kPanel, image.panels + q * image.width * kPanel, image.width,
                      kPanel, similar);
      for (int64_t i = 0; i < kPanel; ++i) {
        const uint32_t bits = keep_positive(similar + i * kPanel);
        if (image.signs && p * kPanel + i < image.pixels) image.signs[(p * kPanel + i) * words + q] = bits;
      }
      gather_maps(image, p, q, similar);
      if (p == q) continue;
      transpose_tile(similar, transposed);
      gather_maps(image, q, p, transposed);
      if (!image.signs) continue;
      for (int64_t j = 0; j < kPanel && q * kPanel + j < image.pixels; ++j) {
        uint32_t bits = 0;
        for (int i = 0; i < kPanel; ++i) bits |= uint32_t(transposed[j * kPanel + i] > 0) << i;
        image.signs[(q * kPanel + j) * words + p] = bits;
      }
    }
}

// Clears the numbers of a row whose bit is not set.
template <typename A>
TOCO_TARGET static inline void keep_marked(A* x, uint32_t bits) {  // (kPanel)
#if defined(__x86_64__)
  if constexpr (kVectorBytes == 64 && sizeof(A) == 4) {
    _mm512_storeu_ps(x, _mm512_maskz_loadu_ps(__mmask16(bits), x));
    _mm512_storeu_ps(x + 16, _mm512_maskz_loadu_ps(__mmask16(bits >> 16), x + 16));
    return;
  }
#endif
  for (int j = 0; j < kPanel; ++j) x[j] = bits >> j & 1 ? x[j] : A(0);
}

// The gradient of the features of one block of pixels.
template <typename A>
TOCO_TARGET void correlation_gradient(const CorrelationImage<A>& image, int64_t block,
                                      A* sums) {   // (padded D, kPanel)
  alignas(64) A slopes[kBlockPanels * kTileSize];  // (j, i)
  const int64_t words = image.words(), terms = 2 * (image.classes + 1), width = image.width;
  for (int64_t p = block * kBlockPanels; p < (block + 1) * kBlockPanels && p < words; ++p) {
    std::fill(sums, sums + (width + kPanel - 1) / kPanel * kTileSize, A(0));
    for (int64_t q = 0; q < words; q += kBlockPanels) {
      const int64_t rows = std::min<int64_t>(kBlockPanels * kPanel, image.pixels - q * kPanel);
      for (int64_t j = 0; j < rows; j += kPanel)
        multiply_panels(image.left + (q + j / kPanel) * terms * kPanel, image.right + p * terms * kPanel, terms, kPanel,
                        slopes + j * kPanel);
      for (int64_t j = 0; j < rows; ++j)
        keep_marked(slopes + j * kPanel, image.kept_signs[(q * kPanel + j) * words + p]);
      for (int64_t d = 0; d < width; d += kPanel)
        multiply_add(image.by_pixel + (d / kPanel * image.padded() + q * kPanel) * kPanel, slopes, kPanel, rows,
                     int(std::min<int64_t>(kPanel, width - d)), sums + d * kPanel, kPanel);
    }
    // Through the lengths: what lies along a pixel is removed.
    const A *panel = image.panels + p * width * kPanel, *norms = image.norms + p * kPanel;
    alignas(64) A along[kPanel] = {}, scale[kPanel];
    for (int64_t d = 0; d < width; ++d)
      for (int i = 0; i < kPanel; ++i) along[i] += panel[d * kPanel + i] * sums[d * kPanel + i];
    for (int i = 0; i < kPanel; ++i) {
      along[i] = norms[i] > 0 ? along[i] / norms[i] : A(0);
      scale[i] = 1 / (norms[i] + A(kAdded));
    }
    const int count = int(std::min<int64_t>(kPanel, image.pixels - p * kPanel));
    for (int64_t d = 0; d < width; ++d) {
      const A *sum = sums + d * kPanel, *x = panel + d * kPanel;
      A* to = image.grad + d * image.pixels + p * kPanel;
      for (int i = 0; i < count; ++i) to[i] = sum[i] * scale[i] - along[i] * x[i];
    }
  }
}

// The transpose of panel p: rows of `by_pixel`.
template <typename A>
TOCO_TARGET void turn_panel(const CorrelationImage<A>& image, int64_t p) {
  const A* rows[kPanel];
  A ones[kPanel];
  std::fill(ones, ones + kPanel, A(1));
  for (int64_t d = 0; d < image.width; d += kPanel) {
    const int count = int(std::min<int64_t>(kPanel, image.width - d));
    for (int r = 0; r < count; ++r) rows[r] = image.panels + (p * image.width + d + r) * kPanel;
    pack_panel(rows, ones, count, int64_t(kPanel),
               image.by_pixel + (d / kPanel * image.padded() + p * kPanel) * kPanel);
  }
}

// Features of a panel of pixels over their norms; pixels from `count` on are zero.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET void pack_pixels(const T* from, int64_t channel, int64_t pixel, int64_t width, int count, A* panel,
                             A* norms) {
  double squares[kPanel] = {};
  for (int64_t d = 0; d < width; ++d, from += channel) {
    A* x = panel + d * kPanel;
    if (pixel == 1 && count == kPanel)
      for (int i = 0; i < kPanel; ++i) x[i] = A(from[i]);
    else
      for (int i = 0; i < kPanel; ++i) x[i] = i < count ? A(from[i * pixel]) : A(0);
    for (int i = 0; i < kPanel; ++i) squares[i] += double(x[i]) * double(x[i]);
  }
  A scale[kPanel];
  for (int i = 0; i < kPanel; ++i) {
    norms[i] = A(std::sqrt(squares[i]));
    scale[i] = 1 / (norms[i] + A(kAdded));
  }
  for (int64_t d = 0; d < width; ++d)
    for (int i = 0; i < kPanel; ++i) panel[d * kPanel + i] *= scale[i];
}
