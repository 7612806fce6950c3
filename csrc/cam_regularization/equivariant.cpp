// SEAM's equivariant regularisation: two views of an image have the same maps, and those that pixel correlation makes
// of one are like the other's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cam_regularization/route.h"
#include "common/buffer.h"

#define TOCO_PER_ISA "cam_regularization/planes.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

template <typename A>
A sign(A x) {
  return A((x > 0) - (x < 0));
}

// For scheduling alone: multiply-adds of a map and its gradient.
int64_t work_of(ViewShape shape) { return 8 * shape.view.pixels(); }

}  // namespace

template <typename A>
void equivariant_loss_cpu(const A* cams, const A* other_cams, Flags image_labels, A* loss, A* grad_cams,
                          A* grad_other_cams, const EquivariantShape& s, const Parallel& parallel) {
  const Route<A> route(s.cams, s.size), other_route(s.other_cams, s.size);
  const int64_t pixels = s.size.pixels(), grid = s.cams.grid.pixels(), other_grid = s.other_cams.grid.pixels();
  const int64_t scratch_size = std::max(route.scratch(), other_route.scratch()), each = 2 * pixels + scratch_size;
  const double share = 1.0 / double(std::max<int64_t>(s.batch * (s.classes - 1) * pixels, 1));
  std::vector<double> sums(s.batch * s.classes, 0.0);
  Buffer<A> buffer(parallel.threads * each);

  parallel.in_turn(s.batch * s.classes, work_of(s.cams), [&](int64_t i, int thread) {
    const int64_t b = i / s.classes, c = i % s.classes;
    const A *map = cams + i * grid, *other = other_cams + i * other_grid;
    if (c == 0 || !image_labels[b * (s.classes - 1) + c - 1]) {
      if (c) sums[i] = not_finite(map, grid) + not_finite(other, other_grid);
      if (grad_cams) std::fill_n(grad_cams + i * grid, grid, A(0));
      if (grad_other_cams) std::fill_n(grad_other_cams + i * other_grid, other_grid, A(0));
      return;
    }
    A *one = buffer.data + thread * each, *two = one + pixels, *scratch = two + pixels;
    MapRange<A> range, other_range;
    CALL_BEST_ISA(compared, map, route, scratch, &range, one);
    CALL_BEST_ISA(compared, other, other_route, scratch, &other_range, two);
    double sum = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      const A difference = one[p] - two[p];
      sum += std::abs(difference);
      one[p] = A(share) * sign(difference);
      two[p] = -one[p];
    }
    sums[i] = sum + not_finite(map, grid) + not_finite(other, other_grid);
    if (grad_cams) CALL_BEST_ISA(compared_backward, map, route, range, one, scratch, grad_cams + i * grid);
    if (grad_other_cams)
      CALL_BEST_ISA(compared_backward, other, other_route, other_range, two, scratch, grad_other_cams + i * other_grid);
  });
  double total = 0;
  for (double sum : sums) total += sum;
  *loss = A(total * share);
  spoil(*loss, grad_cams, s.batch * s.classes * grid);
  spoil(*loss, grad_other_cams, s.batch * s.classes * other_grid);
}

namespace {

// The `kept` largest of some differences, which are not negative: those above a threshold, and of those equal to it as
// much as is missing.
template <typename A>
struct Largest {
  A threshold = -1, weight_on_it = 0;
  double sum = 0;

  Largest(const A* differences, int64_t count, int64_t kept) {
    sum = not_finite(differences, count);
    if (sum != sum) return;  // what is no number has no order
    if (kept < count) {
      Buffer<A> sorted(count);
      std::copy_n(differences, count, sorted.data);
      std::nth_element(sorted.data, sorted.data + kept - 1, sorted.data + count, std::greater<A>());
      threshold = sorted.data[kept - 1];
    }
    int64_t above = 0, equal = 0;
    for (int64_t i = 0; i < count; ++i) {
      above += differences[i] > threshold;
      equal += differences[i] == threshold;
      sum += differences[i] > threshold ? differences[i] : A(0);
    }
    if (equal) {
      sum += double(threshold) * double(kept - above);
      weight_on_it = A(kept - above) / A(equal);
    }
  }

  A weight(A difference) const { return difference > threshold ? A(1) : difference == threshold ? weight_on_it : A(0); }
};

// What all images share.
template <typename A>
struct CrossViews {
  const A *revised, *other_cams;
  Flags image_labels;
  int64_t kept;
  A* grad_revised;
  EquivariantShape shape;
  Route<A> route, other_route;
};

// In each pixel only the largest of the objects' scores (ties too), and a background of one minus it.
template <typename A>
void one_class_for_each_pixel(A* maps, int64_t count, int64_t pixels) {  // (count, pixels), the first the background's
  for (int64_t p = 0; p < pixels; ++p) {
    A largest = 0;
    for (int64_t i = 1; i < count; ++i) largest = std::max(largest, maps[i * pixels + p]);
    for (int64_t i = 1; i < count; ++i)
      if (maps[i * pixels + p] != largest) maps[i * pixels + p] = 0;
    maps[p] = 1 - largest;
  }
}

// The sum of one image's largest differences.
template <typename A>
double cross_image(const CrossViews<A>& v, int64_t b, const Parallel& parallel) {
  const EquivariantShape& s = v.shape;
  const int64_t pixels = s.size.pixels(), grid = s.cams.grid.pixels(), other_grid = s.other_cams.grid.pixels();
  std::vector<int64_t> shown{0};
  for (int64_t c = 1; c < s.classes; ++c)
    if (v.image_labels[b * (s.classes - 1) + c - 1]) shown.push_back(c);
  const int64_t count = int64_t(shown.size()), each = pixels + std::max(v.route.scratch(), v.other_route.scratch());
  const auto map_of = [&](int64_t i) { return v.revised + (b * s.classes + shown[i]) * grid; };
  Buffer<A> maps(count * pixels), differences(count * pixels), buffer(parallel.threads * each);
  std::vector<MapRange<A>> ranges(count);

  parallel.in_turn(count - 1, work_of(s.other_cams), [&](int64_t i, int thread) {
    MapRange<A> unused;
    CALL_BEST_ISA(compared, v.other_cams + (b * s.classes + shown[i + 1]) * other_grid, v.other_route,
                  buffer.data + thread * each, &unused, maps.data + (i + 1) * pixels);
  });
  one_class_for_each_pixel(maps.data, count, pixels);
  parallel.in_turn(count, work_of(s.cams), [&](int64_t i, int thread) {
    A *own = buffer.data + thread * each, *target = maps.data + i * pixels;
    CALL_BEST_ISA(compared, map_of(i), v.route, own + pixels, &ranges[i], own);
    for (int64_t p = 0; p < pixels; ++p) {
      target[p] = own[p] - target[p];
      differences.data[i * pixels + p] = std::abs(target[p]);
    }
  });
  const Largest<A> largest(differences.data, count * pixels, v.kept);
  const double sum = largest.sum + not_finite(v.revised + b * s.classes * grid, s.classes * grid) +
                     not_finite(v.other_cams + (b * s.classes + 1) * other_grid, (s.classes - 1) * other_grid);
  if (!v.grad_revised) return sum;

  std::fill_n(v.grad_revised + b * s.classes * grid, s.classes * grid, A(0));
  const A share = A(1.0 / (double(v.kept) * double(s.batch)));
  for (int64_t p = 0; p < count * pixels; ++p)
    maps.data[p] = share * largest.weight(differences.data[p]) * sign(maps.data[p]);
  parallel.in_turn(count, work_of(s.cams), [&](int64_t i, int thread) {
    CALL_BEST_ISA(compared_backward, map_of(i), v.route, ranges[i], maps.data + i * pixels, buffer.data + thread * each,
                  v.grad_revised + (b * s.classes + shown[i]) * grid);
  });
  return sum;
}

}  // namespace

template <typename A>
void cross_equivariant_loss_cpu(const A* revised, const A* other_cams, Flags image_labels, int64_t kept, A* loss,
                                A* grad_revised, const EquivariantShape& s, const Parallel& parallel) {
  const CrossViews<A> views{revised,
                            other_cams,
                            image_labels,
                            kept,
                            grad_revised,
                            s,
                            Route<A>(s.cams, s.size),
                            Route<A>(s.other_cams, s.size)};
  std::vector<double> sums(s.batch);
  every(s.batch, parallel, [&](int64_t b, const Parallel& threads) { sums[b] = cross_image(views, b, threads); });
  double total = 0;
  for (double sum : sums) total += sum;
  *loss = A(total / (double(kept) * double(std::max<int64_t>(s.batch, 1))));
  spoil(*loss, grad_revised, s.batch * s.classes * s.cams.grid.pixels());
}

#define INSTANTIATE(A)                                                                                             \
  template void equivariant_loss_cpu<A>(const A*, const A*, Flags, A*, A*, A*, const EquivariantShape&,            \
                                        const Parallel&);                                                          \
  template void cross_equivariant_loss_cpu<A>(const A*, const A*, Flags, int64_t, A*, A*, const EquivariantShape&, \
                                              const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
