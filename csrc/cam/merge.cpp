// Merging scales and flips: first the least and the largest value of each map, then the result, both strip by strip.
#include "cam/largest.h"
#include "cam/merger.h"
#include "common/buffer.h"

namespace toco {
namespace {

// (value - least) / divisor is the normalised CAM.
template <typename A>
struct Normalizer {
  A least, divisor;
};

// The normalizers of all present maps, (B, C); of the others nothing is read.
template <typename T, typename A = Accumulate<T>>
std::vector<Normalizer<A>> normalizers(const Merger<T>& full, const Flags* image_labels, const MergeShape& s,
                                       const Parallel& parallel) {
  std::vector<int64_t> present;
  for (int64_t pair = 0; pair < s.batch * s.classes; ++pair)
    if (!image_labels || (*image_labels)[pair]) present.push_back(pair);
  const int64_t strips = full.strips();
  std::vector<Normalizer<A>> bounds(present.size() * strips), result(s.batch * s.classes);  // least and largest
  parallel.loop(int64_t(bounds.size()), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer<A> scratch(full.scratch());
    best_isa([&]() TOCO_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t pair = present[i / strips];
        A least = std::numeric_limits<A>::infinity(), largest = 0, total = 0;
        full.each_row(pair / s.classes, pair % s.classes, i % strips, scratch.data,
                      [&](int64_t, const A* row) TOCO_INLINE {
#pragma omp simd reduction(min : least) reduction(max : largest) reduction(+ : total)
                        for (int64_t x = 0; x < s.width; ++x) {
                          least = row[x] < least ? row[x] : least;
                          largest = row[x] > largest ? row[x] : largest;
                          total += row[x];  // nothing is negative: only NaN can make it NaN
                        }
                      });
        bounds[i] = total == total ? Normalizer<A>{least, largest} : Normalizer<A>{total, total};
      }
    });
  });
  for (size_t i = 0; i < present.size(); ++i) {
    Normalizer<A> all = bounds[i * strips];
    for (int64_t strip = 1; strip < strips; ++strip) {
      const Normalizer<A> next = bounds[i * strips + strip];
      all.least = next.least < all.least || next.least != next.least ? next.least : all.least;
      all.divisor = beats(next.divisor, all.divisor) ? next.divisor : all.divisor;
    }
    result[present[i]] = {all.least, (all.divisor - all.least) + A(kCamEpsilon)};
  }
  return result;
}

// finish(b, y, largest) for each row of the result.
template <typename T, typename Finish>
void each_largest(const std::vector<ScaleMaps<T>>& maps, Flags image_labels, const MergeShape& s,
                  const Parallel& parallel, const Finish& finish) {
  using A = Accumulate<T>;
  const Merger<T> full(maps, s, s.height, s.width), out(maps, s, s.out_height, s.out_width);
  const auto scales = normalizers(full, &image_labels, s, parallel);
  parallel.loop(s.batch * out.strips(), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer<A> scratch(out.scratch()), values(kStrip * s.out_width);
    const Buffer<int32_t> labels(kStrip * s.out_width);
    const Largest<A> largest{values.data, labels.data};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / out.strips(), first = i % out.strips() * kStrip;
      const int64_t rows = std::min(s.out_height - first, kStrip), pixels = rows * s.out_width;
      const std::vector<Candidate> classes = candidates(image_labels, b, s.classes);
      largest.start(pixels, classes);
      best_isa([&]() TOCO_INLINE {
        for (const Candidate& c : classes) {
          const int32_t label = int32_t(c.index + 1);
          if (!c.present) {
            for (int64_t x = 0; x < pixels; ++x) largest.compare(x, A(0), label);
            continue;
          }
          const Normalizer<A> scale = scales[b * s.classes + c.index];
          out.each_row(b, c.index, i % out.strips(), scratch.data, [&](int64_t y, const A* row) TOCO_INLINE {
            for (int64_t x = 0; x < s.out_width; ++x)
              largest.compare((y - first) * s.out_width + x, (row[x] - scale.least) / scale.divisor, label);
          });
        }
      });
      for (int64_t y = 0; y < rows; ++y)
        finish(b, first + y, Largest<A>{values.data + y * s.out_width, labels.data + y * s.out_width});
    }
  });
}

}  // namespace

template <typename T>
void merge_cams_cpu(const std::vector<ScaleMaps<T>>& maps, const Flags* image_labels, T* cams, MergeShape s,
                    const Parallel& parallel) {
  using A = Accumulate<T>;
  const Merger<T> full(maps, s, s.height, s.width), out(maps, s, s.out_height, s.out_width);
  const auto scales = normalizers(full, image_labels, s, parallel);
  parallel.loop(s.batch * s.classes * out.strips(), 1, [&](int64_t begin, int64_t end, int) {
    const Buffer<A> scratch(out.scratch());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = i / out.strips(), first = i % out.strips() * kStrip;
      T* to = cams + pair * s.out_height * s.out_width;
      if (image_labels && !(*image_labels)[pair]) {
        std::fill_n(to + first * s.out_width, std::min(s.out_height - first, kStrip) * s.out_width, T(A(0)));
        continue;
      }
      best_isa([&]() TOCO_INLINE {
        out.each_row(pair / s.classes, pair % s.classes, i % out.strips(), scratch.data,
                     [&](int64_t y, const A* row) TOCO_INLINE {
                       for (int64_t x = 0; x < s.out_width; ++x)
                         to[y * s.out_width + x] = T((row[x] - scales[pair].least) / scales[pair].divisor);
                     });
      });
    }
  });
}

template <typename T>
void merge_cams_to_labels_cpu(const std::vector<ScaleMaps<T>>& maps, Flags image_labels, const int64_t* boxes,
                              int64_t* labels, double high, double low, int64_t ignore_index, MergeShape s,
                              const Parallel& parallel) {
  using A = Accumulate<T>;
  each_largest(maps, image_labels, s, parallel, [&](int64_t b, int64_t y, Largest<A> largest) {
    const Box box = box_of(boxes, b, s.out_height, s.out_width);
    write_labels(
        largest, [=](int64_t) TOCO_INLINE { return A(high); }, [=](int64_t) TOCO_INLINE { return A(low); }, box, y,
        s.out_width, ignore_index, labels + (b * s.out_height + y) * s.out_width);
  });
}

template <typename T>
void merge_cams_to_roi_cpu(const std::vector<ScaleMaps<T>>& maps, Flags image_labels, uint8_t* roi, double high,
                           double low, MergeShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  each_largest(maps, image_labels, s, parallel, [&](int64_t b, int64_t y, Largest<A> largest) {
    write_regions(largest, A(high), A(low), s.out_width, roi + (b * s.out_height + y) * s.out_width);
  });
}

#define INSTANTIATE(T)                                                                                                 \
  template void merge_cams_cpu<T>(const std::vector<ScaleMaps<T>>&, const Flags*, T*, MergeShape, const Parallel&);    \
  template void merge_cams_to_labels_cpu<T>(const std::vector<ScaleMaps<T>>&, Flags, const int64_t*, int64_t*, double, \
                                            double, int64_t, MergeShape, const Parallel&);                             \
  template void merge_cams_to_roi_cpu<T>(const std::vector<ScaleMaps<T>>&, Flags, uint8_t*, double, double,            \
                                         MergeShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
