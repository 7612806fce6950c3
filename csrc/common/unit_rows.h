// Tokens as unit vectors.
#pragma once
#include <cmath>

#include "common/half.h"
#include "common/simd.h"

namespace toco {

// What a token is multiplied by to have length 1. Below `shortest` that no longer depends on the token (`clamped`), and
// the result has another length, whose square is kept. For a token of length 0 it is 0: rounding errors must not be
// multiplied by 1 / shortest.
template <typename A>
struct Length {
  A inverse = 0, square = 0;
  bool clamped = true;
};

// Squares are added in double: float tokens may be 1e20 long, or 1e-20.
template <typename T, typename A = Accumulate<T>>
TOCO_INLINE inline Length<A> length_of(const T* token, int64_t width, double shortest) {
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t d = 0; d < width; ++d) square += double(A(token[d])) * double(A(token[d]));
  const double length = std::sqrt(square);
  if (length == 0) return {};
  if (length < shortest) return {A(1 / shortest), A(square / shortest / shortest), true};
  return {A(1 / length), 1, false};  // NaN comes here
}

// A token in the type that is computed in: itself, or converted into `row`.
TOCO_INLINE inline const float* converted(const float* token, int64_t, float*) { return token; }
TOCO_INLINE inline const double* converted(const double* token, int64_t, double*) { return token; }
template <typename T>
TOCO_INLINE inline const float* converted(const T* token, int64_t width, float* row) {
  for (int64_t d = 0; d < width; ++d) row[d] = float(token[d]);
  return row;
}

// Turns the gradient of a unit vector, which `grad` holds, into that of the token. What lies along the token is removed
// as computed, not as theory has it: where tokens share a direction, that is nearly all of the gradient.
template <typename T, typename A = Accumulate<T>>
TOCO_INLINE inline void gradient_of_token(const T* token, Length<A> length, int64_t width, A* grad) {
  A along = 0;
  if (!length.clamped) {
#pragma omp simd reduction(+ : along)
    for (int64_t d = 0; d < width; ++d) along += grad[d] * (A(token[d]) * length.inverse);
  }
  for (int64_t d = 0; d < width; ++d) grad[d] = (grad[d] - along * (A(token[d]) * length.inverse)) * length.inverse;
}

}  // namespace toco
