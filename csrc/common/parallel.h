// A kernel asks for a parallel loop; whoever calls it supplies the threads (torch's pool, or NumPy's).
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

namespace toco {

using Body = std::function<void(int64_t begin, int64_t end, int thread)>;

// How many iterations are worth waking a second thread for, when one costs `work` multiply-adds.
inline int64_t grain_for(int64_t work) { return work < 65536 ? 65536 / (work > 0 ? work : 1) + 1 : 1; }

struct Parallel {
  int threads;  // `thread` is below this: scratch is sized by it
  std::function<void(int64_t size, int64_t grain, const Body& body)> loop;

  // For iterations of unequal length: whichever thread is free takes the next. One costs `work` multiply-adds.
  template <typename Iteration>
  void in_turn(int64_t size, int64_t work, const Iteration& iteration) const {
    const int64_t wanted = (size + grain_for(work) - 1) / grain_for(work);
    std::atomic<int64_t> next{0};
    loop(wanted < threads ? wanted : threads, 1, [&](int64_t, int64_t, int thread) {
      for (int64_t i = next++; i < size; i = next++) iteration(i, thread);
    });
  }
};

// For work within an iteration of another loop.
inline Parallel one_thread() {
  return {1, [](int64_t size, int64_t, const Body& body) {
            if (size) body(0, size, 0);
          }};
}

// each(i, threads) for i < count: a thread for each where there are enough of them, else all threads for one by one.
template <typename Each>
void every(int64_t count, const Parallel& parallel, const Each& each) {
  if (2 * count > parallel.threads && count > 1) {
    const Parallel alone = one_thread();
    parallel.in_turn(count, int64_t(1) << 20, [&](int64_t i, int) { each(i, alone); });
  } else {
    for (int64_t i = 0; i < count; ++i) each(i, parallel);
  }
}

}  // namespace toco
