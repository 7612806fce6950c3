// The instruction set of the CPU kernels: which one is in use, and a limit on it for tests.
#include "common.h"
#include "common/simd.h"

namespace toco {

// 0 portable, 1 AVX2, 2 AVX-512. Never above what the processor has; a negative limit only asks.
int64_t limit_isa(int64_t limit) {
  const int64_t best = int64_t(processor_isa());
  if (limit >= 0) isa_in_use() = Isa(limit < best ? limit : best);
  return int64_t(isa_in_use());
}

STABLE_TORCH_LIBRARY_FRAGMENT(toco_kernels, m) { m.def("limit_isa(int limit) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(toco_kernels, CompositeExplicitAutograd, m) { m.impl("limit_isa", TORCH_BOX(&limit_isa)); }

}  // namespace toco
