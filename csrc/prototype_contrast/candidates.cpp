#include <algorithm>
#include <limits>
#include <vector>

#include "prototype_contrast/prototype_contrast.h"

namespace toco {
namespace {

template <typename A>
struct PixelCandidate {
  A score;
  int64_t pixel;  // of the whole batch
};

// NaN is the largest number.
template <typename A>
bool larger(A a, A b) {
  return a > b || (a != a && b == b);
}

template <typename A>
bool better(const PixelCandidate<A>& a, const PixelCandidate<A>& b) {
  return larger(a.score, b.score) || (!larger(b.score, a.score) && a.pixel < b.pixel);
}

}  // namespace

template <typename T>
void prototype_candidates_cpu(FeatureMaps<T> features, const Accumulate<T>* cams, const Flags* present, int64_t classes,
                              int64_t kept, Accumulate<T>* scores, Accumulate<T>* vectors, PixelShape s,
                              const Parallel& parallel) {
  using A = Accumulate<T>;
  const A none = -std::numeric_limits<A>::infinity();
  parallel.in_turn(classes, s.batch * s.pixels + 8 * kept * s.width, [&](int64_t c, int) {
    std::vector<PixelCandidate<A>> best;  // a heap, the worst on top, once there are enough
    const int64_t most = std::min(kept, s.batch * s.pixels);
    best.reserve(most);
    for (int64_t b = 0; b < s.batch; ++b) {
      if (present && !(*present)[b * classes + c]) continue;
      const A* map = cams + (b * classes + c) * s.pixels;
      for (int64_t p = 0; p < s.pixels; ++p) {
        if (int64_t(best.size()) == most) {
          if (!larger(map[p], best.front().score)) continue;  // a later pixel comes after an equal one
          std::pop_heap(best.begin(), best.end(), better<A>);
          best.back() = {map[p], b * s.pixels + p};
          std::push_heap(best.begin(), best.end(), better<A>);
        } else if (map[p] != none) {
          best.push_back({map[p], b * s.pixels + p});
          if (int64_t(best.size()) == most) std::make_heap(best.begin(), best.end(), better<A>);
        }
      }
    }
    std::sort(best.begin(), best.end(), better<A>);
    A *to_scores = scores + c * kept, *to = vectors + c * kept * s.width;
    std::fill(to_scores, to_scores + kept, none);
    std::fill(to + int64_t(best.size()) * s.width, to + kept * s.width, A(0));
    std::vector<const T*> from;
    for (const PixelCandidate<A>& candidate : best) {
      *to_scores++ = candidate.score;
      from.push_back(features.at(candidate.pixel / s.pixels, candidate.pixel % s.pixels));
    }
    for (int64_t d = 0; d < s.width; ++d)  // a channel's pixels lie together
      for (size_t j = 0; j < from.size(); ++j) to[j * s.width + d] = A(from[j][d * features.channel]);
  });
}

#define INSTANTIATE(T)                                                                                            \
  template void prototype_candidates_cpu<T>(FeatureMaps<T>, const Accumulate<T>*, const Flags*, int64_t, int64_t, \
                                            Accumulate<T>*, Accumulate<T>*, PixelShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
