// What the CPU kernels of this room share: one image's affinities, and masks that are averaged over them.
#pragma once
#include <algorithm>

#include "affinity_refine/stencil.h"
#include "common/buffer.h"

namespace toco {

constexpr int kLanes = 16;  // pixels of a block: one AVX-512 register of floats

// Images are kept as padded rows (H, channels, stride): a row's ends are repeated `pad` times left and right, and it is
// filled up to whole blocks of kLanes pixels, so that no loop over neighbours has a border case.
struct Plan {
  AffinityKind kind;
  RefineShape shape;
  std::vector<Neighbour> neighbours;
  int64_t pad, blocks, stride;

  Plan(const std::vector<int64_t>& dilations, AffinityKind kind, RefineShape shape);

  // Where the neighbours of a row's first pixel are, in padded rows of as many channels as were set last.
  const int64_t* offsets(int64_t y) const { return offsets_.data() + y * int64_t(neighbours.size()); }
  void set_offsets(int64_t channels);

  // The row of one channel, at its first pixel.
  template <typename A>
  A* at(A* rows, int64_t channels, int64_t y, int64_t channel) const {
    return rows + (y * channels + channel) * stride + pad;
  }

 private:
  std::vector<int64_t> offsets_;  // (H, P)
};

// Copies the ends of row y outwards.
template <typename A>
void repeat_ends(A* rows, const Plan& plan, int64_t channels, int64_t y) {
  for (int64_t c = 0; c < channels; ++c) {
    A* first = plan.at(rows, channels, y, c);
    A* last = first + plan.shape.width - 1;
    std::fill(first - plan.pad, first, *first);
    std::fill(last + 1, first - plan.pad + plan.stride, *last);
  }
}

// The transpose of repeat_ends: adds what lies beyond the ends of row y to them.
template <typename A>
void gather_ends(A* rows, const Plan& plan, int64_t channels, int64_t y) {
  for (int64_t c = 0; c < channels; ++c) {
    A* first = plan.at(rows, channels, y, c);
    A* last = first + plan.shape.width - 1;
    for (A* beyond = first - plan.pad; beyond < first; ++beyond) *first += *beyond;
    for (A* beyond = last + 1; beyond < first - plan.pad + plan.stride; ++beyond) {
      *last += *beyond;
      *beyond = 0;
    }
  }
}

template <typename A>
class Refiner {
 public:
  // `shape.channels` is the most that any image has.
  Refiner(const std::vector<int64_t>& dilations, AffinityKind kind, RefineShape shape, const Parallel& parallel);

  // fill(rows, y) writes the colours of row y into padded rows; the affinities follow from them.
  template <typename Fill>
  void set_image(Fill fill) {
    plan.set_offsets(plan.shape.colours);
    each_row([&](int64_t y) {
      fill(from_, y);
      repeat_ends(from_, plan, plan.shape.colours, y);
    });
    affinities();
  }

  // fill(rows, y) writes `channels` masks of row y; they are averaged in place. `transposed` goes the other way.
  template <typename Fill>
  void refine(int64_t channels, int64_t iterations, bool transposed, Fill fill) {
    plan.shape.channels = channels;
    plan.set_offsets(channels);
    each_row([&](int64_t y) {
      if (transposed) std::fill_n(plan.at(from_, channels, y, 0) - plan.pad, channels * plan.stride, A(0));
      fill(from_, y);
      if (!transposed) repeat_ends(from_, plan, channels, y);
    });
    for (int64_t i = 0; i < iterations; ++i) average(transposed);
  }

  template <typename Body>
  void each_row(const Body& body) {
    rows([&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) body(y);
    });
  }

  const A* masks() const { return from_; }  // padded rows

  Plan plan;

 private:
  template <typename Body>
  void rows(const Body& body) {
    const int64_t work = plan.shape.width * plan.shape.channels * int64_t(plan.neighbours.size());
    parallel_.loop(plan.shape.height, grain_for(work), [&](int64_t begin, int64_t end, int) { body(begin, end); });
  }
  void affinities();
  void average(bool transposed);

  const Parallel& parallel_;
  Buffer<A> weights_, first_, second_;
  A *from_ = first_.data, *to_ = second_.data;
};

}  // namespace toco
