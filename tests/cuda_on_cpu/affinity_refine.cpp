// The CUDA kernels of affinity_refine against its C++ kernels, on the CPU. Prints what differs; exit code 1 if any
// does.
#include "affinity_refine/affinity_refine.h"

#include <algorithm>
#include <cmath>

#include "compare.h"

namespace toco {
namespace {

template <typename T>
void compare(const char* what, RefineShape s, const std::vector<int64_t>& dilations, int64_t iterations, int64_t chunk,
             double tolerance) {
  using A = Accumulate<T>;
  const int64_t pixels = s.height * s.width;
  const auto image = uniform<A>(s.batch * s.colours * pixels, 0, 1);
  const auto masks = uniform<T>(s.batch * s.channels * pixels, 0, 1);
  std::vector<T> expected(masks.size()), actual(masks.size());
  std::vector<A> weights(chunk * 8 * dilations.size() * pixels), buffers(2 * chunk * s.channels * pixels);
  for (const AffinityKind kind : {AffinityKind::kPar, AffinityKind::kPamr})
    for (const bool transposed : {false, true})
      for (const bool half_weights : {false, true}) {
        affinity_refine_cpu<T>(image.data(), masks.data(), expected.data(), dilations, iterations, kind, transposed, s,
                               kOneThread);
        affinity_refine_cuda<T>(image.data(), masks.data(), actual.data(), dilations, iterations, kind, transposed,
                                half_weights, weights.data(), buffers.data(), chunk, s, nullptr);
        double error = 0, largest = 0;
        for (size_t i = 0; i < expected.size(); ++i) {
          error = std::max(error, std::fabs(double(A(actual[i])) - double(A(expected[i]))));
          largest = std::max(largest, std::fabs(double(A(expected[i]))));
        }
        const double allowed = half_weights ? std::max(tolerance, iterations * 2e-3) : tolerance;  // eleven bits
        check(error <= allowed * largest, what, error / largest);
      }
}

template <typename A>
void compare_labels(const char* what, int64_t max_classes, bool with_maps_and_boxes, AffinityKind kind) {
  const CamLabelShape s{3, 3, 6, 45, 38, 2, max_classes};
  const int64_t pixels = s.height * s.width;
  const auto image = uniform<A>(s.batch * s.colours * pixels, 0, 1),
             cams = uniform<A>(s.batch * s.classes * pixels, 0, 1);
  const auto high = uniform<A>(s.batch * pixels, 0, 1), low = uniform<A>(s.batch * pixels, 0, 0.3f);
  std::vector<uint8_t> present(s.batch * s.classes);  // the first image has none
  for (int64_t i = s.classes; i < s.batch * s.classes; ++i) present[i] = generator() % 2;
  const std::vector<int64_t> boxes{0, 45, 0, 38, 5, 60, -20, -3, 30, 10, 0, 5}, dilations{1, 2, 4, 8};
  const int64_t* box = with_maps_and_boxes ? boxes.data() : nullptr;
  const Background<A> backgrounds[2] = {{A(0.7), with_maps_and_boxes ? high.data() : nullptr},
                                        {A(0.25), with_maps_and_boxes ? low.data() : nullptr}};
  const Flags flags{present.data(), Flags::kUInt8};
  std::vector<int64_t> expected(s.batch * pixels), actual(s.batch * pixels, -1);
  refine_cam_labels_cpu(image.data(), cams.data(), flags, box, backgrounds[0], backgrounds[1], expected.data(),
                        dilations, 5, kind, 255, s, kOneThread);

  std::vector<int32_t> classes(s.batch * (1 + s.classes)), used(s.batch);
  present_classes_cuda(flags, classes.data(), used.data(), s, nullptr);
  const int64_t most =
      max_classes < 0 ? most_used_cuda(used.data(), s.batch, nullptr) : 1 + std::min(max_classes, s.classes);
  const RefineShape small{s.batch, s.colours, 2 * most, s.height / 2, s.width / 2};
  const int64_t small_pixels = small.height * small.width;
  std::vector<A> weights(s.batch * 8 * dilations.size() * small_pixels), shrunk(s.batch * 3 * small_pixels),
      buffers(2 * s.batch * small.channels * small_pixels);
  refine_cam_labels_cuda(image.data(), cams.data(), classes.data(), used.data(), box, backgrounds[0], backgrounds[1],
                         actual.data(), dilations, 5, kind, 255, weights.data(), shrunk.data(), buffers.data(), small,
                         s, nullptr);
  int64_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) different += expected[i] != actual[i];
  check(different == 0, what, double(different));
}

int run() {
  const std::vector<int64_t> usual{1, 2, 4, 8, 12, 24};
  compare<float>("float32", {3, 3, 5, 19, 37}, usual, 4, 2, 1e-5);
  compare<double>("float64", {2, 3, 11, 19, 37}, usual, 4, 2, 1e-13);
  compare<Half>("float16", {2, 3, 3, 19, 37}, {1, 3}, 3, 1, 1e-3);
  compare<BFloat16>("bfloat16", {2, 3, 3, 19, 37}, {1, 3}, 3, 1, 8e-3);
  compare<double>("one pixel", {1, 3, 2, 1, 1}, {1, 2}, 3, 1, 1e-13);
  compare<double>("one row", {1, 3, 9, 1, 50}, {1, 60}, 3, 1, 1e-13);
  compare<double>("dilation beyond the image", {2, 3, 8, 7, 5}, {100, 3}, 3, 2, 1e-13);
  compare<double>("no iterations, one colour", {2, 1, 8, 7, 5}, {3}, 0, 2, 1e-13);
  compare<double>("one iteration, five colours", {2, 5, 8, 7, 5}, {3}, 1, 2, 1e-13);
  for (const int64_t max_classes : {-1, 0, 1, 9})
    for (const bool with : {false, true})
      for (const AffinityKind kind : {AffinityKind::kPar, AffinityKind::kPamr}) {
        compare_labels<double>(with ? "labels, maps, boxes" : "labels", max_classes, with, kind);
        compare_labels<float>(with ? "float32 labels, maps, boxes" : "float32 labels", max_classes, with, kind);
      }
  std::printf("%d failures\n", failures);
  return failures > 0;
}

}  // namespace
}  // namespace toco

int main() { return toco::run(); }
