// Exponentials of whole vectors; included by files that are compiled once per instruction set.

#include "common/vector.h"

// e^x for x <= 0, to about one rounding: 2^n times a polynomial on [-log(2)/2, log(2)/2] (Cephes).
TOCO_TARGET static inline void exp_nonpositive(Vector<float>::type& x) {
  using V = Vector<float>::type;
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  const V smallest = V{} - 87.0f;
  x = x < smallest ? smallest : x;                // lets NaN through
  const V shifted = x * 1.44269504f + 0x1.8p23f;  // rounds to an integer n, in the low bits
  const V n = shifted - 0x1.8p23f;
  const V r = x - n * 0.693359375f + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const I power = ((I)shifted << 23) + 0x3f800000;
  x = (p * r * r + r + 1.0f) * (V)power;
}

TOCO_TARGET static inline void exp_nonpositive(Vector<double>::type& x) {
  for (size_t i = 0; i < kVectorBytes / sizeof(double); ++i) x[i] = std::exp(x[i]);
}
