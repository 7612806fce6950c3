// Includes the file named by TOCO_PER_ISA once per instruction set, for kernels that block registers by hand:
//
//     #define TOCO_PER_ISA "room/rows.h"
//     #include "common/for_each_isa.h"
//     …
//     CALL_BEST_ISA(rows, arguments…);
//
// The file has no include guard and includes only others of its kind (common/vector.h, common/panels.h). What several
// of them include is guarded by a name that is forgotten below. Its functions are declared TOCO_TARGET, live in a
// namespace of the instruction set, and work on vectors of kVectorBytes.
#include "common/simd.h"

#define TOCO_TARGET
namespace toco::portable {
constexpr int kVectorBytes = 16;
#include TOCO_PER_ISA
}  // namespace toco::portable
#undef TOCO_TARGET
#undef TOCO_VECTOR_H

#if defined(__x86_64__)
#define TOCO_TARGET __attribute__((target("avx2,fma,f16c")))
namespace toco::avx2 {
constexpr int kVectorBytes = 32;
#include TOCO_PER_ISA
}  // namespace toco::avx2
#undef TOCO_TARGET
#undef TOCO_VECTOR_H

#define TOCO_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
namespace toco::avx512 {
constexpr int kVectorBytes = 64;
#include TOCO_PER_ISA
}  // namespace toco::avx512
#undef TOCO_TARGET
#undef TOCO_VECTOR_H

#define CALL_BEST_ISA(function, ...)   \
  switch (isa_in_use()) {              \
    case Isa::kAvx512:                 \
      avx512::function(__VA_ARGS__);   \
      break;                           \
    case Isa::kAvx2:                   \
      avx2::function(__VA_ARGS__);     \
      break;                           \
    case Isa::kPortable:               \
      portable::function(__VA_ARGS__); \
  }
#else
#define CALL_BEST_ISA(function, ...) portable::function(__VA_ARGS__)
#endif
