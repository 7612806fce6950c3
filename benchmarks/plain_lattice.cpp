// The permutohedral lattice as published code runs it: images in parallel, one channel after the other, a hash table of
// whole keys. A rival of our own, written from the paper, compiled by bench_dense_energy.py.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

template <int d>
class Table {
 public:
  using Key = std::array<int16_t, d>;

  Table() : slots_(1 << 12, -1) {}

  int find(const Key& key, bool add) {
    if (2 * keys.size() >= slots_.size()) {
      slots_.assign(2 * slots_.size(), -1);
      for (size_t i = 0; i < keys.size(); ++i) slots_[slot(keys[i])] = int(i);
    }
    const size_t i = slot(key);
    if (slots_[i] < 0 && add) {
      slots_[i] = int(keys.size());
      keys.push_back(key);
    }
    return slots_[i];
  }

  std::vector<Key> keys;

 private:
  size_t slot(const Key& key) const {
    size_t hash = 0;
    for (const int16_t k : key) hash = (hash + k) * 1664525;
    size_t i = hash % slots_.size();
    while (slots_[i] >= 0 && keys[slots_[i]] != key) i = (i + 1) % slots_.size();
    return i;
  }

  std::vector<int> slots_;
};

// Values and sums are of type A, positions float.
template <int d, typename A>
class Lattice {
 public:
  Lattice(const float* image, int height, int width, double sigma_rgb, double sigma_xy)
      : pixels_(height * width), corners_(pixels_ * (d + 1)), weights_(pixels_ * (d + 1)) {
    // Rounded as in the room's reference: which points exist depends on it.
    float factors[d];
    for (int k = 0; k < d; ++k)
      factors[k] = float(std::sqrt(2.0 / 3) * (d + 1) / std::sqrt(double((k + 1) * (k + 2))) *
                         (1 / (k < 2 ? sigma_xy : sigma_rgb)));
    constexpr float share_of_one = float(1.0 / (d + 1));
    Table<d> table;
    for (int i = 0; i < pixels_; ++i) {
      float features[d] = {float(i % width), float(i / width)};
      for (int k = 2; k < d; ++k) features[k] = image[(k - 2) * pixels_ + i];
      float elevated[d + 1], total = 0;
      for (int j = d; j > 0; --j) {
        const float scaled = features[j - 1] * factors[j - 1];
        elevated[j] = total - j * scaled;
        total += scaled;
      }
      elevated[0] = total;
      int whole[d + 1], rank[d + 1] = {}, sum = 0;
      for (int k = 0; k <= d; ++k) sum += whole[k] = int(std::lrint(elevated[k] * share_of_one));
      for (int a = 0; a < d; ++a)
        for (int b = a + 1; b <= d; ++b)
          elevated[a] - whole[a] * (d + 1) < elevated[b] - whole[b] * (d + 1) ? ++rank[a] : ++rank[b];
      float barycentric[d + 2] = {};
      for (int k = 0; k <= d; ++k) {
        rank[k] += sum;
        if (rank[k] < 0) rank[k] += d + 1, ++whole[k];
        if (rank[k] > d) rank[k] -= d + 1, --whole[k];
        const float share = (elevated[k] - whole[k] * (d + 1)) * share_of_one;
        barycentric[d - rank[k]] += share;
        barycentric[d - rank[k] + 1] -= share;
      }
      barycentric[0] += 1 + barycentric[d + 1];
      for (int corner = 0; corner <= d; ++corner) {
        typename Table<d>::Key key;
        for (int k = 0; k < d; ++k)
          key[k] = int16_t(whole[k] * (d + 1) + (rank[k] > d - corner ? corner - (d + 1) : corner));
        corners_[i * (d + 1) + corner] = table.find(key, true) + 1;
        weights_[i * (d + 1) + corner] = barycentric[corner];
      }
    }
    points_ = int(table.keys.size());
    for (int direction = 0; direction <= d; ++direction)
      for (const auto& key : table.keys) {
        auto one = key, other = key;
        for (int k = 0; k < d; ++k) --one[k], ++other[k];
        if (direction < d) one[direction] += d + 1, other[direction] -= d + 1;
        neighbours_.push_back({table.find(one, false) + 1, table.find(other, false) + 1});
      }
  }

  void filter(const A* in, A* out) const {  // (pixels), both
    std::vector<A> values(points_ + 1), blurred(points_ + 1);
    for (int i = 0; i < pixels_; ++i)
      for (int k = 0; k <= d; ++k) values[corners_[i * (d + 1) + k]] += weights_[i * (d + 1) + k] * in[i];
    for (int direction = 0; direction <= d; ++direction) {
      for (int p = 0; p < points_; ++p) {
        const auto& [one, other] = neighbours_[direction * points_ + p];
        blurred[p + 1] = values[p + 1] + A(0.5) * (values[one] + values[other]);
      }
      std::swap(values, blurred);
    }
    const A alpha = 1 / (1 + std::pow(A(2), -d));
    for (int i = 0; i < pixels_; ++i) {
      A sum = 0;
      for (int k = 0; k <= d; ++k) sum += weights_[i * (d + 1) + k] * values[corners_[i * (d + 1) + k]] * alpha;
      out[i] = sum;
    }
  }

 private:
  const int pixels_;
  int points_ = 0;
  std::vector<int> corners_;  // 0 stands for points that do not exist
  std::vector<float> weights_;
  std::vector<std::array<int, 2>> neighbours_;
};

template <int d, typename A>
void filter(const float* images, const A* values, A* filtered, int batch, int channels, int height, int width,
            double sigma_rgb, double sigma_xy, int threads) {
  const int64_t pixels = int64_t(height) * width;
#pragma omp parallel for num_threads(threads)
  for (int b = 0; b < batch; ++b) {
    const Lattice<d, A> lattice(images + b * 3 * pixels, height, width, sigma_rgb, sigma_xy);
    for (int64_t k = b * channels; k < (b + 1) * channels; ++k)
      lattice.filter(values + k * pixels, filtered + k * pixels);
  }
}

}  // namespace

// images (B, 3, H, W), which `gaussian` ones ignore; values and filtered (B, K, H, W).
#define DEFINE(name, d, A)                                                                                     \
  extern "C" void name(const float* images, const A* values, A* filtered, int batch, int channels, int height, \
                       int width, double sigma_rgb, double sigma_xy, int threads) {                            \
    filter<d>(images, values, filtered, batch, channels, height, width, sigma_rgb, sigma_xy, threads);         \
  }
DEFINE(bilateral_float32, 5, float)
DEFINE(bilateral_float64, 5, double)
DEFINE(gaussian_float32, 2, float)
DEFINE(gaussian_float64, 2, double)
