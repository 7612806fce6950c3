// The CUDA kernels of topk_pool against its C++ kernels, on the CPU. Prints what differs; exit code 1 if any does.
#include "topk_pool/topk_pool.h"

#include <cmath>

#include "compare.h"

namespace toco {
namespace {

// Normal; `rounded` gives many equal numbers, and now and then something that is none.
template <typename T>
std::vector<T> random(int64_t size, bool rounded = false) {
  using A = Accumulate<T>;
  std::normal_distribution<float> normal;
  std::vector<T> values(size);
  for (T& value : values) {
    value = T(A(normal(generator)));
    if (!rounded) continue;
    value = T(A(std::round(normal(generator))));
    if (generator() % 50 == 0) value = T(A(NAN));
    if (generator() % 50 == 0) value = T(A(-INFINITY));
  }
  return values;
}

// Deviations relative to the largest number; of NaN and infinities there are the same.
template <typename T>
bool close(const std::vector<T>& actual, const std::vector<T>& expected, double tolerance) {
  using A = Accumulate<T>;
  double largest = 0, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double a = double(A(actual[i])), e = double(A(expected[i]));
    if (std::isnan(e) != std::isnan(a) || (std::isinf(e) && a != e)) return false;
    if (!std::isfinite(e)) continue;
    largest = std::max(largest, std::fabs(e));
    error = std::max(error, std::fabs(a - e));
  }
  return error <= tolerance * largest;
}

template <typename T>
void compare(const char* what, PoolShape s, double tolerance, bool with_counts = false) {
  if (with_counts) s.most = s.patches;
  std::vector<int64_t> counts(s.batch * s.classes);
  for (int64_t& count : counts) count = int64_t(generator() % (s.patches + 4)) - 2;
  const Kept kept{s.most, with_counts ? counts.data() : nullptr};
  for (const bool rounded : {false, true}) {
    const auto scores = random<T>(s.batch * s.patches * s.classes, rounded), grad = random<T>(s.batch * s.classes);
    std::vector<T> expected(s.batch * s.classes), actual(expected.size()), expected_grad(scores.size()),
        actual_grad(scores.size());
    std::vector<int32_t> expected_indices(s.batch * s.most * s.classes, -7), actual_indices(expected_indices);
    topk_pool_cpu(scores.data(), kept, expected.data(), expected_indices.data(), s, kOneThread);
    topk_pool_cuda(scores.data(), kept, actual.data(), actual_indices.data(), s, nullptr);
    check(actual_indices == expected_indices, what, "indices");
    check(close(actual, expected, tolerance), what, "means");
    topk_pool_backward_cpu(grad.data(), expected_indices.data(), expected_grad.data(), s, kOneThread);
    topk_pool_backward_cuda(grad.data(), expected_indices.data(), actual_grad.data(), s, nullptr);
    check(close(actual_grad, expected_grad, 0), what, "gradient");
  }
}

template <typename T>
void compare_linear(const char* what, PoolShape s, int64_t width, double tolerance) {
  using A = Accumulate<T>;
  const auto tokens = random<T>(s.batch * s.patches * width), weight = random<T>(width * s.classes),
             bias = random<T>(s.classes), grad = random<T>(s.batch * s.classes);
  for (const bool softmax : {false, true})
    for (const bool with_bias : {false, true}) {
      const Classifier<T> classifier{tokens.data(), weight.data(), with_bias ? bias.data() : nullptr, width, softmax};
      std::vector<T> expected(s.batch * s.classes), actual(expected.size());
      std::vector<int32_t> expected_indices(s.batch * s.most * s.classes), actual_indices(expected_indices);
      std::vector<A> scores(s.batch * s.patches * s.classes), partials(linear_partials(width, s));
      const Kept kept{s.most, nullptr};
      linear_topk_pool_cpu(classifier, kept, expected.data(), expected_indices.data(), s, kOneThread);
      linear_topk_pool_cuda(classifier, kept, actual.data(), actual_indices.data(), scores.data(), s, nullptr);
      check(actual_indices == expected_indices, what, "indices");
      check(close(actual, expected, tolerance), what, "means");
      for (const bool with_tokens : {false, true}) {
        std::vector<T> x[2], w[2], b[2];
        for (int i = 0; i < 2; ++i) {
          x[i].resize(tokens.size());
          w[i].resize(weight.size());
          b[i].resize(s.classes);
        }
        linear_topk_pool_backward_cpu(grad.data(), classifier, expected_indices.data(),
                                      with_tokens ? x[0].data() : nullptr, w[0].data(), b[0].data(), s, kOneThread);
        linear_topk_pool_backward_cuda(grad.data(), classifier, expected_indices.data(),
                                       with_tokens ? x[1].data() : nullptr, w[1].data(), b[1].data(), scores.data(),
                                       partials.data(), s, nullptr);
        check(close(x[1], x[0], tolerance), what, "gradient of the tokens");
        check(close(w[1], w[0], tolerance), what, "gradient of the weight");
        check(close(b[1], b[0], tolerance), what, "gradient of the bias");
      }
    }
}

int run() {
  for (const int64_t k : {1, 3, 4, 5, 8, 9, 60, 133}) compare<float>("float32", {2, 133, 11, k}, 1e-6);
  for (const int64_t k : {1, 2, 6, 77}) compare<double>("float64", {2, 300, 9, k}, 1e-14);
  for (const int64_t k : {1, 6, 50}) compare<Half>("float16", {2, 90, 8, k}, 1e-3);
  for (const int64_t k : {1, 6, 50}) compare<BFloat16>("bfloat16", {2, 90, 8, k}, 8e-3);
  compare<float>("many patches", {1, 2111, 17, 200}, 1e-6);
  compare<float>("one patch", {3, 1, 20, 1}, 1e-6);
  compare<float>("a k for each class", {3, 100, 13, 0}, 1e-6, true);
  compare<double>("a k for each class", {2, 70, 13, 0}, 1e-14, true);
  compare<float>("no classes", {2, 10, 0, 3}, 0);
  compare<float>("no images", {0, 10, 3, 3}, 0);
  compare_linear<float>("linear, float32", {2, 70, 21, 6}, 50, 1e-5);
  compare_linear<double>("linear, float64", {3, 40, 37, 9}, 33, 1e-13);
  compare_linear<Half>("linear, float16", {2, 30, 5, 3}, 16, 2e-3);
  compare_linear<BFloat16>("linear, bfloat16", {2, 30, 5, 3}, 16, 2e-2);
  compare_linear<double>("linear, one class", {2, 20, 1, 2}, 8, 1e-13);
  compare_linear<double>("linear, no channels", {2, 20, 3, 2}, 0, 1e-13);
  std::printf("%d failures\n", failures);
  return failures > 0;
}

}  // namespace
}  // namespace toco

int main() { return toco::run(); }
