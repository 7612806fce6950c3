// A kernel asks for a parallel loop; whoever calls it supplies the threads (torch's pool, or NumPy's).
#pragma once
#include <cstdint>
#include <functional>

namespace toco {

using Body = std::function<void(int64_t begin, int64_t end, int thread)>;

struct Parallel {
  int threads;  // `thread` is below this: scratch is sized by it
  std::function<void(int64_t size, int64_t grain, const Body& body)> loop;
};

// How many iterations are worth waking a second thread for, when one costs `work` multiply-adds.
inline int64_t grain_for(int64_t work) { return work < 65536 ? 65536 / (work > 0 ? work : 1) + 1 : 1; }

}  // namespace toco
