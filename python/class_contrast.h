// Shapes, checks and allocation of class_contrast, the same on every device.
#pragma once
#include <tuple>

#include "class_contrast/class_contrast.h"
#include "common.h"

namespace toco {

// launch(student, teacher, flags, loss, grad_student, scratch, shape), all pointers but flags and shape.
template <typename Launch>
std::tuple<Tensor, Tensor> class_token_contrast_on(const Tensor& student, const Tensor& teacher, const Tensor& flags,
                                                   bool with_grad, Launch launch) {
  STD_TORCH_CHECK(student.dim() == 2 && flags.dim() == 2, "student and flags must have 2 dimensions");
  const ClassContrastShape shape{flags.size(0), flags.size(1), student.size(1)};
  check_shape(student, {shape.crops * shape.batch, shape.width}, "student");
  check_shape(teacher, {2 * shape.batch, shape.width}, "teacher");
  check_same_dtype(teacher, student, "teacher");
  check_same_device(teacher, student, "teacher");
  check_same_device(flags, student, "flags");

  const Tensor s = dense(student), t = dense(teacher), f = dense(flags);
  const ScalarType type = accumulate_type(student.scalar_type());
  Tensor loss = empty(s, {}, type);
  Tensor grad = with_grad ? empty(s, {s.size(0), s.size(1)}, type) : empty(s, {0}, type);
  Tensor scratch = empty(s, {class_contrast_scratch(shape)}, type);
  dispatch_floating(s.scalar_type(), "student", [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch(data<T>(s), data<T>(t), flags_of(f, "flags"), mutable_data<A>(loss),
           with_grad ? mutable_data<A>(grad) : nullptr, mutable_data<A>(scratch), shape);
  });
  return {loss, grad};
}

}  // namespace toco
