#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "affinity_propagate/affinity_propagate.h"
#include "common/buffer.h"

#define TOCO_PER_ISA "affinity_propagate/strips.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

constexpr int64_t kPanel = portable::kPanel;

// What columns gather is summed in so many parts, whatever the number of threads: few, since each is a copy of the
// maps.
constexpr int64_t kParts = 8;

// Sinkhorn's rounds read the whole matrix many times: as much of it as this is kept from the first time, of each image
// in flight; the scores of the rest are found anew. All of it to about N = 1000 in float32.
constexpr int64_t kKeptBytes = int64_t(4) << 20;

int64_t panels_of(int64_t n) { return (n + kPanel - 1) / kPanel; }

// The normalised matrix is rows[i] * attention[i, j] * columns[j].
template <typename A>
struct Weights {
  A *rows, *columns;  // (N)
};

// One image. Maps are held pixel by pixel, (blocks of kPanel classes, padded N, kPanel).
template <typename T, typename A = Accumulate<T>>
class Attention {
 public:
  Attention(HeadTokens<T> queries, HeadTokens<T> keys, bool read_often, AttentionShape s, const Parallel& parallel)
      : queries_(queries),
        shape_(s),
        parallel_(parallel),
        strips_(panels_of(s.pixels)),
        strip_size_((panels_of(s.keys) + 1) * kPanel * kPanel),
        scratch_size_((s.heads > 1 ? 2 : 1) * strip_size_ + (s.width + 2 * kPanel) * kPanel),
        kept_strips_(read_often ? std::min(strips_, kKeptBytes / int64_t(sizeof(A)) / strip_size_) : 0),
        keys_(s.heads * panels_of(s.keys) * kPanel * s.width),
        kept_(kept_strips_ * (strip_size_ + kPanel)),
        is_kept_(kept_strips_),
        scratch_(parallel.threads * scratch_size_) {
    const int64_t panels = panels_of(s.keys);
    std::fill_n(is_kept_.data, kept_strips_, false);
    parallel.loop(s.heads * panels, grain_for(2 * kPanel * s.width), [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t first = k % panels * kPanel;
        CALL_BEST_ISA(pack_tokens, keys.data + k / panels * keys.head + first * keys.token, keys.token, keys.channel,
                      s.width, int(std::min(kPanel, s.keys - first)), A(1), keys_.data + k * kPanel * s.width);
      }
    });
  }

  int64_t map_size() const { return panels_of(shape_.classes) * strips_ * kPanel * kPanel; }

  // to = maps times the attention matrix.
  void propagate(const A* maps, A* to) const {
    parallel_.loop(strips_, grain_for(work()), [&](int64_t begin, int64_t end, int thread) {
      for (int64_t s = begin; s < end; ++s) {
        const Strip now = strip(s, thread);
        gather(s, maps, now, now.scales, to);
      }
    });
  }

  // The weights of columns after so many rounds; those of rows come with the first product. Sums are float64: each
  // round divides by those of the last.
  void normalise(int64_t rounds, Weights<A> weights) const {
    const int64_t n = shape_.pixels;
    const Buffer<double> sums(kParts * n);
    for (int64_t round = 0; round < rounds; ++round) {
      in_parts([&](int64_t part, int64_t s, bool first, int thread) {
        double* part_sums = sums.data + part * n;
        if (first) std::fill_n(part_sums, n, 0.0);
        const Strip now = strip(s, thread);
        if (round) weigh_rows(s, now, weights);
        alignas(64) A by_query[kPanel];
        for (int64_t i = 0; i < kPanel; ++i)
          by_query[i] = s * kPanel + i < n ? now.scales[i] * (round ? weights.rows[s * kPanel + i] : A(1)) : A(0);
        CALL_BEST_ISA(column_sums, now.data, by_query, n, part_sums);
      });
      for (int64_t j = 0; j < n; ++j) {
        double total = 0;
        for (int64_t part = 0; part < std::min(kParts, strips_); ++part) total += sums.data[part * n + j];
        weights.columns[j] = A(1 / total);
      }
    }
  }

  // to = maps times the normalised matrix, made symmetric.
  void propagate_both_ways(bool find_rows, Weights<A> weights, const A* maps, A* to) const {
    const int64_t n = shape_.pixels, blocks = panels_of(shape_.classes), plane = strips_ * kPanel * kPanel;
    const Buffer<A> weighted(map_size()), spread(kParts * map_size());
    for (int64_t k = 0; k < map_size(); ++k) {
      const int64_t j = k / kPanel % (strips_ * kPanel);
      weighted.data[k] = j < n ? maps[k] * weights.columns[j] : A(0);
    }
    in_parts([&](int64_t part, int64_t s, bool first, int thread) {
      A* gathered = spread.data + part * map_size();
      if (first) std::fill_n(gathered, map_size(), A(0));
      const Strip now = strip(s, thread);
      if (find_rows) weigh_rows(s, now, weights);
      alignas(64) A scales[kPanel];
      for (int64_t i = 0; i < kPanel; ++i)
        scales[i] = s * kPanel + i < n ? now.scales[i] * weights.rows[s * kPanel + i] : A(0);
      A* by_query = now.scratch;
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t i = 0; i < kPanel; ++i)
          for (int64_t c = 0; c < kPanel; ++c)
            by_query[i * kPanel + c] = scales[i] * maps[block * plane + (s * kPanel + i) * kPanel + c];
        CALL_BEST_ISA(spread_scores, by_query, now.data, strips_ * kPanel, gathered + block * plane);
      }
      gather(s, weighted.data, now, scales, to);
    });
    for (int64_t k = 0; k < map_size(); ++k) {
      const int64_t j = k / kPanel % (strips_ * kPanel);
      A total = 0;
      for (int64_t part = 0; part < std::min(kParts, strips_); ++part) total += spread.data[part * map_size() + k];
      to[k] = j < n ? (to[k] + total * weights.columns[j]) / 2 : A(0);
    }
  }

 private:
  // Row `query` of the matrix is data[key * kPanel + query] * scales[query].
  struct Strip {
    const A* data;
    A* scratch;       // (kPanel, kPanel)
    const A* scales;  // (kPanel)
  };

  int64_t work() const { return kPanel * shape_.keys * (shape_.heads * (shape_.width + 16) + shape_.classes); }

  // A strip's scratch is for whoever reads it, until the thread's next strip.
  Strip strip(int64_t s, int thread) const {
    A* const scratch = scratch_.data + thread * scratch_size_;
    A* const own = scratch + kPanel * kPanel;
    const bool keep = s < kept_strips_;
    A* const total = keep ? kept_.data + s * (strip_size_ + kPanel) : own;
    A* const scales = total + strip_size_;
    if (!keep || !is_kept_.data[s]) find_strip(s, own + strip_size_ + kPanel, total, scales);
    if (keep) is_kept_.data[s] = true;
    return {total + (shape_.keys - shape_.pixels) * kPanel, scratch, scales};
  }

  void find_strip(int64_t s, A* query, A* total, A* scales) const {
    const int64_t first = s * kPanel, keys = shape_.keys, panels = panels_of(keys);
    A* const scores = shape_.heads > 1 ? query + shape_.width * kPanel : total;
    const A scale = A(1 / std::sqrt(double(shape_.width)));
    double sums[kPanel];
    for (int64_t head = 0; head < shape_.heads; ++head) {
      CALL_BEST_ISA(pack_tokens, queries_.data + head * queries_.head + first * queries_.token, queries_.token,
                    queries_.channel, shape_.width, int(std::min(kPanel, shape_.pixels - first)), scale, query);
      CALL_BEST_ISA(attend, keys_.data + head * panels * kPanel * shape_.width, query, keys, shape_.width, scores,
                    sums);
      for (int64_t i = 0; i < kPanel; ++i) scales[i] = A(1 / (sums[i] * double(shape_.heads)));
      if (shape_.heads > 1) CALL_BEST_ISA(add_strip, scores, scales, keys, head == 0, total);
    }
    if (shape_.heads > 1) std::fill_n(scales, kPanel, A(1));
    std::fill_n(total + keys * kPanel, strip_size_ - keys * kPanel, A(0));
  }

  void gather(int64_t s, const A* maps, const Strip& now, const A* scales, A* to) const {
    const int64_t plane = strips_ * kPanel * kPanel;
    for (int64_t block = 0; block < panels_of(shape_.classes); ++block) {
      const int classes = int(std::min(kPanel, shape_.classes - block * kPanel));
      CALL_BEST_ISA(gather_scores, maps + block * plane, now.data, shape_.pixels, classes, now.scratch);
      A* const pixels = to + block * plane + s * kPanel * kPanel;
      for (int64_t i = 0; i < kPanel; ++i)
        for (int64_t c = 0; c < kPanel; ++c)
          pixels[i * kPanel + c] = c < classes ? now.scratch[c * kPanel + i] * scales[i] : A(0);
    }
  }

  void weigh_rows(int64_t s, const Strip& now, Weights<A> weights) const {
    double sums[kPanel];
    CALL_BEST_ISA(row_sums, now.data, weights.columns, shape_.pixels, sums);
    for (int64_t i = 0; i < kPanel && s * kPanel + i < shape_.pixels; ++i)
      weights.rows[s * kPanel + i] = A(1 / (sums[i] * double(now.scales[i])));
  }

  // each(part, strip, whether it is the part's first, thread): the strips of a part in order.
  template <typename Each>
  void in_parts(const Each& each) const {
    const int64_t parts = std::min(kParts, strips_);
    parallel_.in_turn(parts, strips_ / parts * work(), [&](int64_t part, int thread) {
      const int64_t begin = part * strips_ / parts;
      for (int64_t s = begin; s < (part + 1) * strips_ / parts; ++s) each(part, s, s == begin, thread);
    });
  }

  const HeadTokens<T> queries_;
  const AttentionShape shape_;
  const Parallel& parallel_;
  const int64_t strips_, strip_size_, scratch_size_, kept_strips_;
  const Buffer<A> keys_;  // (heads, panels, D, kPanel)
  const Buffer<A> kept_;  // (kept strips, a strip and its scales)
  const Buffer<bool> is_kept_;
  const Buffer<A> scratch_;
};

}  // namespace

template <typename T>
void propagate_attention_cpu(const T* cams, HeadTokens<T> queries, HeadTokens<T> keys, int64_t steps, int64_t sinkhorn,
                             Accumulate<T>* propagated, AttentionShape s, const Parallel& parallel) {
  using A = Accumulate<T>;
  const int64_t plane = s.classes * s.pixels;
  if (s.batch * plane == 0) return;
  every(s.batch, parallel, [&](int64_t b, const Parallel& threads) {
    HeadTokens<T> q = queries, k = keys;
    q.data += b * q.image, k.data += b * k.image;
    const Attention<T> attention(q, k, sinkhorn > 0, s, threads);
    const Buffer<A> first(attention.map_size()), second(attention.map_size());
    A *maps = first.data, *to = second.data;
    const int64_t padded = panels_of(s.pixels) * kPanel;
    for (int64_t i = 0; i < attention.map_size(); ++i) {
      const int64_t c = i / (padded * kPanel) * kPanel + i % kPanel, j = i / kPanel % padded;
      maps[i] = c < s.classes && j < s.pixels ? A(cams[b * plane + c * s.pixels + j]) : A(0);
    }
    const Buffer<A> both(2 * s.pixels);
    const Weights<A> weights{both.data, both.data + s.pixels};
    if (sinkhorn && steps) attention.normalise(sinkhorn, weights);
    for (int64_t step = 0; step < steps; ++step, std::swap(maps, to))
      if (sinkhorn)
        attention.propagate_both_ways(step == 0, weights, maps, to);
      else
        attention.propagate(maps, to);
    for (int64_t c = 0; c < s.classes; ++c)
      for (int64_t j = 0; j < s.pixels; ++j)
        propagated[b * plane + c * s.pixels + j] = maps[(c / kPanel * padded + j) * kPanel + c % kPanel];
  });
}

#define INSTANTIATE(T)                                                                                               \
  template void propagate_attention_cpu<T>(const T*, HeadTokens<T>, HeadTokens<T>, int64_t, int64_t, Accumulate<T>*, \
                                           AttentionShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
