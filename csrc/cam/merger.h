// Merged maps, row by row. Bilinear interpolation is separable: rows of the small maps are expanded to full width once,
// and serve all full rows between them, in strips of rows that stay in the cache.
#pragma once
#include <algorithm>

#include "cam/cam.h"
#include "common/resize.h"
#include "common/simd.h"

namespace toco {

constexpr int64_t kStrip = 64;  // rows of a result

// sum += relu(max(image, mirrored)), with both between two expanded rows. NaN is largest, and stays.
template <typename A>
TOCO_INLINE inline void add_scale(const A* image, const A* mirrored, int64_t next, A share, A* sum, int64_t width) {
  const A rest = 1 - share;
  const A *image_next = image + next, *mirrored_next = mirrored + next;
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) {
    const A first = rest * image[x] + share * image_next[x];
    const A second = rest * mirrored[x] + share * mirrored_next[x];
    const A larger = beats(first, second) ? first : second;
    sum[x] += larger < 0 ? A(0) : larger;
  }
}

// Rows of a small map at some columns of the full one, between two small columns each. Runs of columns between the same
// two are computed in whole blocks: what a block writes too much, the next run or nobody reads.
template <typename A>
class Expansion {
 public:
  static constexpr int64_t kBlock = 16;

  Expansion(const std::vector<int64_t>& columns, bool mirrored, int64_t small_width, int64_t width)
      : shares_(columns.size() + kBlock) {
    for (size_t x = 0; x < columns.size(); ++x) {
      const Between<A> column = between<A>(mirrored ? width - 1 - columns[x] : columns[x], small_width, width);
      if (runs_.empty() || runs_.back().near != column.near || runs_.back().far != column.far)
        runs_.push_back({column.near, column.far, int64_t(x), 0});
      runs_.back().end = int64_t(x) + 1;
      shares_[x] = column.share;
    }
  }

  template <typename T>
  TOCO_INLINE void row(const T* small, A* to) const {
    const A* shares = shares_.data();
    for (const Run& run : runs_) {
      const A near = A(small[run.near]), far = A(small[run.far]);
      for (int64_t x = run.begin; x < run.end; x += kBlock)
#pragma omp simd
        for (int64_t i = 0; i < kBlock; ++i) to[x + i] = (1 - shares[x + i]) * near + shares[x + i] * far;
    }
  }

 private:
  struct Run {
    int64_t near, far, begin, end;
  };
  std::vector<A> shares_;
  std::vector<Run> runs_;
};

// Evaluates merged maps, before normalisation, at the rows of a result. A result of another size than the full map lies
// between four of its pixels each, and nothing but these is evaluated.
template <typename T>
class Merger {
 public:
  using A = Accumulate<T>;

  Merger(const std::vector<ScaleMaps<T>>& maps, const MergeShape& s, int64_t out_height, int64_t out_width)
      : maps_(maps), shape_(s), height_(out_height), width_(out_width) {
    resized_ = height_ != s.height || width_ != s.width;
    across_ = all_between<A>(s.width, width_);
    down_ = all_between<A>(s.height, height_);
    std::vector<int64_t> columns;  // of the full map
    for (int64_t x = 0; x < width_; ++x) columns.push_back(resized_ ? across_[x].near : x);
    for (int64_t x = 0; resized_ && x < width_; ++x) columns.push_back(across_[x].far);
    evaluated_ = int64_t(columns.size());
    stride_ = evaluated_ + Expansion<A>::kBlock;
    for (size_t scale = 0; scale < maps_.size(); ++scale) {
      const ScaleMaps<T>& map = maps_[scale];
      rows_.push_back(all_between<A>(map.height, s.height));
      for (const bool mirrored : {false, true}) expansions_.emplace_back(columns, mirrored, map.width, s.width);
      int64_t most = 0;
      for (int64_t strip = 0; strip < strips(); ++strip) {
        const SmallRows rows = small_rows(scale, strip);
        most = std::max(most, rows.last - rows.first + 1);
      }
      offsets_.push_back(expanded_);
      most_rows_.push_back(most);
      expanded_ += 2 * most * stride_;
    }
  }

  int64_t strips() const { return (height_ + kStrip - 1) / kStrip; }
  int64_t scratch() const { return expanded_ + 2 * evaluated_; }

  // row(y, values) for the rows of a strip, with the values of class c of image b.
  template <typename Row>
  TOCO_INLINE void each_row(int64_t b, int64_t c, int64_t strip, A* scratch, const Row& row) const {
    for (size_t s = 0; s < maps_.size(); ++s) expand(b, c, int64_t(s), small_rows(s, strip), scratch);
    A *near = scratch + expanded_, *far = near + evaluated_;
    const int64_t end = std::min(height_, (strip + 1) * kStrip);
    for (int64_t y = strip * kStrip; y < end; ++y) {
      if (!resized_) {
        merge(y, strip, scratch, near);
      } else {
        const Between<A> down = down_[y];
        merge(down.near, strip, scratch, near);
        merge(down.far, strip, scratch, far);
        for (int64_t x = 0; x < width_; ++x) {
          const A share = across_[x].share;
          const A top = (1 - share) * near[x] + share * near[width_ + x];
          const A bottom = (1 - share) * far[x] + share * far[width_ + x];
          near[x] = (1 - down.share) * top + down.share * bottom;
        }
      }
      row(y, near);
    }
  }

 private:
  struct SmallRows {
    int64_t first, last;
  };

  // The rows of the small maps of a scale that a strip needs.
  SmallRows small_rows(size_t scale, int64_t strip) const {
    const int64_t top = strip * kStrip, bottom = std::min(height_, top + kStrip) - 1;
    const int64_t first = resized_ ? down_[top].near : top;
    const int64_t last = resized_ ? down_[bottom].far : bottom;
    return {rows_[scale][first].near, rows_[scale][last].far};
  }

  TOCO_INLINE void expand(int64_t b, int64_t c, int64_t scale, SmallRows rows, A* scratch) const {
    const ScaleMaps<T>& map = maps_[scale];
    for (int64_t mirrored = 0; mirrored < 2; ++mirrored) {
      const T* plane = map.data + (((mirrored * shape_.batch + b) * shape_.classes + c) * map.height) * map.width;
      A* to = scratch + offsets_[scale] + mirrored * most_rows_[scale] * stride_;
      for (int64_t y = rows.first; y <= rows.last; ++y, to += stride_)
        expansions_[2 * scale + mirrored].row(plane + y * map.width, to);
    }
  }

  // Row y of the full map, at the columns that are evaluated.
  TOCO_INLINE void merge(int64_t y, int64_t strip, const A* scratch, A* row) const {
    std::fill_n(row, evaluated_, A(0));
    for (size_t s = 0; s < maps_.size(); ++s) {
      const Between<A> down = rows_[s][y];
      const A* image = scratch + offsets_[s] + (down.near - small_rows(s, strip).first) * stride_;
      const int64_t next = (down.far - down.near) * stride_;
      add_scale(image, image + most_rows_[s] * stride_, next, down.share, row, evaluated_);
    }
  }

  const std::vector<ScaleMaps<T>>& maps_;
  const MergeShape& shape_;
  int64_t height_, width_, evaluated_, stride_, expanded_ = 0;
  bool resized_;
  std::vector<Between<A>> across_, down_;      // (width), (height) between pixels of the full map
  std::vector<std::vector<Between<A>>> rows_;  // (scales, rows of the full map) between those of small ones
  std::vector<Expansion<A>> expansions_;       // (scales, 2)
  std::vector<int64_t> offsets_, most_rows_;   // (scales) of the expanded rows
};

}  // namespace toco
