// CAMs: merging scales and flips, labels and regions, crops in doubt, and the segmentation loss.
// Spec: toco_kernels/cam/reference.py
#pragma once
#include <cstdint>
#include <vector>

#include "common/flags.h"
#include "common/half.h"
#include "common/host_device.h"
#include "common/parallel.h"

namespace toco {

constexpr double kCamEpsilon = 1e-5;  // beside the largest value of a map, which may be 0

// The maps of one scale, (2B, C, height, width): those of the images, then those of their mirror images.
template <typename T>
struct ScaleMaps {
  const T* data;
  int64_t height, width;
};

struct MergeShape {
  int64_t batch, classes, height, width;
  int64_t out_height, out_width;  // of the result: the merged map is resized where they differ
};

// Which label a value gets: ignored up to `high`, background up to `low`. A map (B, H, W) takes the place of a number.
template <typename A>
struct Limits {
  A high, low;
  const A *high_map, *low_map;
};

// The order of the published assignments. NaN is above everything. Masks, not branches, so that loops vectorise.
template <typename A>
TOCO_HOST_DEVICE int64_t limited_label(A value, int64_t label, A high, A low, int64_t ignore_index) {
  const int64_t in_doubt = -int64_t(value <= high), background = -int64_t(value <= low);
  return ((label & ~in_doubt) | (ignore_index & in_doubt)) & ~background;
}

template <typename A>
TOCO_HOST_DEVICE uint8_t region(A value, A high, A low) {
  const int object = value >= high, background = value <= low;
  return uint8_t((1 + object) & ~(background & ~object));
}

// Whether `value` takes the place of `best` in a maximum: NaN is largest, and the first of equals stays.
template <typename A>
TOCO_HOST_DEVICE bool beats(A value, A best) {
  return (value > best) | ((value != value) & (best == best));
}

template <typename T>
void merge_cams_cpu(const std::vector<ScaleMaps<T>>& maps,
                    const Flags* image_labels,  // (B, C), or null: all classes
                    T* cams,                    // (B, C, out_height, out_width)
                    MergeShape shape, const Parallel& parallel);

constexpr int kMaxCudaScales = 16;  // they travel as a kernel argument

// `bounds` holds the least and the largest value of each map, as bits.
inline int64_t merge_bounds(MergeShape s) { return 2 * s.batch * s.classes; }

template <typename T>
void merge_cams_cuda(const std::vector<ScaleMaps<T>>& maps, const Flags* image_labels, T* cams,
                     Accumulate<T>* bounds,  // (merge_bounds)
                     MergeShape shape, void* stream);

template <typename T>
void merge_cams_to_labels_cpu(const std::vector<ScaleMaps<T>>& maps,
                              Flags image_labels,    // (B, C)
                              const int64_t* boxes,  // (B, 4) y0, y1, x0, x1, or null
                              int64_t* labels,       // (B, out_height, out_width)
                              double high, double low, int64_t ignore_index, MergeShape shape,
                              const Parallel& parallel);

template <typename T>
void merge_cams_to_labels_cuda(const std::vector<ScaleMaps<T>>& maps, Flags image_labels, const int64_t* boxes,
                               int64_t* labels, double high, double low, int64_t ignore_index, Accumulate<T>* bounds,
                               MergeShape shape, void* stream);

template <typename T>
void merge_cams_to_roi_cpu(const std::vector<ScaleMaps<T>>& maps,
                           Flags image_labels,  // (B, C)
                           uint8_t* roi,        // (B, out_height, out_width)
                           double high, double low, MergeShape shape, const Parallel& parallel);

template <typename T>
void merge_cams_to_roi_cuda(const std::vector<ScaleMaps<T>>& maps, Flags image_labels, uint8_t* roi, double high,
                            double low, Accumulate<T>* bounds, MergeShape shape, void* stream);

struct CamShape {
  int64_t batch, classes, height, width;
};

template <typename T>
void cam_to_label_cpu(const T* cams,         // (B, C, H, W)
                      Flags image_labels,    // (B, C)
                      const int64_t* boxes,  // (B, 4) y0, y1, x0, x1, or null
                      Limits<Accumulate<T>> limits,
                      int64_t* labels,  // (B, H, W)
                      int64_t ignore_index, CamShape shape, const Parallel& parallel);

template <typename T>
void cam_to_label_cuda(const T* cams, Flags image_labels, const int64_t* boxes, Limits<Accumulate<T>> limits,
                       int64_t* labels, int64_t ignore_index, CamShape shape, void* stream);

template <typename T>
void cam_to_roi_cpu(const T* cams,       // (B, C, H, W)
                    Flags image_labels,  // (B, C)
                    double high, double low,
                    uint8_t* roi,  // (B, H, W)
                    CamShape shape, const Parallel& parallel);

template <typename T>
void cam_to_roi_cuda(const T* cams, Flags image_labels, double high, double low, uint8_t* roi, CamShape shape,
                     void* stream);

struct CropShape {
  int64_t batch, channels, height, width, crops, size;
};

template <typename T>
void crop_uncertain_cpu(const T* images,      // (B, channels, H, W)
                        const uint8_t* roi,   // (B, H, W)
                        const double* draws,  // (B, crops) in [0, 1)
                        T* cut,               // (crops, B, channels, size, size)
                        T* flags,             // (B, crops)
                        CropShape shape, const Parallel& parallel);

// Integers that crops on a GPU are counted and found with.
inline int64_t crop_scratch(CropShape s) { return s.batch * (s.height + 5 * s.crops); }

template <typename T>
void crop_uncertain_cuda(const T* images, const uint8_t* roi, const double* draws, T* cut, T* flags,
                         int64_t* scratch,  // (crop_scratch)
                         CropShape shape, void* stream);

// logits and grad are (B, C, pixels).
struct LossShape {
  int64_t batch, classes, pixels;
};

template <typename T>
void segmentation_loss_cpu(const T* logits,        //
                           const int64_t* labels,  // (B, pixels)
                           int64_t ignore_index,
                           Accumulate<T>* loss,         // ()
                           Accumulate<T>* grad_logits,  // (B, C, pixels), or null when not wanted
                           LossShape shape, const Parallel& parallel);

// Sums on a GPU, in float64: of its threads, of those that add them up, and the two counts.
int64_t segmentation_loss_scratch(LossShape shape);

template <typename T>
void segmentation_loss_cuda(const T* logits, const int64_t* labels, int64_t ignore_index, Accumulate<T>* loss,
                            Accumulate<T>* grad_logits,
                            double* scratch,  // (segmentation_loss_scratch)
                            LossShape shape, void* stream);

}  // namespace toco
