// The CUDA kernels of cam against its C++ kernels, on the CPU. Prints what differs; exit code 1 if any does.
#include "cam/cam.h"

#include <algorithm>
#include <cmath>

#include "compare.h"

namespace toco {
namespace {

template <typename T>
void check_near(const std::vector<T>& actual, const std::vector<T>& expected, const char* what, double tolerance) {
  double error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double a = double(Accumulate<T>(actual[i])), e = double(Accumulate<T>(expected[i]));
    error = std::max(error, a == e || (a != a && e != e) ? 0 : a - e == a - e ? std::fabs(a - e) : 1e9);
  }
  check(error <= tolerance, what, error);
}

template <typename T>
void check_same(const std::vector<T>& actual, const std::vector<T>& expected, const char* what, double share = 0) {
  int64_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) different += actual[i] != expected[i];
  check(double(different) <= share * double(expected.size()), what, double(different));
}

std::vector<uint8_t> some_labels(int64_t batch, int64_t classes) {  // the first image has none, the last all of them
  std::vector<uint8_t> present(batch * classes);
  for (int64_t i = classes; i < batch * classes; ++i) present[i] = i >= (batch - 1) * classes || generator() % 2;
  return present;
}

const std::vector<int64_t> kBoxes{0, 45, 0, 38, 5, 60, -20, -3, 30, 10, 0, 5};

template <typename T>
void compare_merging(const char* what, MergeShape s, double tolerance, double wrong_labels, bool nan = false) {
  using A = Accumulate<T>;
  std::vector<std::vector<T>> small;
  std::vector<ScaleMaps<T>> maps;
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{3, 4}, {1, 2}, {50, 7}}) {
    small.push_back(uniform<T>(2 * s.batch * s.classes * height * width, -1, 2));
    if (nan) small.back()[small.back().size() - 1] = T(A(NAN));
    maps.push_back({small.back().data(), height, width});
  }
  const auto present = some_labels(s.batch, s.classes);
  const Flags flags{present.data(), Flags::kUInt8};
  const int64_t pixels = s.out_height * s.out_width;
  std::vector<A> bounds(merge_bounds(s), A(-5));
  for (const Flags* labels : {&flags, static_cast<const Flags*>(nullptr)}) {
    std::vector<T> expected(s.batch * s.classes * pixels), actual(expected.size());
    merge_cams_cpu(maps, labels, expected.data(), s, kOneThread);
    merge_cams_cuda(maps, labels, actual.data(), bounds.data(), s, nullptr);
    check_near(actual, expected, what, tolerance);
  }
  for (const int64_t* boxes : {kBoxes.data(), static_cast<const int64_t*>(nullptr)}) {
    std::vector<int64_t> expected(s.batch * pixels), actual(expected.size(), -1);
    merge_cams_to_labels_cpu(maps, flags, boxes, expected.data(), 0.7, 0.25, 255, s, kOneThread);
    merge_cams_to_labels_cuda(maps, flags, boxes, actual.data(), 0.7, 0.25, 255, bounds.data(), s, nullptr);
    check_same(actual, expected, what, wrong_labels);
  }
  std::vector<uint8_t> expected(s.batch * pixels), actual(expected.size(), 9);
  merge_cams_to_roi_cpu(maps, flags, expected.data(), 0.7, 0.25, s, kOneThread);
  merge_cams_to_roi_cuda(maps, flags, actual.data(), 0.7, 0.25, bounds.data(), s, nullptr);
  check_same(actual, expected, what, wrong_labels);
}

template <typename T>
void compare_labels(const char* what, bool nan = false) {
  using A = Accumulate<T>;
  const CamShape s{3, 6, 45, 38};
  const int64_t pixels = s.height * s.width;
  auto cams = uniform<T>(s.batch * s.classes * pixels, 0, 1);
  for (size_t i = 0; nan && i < cams.size(); i += 7) cams[i] = T(A(NAN));
  const auto high = uniform<A>(s.batch * pixels, 0.4f, 1), low = uniform<A>(s.batch * pixels, 0, 0.5f);
  const auto present = some_labels(s.batch, s.classes);
  const Flags flags{present.data(), Flags::kUInt8};
  for (const bool with : {false, true}) {
    const int64_t* boxes = with ? kBoxes.data() : nullptr;
    const Limits<A> limits{A(0.7), A(0.25), with ? high.data() : nullptr, with ? low.data() : nullptr};
    std::vector<int64_t> expected(s.batch * pixels), actual(expected.size(), -1);
    cam_to_label_cpu(cams.data(), flags, boxes, limits, expected.data(), 255, s, kOneThread);
    cam_to_label_cuda(cams.data(), flags, boxes, limits, actual.data(), 255, s, nullptr);
    check_same(actual, expected, what);
  }
  std::vector<uint8_t> expected(s.batch * pixels), actual(expected.size(), 9);
  cam_to_roi_cpu(cams.data(), flags, 0.7, 0.25, expected.data(), s, kOneThread);
  cam_to_roi_cuda(cams.data(), flags, 0.7, 0.25, actual.data(), s, nullptr);
  check_same(actual, expected, what);
}

template <typename T>
void compare_crops(const char* what, int64_t size, int64_t crops, int filled) {
  const CropShape s{3, 2, 37, 50, crops, size};
  const auto images = uniform<T>(s.batch * s.channels * s.height * s.width, 0, 1);
  std::vector<uint8_t> roi(s.batch * s.height * s.width, 2);
  for (uint8_t& region : roi)
    if (int(generator() % 100) >= filled) region = generator() % 2;
  std::vector<double> draws;
  for (int64_t i = 0; i < s.batch * s.crops; ++i) draws.push_back(std::uniform_real_distribution<>()(generator));
  std::vector<T> cut(crops * s.batch * s.channels * size * size), flags(s.batch * crops), cut_cuda(cut.size()),
      flags_cuda(flags.size());
  std::vector<int64_t> scratch(crop_scratch(s), -1);
  crop_uncertain_cpu(images.data(), roi.data(), draws.data(), cut.data(), flags.data(), s, kOneThread);
  crop_uncertain_cuda(images.data(), roi.data(), draws.data(), cut_cuda.data(), flags_cuda.data(), scratch.data(), s,
                      nullptr);
  check_near(cut_cuda, cut, what, 0);
  check_near(flags_cuda, flags, what, 0);
}

template <typename T>
void compare_loss(const char* what, LossShape s, double tolerance, int64_t only = -1) {
  using A = Accumulate<T>;
  const auto logits = uniform<T>(s.batch * s.classes * s.pixels, -4, 4);
  std::vector<int64_t> labels(s.batch * s.pixels);
  for (int64_t& label : labels) label = only >= 0 ? only : generator() % 4 ? int64_t(generator() % s.classes) : 255;
  std::vector<double> scratch(segmentation_loss_scratch(s), -7);
  for (const bool with_grad : {true, false}) {
    std::vector<A> loss(1), grad(logits.size()), loss_cuda(1), grad_cuda(logits.size());
    segmentation_loss_cpu(logits.data(), labels.data(), 255, loss.data(), with_grad ? grad.data() : nullptr, s,
                          kOneThread);
    segmentation_loss_cuda(logits.data(), labels.data(), 255, loss_cuda.data(), with_grad ? grad_cuda.data() : nullptr,
                           scratch.data(), s, nullptr);
    check_near(loss_cuda, loss, what, tolerance);
    check_near(grad_cuda, grad, what, tolerance / 100);
  }
}

int run() {
  const MergeShape full{3, 5, 45, 38, 45, 38}, half{3, 5, 45, 38, 22, 19}, grid{3, 5, 45, 38, 4, 3};
  for (const MergeShape& s : {full, half, grid}) {
    compare_merging<double>("merged, float64", s, 1e-13, 0);
    compare_merging<float>("merged, float32", s, 1e-5, 0.01);
    compare_merging<Half>("merged, float16", s, 1e-3, 0.01);
    compare_merging<BFloat16>("merged, bfloat16", s, 8e-3, 0.01);
  }
  compare_merging<double>("merged, larger", {2, 3, 9, 8, 31, 40}, 1e-13, 0);
  compare_merging<double>("merged, one pixel", {2, 3, 1, 1, 1, 1}, 1e-7, 1);
  compare_merging<double>("merged, NaN", full, 1e-13, 0, true);
  compare_merging<double>("merged, no images", {0, 3, 9, 8, 9, 8}, 0, 0);
  for (const bool nan : {false, true}) {
    compare_labels<double>("labels, float64", nan);
    compare_labels<float>("labels, float32", nan);
    compare_labels<Half>("labels, float16", nan);
    compare_labels<BFloat16>("labels, bfloat16", nan);
  }
  for (const int filled : {0, 60, 95, 100}) {
    compare_crops<double>("crops, float64", 12, 8, filled);
    compare_crops<float>("crops, odd size", 13, 5, filled);
    compare_crops<Half>("crops, one pixel", 1, 3, filled);
    compare_crops<BFloat16>("crops, many", 34, 40, filled);
  }
  compare_loss<double>("loss, float64", {2, 6, 4000}, 1e-13);
  compare_loss<float>("loss, float32", {2, 6, 4000}, 1e-5);
  compare_loss<Half>("loss, float16", {2, 21, 300}, 1e-5);
  compare_loss<BFloat16>("loss, bfloat16", {3, 4, 77}, 1e-5);
  compare_loss<double>("loss, no objects", {2, 6, 77}, 1e-13, 0);
  compare_loss<double>("loss, no background", {2, 6, 77}, 1e-13, 3);
  compare_loss<double>("loss, all ignored", {2, 6, 77}, 1e-13, 255);
  compare_loss<double>("loss, a label that is none", {2, 6, 77}, 1e-13, 6);
  compare_loss<double>("loss, no images", {0, 6, 77}, 1e-13);
  std::printf("%d failures\n", failures);
  return failures > 0;
}

}  // namespace
}  // namespace toco

int main() { return toco::run(); }
