// What the programs of this folder share: random numbers, one thread, and a count of what differs.
#pragma once
#include <cstdio>
#include <random>
#include <vector>

#include "common/half.h"
#include "common/parallel.h"

namespace toco {

inline std::mt19937 generator(0);
inline const Parallel kOneThread{1, [](int64_t size, int64_t, const Body& body) { body(0, size, 0); }};
inline int failures = 0;

template <typename T>
std::vector<T> uniform(int64_t size, float smallest, float largest) {
  std::vector<T> values(size);
  for (T& value : values) value = T(Accumulate<T>(std::uniform_real_distribution<float>(smallest, largest)(generator)));
  return values;
}

inline void check(bool right, const char* what, double seen) {
  if (!right) std::printf("wrong: %s (%g)\n", what, seen);
  failures += !right;
}

inline void check(bool right, const char* what, const char* which) {
  if (!right) std::printf("wrong: %s, %s\n", what, which);
  failures += !right;
}

}  // namespace toco
