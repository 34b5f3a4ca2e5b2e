// What the emulation needs once: the block's shared memory, and a visitor for tests.
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
}
