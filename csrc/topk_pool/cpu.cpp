#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/buffer.h"
#include "common/huge_pages.h"
#include "topk_pool/key.h"
#include "topk_pool/strip.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TOCO_PER_ISA "topk_pool/select.h"
#include "common/for_each_isa.h"

namespace toco {

template <typename T>
void pool_strip_cpu(const Strip<T>& strip) {
  CALL_BEST_ISA(pool_strip, strip);
}

template <typename T>
void topk_pool_cpu(const T* scores, Kept kept, T* pooled, int32_t* indices, PoolShape s, const Parallel& parallel) {
  each_strip<Accumulate<T>>(s, kept, parallel, [&](int64_t b, int64_t first, int64_t used, auto* scratch) {
    Strip<T> strip{};
    strip.scores = scores + b * s.patches * s.classes + first;
    strip.stride = s.classes;
    strip.end = scores + s.batch * s.patches * s.classes;
    strip.scratch = scratch;
    pool_classes(strip, b, first, used, kept, pooled, indices, s);
  });
}

template <typename T>
void topk_pool_backward_cpu(const T* grad, const int32_t* indices, T* grad_scores, PoolShape s,
                            const Parallel& parallel) {
  if (s.classes == 0) return;
  prefer_huge_pages(grad_scores, s.batch * s.patches * s.classes * int64_t(sizeof(T)));
  // Blocks of rows that stay in the cache between being cleared and written to.
  const int64_t rows = std::max<int64_t>(1, 131072 / (s.classes * int64_t(sizeof(T))));
  const int64_t blocks = (s.patches + rows - 1) / rows;
  parallel.loop(s.batch * blocks, grain_for(rows * s.classes), [&](int64_t begin, int64_t end, int) {
    std::vector<int64_t> next(s.classes);  // the first winner of each class that lies beyond what was written
    std::vector<T> share(s.classes);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / blocks, from = unit % blocks * rows, to = std::min(from + rows, s.patches);
      if (unit == begin || from == 0)
        for (int64_t c = 0; c < s.classes; ++c) {
          using A = Accumulate<T>;
          next[c] = first_winner(indices, b, c, from, s);
          share[c] = T(A(grad[b * s.classes + c]) / A(winners(indices, b, c, s)));
        }
      T* image = grad_scores + b * s.patches * s.classes;
      std::memset(static_cast<void*>(image + from * s.classes), 0, (to - from) * s.classes * sizeof(T));
      const uint32_t* list = reinterpret_cast<const uint32_t*>(indices) + b * s.most * s.classes;
      for (int64_t c = 0; c < s.classes; ++c)
        for (; next[c] < s.most; ++next[c]) {
          const uint64_t n = list[next[c] * s.classes + c];
          if (n >= uint64_t(to)) break;
          image[n * s.classes + c] = share[c];
        }
    }
  });
}

#define INSTANTIATE(T)                                                                      \
  template void pool_strip_cpu<T>(const Strip<T>&);                                         \
  template void topk_pool_cpu<T>(const T*, Kept, T*, int32_t*, PoolShape, const Parallel&); \
  template void topk_pool_backward_cpu<T>(const T*, const int32_t*, T*, PoolShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
