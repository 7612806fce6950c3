// CAMs to refined pseudo labels, image by image: each image has as many channels as it has classes.
#include <cmath>

#include "affinity_refine/refiner.h"
#include "common/resize.h"
#include "common/box.h"
#include "common/simd.h"

namespace toco {
namespace {

// The classes of image b: 0, the background, then the present ones, at most max_classes of them.
std::vector<int64_t> present_classes(Flags image_labels, int64_t b, const CamLabelShape& s) {
  std::vector<int64_t> classes{0};
  const int64_t most = 1 + (s.max_classes < 0 ? s.classes : s.max_classes);
  for (int64_t c = 0; c < s.classes && int64_t(classes.size()) < most; ++c)
    if (image_labels[b * s.classes + c]) classes.push_back(c + 1);
  return classes;
}

// Row y of the softmax over background and present classes, at the reduced size: first with the high score of the
// background, then with the low one.
template <typename A>
void softmax_row(const A* cams, const Background<A> background[2], const std::vector<int64_t>& classes,
                 const std::vector<Between<A>>& columns, const CamLabelShape& s, const Plan& plan, A* rows, int64_t y) {
  const int64_t n = classes.size(), pixels = s.height * s.width;
  const Between<A> row = between<A>(y, s.height, plan.shape.height);
  const auto at = [&](int64_t channel) { return plan.at(rows, 2 * n, y, channel); };
  for (int64_t i = 0; i < n; ++i)
    for (int64_t x = 0; x < plan.shape.width; ++x)
      if (i > 0) {
        at(i)[x] = at(n + i)[x] = bilinear(cams + (classes[i] - 1) * pixels, s.width, row, columns[x]);
      } else {
        for (int run = 0; run < 2; ++run)
          at(run * n)[x] =
              background[run].map ? bilinear(background[run].map, s.width, row, columns[x]) : background[run].score;
      }
  for (int run = 0; run < 2; ++run)
    for (int64_t x = 0; x < plan.shape.width; ++x) {
      A largest = at(run * n)[x], sum = 0;
      for (int64_t i = 1; i < n; ++i) largest = std::max(largest, at(run * n + i)[x]);
      for (int64_t i = 0; i < n; ++i) sum += at(run * n + i)[x] = std::exp(at(run * n + i)[x] - largest);
      for (int64_t i = 0; i < n; ++i) at(run * n + i)[x] /= sum;
    }
}

// The class whose refined mask, resized to the image, is largest in row y; the first of equals.
template <typename A>
TOCO_INLINE inline void argmax_row(const A* masks, int64_t first_channel, int64_t n, const Plan& plan,
                                   const std::vector<Between<A>>& columns, Between<A> row, A* best, int32_t* label) {
  const int64_t width = columns.size();
  for (int64_t i = 0; i < n; ++i) {
    const A* top = plan.at(masks, plan.shape.channels, row.near, first_channel + i);
    const A* bottom = plan.at(masks, plan.shape.channels, row.far, first_channel + i);
    for (int64_t x = 0; x < width; ++x) {
      const Between<A> c = columns[x];
      const A value = (1 - row.share) * ((1 - c.share) * top[c.near] + c.share * top[c.far]) +
                      row.share * ((1 - c.share) * bottom[c.near] + c.share * bottom[c.far]);
      const bool better = i == 0 || value > best[x] || (value != value && best[x] == best[x]);  // NaN is largest
      best[x] = better ? value : best[x];
      label[x] = better ? int32_t(i) : label[x];
    }
  }
}

template <typename A>
std::vector<Between<A>> resized(int64_t from, int64_t to) {
  std::vector<Between<A>> positions;
  for (int64_t i = 0; i < to; ++i) positions.push_back(between<A>(i, from, to));
  return positions;
}

}  // namespace

template <typename A>
void refine_cam_labels_cpu(const A* image, const A* cams, Flags image_labels, const int64_t* boxes, Background<A> high,
                           Background<A> low, int64_t* labels, const std::vector<int64_t>& dilations,
                           int64_t iterations, AffinityKind kind, int64_t ignore_index, CamLabelShape s,
                           const Parallel& parallel) {
  const int64_t pixels = s.height * s.width, height = s.height / s.down_scale, width = s.width / s.down_scale;
  int64_t most = 0;
  for (int64_t b = 0; b < s.batch; ++b) most = std::max<int64_t>(most, present_classes(image_labels, b, s).size());
  Refiner<A> refiner(dilations, kind, {s.batch, s.colours, 2 * most, height, width}, parallel);
  const Plan& plan = refiner.plan;
  const auto down = resized<A>(s.width, width), up = resized<A>(width, s.width);

  for (int64_t b = 0; b < s.batch; ++b) {
    refiner.set_image([&](A* rows, int64_t y) {
      const Between<A> row = between<A>(y, s.height, height);
      for (int64_t c = 0; c < s.colours; ++c)
        for (int64_t x = 0; x < width; ++x)
          plan.at(rows, s.colours, y, c)[x] = bilinear(image + (b * s.colours + c) * pixels, s.width, row, down[x]);
    });
    const std::vector<int64_t> classes = present_classes(image_labels, b, s);
    const int64_t n = classes.size();
    const Background<A> background[2] = {{high.score, high.map ? high.map + b * pixels : nullptr},
                                         {low.score, low.map ? low.map + b * pixels : nullptr}};
    refiner.refine(2 * n, iterations, false, [&](A* rows, int64_t y) {
      softmax_row(cams + b * s.classes * pixels, background, classes, down, s, plan, rows, y);
    });

    const Box box = box_of(boxes, b, s.height, s.width);
    parallel.loop(s.height, 1, [&](int64_t begin, int64_t end, int) {
      Buffer<A> best(s.width);
      Buffer<int32_t> with_high(s.width), with_low(s.width);
      for (int64_t y = begin; y < end; ++y) {
        int64_t* label = labels + (b * s.height + y) * s.width;
        std::fill_n(label, s.width, ignore_index);
        if (y < box.y0 || y >= box.y1) continue;
        const Between<A> row = between<A>(y, height, s.height);
        best_isa([&]() TOCO_INLINE {
          argmax_row(refiner.masks(), 0, n, plan, up, row, best.data, with_high.data);
          argmax_row(refiner.masks(), n, n, plan, up, row, best.data, with_low.data);
        });
        for (int64_t x = box.x0; x < box.x1; ++x)
          label[x] = with_high.data[x] > 0 ? classes[with_high.data[x]] : with_low.data[x] == 0 ? 0 : ignore_index;
      }
    });
  }
}

template void refine_cam_labels_cpu<float>(const float*, const float*, Flags, const int64_t*, Background<float>,
                                           Background<float>, int64_t*, const std::vector<int64_t>&, int64_t,
                                           AffinityKind, int64_t, CamLabelShape, const Parallel&);
template void refine_cam_labels_cpu<double>(const double*, const double*, Flags, const int64_t*, Background<double>,
                                            Background<double>, int64_t*, const std::vector<int64_t>&, int64_t,
                                            AffinityKind, int64_t, CamLabelShape, const Parallel&);

}  // namespace toco
