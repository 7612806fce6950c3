#include "class_contrast/row.h"
#include "common/simd.h"

namespace toco {
namespace {

// The dot products of one student token with both teacher tokens, in one pass over the student.
template <typename T, typename A = Accumulate<T>>
TOCO_INLINE inline void two_dots(const T* student, const T* first, const T* second, int64_t width, A* dots) {
  A first_dot = 0, second_dot = 0;
#pragma omp simd reduction(+ : first_dot, second_dot)
  for (int64_t d = 0; d < width; ++d) {
    const A value = A(student[d]);
    first_dot += value * A(first[d]);
    second_dot += value * A(second[d]);
  }
  dots[0] = first_dot;
  dots[1] = second_dot;
}

// The loss of image b; the gradient of its student tokens is a combination of its two teacher tokens.
template <typename T, typename A = Accumulate<T>>
TOCO_INLINE inline A contrast_image(const T* student, const T* teacher, Flags flags, double temperature,
                                    A* grad_student, A* scratch, int64_t b, ClassContrastShape s) {
  const T* teachers[2] = {teacher + b * s.width, teacher + (s.batch + b) * s.width};
  A* logits[2] = {scratch, scratch + s.crops};
  A* grads[2] = {scratch + 2 * s.crops, scratch + 3 * s.crops};
  const A scale = A(1 / temperature);
  for (int64_t j = 0; j < s.crops; ++j) {
    A dots[2];
    two_dots(student + (j * s.batch + b) * s.width, teachers[0], teachers[1], s.width, dots);
    logits[0][j] = dots[0] * scale;
    logits[1][j] = dots[1] * scale;
  }
  const A loss = contrast_row(logits[0], flags, b * s.crops, s.crops, grads[0]) +
                 contrast_row(logits[1], flags, b * s.crops, s.crops, grads[1]);
  const A weight = contrast_weight<A>(flags, b * s.crops, s);
  if (grad_student)
    for (int64_t j = 0; j < s.crops; ++j) {
      const A first = weight * scale * grads[0][j];
      const A second = weight * scale * grads[1][j];
      A* grad = grad_student + (j * s.batch + b) * s.width;
      for (int64_t d = 0; d < s.width; ++d) grad[d] = first * A(teachers[0][d]) + second * A(teachers[1][d]);
    }
  return weight * loss;
}

}  // namespace

template <typename T>
void class_token_contrast_cpu(const T* student, const T* teacher, Flags flags, double temperature, Accumulate<T>* loss,
                              Accumulate<T>* grad_student, Accumulate<T>* scratch, ClassContrastShape s,
                              const Parallel& parallel) {
  Accumulate<T>* losses = scratch + s.batch * 4 * s.crops;
  parallel.loop(s.batch, grain_for(s.crops * s.width * 4), [&](int64_t begin, int64_t end, int) {
    best_isa([&]() TOCO_INLINE {
      for (int64_t b = begin; b < end; ++b)
        losses[b] = contrast_image(student, teacher, flags, temperature, grad_student, scratch + b * 4 * s.crops, b, s);
    });
  });
  *loss = 0;
  for (int64_t b = 0; b < s.batch; ++b) *loss += losses[b];
}

#define INSTANTIATE(T)                                                                                         \
  template void class_token_contrast_cpu<T>(const T*, const T*, Flags, double, Accumulate<T>*, Accumulate<T>*, \
                                            Accumulate<T>*, ClassContrastShape, const Parallel&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace toco
