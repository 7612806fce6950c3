// Where filters put their results, a few pixels at a time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>

namespace toco {

constexpr int64_t kPixels = 64;  // at a time: whole vectors of every instruction set

// Takes `channels` planes, kPixels apart, of `count` pixels: those from `first` on, of the channels from `channel` on.
// Several threads call it, for pixels and channels of their own. It may write to the planes.
template <typename A>
using Sink = std::function<void(int64_t channel, int64_t channels, int64_t first, int64_t count, A* planes)>;

// Copies to maps (channels, pixels).
template <typename A>
Sink<A> copy_to(A* maps, int64_t pixels) {
  return [=](int64_t channel, int64_t channels, int64_t first, int64_t count, const A* planes) {
    for (int64_t c = 0; c < channels; ++c)
      std::copy_n(planes + c * kPixels, count, maps + (channel + c) * pixels + first);
  };
}

}  // namespace toco
