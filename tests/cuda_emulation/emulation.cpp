// What the emulation needs once: the block's shared memory, a visitor for tests, and kernels that
// test the emulation.
#include "cuda_runtime.h"

alignas(16) float4
    vecsmith_shared[(cuda_emulation::kSharedBytes + cuda_emulation::kGuardBytes) / sizeof(float4)];

namespace cuda_emulation {
char* shared_memory() { return reinterpret_cast<char*>(vecsmith_shared); }
}  // namespace cuda_emulation

namespace {
float* visited;
long long visited_count;
float visited_value;

// A warp multiplies two matrices.
void multiply_kernel(const cuda_emulation::Wide* registers, float* sums, bool fp16) {
  const unsigned lane = threadIdx.x;
  float d[4] = {};
  cuda_emulation::multiply_16_8_16(d, registers[lane],
                                   fp16 ? cuda_emulation::from_fp16 : cuda_emulation::from_bf16);
  std::copy(d, d + 4, sums + 4 * lane);
}

// Every block leaves its number, waits for all others, and takes the next one's.
void grid_kernel(unsigned* counter, float* values, int missing) {
  float4* const own = vecsmith_shared;
  if (threadIdx.x == 0) {
    own->x = static_cast<float>(blockIdx.x);
    values[blockIdx.x] = static_cast<float>(blockIdx.x);
    if (static_cast<int>(blockIdx.x) != missing) ++*counter;
    cuda_emulation::await(counter, gridDim.x);
  }
  __syncthreads();
  if (threadIdx.x == 1) {
    values[gridDim.x + blockIdx.x] = values[(blockIdx.x + 1) % gridDim.x] + 100 * own->x;
  }
}

cudaLaunchConfig_t config_of(unsigned blocks, bool cooperative, cudaLaunchAttribute& attribute) {
  cudaLaunchConfig_t config;
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(cuda_emulation::kWarp);
  config.dynamicSmemBytes = sizeof(float4);
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return config;
}
}  // namespace

extern "C" {
// After `barriers` more block barriers, adds `value` to every one of `count` floats at `at`.
__attribute__((visibility("default"))) void emulation_visit(float* at, long long count, float value,
                                                            long long barriers) {
  cuda_emulation::Machine& m = cuda_emulation::machine();
  visited = at;
  visited_count = count;
  visited_value = value;
  m.visit_at = m.barriers + barriers;
  m.visitor = [] {
    for (long long i = 0; i < visited_count; ++i) visited[i] += visited_value;
  };
}

__attribute__((visibility("default"))) long long emulation_barriers() {
  return cuda_emulation::machine().barriers;
}

// sums [32, 4] of the registers [32, 6] of a warp's lanes.
__attribute__((visibility("default"))) int emulation_multiply(const std::uint32_t* registers,
                                                              float* sums, int fp16) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = config_of(1, false, attribute);
  cudaLaunchKernelEx(&config, multiply_kernel,
                     reinterpret_cast<const cuda_emulation::Wide*>(registers), sums, fp16 != 0);
  return cudaGetLastError();
}

__attribute__((visibility("default"))) void emulation_round(const float* from, std::uint16_t* bits,
                                                            float* back, long long count,
                                                            int fp16) {
  using namespace cuda_emulation;
  for (long long i = 0; i < count; ++i) {
    bits[i] = fp16 ? to_fp16(from[i]) : to_bf16(from[i]);
    back[i] = fp16 ? from_fp16(bits[i]) : from_bf16(bits[i]);
  }
}

// values [2, blocks]; `missing` does not arrive (-1: all do). What CUDA would say, or null.
__attribute__((visibility("default"))) const char* emulation_grid(float* values, int blocks,
                                                                  int missing, int cooperative) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config =
      config_of(static_cast<unsigned>(blocks), cooperative != 0, attribute);
  unsigned counter = 0;
  if (cudaLaunchKernelEx(&config, grid_kernel, &counter, values, missing) != cudaSuccess) {
    return "refused";
  }
  return cudaGetLastError() == cudaSuccess ? nullptr : cudaGetErrorString(cudaSuccess);
}
}
