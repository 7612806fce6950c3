// Matrix products of bfloat16 panels with sums in float, on processors that have them (AVX512-BF16), where they are
// twice as fast as float.
//
// A panel holds kPanel rows side by side in pairs of columns: panel[k * kPanel + i] is columns 2k and 2k + 1 of row i.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace toco {

struct BFloat16Pair {
  uint32_t bits;
};

#if defined(__x86_64__)
inline bool has_bf16_dots() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has && isa_in_use() == Isa::kAvx512;
}

// products[i, j] = <row i of left, row j of right>, for the first `rows` rows of left, (32, 32)
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))) inline void multiply_bf16_panels(
    const BFloat16Pair* left, const BFloat16Pair* right, int64_t pairs, int rows, float* products) {
  constexpr int kPanel = 32, kRows = 8;
  constexpr int64_t kDepth = 96;  // pairs of two panels that stay in the first cache together
  std::fill(products, products + kPanel * kPanel, 0.0f);
  for (int64_t begin = 0; begin < pairs; begin += kDepth) {
    const int64_t end = std::min(begin + kDepth, pairs);
    for (int i = 0; i < rows; i += kRows) {
      __m512 sums[kRows][2] = {};
      for (int64_t k = begin; k < end; ++k) {
        const __m512bh first = (__m512bh)_mm512_loadu_ps(right + k * kPanel);
        const __m512bh second = (__m512bh)_mm512_loadu_ps(right + k * kPanel + 16);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m512bh pair = (__m512bh)_mm512_set1_epi32(int(left[k * kPanel + i + r].bits));
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], pair, first);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], pair, second);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        float* row = products + (i + r) * kPanel;
        _mm512_storeu_ps(row, _mm512_add_ps(_mm512_loadu_ps(row), sums[r][0]));
        _mm512_storeu_ps(row + 16, _mm512_add_ps(_mm512_loadu_ps(row + 16), sums[r][1]));
      }
    }
  }
}
#else
inline bool has_bf16_dots() { return false; }
inline void multiply_bf16_panels(const BFloat16Pair*, const BFloat16Pair*, int64_t, int, float*) {}
#endif

}  // namespace toco
