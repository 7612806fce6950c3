// Labels and regions from CAMs of full size, row by row; absent classes are never read.
#include "cam/largest.h"
#include "common/buffer.h"

namespace toco {
namespace {

// finish(b, y, largest) for each row.
template <typename T, typename Finish>
void each_largest(const T* cams, Flags image_labels, const CamShape& s, const Parallel& parallel,
                  const Finish& finish) {
  using A = Accumulate<T>;
  std::vector<std::vector<Candidate>> classes;
  for (int64_t b = 0; b < s.batch; ++b) classes.push_back(candidates(image_labels, b, s.classes));
  parallel.loop(s.batch * s.height, grain_for(4 * s.width), [&](int64_t begin, int64_t end, int) {
    const Buffer<A> values(s.width);
    const Buffer<int32_t> labels(s.width);
    const Largest<A> largest{values.data, labels.data};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / s.height, y = i % s.height;
      largest.start(s.width, classes[b]);
      best_isa([&]() TOCO_INLINE {
        for (const Candidate& c : classes[b]) {
          const int32_t label = int32_t(c.index + 1);
          const T* row = cams + ((b * s.classes + c.index) * s.height + y) * s.width;
          if (c.present)
            for (int64_t x = 0; x < s.width; ++x) largest.compare(x, A(row[x]), label);
          else
            for (int64_t x = 0; x < s.width; ++x) largest.compare(x, A(0), label);
        }
      });
      finish(b, y, largest);
    }
  });
}

}  // namespace

template <typename T>
void cam_to_label_cpu(const T* cams, Flags image_labels, const int64_t* boxes, Limits<Accumulate<T>> limits,
                      int64_t* labels, int64_t ignore_index, CamShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  each_largest(cams, image_labels, s, parallel, [&](int64_t b, int64_t y, Largest<A> largest) {
    const int64_t row = (b * s.height + y) * s.width;
    const auto high = [=](int64_t x) TOCO_INLINE { return limits.high_map ? limits.high_map[row + x] : limits.high; };
    const auto low = [=](int64_t x) TOCO_INLINE { return limits.low_map ? limits.low_map[row + x] : limits.low; };
    write_labels(largest, high, low, box_of(boxes, b, s.height, s.width), y, s.width, ignore_index, labels + row);
  });
}

template <typename T>
void cam_to_roi_cpu(const T* cams, Flags image_labels, double high, double low, uint8_t* roi, CamShape s,
                    const Parallel& parallel) {
  using A = Accumulate<T>;
  each_largest(cams, image_labels, s, parallel, [&](int64_t b, int64_t y, Largest<A> largest) {
    write_regions(largest, A(high), A(low), s.width, roi + (b * s.height + y) * s.width);
  });
}

#define INSTANTIATE(T)                                                                                         \
  template void cam_to_label_cpu<T>(const T*, Flags, const int64_t*, Limits<Accumulate<T>>, int64_t*, int64_t, \
                                    CamShape, const Parallel&);                                                \
  template void cam_to_roi_cpu<T>(const T*, Flags, double, double, uint8_t*, CamShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
