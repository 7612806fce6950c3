// Tensors of tokens (B, N, D), as kernels take them.
#pragma once
#include "common.h"
#include "common/tokens.h"

namespace toco {

// As they are, if a token's channels lie together.
inline Tensor token_rows(const Tensor& tokens) {
  return tokens.size(2) > 1 && tokens.stride(2) != 1 ? torch::stable::contiguous(tokens) : tokens;
}

template <typename T>
Tokens<T> tokens_of(const Tensor& rows) {
  return {data<T>(rows), rows.stride(0), rows.stride(1)};
}

}  // namespace toco
