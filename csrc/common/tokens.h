// Tokens of any layout whose channels lie together.
#pragma once
#include <cstdint>

namespace toco {

// Token n of image b starts at tokens + b * image + n * patch.
template <typename T>
struct Tokens {
  const T* data;  // (B, N, D)
  int64_t image, patch;

  const T* at(int64_t b, int64_t n) const { return data + b * image + n * patch; }
};

}  // namespace toco
