// One kernel source, compiled once per instruction set, chosen when the program runs.
//
//     best_isa([&]() TOCO_INLINE { dot(a, b, n, &result); });
//
// compiles the lambda (and what it inlines) for each set below and calls the copy that suits the processor. Function
// attributes rather than compiler flags per file: with flags, std:: inlines compiled for AVX-512 can end up in
// portable code. So everything that the lambda calls must be TOCO_INLINE too.
#pragma once

#define TOCO_INLINE __attribute__((always_inline))

namespace toco {

enum class Isa { kPortable, kAvx2, kAvx512 };

inline Isa processor_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

// The set in use: the processor's best, unless a test lowered it.
inline Isa& isa_in_use() {
  static Isa isa = processor_isa();
  return isa;
}

inline int vector_bytes() { return isa_in_use() == Isa::kAvx512 ? 64 : isa_in_use() == Isa::kAvx2 ? 32 : 16; }

#if defined(__x86_64__)
#if defined(__clang__)
#define TOCO_FULL_WIDTH ""
#else
#define TOCO_FULL_WIDTH ",prefer-vector-width=512"
#endif

template <typename Kernel>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c" TOCO_FULL_WIDTH))) void run_avx512(
    const Kernel& kernel) {
  kernel();
}

template <typename Kernel>
__attribute__((target("avx2,fma,f16c"))) void run_avx2(const Kernel& kernel) {
  kernel();
}
#endif

template <typename Kernel>
void best_isa(const Kernel& kernel) {
#if defined(__x86_64__)
  if (isa_in_use() == Isa::kAvx512) return run_avx512(kernel);
  if (isa_in_use() == Isa::kAvx2) return run_avx2(kernel);
#endif
  kernel();
}

}  // namespace toco
