// A strip of the attention matrix: a panel of queries against all keys; compiled once per instruction set.
//
// It is held key by key, strip[key * kPanel + query], so that a softmax runs along vectors of queries, and so that the
// strip is a factor of the next product as it lies.

#include "common/exp.h"
#include "common/panels.h"

// Tokens [first, first + count) of one head as a panel: panel[d * kPanel + i], times `scale`; zeros beyond them.
template <typename T, typename A>
TOCO_TARGET void pack_tokens(const T* from, int64_t token, int64_t channel, int64_t width, int count, A scale,
                             A* panel) {
  if constexpr (std::is_same_v<T, A>) {
    if (channel == 1) {
      const A* rows[kPanel];
      A scales[kPanel];
      for (int i = 0; i < count; ++i) rows[i] = from + i * token, scales[i] = scale;
      return pack_panel(rows, scales, count, width, panel);
    }
  }
  for (int64_t d = 0; d < width; ++d)
    for (int i = 0; i < kPanel; ++i)
      panel[d * kPanel + i] = i < count ? A(from[i * token + d * channel]) * scale : A(0);
}

// strip[key, query] = exp(<key, query> - the query's largest), for `count` keys; sums[query] = their sum.
template <typename A>
TOCO_TARGET void attend(const A* keys,   // (panels of keys, D, kPanel)
                        const A* query,  // (D, kPanel)
                        int64_t count, int64_t width, A* strip, double* sums) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize, kVectors = kPanel / kSize;
  V largest[kVectors];
  for (V& v : largest) v = V{} - std::numeric_limits<A>::infinity();
  for (int64_t first = 0; first < count; first += kPanel) {
    A* tile = strip + first * kPanel;
    multiply_panels(keys + first * width, query, width, kPanel, tile);
    const int rows = int(std::min<int64_t>(kPanel, count - first));
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < kVectors; ++v) {
        const V x = *(const V*)(tile + r * kPanel + v * kSize);
        largest[v] = x > largest[v] ? x : largest[v];
      }
  }
  std::fill_n(sums, kPanel, 0.0);
  for (int64_t first = 0; first < count; first += kPanel) {
    A* tile = strip + first * kPanel;
    const int rows = int(std::min<int64_t>(kPanel, count - first));
    V part[kVectors] = {};
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        V& x = *(V*)(tile + r * kPanel + v * kSize);
        x -= largest[v];
        exp_nonpositive(x);
        part[v] += x;
      }
    for (int i = 0; i < kPanel; ++i) sums[i] += double(part[i / kSize][i % kSize]);
  }
}

// total += strip * scales[query], or total = … for the first head.
template <typename A>
TOCO_TARGET void add_strip(const A* strip, const A* scales, int64_t count, bool first, A* total) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t j = 0; j < count; ++j)
    for (int i = 0; i < kPanel; i += kSize) {
      const V x = *(const V*)(strip + j * kPanel + i) * *(const V*)(scales + i);
      V& to = *(V*)(total + j * kPanel + i);
      to = first ? x : to + x;
    }
}

// gathered[c, query] = sum over j of maps[j, c] * strip[j, query], for one block of classes.
template <typename A>
TOCO_TARGET void gather_scores(const A* maps, const A* strip, int64_t count, int classes, A* gathered) {
  std::fill_n(gathered, kPanel * kPanel, A(0));
  for (int64_t j = 0; j < count; j += kDepth)
    multiply_add(maps + j * kPanel, strip + j * kPanel, kPanel, std::min(kDepth, count - j), classes, gathered, kPanel);
}

// gathered[j, c] += sum over queries of strip[j, query] * maps[query, c], for one block of classes; whole panels of j.
template <typename A>
TOCO_TARGET void spread_scores(const A* maps, const A* strip, int64_t count, A* gathered) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize, kRows = kVectorBytes == 64 ? 8 : 4;
  for (int64_t j = 0; j < count; j += kRows)
    for (int c = 0; c < kPanel; c += 2 * kSize) {
      V sums[kRows][2] = {};
      for (int i = 0; i < kPanel; ++i) {
        const V first = *(const V*)(maps + i * kPanel + c), second = *(const V*)(maps + i * kPanel + c + kSize);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const A scalar = strip[(j + r) * kPanel + i];
          sums[r][0] += scalar * first;
          sums[r][1] += scalar * second;
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        *(V*)(gathered + (j + r) * kPanel + c) += sums[r][0];
        *(V*)(gathered + (j + r) * kPanel + c + kSize) += sums[r][1];
      }
    }
}

// sums[query] = sum over j of strip[j, query] * weights[j]: a panel of keys at a time, those in float64.
template <typename A>
TOCO_TARGET void row_sums(const A* strip, const A* weights, int64_t count, double* sums) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize, kVectors = kPanel / kSize;
  std::fill_n(sums, kPanel, 0.0);
  for (int64_t first = 0; first < count; first += kPanel) {
    V part[kVectors] = {};
    for (int64_t j = first; j < std::min(first + kPanel, count); ++j)
      for (int v = 0; v < kVectors; ++v) part[v] += *(const V*)(strip + j * kPanel + v * kSize) * weights[j];
    for (int i = 0; i < kPanel; ++i) sums[i] += double(part[i / kSize][i % kSize]);
  }
}

// sums[j] += sum over queries of strip[j, query] * weights[query].
template <typename A>
TOCO_TARGET void column_sums(const A* strip, const A* weights, int64_t count, double* sums) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t j = 0; j < count; ++j) {
    V part = {};
    for (int i = 0; i < kPanel; i += kSize) part += *(const V*)(strip + j * kPanel + i) * *(const V*)(weights + i);
    A total = 0;
    for (int l = 0; l < kSize; ++l) total += part[l];
    sums[j] += double(total);
  }
}
