// CUDA calls that fail say what and where.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace toco {

inline void cuda_check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace toco
