// The loss of one teacher token against the crops of its image, from their logits; the same on CPU and GPU.
//
//     N      = sum over negative crops of exp(x_j) + 1e-4
//     loss   = sum over positive crops of log((exp(x_j) + N) / exp(x_j))  +  log(1 + N)
//            = sum over positive crops of softplus(log N - x_j)           +  softplus(log N)
//
// The second form never leaves the range of the number type, whatever the logits.
#pragma once
#include <cmath>

#include "class_contrast/class_contrast.h"

namespace toco {

// log(1 + e^x), and its derivative.
template <typename A>
TOCO_HOST_DEVICE A softplus(A x, A* derivative) {
  const A e = std::exp(-std::fabs(x));
  *derivative = (x >= 0 ? A(1) : e) / (1 + e);
  return (x > 0 ? x : A(0)) + std::log1p(e);
}

// The published 1e-4, in the divisor and beside the negatives.
constexpr double kContrastEpsilon = 1e-4;

// Returns the loss of the row and writes its derivative with respect to each logit.
template <typename A>
TOCO_HOST_DEVICE A contrast_row(const A* logits,  // (crops)
                                Flags flags, int64_t first_flag, int64_t crops,
                                A* grad_logits) {  // (crops)
  A largest = A(std::log(kContrastEpsilon));
  for (int64_t j = 0; j < crops; ++j)
    if (!flags[first_flag + j] && logits[j] > largest) largest = logits[j];
  A sum = A(kContrastEpsilon) * std::exp(-largest);
  for (int64_t j = 0; j < crops; ++j)
    if (!flags[first_flag + j]) sum += std::exp(logits[j] - largest);
  const A log_negatives = largest + std::log(sum);

  A grad_log_negatives;
  A loss = softplus(log_negatives, &grad_log_negatives);
  for (int64_t j = 0; j < crops; ++j) {
    if (!flags[first_flag + j]) continue;
    A slope;
    loss += softplus(log_negatives - logits[j], &slope);
    grad_logits[j] = -slope;
    grad_log_negatives += slope;
  }
  for (int64_t j = 0; j < crops; ++j)
    if (!flags[first_flag + j]) grad_logits[j] = grad_log_negatives * std::exp(logits[j] - log_negatives);
  return loss;
}

// What multiplies the rows of an image: 1 / B * 1 / (positives + 1e-4) * 1 / 2.
template <typename A>
TOCO_HOST_DEVICE A contrast_weight(Flags flags, int64_t first_flag, ClassContrastShape s) {
  int64_t positives = 0;
  for (int64_t j = 0; j < s.crops; ++j) positives += flags[first_flag + j];
  return A(1 / (2.0 * s.batch * (positives + kContrastEpsilon)));
}

}  // namespace toco
