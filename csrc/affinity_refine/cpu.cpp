#include <cmath>

#include "affinity_refine/stencil.h"
#include "common/buffer.h"

namespace toco {
namespace {

constexpr int kLanes = 16;  // pixels of a block: one AVX-512 register of floats

struct Plan {
  AffinityKind kind;
  RefineShape shape;
  std::vector<Neighbour> neighbours;
  int64_t pad, blocks, stride;  // of a padded row

  // Where the neighbours of a row's first pixel are, from the start of a padded image with this many channels.
  void offsets(int64_t y, int64_t channels, int64_t* offset) const {
    for (const Neighbour& neighbour : neighbours) {
      const int64_t row = std::min(std::max(y + neighbour.dy, int64_t(0)), shape.height - 1);
      *offset++ = row * channels * stride + pad + neighbour.dx;
    }
  }
};

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Copies the ends of row y outwards, over whatever the last block left beyond the image.
template <typename A>
void repeat_ends(A* rows, const Plan& plan, int64_t channels, int64_t y) {
  for (int64_t c = 0; c < channels; ++c) {
    A* row = rows + (y * channels + c) * plan.stride;
    A* last = row + plan.pad + plan.shape.width - 1;
    std::fill(row, row + plan.pad, row[plan.pad]);
    std::fill(last + 1, row + plan.stride, *last);
  }
}

template <typename A>
void clear_ends(A* rows, const Plan& plan, int64_t channels, int64_t y) {
  for (int64_t c = 0; c < channels; ++c) {
    A* row = rows + (y * channels + c) * plan.stride;
    std::fill(row, row + plan.pad, A(0));
    std::fill(row + plan.pad + plan.shape.width, row + plan.stride, A(0));
  }
}

// The transpose of repeating: adds what lies beyond the ends of row y to them.
template <typename A>
void gather_ends(A* rows, const Plan& plan, int64_t channels, int64_t y) {
  for (int64_t c = 0; c < channels; ++c) {
    A* row = rows + (y * channels + c) * plan.stride;
    A* last = row + plan.pad + plan.shape.width - 1;
    for (A* beyond = row; beyond < row + plan.pad; ++beyond) row[plan.pad] += *beyond;
    for (A* beyond = last + 1; beyond < row + plan.stride; ++beyond) {
      *last += *beyond;
      *beyond = 0;
    }
  }
}

}  // namespace
}  // namespace toco

#define TOCO_PER_ISA "affinity_refine/rows.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

// Planes (channels, H, W) to padded rows, and back.
template <typename T, typename A>
void pad_row(const T* planes, A* rows, const Plan& plan, int64_t channels, int64_t y) {
  for (int64_t c = 0; c < channels; ++c) {
    const T* from = planes + (c * plan.shape.height + y) * plan.shape.width;
    A* to = rows + (y * channels + c) * plan.stride + plan.pad;
    for (int64_t x = 0; x < plan.shape.width; ++x) to[x] = A(from[x]);
  }
}

template <typename T, typename A>
void crop_row(const A* rows, T* planes, const Plan& plan, int64_t channels, int64_t y) {
  for (int64_t c = 0; c < channels; ++c) {
    const A* from = rows + (y * channels + c) * plan.stride + plan.pad;
    T* to = planes + (c * plan.shape.height + y) * plan.shape.width;
    for (int64_t x = 0; x < plan.shape.width; ++x) to[x] = T(from[x]);
  }
}

template <typename A>
Plan plan_for(const std::vector<int64_t>& dilations, AffinityKind kind, RefineShape s) {
  Plan plan{kind, s, stencil(dilations, kind, s), 0, round_up(s.width, kLanes) / kLanes, 0};
  for (const Neighbour& neighbour : plan.neighbours) plan.pad = std::max(plan.pad, neighbour.dx);
  plan.pad = round_up(plan.pad, kLanes);
  plan.stride = plan.pad + plan.blocks * kLanes + plan.pad;
  plan.stride += plan.stride / kLanes % 2 ? 0 : kLanes;  // an odd number of cache lines: rows share no cache sets
  return plan;
}

}  // namespace

template <typename T>
void affinity_refine_cpu(const Accumulate<T>* image, const T* masks, T* refined, const std::vector<int64_t>& dilations,
                         int64_t iterations, AffinityKind kind, bool transposed, RefineShape s,
                         const Parallel& parallel) {
  using A = Accumulate<T>;
  const Plan plan = plan_for<A>(dilations, kind, s);
  const int64_t pixels = s.height * s.width;
  const auto each_row = [&](const auto& body) {
    parallel.loop(s.height, 1, [&](int64_t begin, int64_t end, int) { body(begin, end); });
  };

  Buffer<A> weights(s.height * plan.blocks * kLanes * plan.neighbours.size());
  Buffer<A> current(s.height * std::max(s.channels, s.colours) * plan.stride);
  Buffer<A> next(s.height * s.channels * plan.stride);
  for (int64_t b = 0; b < s.batch; ++b, image += s.colours * pixels) {
    A *from = current.data, *to = next.data;
    each_row([&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        pad_row(image, from, plan, s.colours, y);
        repeat_ends(from, plan, s.colours, y);
      }
    });
    each_row([&](int64_t begin, int64_t end) {
      CALL_BEST_ISA(affinity_rows, from, weights.data, plan, begin, end);
    });
    each_row([&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        pad_row(masks + b * s.channels * pixels, from, plan, s.channels, y);
        transposed ? clear_ends(from, plan, s.channels, y) : repeat_ends(from, plan, s.channels, y);
      }
    });
    for (int64_t i = 0; i < iterations; ++i) {
      each_row([&](int64_t begin, int64_t end) {
        if (transposed) {
          CALL_BEST_ISA(average_rows_transposed, from, weights.data, to, plan, begin, end);
        } else {
          CALL_BEST_ISA(average_rows, from, weights.data, to, plan, begin, end);
        }
      });
      std::swap(from, to);
    }
    each_row([&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) crop_row(from, refined + b * s.channels * pixels, plan, s.channels, y);
    });
  }
}

#define INSTANTIATE(T)                                                                                              \
  template void affinity_refine_cpu<T>(const Accumulate<T>*, const T*, T*, const std::vector<int64_t>&, int64_t, \
                                       AffinityKind, bool, RefineShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
