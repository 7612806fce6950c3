// Matrix products on packed panels, in registers; compiled once per instruction set (common/for_each_isa.h).
//
// A panel holds kPanel rows of a matrix side by side: column k of row i is panel[k * kPanel + i].

#include "common/vector.h"

constexpr int kPanel = 32;
constexpr int64_t kDepth = 96;  // columns of two panels that stay in the first cache together

// products[i, j] += sum over k < depth of left[k, i] * right[k, j]      i < rows, j < kPanel
//
// As many rows as are one step of registers may be written beyond `rows`, but none beyond kPanel.
// Rows of `right` are right_stride apart, those of `products` product_stride. Registers hold kRows * 2 vectors of sums:
// enough to hide the latency of a multiply-add, few enough for 16 registers where there are no more.
template <typename A>
TOCO_TARGET void multiply_add(const A* left, const A* right, int64_t right_stride, int64_t depth, int rows, A* products,
                              int64_t product_stride) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize, kRows = kVectorBytes == 64 ? 8 : 4;
  for (int j = 0; j < kPanel; j += 2 * kSize)
    for (int i = 0; i < rows; i += kRows) {
      V sums[kRows][2] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const V first = *(const U*)(right + k * right_stride + j);
        const V second = *(const U*)(right + k * right_stride + j + kSize);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const A scalar = left[k * kPanel + i + r];
          sums[r][0] += scalar * first;
          sums[r][1] += scalar * second;
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        A* row = products + (i + r) * product_stride + j;
        *(U*)row += sums[r][0];
        *(U*)(row + kSize) += sums[r][1];
      }
    }
}

// products[i, j] = <row i of left, row j of right>, for the first `rows` rows of left, (kPanel, kPanel). Blocks of
// columns are summed separately, which also rounds less than one long sum.
template <typename A>
TOCO_TARGET void multiply_panels(const A* left, const A* right, int64_t width, int rows, A* products) {
  std::fill(products, products + kPanel * kPanel, A(0));
  for (int64_t k = 0; k < width; k += kDepth)
    multiply_add(left + k * kPanel, right + k * kPanel, kPanel, std::min(kDepth, width - k), rows, products, kPanel);
}

// Transposes a square of vectors: each step exchanges the halves of ever smaller squares.
template <typename A, int half = Vector<A>::kSize / 2>
TOCO_TARGET static inline __attribute__((always_inline)) void transpose(typename Vector<A>::type* square) {
  if constexpr (half > 0) {
    using V = typename Vector<A>::type;
    constexpr int kSize = Vector<A>::kSize;
    typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Index;
    typedef Index I __attribute__((vector_size(kVectorBytes)));
    I low = {}, high = {};
    for (int l = 0; l < kSize; ++l) {
      low[l] = l & half ? kSize + (l ^ half) : l;
      high[l] = l & half ? kSize + l : l ^ half;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kSize; ++r)
      if (!(r & half)) {
        const V above = square[r], below = square[r + half];
        square[r] = __builtin_shuffle(above, below, low);
        square[r + half] = __builtin_shuffle(above, below, high);
      }
    transpose<A, half / 2>(square);
  }
}

// Writes `count` <= kPanel rows, each multiplied by its scale, as a panel; the rest of it is zero.
template <typename A>
TOCO_TARGET void pack_panel(const A* const* rows, const A* scales, int count, int64_t width, A* panel) {
  using V = typename Vector<A>::type;
  using U = typename Vector<A>::unaligned;
  constexpr int kSize = Vector<A>::kSize;
  const int64_t whole = width / kSize * kSize;
  for (int64_t k = 0; k < whole; k += kSize)
    for (int i = 0; i < kPanel; i += kSize) {
      V square[kSize];
#pragma GCC unroll 16
      for (int r = 0; r < kSize; ++r) square[r] = i + r < count ? *(const U*)(rows[i + r] + k) * scales[i + r] : V{};
      transpose<A>(square);
#pragma GCC unroll 16
      for (int r = 0; r < kSize; ++r) *(U*)(panel + (k + r) * kPanel + i) = square[r];
    }
  for (int64_t k = whole; k < width; ++k)
    for (int i = 0; i < kPanel; ++i) panel[k * kPanel + i] = i < count ? rows[i][k] * scales[i] : A(0);
}
