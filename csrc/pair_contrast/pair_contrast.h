// Losses over pairs of tokens by their labels. Spec: toco_kernels/pair_contrast/reference.py
#pragma once
#include <cstdint>

#include "common/half.h"
#include "common/parallel.h"
#include "common/tokens.h"

namespace toco {

enum class PairForm { kAbsCos, kSigmoid, kInfoNce };

struct AffinityRule {
  int64_t grid_width;      // tokens in a row of the grid; not read without a radius
  int64_t radius;          // how many rows and columns a pair may lie apart; < 0: any
  double scale;            // of scores
  bool normalize, center;  // whether features become unit vectors, and whether the mean score is subtracted
  int64_t ignore_index;
};

struct ContrastRule {
  PairForm form;
  double scale;    // of scores: 1 / temperature
  bool normalize;  // whether tokens become unit vectors
  int64_t ignore_index;
};

struct PairShape {
  int64_t batch, x_count, y_count, width;  // B, N, M, D
};

template <typename T>
void affinity_loss_cpu(Tokens<T> features,            // (B, N, D)
                       const int64_t* labels,         // (B, N)
                       AffinityRule rule,             //
                       Accumulate<T>* loss,           // ()
                       Accumulate<T>* grad_features,  // (B, N, D), or null when not wanted
                       PairShape shape, const Parallel& parallel);

template <typename T>
void contrast_cpu(Tokens<T> x,              // (B, N, D)
                  Tokens<T> y,              // (B, M, D)
                  const int64_t* labels_x,  // (B, N)
                  const int64_t* labels_y,  // (B, M)
                  ContrastRule rule,        //
                  Accumulate<T>* loss,      // ()
                  Accumulate<T>* grad_x,    // (B, N, D), or null when not wanted
                  Accumulate<T>* grad_y,    // (B, M, D), or null when not wanted
                  PairShape shape, const Parallel& parallel);

}  // namespace toco
