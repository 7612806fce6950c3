#include <vector>

#include "prototype_contrast/columns.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TOCO_PER_ISA "prototype_contrast/mining.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

// Which ranks of prototypes are semi-hard: from 15 % to 60 % of the classes.
struct Ranks {
  int64_t first, last;
  explicit Ranks(int64_t classes) : first((15 * classes + 50) / 100), last((60 * classes + 50) / 100) {}
};

// How often each pixel counts in the mean over hard and random pixels of each class, divided by how many count.
template <typename A>
std::vector<double> mined_shares(const int64_t* labels, const A* draws, const A* positives, int64_t classes,
                                 int64_t pixels) {
  std::vector<double> shares(pixels);
  std::vector<std::vector<int64_t>> members(classes);
  for (int64_t i = 0; i < pixels; ++i)
    if (labels[i] >= 0 && labels[i] < classes) members[labels[i]].push_back(i);
  int64_t present = 0;
  for (const auto& chosen : members) present += !chosen.empty();
  const auto add_lowest = [&](std::vector<int64_t>& chosen, const A* keys, int64_t begin, int64_t end) {
    const auto smaller = [](A a, A b) {
      return a < b || (a == a && b != b);
    };  // NaN comes last: an order, for std::sort
    const auto before = [&](int64_t i, int64_t j) {
      return smaller(keys[i], keys[j]) || (!smaller(keys[j], keys[i]) && i < j);
    };
    std::sort(chosen.begin(), chosen.end(), before);
    for (int64_t k = begin; k < end; ++k) shares[chosen[k]] += 1 / (double(present) * 2 * double(end - begin));
  };
  for (auto& chosen : members) {
    const int64_t count = int64_t(chosen.size()), half = count / 2, hard = count * 6 / 10;
    if (half == 0) continue;
    add_lowest(chosen, draws, 0, half);
    add_lowest(chosen, positives, hard - half, hard);
  }
  return shares;
}

}  // namespace

template <typename A>
void pixel_prototype_contrast_cpu(const View<A>* views, int64_t classes, double temperature, A* terms, PixelShape s,
                                  const Parallel& parallel) {
  const A* sets[3] = {views[0].prototypes, views[1].prototypes, views[0].prototypes};
  const PackedPrototypes<A> packed[2] = {{sets, 2, classes, s.width}, {sets + 1, 2, classes, s.width}};
  const int64_t blocks = (s.pixels + kPixels - 1) / kPixels, count = s.batch * s.pixels;
  const int64_t plane = s.batch * classes * s.pixels;
  const Ranks ranks(classes);
  std::vector<double> losses(2 * 2 * s.batch * blocks);  // by term, view, block
  std::vector<A> mined(2 * count), positives(2 * count);
  const int64_t size = Column<A>::size(packed[0]);
  const Buffer<A> memory(parallel.threads * size);
  const A weight = A(0.5 / double(std::max<int64_t>(count, 1)) / temperature), half = A(0.5 / temperature);
  const int64_t work = kPixels * (s.width + classes) * 2 * classes;
  parallel.loop(2 * s.batch * blocks, grain_for(work), [&](int64_t begin, int64_t end, int thread) {
    Column<A> column(memory.data + thread * size, packed[0]);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t v = i / (s.batch * blocks), b = i / blocks % s.batch, first = i % blocks * kPixels;
      const int here = int(std::min<int64_t>(kPixels, s.pixels - first));
      int32_t labels[2][kPixels];
      for (int p = 0; p < kPixels; ++p)
        for (int of : {0, 1}) {  // this view's, the other's
          const int64_t label = p < here ? views[of ? 1 - v : v].labels[b * s.pixels + first + p] : 0;
          labels[of][p] = p >= here ? kNobody : label < 0 || label >= classes ? kWrong : int32_t(label);
        }
      PixelTerms<A> found;
      const FeatureMaps<A>& features = views[v].features;
      CALL_BEST_ISA(contrast_views, features, features.at(b, first), labels, here, packed[v], temperature, weight, half,
                    ranks.first, ranks.last, column, &found, views[v].slopes + b * classes * s.pixels + first, plane,
                    s.pixels);
      for (int t : {0, 1}) losses[t * 2 * s.batch * blocks + i] = found.losses[t];
      std::copy_n(found.mined, here, mined.data() + v * count + b * s.pixels + first);
      std::copy_n(found.positives, here, positives.data() + v * count + b * s.pixels + first);
    }
  });

  std::vector<double> shares[2];
  parallel.loop(2, grain_for(count * 16), [&](int64_t begin, int64_t end, int) {
    for (int64_t v = begin; v < end; ++v)
      shares[v] = mined_shares(views[v].labels, views[v].draws, positives.data() + v * count, classes, count);
  });
  parallel.loop(2 * s.batch * classes, grain_for(s.pixels), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t v = i / (s.batch * classes), b = i / classes % s.batch;
      A* row = views[v].slopes + 2 * plane + i % (s.batch * classes) * s.pixels;
      for (int64_t p = 0; p < s.pixels; ++p) row[p] *= A(shares[v][b * s.pixels + p]);
    }
  });

  double totals[3] = {};
  for (size_t i = 0; i < losses.size(); ++i) totals[i / (losses.size() / 2)] += losses[i];
  for (int v = 0; v < 2; ++v)
    for (int64_t i = 0; i < count; ++i) totals[2] += shares[v][i] * double(mined[v * count + i]);
  for (int t = 0; t < 3; ++t) terms[t] = A(totals[t] / 2 / double(t < 2 ? std::max<int64_t>(count, 1) : 1));
}

template <typename A>
void pixel_prototype_contrast_backward_cpu(const A* grad, const View<A>* views, int64_t classes, A* grad_features,
                                           A* grad_other, PixelShape s, const Parallel& parallel) {
  const A* sets[3] = {views[0].prototypes, views[1].prototypes, views[0].prototypes};
  const PackedPrototypes<A> packed[2] = {{sets, 2, classes, s.width}, {sets + 1, 2, classes, s.width}};
  const int64_t blocks = (s.pixels + kPixels - 1) / kPixels, plane = s.batch * classes * s.pixels;
  const int64_t size = Column<A>::size(packed[0]);
  const Buffer<A> memory(parallel.threads * size);
  const int32_t labels[kPixels] = {};  // everybody takes part
  parallel.loop(2 * s.batch * blocks, grain_for(2 * kPixels * s.width * classes),
                [&](int64_t begin, int64_t end, int thread) {
                  Column<A> column(memory.data + thread * size, packed[0]);
                  for (int64_t i = begin; i < end; ++i) {
                    const int64_t v = i / (s.batch * blocks), b = i / blocks % s.batch, first = i % blocks * kPixels;
                    const int here = int(std::min<int64_t>(kPixels, s.pixels - first));
                    const FeatureMaps<A>& features = views[v].features;
                    CALL_BEST_ISA(contrast_views_backward, grad, features, features.at(b, first), labels, here,
                                  packed[v], views[v].slopes + b * classes * s.pixels + first, plane, column,
                                  (v ? grad_other : grad_features) + b * s.width * s.pixels + first, s.pixels);
                  }
                });
}

#define INSTANTIATE(A)                                                                                             \
  template void pixel_prototype_contrast_cpu<A>(const View<A>*, int64_t, double, A*, PixelShape, const Parallel&); \
  template void pixel_prototype_contrast_backward_cpu<A>(const A*, const View<A>*, int64_t, A*, A*, PixelShape,    \
                                                         const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
