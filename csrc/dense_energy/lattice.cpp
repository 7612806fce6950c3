#include "dense_energy/lattice.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#define TOCO_PER_ISA "dense_energy/lattice_rows.h"
#include "common/for_each_isa.h"

namespace toco {
namespace {

// A point of the lattice as one number. Its coordinates have one remainder modulo d + 1: what is left of each after
// division has a field of bits, the remainder the bits above.
template <typename Code>
struct Coding {
  static constexpr int kBits = sizeof(Code) == 8 ? 12 : 24;
  static constexpr int64_t kMiddle = int64_t(1) << (kBits - 1);
  static constexpr int64_t kLargest = kMiddle - 4;  // neighbours of corners stay within the field
  int d;

  Code unit(int i) const { return i < d ? Code(1) << (kBits * i) : 0; }  // the last coordinate is not stored
  Code remainder() const { return Code(1) << (kBits * d); }
  Code all() const {
    Code sum = 0;
    for (int i = 0; i < d; ++i) sum += unit(i);
    return sum;
  }
  // One step along a direction: 1 more in every coordinate but -d in that one.
  Code next(Code code, int direction) const {
    const bool wraps = code >> (kBits * d) == Code(d);
    return (wraps ? code - d * remainder() + all() : code + remainder()) - unit(direction);
  }
};

inline uint64_t hash(uint64_t code) { return (code ^ code >> 32) * 0x9e3779b97f4a7c15u; }
inline uint64_t hash(unsigned __int128 code) {
  return hash(uint64_t(code) ^ uint64_t(code >> 64) * 0xc2b2ae3d27d4eb4fu);
}

// Numbers codes in the order in which they come.
template <typename Code>
class Numbering {
 public:
  Numbering() : slots_(size_t(1) << bits_) {}

  int32_t number(Code code) {
    if (4 * codes.size() >= slots_.size()) grow();  // few collisions: they cannot be foreseen
    Slot& slot = slots_[find_slot(code)];
    if (slot.number < 0) {
      slot = {code, int32_t(codes.size())};
      codes.push_back(code);
    }
    return slot.number;
  }

  int32_t find(Code code) const { return slots_[find_slot(code)].number; }  // -1 if it never came

  std::vector<Code> codes;

 private:
  struct Slot {
    Code code;
    int32_t number = -1;
  };

  size_t find_slot(Code code) const {
    size_t i = hash(code) >> (64 - bits_);
    while (slots_[i].number >= 0 && slots_[i].code != code) i = (i + 1) & (slots_.size() - 1);
    return i;
  }

  void grow() {
    ++bits_;
    slots_.assign(size_t(1) << bits_, Slot());
    for (size_t i = 0; i < codes.size(); ++i) slots_[find_slot(codes[i])] = {codes[i], int32_t(i)};
  }

  int bits_ = 13;
  std::vector<Slot> slots_;
};

// Simplices that were met before: neighbouring pixels are often in the same one.
template <typename Code>
class SimplexCache {
 public:
  // A pixel of the same simplex, or -1; from now on `pixel` is one.
  int64_t exchange(Code code, int32_t order, int64_t pixel) {
    Entry& entry = entries_[(hash(code) + order * uint64_t(0x85ebca6b) * 0x9e3779b97f4a7c15u) >> (64 - kBits)];
    const int64_t met = entry.code == code && entry.order == order ? entry.pixel : -1;
    entry = {code, order, pixel};
    return met;
  }

 private:
  static constexpr int kBits = 13;
  struct Entry {
    Code code = 0;
    int32_t order = 0;
    int64_t pixel = -1;
  };
  std::vector<Entry> entries_ = std::vector<Entry>(1 << kBits);
};

// Deviations of the blurs and of the interpolation are together 1.
void lattice_factors(const Features& features, float* factors) {
  const int d = features.count();
  for (int i = 0; i < d; ++i)
    factors[i] = float(std::sqrt(2.0 / 3) * (d + 1) / std::sqrt(double((i + 1) * (i + 2))) * features.scales[i]);
}

// Consecutive pixels, of which a thread has at least enough to be worth waking it.
int64_t parts_of(int64_t pixels, const Parallel& parallel) {
  return std::max<int64_t>(1, std::min<int64_t>(parallel.threads, pixels / 4096));
}

// Embeds pixels begin … end and numbers their corners; false if a coordinate has no room in a code.
template <typename Code>
bool number_corners(const Features& features, const float* factors, int64_t begin, int64_t end,
                    Numbering<Code>& numbering, Corner* corners) {
  const int d = features.count();
  const Coding<Code> coding{d};
  SimplexCache<Code> cache;
  Embedded block;
  std::memset(&block, 0, sizeof block);
  Code codes[kEmbedded];
  for (int64_t start = begin; start < end; start += kEmbedded) {
    const int64_t count = std::min(kEmbedded, end - start);
    int64_t y = start / features.width, x = start % features.width;
    for (int64_t p = 0; p < count; ++p) {
      block.features[0][p] = float(x);
      block.features[1][p] = float(y);
      if (++x == features.width) x = 0, ++y;
    }
    for (int k = 2; k < d; ++k)
      std::copy_n(features.image + (k - 2) * features.pixels() + start, count, block.features[k]);
    embed(d, factors, block);

    int32_t farthest = 0;
    best_isa([&]() TOCO_INLINE {
      for (int64_t p = 0; p < kEmbedded; ++p) codes[p] = 0;
      for (int i = 0; i < d; ++i)
        for (int64_t p = 0; p < kEmbedded; ++p) {
          const int32_t whole = block.whole[i][p], distance = whole < 0 ? -whole : whole;
          farthest = farthest < distance ? distance : farthest;
          codes[p] |= Code(uint32_t(whole + int32_t(coding.kMiddle))) << (coding.kBits * i);
        }
    });
    if (farthest > coding.kLargest) return false;

    for (int64_t p = 0; p < count; ++p) {
      const int64_t pixel = start + p;
      Corner* corner = corners + pixel * (d + 1);
      const int64_t met = cache.exchange(codes[p], block.order[p], pixel);
      if (met >= 0) {
        for (int k = 0; k <= d; ++k) corner[k] = {corners[met * (d + 1) + k].point, block.weights[k][p]};
        continue;
      }
      Code code = codes[p];
      for (int k = 0; k <= d; ++k) {
        if (k > 0) code += coding.remainder() - coding.unit(block.order[p] >> 4 * (d - k + 1) & 15);
        corner[k] = {numbering.number(code), block.weights[k][p]};
      }
    }
  }
  return true;
}

template <typename Code>
Chains chains_along(const Numbering<Code>& numbering, Coding<Code> coding, int direction) {
  const int64_t count = numbering.codes.size();
  const Buffer<int32_t> next(count);
  std::vector<bool> follows(count);
  for (int64_t p = 0; p < count; ++p) {
    next.data[p] = numbering.find(coding.next(numbering.codes[p], direction));
    if (next.data[p] >= 0) follows[next.data[p]] = true;
  }
  Chains chains;
  for (int64_t p = 0; p < count; ++p) {
    if (follows[p] || next.data[p] < 0) continue;
    chains.first.push_back(int32_t(chains.points.size()));
    for (int32_t point = int32_t(p); point >= 0; point = next.data[point]) chains.points.push_back(point);
  }
  chains.first.push_back(int32_t(chains.points.size()));
  chains.points.resize(chains.points.size() + kAhead);
  return chains;
}

}  // namespace

Lattice::Lattice(const Features& features, const Parallel& parallel)
    : d_(features.count()), pixels_(features.pixels()), corners_(pixels_ * (d_ + 1)) {
  if (!build<uint64_t>(features, parallel)) build<unsigned __int128>(features, parallel);
}

template <typename Code>
bool Lattice::build(const Features& features, const Parallel& parallel) {
  float factors[kMostFeatures];
  lattice_factors(features, factors);
  const int64_t parts = parts_of(pixels_, parallel);
  const auto first_pixel = [&](int64_t part) { return pixels_ * part / parts; };
  std::vector<Numbering<Code>> numberings(parts);
  std::atomic<bool> fits{true};
  parallel.loop(parts, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part)
      if (!number_corners(features, factors, first_pixel(part), first_pixel(part + 1), numberings[part], corners_.data))
        fits = false;
  });
  if (!fits) return false;

  // Points of later parts are numbered after those of the first.
  Numbering<Code>& numbering = numberings[0];
  std::vector<std::vector<int32_t>> renamed(parts);
  for (int64_t part = 1; part < parts; ++part)
    for (const Code code : numberings[part].codes) renamed[part].push_back(numbering.number(code));
  parallel.loop(parts, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = std::max<int64_t>(begin, 1); part < end; ++part)
      for (int64_t i = first_pixel(part) * (d_ + 1); i < first_pixel(part + 1) * (d_ + 1); ++i)
        corners_.data[i].point = renamed[part][corners_.data[i].point];
  });

  points_ = numbering.codes.size();
  chains_.resize(d_ + 1);
  const Coding<Code> coding{d_};
  parallel.loop(d_ + 1, grain_for(points_ * 8), [&](int64_t begin, int64_t end, int) {
    for (int64_t direction = begin; direction < end; ++direction)
      chains_[direction] = chains_along(numbering, coding, int(direction));
  });
  return true;
}

template <typename A>
void Lattice::spread(const A* maps, const A* norms, int64_t channels, A* points, const Parallel& parallel) const {
  const int64_t blocks = blocks_of(channels), size = points_ * kLanes;
  parallel.in_turn(blocks, pixels_ * (d_ + 1) * kLanes, [&](int64_t block, int) {
    const int64_t channel = block * kLanes, some = std::min(kLanes, channels - channel);
    std::fill_n(points + block * size, size, A(0));
    CALL_BEST_ISA(splat, maps + channel * pixels_, pixels_, some, norms, corners_.data, d_ + 1, points + block * size);
  });
  every(blocks, parallel, [&](int64_t block, const Parallel& threads) {
    for (const Chains& chains : chains_)
      threads.loop(chains.first.size() - 1, grain_for(kLanes * 4), [&](int64_t begin, int64_t end, int) {
        CALL_BEST_ISA(blur, points + block * size, chains.points.data(), chains.first.data(), begin, end);
      });
  });
}

template <typename A>
void Lattice::read(const A* points, const A* norms, int64_t channels, int64_t first, int64_t count, A* planes) const {
  for (int64_t block = 0; block < blocks_of(channels); ++block)
    CALL_BEST_ISA(slice, points + block * points_ * kLanes, corners_.data, d_ + 1, norms, first, count,
                  planes + block * kLanes * kPixels);
}

#define INSTANTIATE(A)                                                                   \
  template void Lattice::spread(const A*, const A*, int64_t, A*, const Parallel&) const; \
  template void Lattice::read(const A*, const A*, int64_t, int64_t, int64_t, A*) const;
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace toco
