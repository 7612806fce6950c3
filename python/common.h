// What every torch binding needs: checks with one message style, dtypes, and torch's thread pool.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "common/flags.h"
#include "common/half.h"
#include "common/parallel.h"

namespace toco {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The public functions in Python explain bad arguments; these checks keep a direct call of an operator in bounds.
inline void check_shape(const Tensor& t, std::initializer_list<int64_t> shape, const char* name) {
  bool same = t.dim() == int64_t(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = t.size(i) == shape.begin()[i];
  STD_TORCH_CHECK(same, name, " does not have the shape that the other arguments imply");
}

inline void check_same_device(const Tensor& t, const Tensor& as, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() == as.is_cuda() && t.get_device_index() == as.get_device_index(), name,
                  " must be on the device of the other inputs");
}

inline void check_same_dtype(const Tensor& t, const Tensor& as, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == as.scalar_type(), name, " must have the dtype of the other inputs");
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// As torch::stable::new_empty, past the dispatcher: a microsecond less, where an operator takes ten.
inline Tensor empty(const Tensor& t, std::initializer_list<int64_t> shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape.begin()[i];
  int32_t device_type = 0;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.begin(), strides.data(), int32_t(type),
                                                  device_type, t.get_device_index(), &handle));
  return Tensor(handle);
}

inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Calls body(T{}) with the type that kernels use for this dtype.
template <typename Body>
void dispatch_floating(ScalarType type, const char* name, Body body) {
  switch (type) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16");
  }
}

inline Flags flags_of(const Tensor& flags, const char* name) {
  switch (flags.scalar_type()) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
      return {flags.data_ptr(), Flags::kUInt8};
    case ScalarType::Int:
      return {flags.data_ptr(), Flags::kInt32};
    case ScalarType::Long:
      return {flags.data_ptr(), Flags::kInt64};
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return {flags.data_ptr(), Flags::kHalf};
    case ScalarType::Float:
      return {flags.data_ptr(), Flags::kFloat};
    case ScalarType::Double:
      return {flags.data_ptr(), Flags::kDouble};
    default:
      STD_TORCH_CHECK(false, name, " must be bool, int8, uint8, int32, int64 or floating point");
  }
}

inline Parallel torch_threads() {
  return {int(torch::stable::get_num_threads()), [](int64_t size, int64_t grain, const Body& body) {
            torch::stable::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
              uint32_t thread = 0;
              TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&thread));
              body(begin, end, int(thread));
            });
          }};
}

}  // namespace toco
