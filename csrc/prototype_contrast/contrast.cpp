#include <vector>

#include "common/huge_pages.h"
#include "prototype_contrast/columns.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TOCO_PER_ISA "prototype_contrast/rows.h"
#include "common/for_each_isa.h"

namespace toco {

template <typename T>
void prototype_contrast_cpu(FeatureMaps<T> features, const int64_t* labels, const Accumulate<T>* prototypes,
                            int64_t classes, double temperature, int64_t ignore_index, Accumulate<T>* loss,
                            Accumulate<T>* grad_features, PixelShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const PackedPrototypes<A> packed(&prototypes, 1, classes, s.width);
  int64_t valid = 0;
  for (int64_t i = 0; i < s.batch * s.pixels; ++i) valid += labels[i] != ignore_index;
  const double weight = valid ? 1 / double(valid) : 0;
  const int64_t blocks = (s.pixels + kPixels - 1) / kPixels;
  std::vector<double> losses(s.batch * blocks);
  const int64_t size = Column<A>::size(packed);
  const Buffer<A> memory(parallel.threads * size);
  if (grad_features) prefer_huge_pages(grad_features, s.batch * s.width * s.pixels * int64_t(sizeof(A)));
  const int64_t work = kPixels * s.width * packed.rows * 2;
  parallel.loop(s.batch * blocks, grain_for(work), [&](int64_t begin, int64_t end, int thread) {
    Column<A> column(memory.data + thread * size, packed);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, first = i % blocks * kPixels;
      const int count = int(std::min<int64_t>(kPixels, s.pixels - first));
      A* grad = grad_features ? grad_features + b * s.width * s.pixels + first : nullptr;
      int32_t own[kPixels];
      bool any = false;
      for (int p = 0; p < kPixels; ++p) {
        const int64_t label = p < count ? labels[b * s.pixels + first + p] : ignore_index;
        own[p] = label == ignore_index ? kNobody : label < 0 || label >= classes ? kWrong : int32_t(label);
        any |= own[p] != kNobody;
      }
      if (!any) {
        for (int64_t d = 0; grad && d < s.width; ++d) std::fill_n(grad + d * s.pixels, count, A(0));
        continue;
      }
      CALL_BEST_ISA(contrast_pixels, features, features.at(b, first), own, count, packed, temperature, A(weight),
                    column, &losses[i], grad, s.pixels);
    }
  });
  double total = 0;
  for (const double part : losses) total += part;
  *loss = A(total * weight);
}

#define INSTANTIATE(T)                                                                                           \
  template void prototype_contrast_cpu<T>(FeatureMaps<T>, const int64_t*, const Accumulate<T>*, int64_t, double, \
                                          int64_t, Accumulate<T>*, Accumulate<T>*, PixelShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
