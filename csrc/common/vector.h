// Vectors as wide as the instruction set has them; included by files that are compiled once per instruction set.
#ifndef TOCO_VECTOR_H  // common/for_each_isa.h forgets it
#define TOCO_VECTOR_H

template <typename A>
struct Vector {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  typedef A unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(A))));
  static constexpr int kSize = kVectorBytes / sizeof(A);
};

#endif
