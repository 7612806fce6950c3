#include "affinity_refine/refiner.h"

#define TOCO_PER_ISA "affinity_refine/rows.h"
#include "common/for_each_isa.h"

namespace toco {

static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

Plan::Plan(const std::vector<int64_t>& dilations, AffinityKind kind, RefineShape shape)
    : kind(kind), shape(shape), neighbours(stencil(dilations, kind, shape)), pad(0) {
  for (const Neighbour& neighbour : neighbours) pad = std::max(pad, neighbour.dx);
  pad = round_up(pad, kLanes);
  blocks = round_up(shape.width, kLanes) / kLanes;
  stride = pad + blocks * kLanes + pad;
  stride += stride / kLanes % 2 ? 0 : kLanes;  // an odd number of cache lines: neighbouring rows share no cache sets
}

void Plan::set_offsets(int64_t channels) {
  offsets_.clear();
  for (int64_t y = 0; y < shape.height; ++y)
    for (const Neighbour& neighbour : neighbours) {
      const int64_t row = std::min(std::max(y + neighbour.dy, int64_t(0)), shape.height - 1);
      offsets_.push_back(row * channels * stride + pad + neighbour.dx);
    }
}

template <typename A>
Refiner<A>::Refiner(const std::vector<int64_t>& dilations, AffinityKind kind, RefineShape shape,
                    const Parallel& parallel)
    : plan(dilations, kind, shape),
      parallel_(parallel),
      weights_(shape.height * plan.blocks * kLanes * plan.neighbours.size()),
      first_(shape.height * std::max(shape.channels, shape.colours) * plan.stride),
      second_(shape.height * std::max(shape.channels, shape.colours) * plan.stride) {}

template <typename A>
void Refiner<A>::affinities() {
  rows([&](int64_t begin, int64_t end) { CALL_BEST_ISA(affinity_rows, from_, weights_.data, plan, begin, end); });
}

template <typename A>
void Refiner<A>::average(bool transposed) {
  rows([&](int64_t begin, int64_t end) {
    if (transposed) {
      CALL_BEST_ISA(average_rows_transposed, from_, weights_.data, to_, plan, begin, end);
    } else {
      CALL_BEST_ISA(average_rows, from_, weights_.data, to_, plan, begin, end);
    }
  });
  std::swap(from_, to_);
}

template class Refiner<float>;
template class Refiner<double>;

template <typename T>
void affinity_refine_cpu(const Accumulate<T>* image, const T* masks, T* refined, const std::vector<int64_t>& dilations,
                         int64_t iterations, AffinityKind kind, bool transposed, RefineShape s,
                         const Parallel& parallel) {
  using A = Accumulate<T>;
  Refiner<A> refiner(dilations, kind, s, parallel);
  const int64_t pixels = s.height * s.width;
  for (int64_t b = 0; b < s.batch; ++b) {
    refiner.set_image([&](A* rows, int64_t y) {
      const A* from = image + b * s.colours * pixels + y * s.width;
      for (int64_t c = 0; c < s.colours; ++c)
        std::copy_n(from + c * pixels, s.width, refiner.plan.at(rows, s.colours, y, c));
    });
    refiner.refine(s.channels, iterations, transposed, [&](A* rows, int64_t y) {
      const T* from = masks + b * s.channels * pixels + y * s.width;
      for (int64_t c = 0; c < s.channels; ++c) {
        A* to = refiner.plan.at(rows, s.channels, y, c);
        for (int64_t x = 0; x < s.width; ++x) to[x] = A(from[c * pixels + x]);
      }
    });
    refiner.each_row([&](int64_t y) {
      T* to = refined + b * s.channels * pixels + y * s.width;
      for (int64_t c = 0; c < s.channels; ++c) {
        const A* from = refiner.plan.at(refiner.masks(), s.channels, y, c);
        for (int64_t x = 0; x < s.width; ++x) to[c * pixels + x] = T(from[x]);
      }
    });
  }
}

#define INSTANTIATE(T)                                                                                           \
  template void affinity_refine_cpu<T>(const Accumulate<T>*, const T*, T*, const std::vector<int64_t>&, int64_t, \
                                       AffinityKind, bool, RefineShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
