#include <algorithm>
#include <limits>
#include <vector>

#include "affinity_propagate/affinity_propagate.h"

namespace toco {
namespace {

// Boxes of the regions of one map; pixels that touch at a corner are connected.
class Regions {
 public:
  Regions(int64_t height, int64_t width) : height_(height), width_(width), corners_((height + 1) * (width + 1)) {}

  // `above` is cleared. Boxes are summed by their corners, so that as many as there may be take the time of one.
  void boxes(std::vector<uint8_t>& above, uint8_t* boxes) {
    std::fill(corners_.begin(), corners_.end(), 0);
    for (int64_t i = 0; i < height_ * width_; ++i)
      if (above[i]) add_box(above, i);
    std::vector<int32_t> column(width_);  // sums over the rows so far
    for (int64_t y = 0; y < height_; ++y) {
      int32_t covered = 0;
      for (int64_t x = 0; x < width_; ++x) {
        column[x] += corners_[y * (width_ + 1) + x];
        covered += column[x];
        boxes[y * width_ + x] = covered > 0;
      }
    }
  }

 private:
  void add_box(std::vector<uint8_t>& above, int64_t start) {
    int64_t y0 = height_, y1 = 0, x0 = width_, x1 = 0;
    waiting_.assign(1, start);
    above[start] = 0;
    while (!waiting_.empty()) {
      const int64_t y = waiting_.back() / width_, x = waiting_.back() % width_;
      waiting_.pop_back();
      y0 = std::min(y0, y), y1 = std::max(y1, y + 1), x0 = std::min(x0, x), x1 = std::max(x1, x + 1);
      for (int64_t v = std::max<int64_t>(y - 1, 0); v < std::min(y + 2, height_); ++v)
        for (int64_t u = std::max<int64_t>(x - 1, 0); u < std::min(x + 2, width_); ++u)
          if (above[v * width_ + u]) {
            above[v * width_ + u] = 0;
            waiting_.push_back(v * width_ + u);
          }
    }
    const int64_t stride = width_ + 1;
    ++corners_[y0 * stride + x0], ++corners_[y1 * stride + x1];
    --corners_[y0 * stride + x1], --corners_[y1 * stride + x0];
  }

  const int64_t height_, width_;
  std::vector<int32_t> corners_;  // (H + 1, W + 1)
  std::vector<int64_t> waiting_;
};

}  // namespace

template <typename T>
void component_boxes_cpu(const T* cams, double threshold, uint8_t* boxes, int64_t maps, int64_t height, int64_t width,
                         const Parallel& parallel) {
  using A = Accumulate<T>;
  const int64_t pixels = height * width;
  if (maps * pixels == 0) return;
  parallel.loop(maps, grain_for(16 * pixels), [&](int64_t begin, int64_t end, int) {
    Regions regions(height, width);
    std::vector<uint8_t> above(pixels);
    for (int64_t m = begin; m < end; ++m) {
      const T* map = cams + m * pixels;
      A largest = -std::numeric_limits<A>::infinity();
      for (int64_t i = 0; i < pixels && largest == largest; ++i)
        if (const A x = A(map[i]); !(x <= largest)) largest = x;  // NaN ends it: nothing is above
      const A limit = A(threshold) * largest;
      for (int64_t i = 0; i < pixels; ++i) above[i] = A(map[i]) > limit;
      regions.boxes(above, boxes + m * pixels);
    }
  });
}

#define INSTANTIATE(T) \
  template void component_boxes_cpu<T>(const T*, double, uint8_t*, int64_t, int64_t, int64_t, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
