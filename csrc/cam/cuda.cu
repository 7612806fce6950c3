// One thread per pixel: small maps stay in the caches, and a merged value is computed where it is needed, twice. The
// loss and the crops are in cuda_loss.cu and cuda_crops.cu.
#include "cam/cam.h"
#include "common/box.h"
#include "common/launch.h"
#include "common/resize.h"
#include "common/warp.h"

namespace toco {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 8;  // of a thread that looks for bounds

template <typename T>
struct DeviceMaps {
  int count;
  ScaleMaps<T> scales[kMaxCudaScales];

  explicit DeviceMaps(const std::vector<ScaleMaps<T>>& maps) : count(int(maps.size())), scales{} {
    for (int s = 0; s < count; ++s) scales[s] = maps[s];
  }
};

// The value of class c of image b at a pixel of the full map, before normalisation.
template <typename T, typename A = Accumulate<T>>
__device__ A merged_at(const DeviceMaps<T>& maps, int64_t b, int64_t c, int64_t y, int64_t x, const MergeShape& s) {
  A sum = 0;
  for (int scale = 0; scale < maps.count; ++scale) {
    const ScaleMaps<T>& map = maps.scales[scale];
    const int64_t pixels = map.height * map.width;
    const T* image = map.data + (b * s.classes + c) * pixels;
    const T* mirrored = image + s.batch * s.classes * pixels;
    const Between<A> row = between<A>(y, map.height, s.height);
    const A first = bilinear(image, map.width, row, between<A>(x, map.width, s.width));
    const A second = bilinear(mirrored, map.width, row, between<A>(s.width - 1 - x, map.width, s.width));
    const A larger = beats(first, second) ? first : second;
    sum += larger < 0 ? A(0) : larger;
  }
  return sum;
}

// Bits of numbers that are not negative have their order, and NaN is above all. The least value is kept as the largest
// complement, so that bounds begin with 0.
TOCO_HOST_DEVICE uint32_t bits_of(float value) { return value == value ? bits_of_float(value) : 0x7fc00000u; }
TOCO_HOST_DEVICE unsigned long long bits_of(double value) {
  unsigned long long bits = 0x7ff8000000000000ull;
  if (value == value) memcpy(&bits, &value, sizeof bits);
  return bits;
}
template <typename A>
using Bits = decltype(bits_of(A()));

template <typename A>
__device__ A number_of(Bits<A> bits) {
  A value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename A>
__global__ void clear_bounds_kernel(Bits<A>* bounds, int64_t size) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i < size) bounds[i] = 0;
}

// blockIdx.y counts the maps of all images.
template <typename T, typename A = Accumulate<T>>
__global__ void bounds_kernel(DeviceMaps<T> maps, Flags image_labels, bool labelled, Bits<A>* bounds, MergeShape s) {
  const int64_t b = blockIdx.y / s.classes, c = blockIdx.y % s.classes;
  if (labelled && !image_labels[blockIdx.y]) return;
  Bits<A> least = 0, largest = 0;
  for (int i = 0; i < kPixels; ++i) {
    const int64_t pixel = (blockIdx.x * int64_t(kPixels) + i) * kThreads + threadIdx.x;
    if (pixel >= s.height * s.width) break;
    const Bits<A> bits = bits_of(merged_at(maps, b, c, pixel / s.width, pixel % s.width, s));
    least = max(least, Bits<A>(~bits));
    largest = max(largest, bits);
  }
  max_of_warp(bounds + 2 * blockIdx.y, least);
  max_of_warp(bounds + 2 * blockIdx.y + 1, largest);
}

// The normalised value at a pixel of the result.
template <typename T, typename A = Accumulate<T>>
__device__ A cam_at(const DeviceMaps<T>& maps, const Bits<A>* bounds, int64_t b, int64_t c, int64_t y, int64_t x,
                    const MergeShape& s) {
  A value;
  if (s.out_height == s.height && s.out_width == s.width) {
    value = merged_at(maps, b, c, y, x, s);
  } else {
    const Between<A> row = between<A>(y, s.height, s.out_height), column = between<A>(x, s.width, s.out_width);
    A rows[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t at = i ? row.far : row.near;
      rows[i] = (1 - column.share) * merged_at(maps, b, c, at, column.near, s) +
                column.share * merged_at(maps, b, c, at, column.far, s);
    }
    value = (1 - row.share) * rows[0] + row.share * rows[1];
  }
  bounds += 2 * (b * s.classes + c);
  const A least = number_of<A>(Bits<A>(~bounds[0])), above = value - least;
  // The bounds come from another kernel, whose code may round otherwise: its least value need not be least here.
  return (above < 0 ? A(0) : above) / ((number_of<A>(bounds[1]) - least) + A(kCamEpsilon));
}

template <typename T, typename A = Accumulate<T>>
__global__ void merge_kernel(DeviceMaps<T> maps, Flags image_labels, bool labelled, const Bits<A>* bounds, T* cams,
                             MergeShape s) {
  const int64_t pixel = blockIdx.x * int64_t(kThreads) + threadIdx.x, pixels = s.out_height * s.out_width;
  if (pixel >= pixels) return;
  A value = 0;
  if (!labelled || image_labels[blockIdx.y])
    value = cam_at(maps, bounds, blockIdx.y / s.classes, blockIdx.y % s.classes, pixel / s.out_width,
                   pixel % s.out_width, s);
  cams[blockIdx.y * pixels + pixel] = T(value);
}

// The largest value of an image's classes, of which the absent ones count as 0, and whose it is, counted from 1.
template <typename A>
struct Best {
  A value;
  int64_t label;
};

template <typename A, typename ValueOf>
__device__ Best<A> largest_of(Flags image_labels, int64_t b, int64_t classes, const ValueOf& value_of) {
  Best<A> best{0, 0};
  bool any_absent = false;
  for (int64_t c = 0; c < classes; ++c) {
    const bool present = image_labels[b * classes + c];
    if (!present && any_absent) continue;
    const A value = present ? value_of(c) : A(0);
    if (best.label == 0 || beats(value, best.value)) best = {value, c + 1};
    any_absent |= !present;
  }
  return best;
}

// blockIdx.y counts images here and below.
template <typename T, typename A = Accumulate<T>>
__global__ void merge_to_labels_kernel(DeviceMaps<T> maps, Flags image_labels, const Bits<A>* bounds,
                                       const int64_t* boxes, int64_t* labels, A high, A low, int64_t ignore_index,
                                       MergeShape s) {
  const int64_t pixel = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = blockIdx.y;
  const int64_t y = pixel / s.out_width, x = pixel % s.out_width;
  if (y >= s.out_height) return;
  int64_t label = ignore_index;
  if (box_of(boxes, b, s.out_height, s.out_width).holds(y, x)) {
    const auto best =
        largest_of<A>(image_labels, b, s.classes, [&](int64_t c) { return cam_at(maps, bounds, b, c, y, x, s); });
    label = limited_label(best.value, best.label, high, low, ignore_index);
  }
  labels[b * s.out_height * s.out_width + pixel] = label;
}

template <typename T, typename A = Accumulate<T>>
__global__ void merge_to_roi_kernel(DeviceMaps<T> maps, Flags image_labels, const Bits<A>* bounds, uint8_t* roi, A high,
                                    A low, MergeShape s) {
  const int64_t pixel = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = blockIdx.y;
  const int64_t y = pixel / s.out_width, x = pixel % s.out_width;
  if (y >= s.out_height) return;
  const auto best =
      largest_of<A>(image_labels, b, s.classes, [&](int64_t c) { return cam_at(maps, bounds, b, c, y, x, s); });
  roi[b * s.out_height * s.out_width + pixel] = region(best.value, high, low);
}

template <typename T, typename A = Accumulate<T>>
__global__ void label_kernel(const T* cams, Flags image_labels, const int64_t* boxes, Limits<A> limits, int64_t* labels,
                             int64_t ignore_index, CamShape s) {
  const int64_t pixel = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = blockIdx.y, pixels = s.height * s.width;
  if (pixel >= pixels) return;
  const int64_t at = b * pixels + pixel;
  int64_t label = ignore_index;
  if (box_of(boxes, b, s.height, s.width).holds(pixel / s.width, pixel % s.width)) {
    const auto best = largest_of<A>(image_labels, b, s.classes,
                                    [&](int64_t c) { return A(cams[(b * s.classes + c) * pixels + pixel]); });
    label = limited_label(best.value, best.label, limits.high_map ? limits.high_map[at] : limits.high,
                          limits.low_map ? limits.low_map[at] : limits.low, ignore_index);
  }
  labels[at] = label;
}

template <typename T, typename A = Accumulate<T>>
__global__ void roi_kernel(const T* cams, Flags image_labels, A high, A low, uint8_t* roi, CamShape s) {
  const int64_t pixel = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = blockIdx.y, pixels = s.height * s.width;
  if (pixel >= pixels) return;
  const auto best = largest_of<A>(image_labels, b, s.classes,
                                  [&](int64_t c) { return A(cams[(b * s.classes + c) * pixels + pixel]); });
  roi[b * pixels + pixel] = region(best.value, high, low);
}

// Bounds of all present maps, in two launches.
template <typename T, typename A = Accumulate<T>>
Bits<A>* find_bounds(const char* what, const DeviceMaps<T>& maps, const Flags* image_labels, A* bounds,
                     const MergeShape& s, void* stream) {
  Bits<A>* bits = reinterpret_cast<Bits<A>*>(bounds);
  launch(what, stream, blocks_for(merge_bounds(s), kThreads), kThreads, 0, clear_bounds_kernel<A>, bits,
         merge_bounds(s));
  launch(what, stream, dim3(blocks_for(s.height * s.width, kThreads * kPixels), unsigned(s.batch * s.classes)),
         kThreads, 0, bounds_kernel<T>, maps, image_labels ? *image_labels : Flags{}, image_labels != nullptr, bits, s);
  return bits;
}

}  // namespace

template <typename T>
void merge_cams_cuda(const std::vector<ScaleMaps<T>>& maps, const Flags* image_labels, T* cams, Accumulate<T>* bounds,
                     MergeShape s, void* stream) {
  const DeviceMaps<T> m(maps);
  const auto* bits = find_bounds("merge_cams", m, image_labels, bounds, s, stream);
  launch("merge_cams", stream, dim3(blocks_for(s.out_height * s.out_width, kThreads), unsigned(s.batch * s.classes)),
         kThreads, 0, merge_kernel<T>, m, image_labels ? *image_labels : Flags{}, image_labels != nullptr, bits, cams,
         s);
}

template <typename T>
void merge_cams_to_labels_cuda(const std::vector<ScaleMaps<T>>& maps, Flags image_labels, const int64_t* boxes,
                               int64_t* labels, double high, double low, int64_t ignore_index, Accumulate<T>* bounds,
                               MergeShape s, void* stream) {
  using A = Accumulate<T>;
  const DeviceMaps<T> m(maps);
  const auto* bits = find_bounds("merge_cams_to_labels", m, &image_labels, bounds, s, stream);
  launch("merge_cams_to_labels", stream, dim3(blocks_for(s.out_height * s.out_width, kThreads), unsigned(s.batch)),
         kThreads, 0, merge_to_labels_kernel<T>, m, image_labels, bits, boxes, labels, A(high), A(low), ignore_index,
         s);
}

template <typename T>
void merge_cams_to_roi_cuda(const std::vector<ScaleMaps<T>>& maps, Flags image_labels, uint8_t* roi, double high,
                            double low, Accumulate<T>* bounds, MergeShape s, void* stream) {
  using A = Accumulate<T>;
  const DeviceMaps<T> m(maps);
  const auto* bits = find_bounds("merge_cams_to_roi", m, &image_labels, bounds, s, stream);
  launch("merge_cams_to_roi", stream, dim3(blocks_for(s.out_height * s.out_width, kThreads), unsigned(s.batch)),
         kThreads, 0, merge_to_roi_kernel<T>, m, image_labels, bits, roi, A(high), A(low), s);
}

template <typename T>
void cam_to_label_cuda(const T* cams, Flags image_labels, const int64_t* boxes, Limits<Accumulate<T>> limits,
                       int64_t* labels, int64_t ignore_index, CamShape s, void* stream) {
  launch("cam_to_label", stream, dim3(blocks_for(s.height * s.width, kThreads), unsigned(s.batch)), kThreads, 0,
         label_kernel<T>, cams, image_labels, boxes, limits, labels, ignore_index, s);
}

template <typename T>
void cam_to_roi_cuda(const T* cams, Flags image_labels, double high, double low, uint8_t* roi, CamShape s,
                     void* stream) {
  using A = Accumulate<T>;
  launch("cam_to_roi", stream, dim3(blocks_for(s.height * s.width, kThreads), unsigned(s.batch)), kThreads, 0,
         roi_kernel<T>, cams, image_labels, A(high), A(low), roi, s);
}

#define INSTANTIATE(T)                                                                                             \
  template void merge_cams_cuda<T>(const std::vector<ScaleMaps<T>>&, const Flags*, T*, Accumulate<T>*, MergeShape, \
                                   void*);                                                                         \
  template void merge_cams_to_labels_cuda<T>(const std::vector<ScaleMaps<T>>&, Flags, const int64_t*, int64_t*,    \
                                             double, double, int64_t, Accumulate<T>*, MergeShape, void*);          \
  template void merge_cams_to_roi_cuda<T>(const std::vector<ScaleMaps<T>>&, Flags, uint8_t*, double, double,       \
                                          Accumulate<T>*, MergeShape, void*);                                      \
  template void cam_to_label_cuda<T>(const T*, Flags, const int64_t*, Limits<Accumulate<T>>, int64_t*, int64_t,    \
                                     CamShape, void*);                                                             \
  template void cam_to_roi_cuda<T>(const T*, Flags, double, double, uint8_t*, CamShape, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
