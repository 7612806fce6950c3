// Integers that are ordered as scores are: larger for larger ones, equal for -0 and 0, the largest for NaN.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/half.h"

namespace toco {

template <typename A>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = int32_t;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
};
template <typename A>
using Key = typename KeyOf<A>::type;

template <typename A>
constexpr Key<A> kLargestKey = sizeof(A) == 4 ? Key<A>(INT32_MAX) : Key<A>(INT64_MAX);
template <typename A>
constexpr Key<A> kNoKey = -kLargestKey<A> - 1;  // below that of every score

template <typename A>
TOCO_HOST_DEVICE Key<A> key_of(A value) {
  const A plain = value + A(0);  // -0 becomes 0
  Key<A> bits;
  memcpy(&bits, &plain, sizeof bits);
  return value == value ? bits ^ ((bits >> (8 * sizeof(A) - 1)) & kLargestKey<A>) : kLargestKey<A>;
}

// The score, but for the sign of zero and of NaN.
template <typename A>
TOCO_HOST_DEVICE A score_of_key(Key<A> key) {
  const Key<A> bits = key ^ ((key >> (8 * sizeof(A) - 1)) & kLargestKey<A>);
  A value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace toco
