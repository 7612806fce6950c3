// Crops: candidates are counted by row, drawn by one thread per image, found by one per crop, and copied by all.
#include "cam/crop.h"
#include "common/launch.h"
#include "common/warp.h"

namespace toco {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSegment = 32;  // pixels of a row that one thread counts

// What the threads tell each other, in `scratch`.
struct CropScratch {
  unsigned long long* regions;  // (B, crops): sums over crops
  CropCorner* corners;          // (B, crops)
  int64_t* positions;           // (B, crops): which candidates
  int64_t* chosen;              // (B, crops): the same, in ascending order
  int32_t* in_row;              // (B, H): candidates in each row of the window

  CropScratch(int64_t* scratch, const CropShape& s) {
    const int64_t crops = s.batch * s.crops;
    regions = reinterpret_cast<unsigned long long*>(scratch);
    corners = reinterpret_cast<CropCorner*>(scratch + crops);
    positions = scratch + 3 * crops;
    chosen = scratch + 4 * crops;
    in_row = reinterpret_cast<int32_t*>(scratch + 5 * crops);
  }
};

__global__ void clear_kernel(CropScratch scratch, CropShape s) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i < s.batch * s.crops) scratch.regions[i] = 0;
  if (i < s.batch * s.height) scratch.in_row[i] = 0;
}

// blockIdx.y counts images.
__global__ void count_kernel(const uint8_t* roi, CropScratch scratch, CropShape s) {
  const Window window(s);
  const int64_t segments = (window.width + kSegment - 1) / kSegment;
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x, y = i / segments, b = blockIdx.y;
  if (y >= window.height) return;
  const uint8_t* row = roi + (b * s.height + window.margin + y) * s.width + window.margin;
  int32_t found = 0;
  for (int64_t x = i % segments * kSegment, end = x + kSegment; x < end && x < window.width; ++x) found += row[x] <= 1;
  if (found) atomicAdd(scratch.in_row + b * s.height + y, found);
}

__device__ int64_t candidates_of(const CropScratch& scratch, int64_t b, const CropShape& s, const Window& window) {
  int64_t count = 0;
  for (int64_t y = 0; y < window.height; ++y) count += scratch.in_row[b * s.height + y];
  return count;
}

__global__ void draw_kernel(const double* draws, CropScratch scratch, CropShape s) {
  const int64_t b = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (b >= s.batch) return;
  const Window window(s);
  int64_t count = candidates_of(scratch, b, s, window);
  if (count < s.crops) count = window.height * window.width;
  for (int64_t i = 0; i < s.crops; ++i)
    scratch.positions[b * s.crops + i] = draw_next(draws[b * s.crops + i], count, i, scratch.chosen + b * s.crops);
}

__global__ void find_kernel(const uint8_t* roi, CropScratch scratch, CropShape s) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = i / s.crops;
  if (b >= s.batch) return;
  const Window window(s);
  const bool everywhere = candidates_of(scratch, b, s, window) < s.crops;
  scratch.corners[i] = find_candidate(roi + b * s.height * s.width, scratch.in_row + b * s.height, scratch.positions[i],
                                      everywhere, s, window);
}

template <typename T>
__global__ void cut_kernel(const T* images, T* cut, CropScratch scratch, CropShape s) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  const int64_t x = i % s.size, y = i / s.size % s.size, c = i / (s.size * s.size) % s.channels;
  const int64_t item = i / (s.size * s.size * s.channels), b = item % s.batch, crop = item / s.batch;
  if (crop >= s.crops) return;
  const CropCorner corner = scratch.corners[b * s.crops + crop];
  cut[i] = images[((b * s.channels + c) * s.height + corner.y + y) * s.width + corner.x + x];
}

// blockIdx.y counts the crops of all images.
__global__ void sum_kernel(const uint8_t* roi, CropScratch scratch, CropShape s) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x, b = blockIdx.y / s.crops;
  const CropCorner corner = scratch.corners[blockIdx.y];
  unsigned long long value = 0;
  if (i < s.size * s.size) value = roi[(b * s.height + corner.y + i / s.size) * s.width + corner.x + i % s.size];
  sum_of_warp(scratch.regions + blockIdx.y, value);
}

template <typename T>
__global__ void flag_kernel(T* flags, CropScratch scratch, CropShape s) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i < s.batch * s.crops) flags[i] = T(Accumulate<T>(flag_of(int64_t(scratch.regions[i]), s.size)));
}

}  // namespace

template <typename T>
void crop_uncertain_cuda(const T* images, const uint8_t* roi, const double* draws, T* cut, T* flags, int64_t* memory,
                         CropShape s, void* stream) {
  const char* what = "crop_uncertain";
  const CropScratch scratch(memory, s);
  const Window window(s);
  const int64_t crops = s.batch * s.crops, segments = (window.width + kSegment - 1) / kSegment;
  const int64_t area = s.size * s.size;
  launch(what, stream, blocks_for(crops + s.batch * s.height, kThreads), kThreads, 0, clear_kernel, scratch, s);
  launch(what, stream, dim3(blocks_for(window.height * segments, kThreads), unsigned(s.batch)), kThreads, 0,
         count_kernel, roi, scratch, s);
  launch(what, stream, blocks_for(s.batch, kThreads), kThreads, 0, draw_kernel, draws, scratch, s);
  launch(what, stream, blocks_for(crops, kThreads), kThreads, 0, find_kernel, roi, scratch, s);
  launch(what, stream, blocks_for(crops * s.channels * area, kThreads), kThreads, 0, cut_kernel<T>, images, cut,
         scratch, s);
  launch(what, stream, dim3(blocks_for(area, kThreads), unsigned(crops)), kThreads, 0, sum_kernel, roi, scratch, s);
  launch(what, stream, blocks_for(crops, kThreads), kThreads, 0, flag_kernel<T>, flags, scratch, s);
}

#define INSTANTIATE(T) \
  template void crop_uncertain_cuda<T>(const T*, const uint8_t*, const double*, T*, T*, int64_t*, CropShape, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
