// CUDA's runtime, as the host sides of all operators call it: errors are exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace vecsmith::cuda {
namespace {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // Reported here; not again by somebody else's next call.
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace
}  // namespace vecsmith::cuda
