// The loops over a column of pixels, compiled once per instruction set (common/for_each_isa.h). Lanes are pixels, and
// everything about a column stays in the first cache.

#include "common/exp.h"
#include "common/vector.h"

constexpr int64_t kPartial = 32;  // channels that are added up at a time: one long sum would round more

// Pixels of an image as columns, one behind the other; those without a label, and those beyond `count`, are zero: they
// are never looked at. Channels are pages apart, so as much is taken of each as a task needs.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET static inline void load_columns(const T* from, int64_t channel, int64_t pixel, int64_t width,
                                            const int32_t* labels, int count, A* x) {  // (kPixels / lanes, D, lanes)
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  bool whole = count == kPixels && pixel == 1;
  for (int p = 0; p < count; ++p) whole &= labels[p] != kNobody;
  for (int64_t d = 0; d < width; ++d, from += channel, x += kSize)
    for (int p = 0; p < kPixels; p += kSize) {
      A* to = x + p * width;
      if (whole && sizeof(T) == sizeof(A)) {
        *(V*)to = *(const typename Vector<A>::unaligned*)(from + p);
        continue;
      }
      alignas(kVectorBytes) A values[kSize];  // of their own, so that conversions need not fear to overwrite `from`
      for (int l = 0; l < kSize; ++l)
        values[l] = whole                                       ? A(from[p + l])
                    : p + l < count && labels[p + l] != kNobody ? A(from[(p + l) * pixel])
                                                                : A(0);
      *(V*)to = *(const V*)values;
    }
}

// The sum over channels of a product, lane by lane.
template <typename A>
TOCO_TARGET static inline typename Vector<A>::type dot(const A* a, const A* b, int64_t width) {  // (D, lanes)
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  V sum{};
  for (int64_t d = 0; d < width;) {
    V parts[4] = {};
    const int64_t end = std::min(d + kPartial, width);
    for (; d + 4 <= end; d += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) parts[i] += *(const V*)(a + (d + i) * kSize) * *(const V*)(b + (d + i) * kSize);
    for (; d < end; ++d) parts[0] += *(const V*)(a + d * kSize) * *(const V*)(b + d * kSize);
    sum += (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }
  return sum;
}

// Rounded once: scores divide by lengths and by a small temperature.
template <typename A>
TOCO_TARGET static inline void measure_column(int64_t width, double temperature, Column<A>& column) {
  constexpr int kSize = Vector<A>::kSize;
  const typename Vector<A>::type square = dot(column.x, column.x, width);
  alignas(kVectorBytes) double lengths[kSize];
  for (int l = 0; l < kSize; ++l) lengths[l] = std::sqrt(double(square[l]));
  for (int l = 0; l < kSize; ++l)
    if (!(square[l] > A(1e-24) && square[l] < A(1e36))) lengths[l] = length_exactly(column.x + l, width, kSize);
  for (int l = 0; l < kSize; ++l) {
    const double length = lengths[l] < kShortest ? kShortest : lengths[l];  // NaN stays
    column.projects[l] = lengths[l] < kShortest ? A(0) : A(1);
    column.inverse[l] = lengths[l] == 0 ? A(0) : A(1 / length);
    column.scales[l] = lengths[l] == 0 ? A(0) : A(1 / (length * temperature));
  }
}

// Memory that will be needed soon: kPieces of each channel, of which those from `first` on are this column's to ask
// for.
template <typename A>
struct Soon {
  static constexpr uint64_t kPieces = kPixels / Vector<A>::kSize;
  const char* data;
  int64_t channel, piece;
  uint64_t first;
  void ask_for(int64_t i) const {
    __builtin_prefetch(data + int64_t((first + i) / kPieces) * channel + int64_t((first + i) % kPieces) * piece);
  }
};

// scores[c] = Σ_d prototypes[d, c] * x[d]
template <typename A, int kChunk>
TOCO_TARGET static void multiply_chunk(const A* prototypes, const A* x, int64_t width, bool ask, Soon<A> soon,
                                       A* scores) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  for (int64_t d = 0; d == 0 || d < width;) {
    V sums[kChunk] = {};
    const bool first = d == 0;
    for (const int64_t end = std::min(d + 2 * kPartial, width); d < end; ++d, prototypes += kChunk) {
      const V value = *(const V*)(x + d * kSize);
      if (ask) soon.ask_for(d);
#pragma GCC unroll 24
      for (int c = 0; c < kChunk; ++c) sums[c] += prototypes[c] * value;
    }
#pragma GCC unroll 24
    for (int c = 0; c < kChunk; ++c) {
      V& score = *(V*)(scores + c * kSize);
      score = first ? sums[c] : score + sums[c];
    }
    if (d >= width) break;
  }
}

// gradient[d] (+)= Σ_c prototypes[d, c] * slopes[c]
template <typename A, int kChunk>
TOCO_TARGET static void spread_chunk(const A* prototypes, const A* slopes, int64_t width, bool add, A* gradient) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  V slope[kChunk];
#pragma GCC unroll 24
  for (int c = 0; c < kChunk; ++c) slope[c] = *(const V*)(slopes + c * kSize);
  int64_t d = 0;
  for (; d + 4 <= width; d += 4, prototypes += 4 * kChunk) {
    V sums[4] = {};
#pragma GCC unroll 24
    for (int c = 0; c < kChunk; ++c)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[i] += prototypes[i * kChunk + c] * slope[c];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      V& g = *(V*)(gradient + (d + i) * kSize);
      g = add ? g + sums[i] : sums[i];
    }
  }
  for (; d < width; ++d, prototypes += kChunk) {
    V sum{};
#pragma GCC unroll 24
    for (int c = 0; c < kChunk; ++c) sum += prototypes[c] * slope[c];
    V& g = *(V*)(gradient + d * kSize);
    g = add ? g + sum : sum;
  }
}

// Calls function<A, kChunk>(arguments...) for the size of the chunks.
#define TOCO_CHUNK(size, function, ...) \
  case size:                            \
    function<A, size>(__VA_ARGS__);     \
    break;
#define TOCO_FOR_CHUNK(size, function, ...) \
  if constexpr (kVectorBytes == 64) {       \
    switch (size) {                         \
      TOCO_CHUNK(3, function, __VA_ARGS__)  \
      TOCO_CHUNK(6, function, __VA_ARGS__)  \
      TOCO_CHUNK(9, function, __VA_ARGS__)  \
      TOCO_CHUNK(12, function, __VA_ARGS__) \
      TOCO_CHUNK(15, function, __VA_ARGS__) \
      TOCO_CHUNK(18, function, __VA_ARGS__) \
      TOCO_CHUNK(21, function, __VA_ARGS__) \
      TOCO_CHUNK(24, function, __VA_ARGS__) \
    }                                       \
  } else {                                  \
    switch (size) {                         \
      TOCO_CHUNK(1, function, __VA_ARGS__)  \
      TOCO_CHUNK(2, function, __VA_ARGS__)  \
      TOCO_CHUNK(3, function, __VA_ARGS__)  \
      TOCO_CHUNK(4, function, __VA_ARGS__)  \
      TOCO_CHUNK(5, function, __VA_ARGS__)  \
      TOCO_CHUNK(6, function, __VA_ARGS__)  \
      TOCO_CHUNK(7, function, __VA_ARGS__)  \
      TOCO_CHUNK(8, function, __VA_ARGS__)  \
    }                                       \
  }

// Cosines of a column's pixels with prototypes, over temperature.
template <typename A>
TOCO_TARGET static void score_column(const PackedPrototypes<A>& prototypes, double temperature, Soon<A> soon,
                                     Column<A>& column) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  measure_column(prototypes.width, temperature, column);
  for (int64_t c = 0; c < prototypes.rows; c += prototypes.chunk) {
    const A* chunk = prototypes.data.data + c * prototypes.width;
    TOCO_FOR_CHUNK(prototypes.chunk, multiply_chunk, chunk, column.x, prototypes.width, c == 0, soon,
                   column.scores + c * kSize)
  }
  const V scale = *(const V*)column.scales;
  for (int64_t c = 0; c < prototypes.rows; ++c) *(V*)(column.scores + c * kSize) *= scale;
}

// Σ of -log softmax(scores)[label] over a column's pixels. Its derivatives times `factor` go where slopes are wanted.
template <typename A>
TOCO_TARGET static double cross_entropy(const A* scores, int64_t classes, const int32_t* labels,
                                        const typename Vector<A>::type& factor, A* slopes) {  // (C, lanes)
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  V top = *(const V*)scores, sum{};
  for (int64_t c = 1; c < classes; ++c) {
    const V z = *(const V*)(scores + c * kSize);
    top = z > top ? z : top;
  }
  for (int64_t c = 0; c < classes; ++c) {
    V e = *(const V*)(scores + c * kSize) - top;
    exp_nonpositive(e);
    sum += e;
    if (slopes) *(V*)(slopes + c * kSize) = e;
  }
  const V share = factor / sum;
  for (int64_t c = 0; slopes && c < classes; ++c) *(V*)(slopes + c * kSize) *= share;
  double loss = 0, product = 1;
  for (int l = 0; l < kSize; ++l) {
    const int32_t label = labels[l];
    if (label == kNobody) continue;
    if (label == kWrong) return NAN;
    loss += double(top[l]) - double(scores[label * kSize + l]);
    product *= double(sum[l]);  // 16 numbers of classes make a double, and one logarithm is cheaper than 16
    if (slopes) slopes[label * kSize + l] -= factor[l];
  }
  return loss + std::log(product);
}

#if defined(__x86_64__)
template <typename A>
TOCO_TARGET static inline void stream(A* to, const typename Vector<A>::type& vector) {
  if constexpr (kVectorBytes == 64)
    _mm512_stream_si512((__m512i*)to, (__m512i)vector);
  else
    _mm256_stream_si256((__m256i*)to, (__m256i)vector);
}
#endif

// The first `count` numbers of rows of kPixels, to where they lie `stride` apart. Whole cache lines go past the caches:
// they need not be read before, and nobody reads them soon.
template <typename A>
TOCO_TARGET static inline void store_rows(const A* rows, int64_t width, int count, A* to, int64_t stride) {
#if defined(__x86_64__)
  if constexpr (kVectorBytes >= 32)
    if (count == kPixels && reinterpret_cast<uintptr_t>(to) % 64 == 0 && stride * sizeof(A) % 64 == 0) {
      for (int64_t d = 0; d < width; ++d, rows += kPixels, to += stride)
        for (int p = 0; p < kPixels; p += Vector<A>::kSize)
          stream(to + p, *(const typename Vector<A>::type*)(rows + p));
      return;
    }
#endif
  for (int64_t d = 0; d < width; ++d) std::copy_n(rows + d * kPixels, count, to + d * stride);
}

// The gradient of a column's pixels from slopes by their cosines, which must hold the factor `inverse`: (D, lanes)
// numbers, their channels kPixels apart. What lies along a pixel is removed as computed, not as theory has it, and
// twice: where a pixel is its own prototype that is all there is.
template <typename A>
TOCO_TARGET static void gradient_column(const PackedPrototypes<A>& prototypes, Column<A>& column, A* to) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  const int64_t width = prototypes.width;
  for (int64_t c = 0; c < prototypes.rows; c += prototypes.chunk) {
    const A *chunk = prototypes.data.data + c * width, *slopes = column.slopes + c * kSize;
    TOCO_FOR_CHUNK(prototypes.chunk, spread_chunk, chunk, slopes, width, c > 0, column.gradient)
  }
  const V inverse = *(const V*)column.inverse, projects = *(const V*)column.projects;
  const V square = projects != 0 ? inverse * inverse : V{};
  V share = dot(column.gradient, column.x, width) * square;
  for (int64_t d = 0; d < width; ++d) *(V*)(column.gradient + d * kSize) -= share * *(const V*)(column.x + d * kSize);
  share = dot(column.gradient, column.x, width) * square;
  for (int64_t d = 0; d < width; ++d)
    *(V*)(to + d * kPixels) = *(const V*)(column.gradient + d * kSize) - share * *(const V*)(column.x + d * kSize);
}

// Some pixels of an image, at most kPixels: the sum of their losses, and their gradients times `weight`, where wanted.
template <typename T, typename A = Accumulate<T>>
TOCO_TARGET void contrast_pixels(const FeatureMaps<T>& features, const T* from, const int32_t* labels, int count,
                                 const PackedPrototypes<A>& prototypes, double temperature, A weight, Column<A>& column,
                                 double* loss, A* grad, int64_t stride) {
  using V = typename Vector<A>::type;
  constexpr int kSize = Vector<A>::kSize;
  constexpr int64_t kBytes = sizeof(T);
  const int64_t width = prototypes.width;
  *loss = 0;
  load_columns(from, features.channel, features.pixel, width, labels, count, column.all);
  for (int p = 0; p < count; p += kSize) {
    column.x = column.all + p * width;
    const Soon<A> soon{(const char*)(from + kPixels), features.channel * kBytes, kSize * kBytes,
                       uint64_t(p / kSize * width)};
    score_column(prototypes, temperature, soon, column);
    V factor = *(const V*)column.scales * weight;
    for (int l = 0; l < kSize; ++l)
      if (labels[p + l] < 0) factor[l] = labels[p + l] == kWrong ? A(NAN) : A(0);
    *loss += cross_entropy(column.scores, prototypes.rows, labels + p, factor, grad ? column.slopes : nullptr);
    if (grad) gradient_column(prototypes, column, column.rows + p);
  }
  if (grad) store_rows(column.rows, width, count, grad, stride);
}
