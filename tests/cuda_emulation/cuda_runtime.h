// Runs CUDA device code on the host, so that tests execute the very .cu files of the project on a
// machine with no GPU: this file stands where <cuda_runtime.h> is included, and g++ compiles.
//
// One fiber per CUDA thread, the blocks of a launch one after another. A fiber runs until it
// reaches a barrier or a warp operation, and then waits for all the others; so results depend on
// the order in which fibers are scheduled exactly where a barrier is missing.
// VECSMITH_EMULATED_ORDER chooses it: forward and reverse let one warp run ahead of the others,
// random is fair. A barrier that not all threads reach is an error here (a hang or worse there).
// Shared memory is NaN when a block starts, and a guard behind its end is checked.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDevice = 101 };
using cudaStream_t = struct CUstream_st*;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

namespace cuda_emulation {

constexpr size_t kSharedBytes = 232448;  // what an H100 gives a block
constexpr size_t kGuardBytes = 4096;
constexpr size_t kStackBytes = 64 * 1024;
constexpr int kWarp = 32;

enum class State { kRunning, kAtBarrier, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::kRunning;
  unsigned round = 0;  // of warp operations: two sets of mailboxes take turns
};

struct Machine {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  size_t running = 0;
  std::vector<std::uint64_t> mailbox[2];
  std::function<void()> body;
  std::string failure;
  long long barriers = 0;  // since the process began
  // Called when that many barriers have passed: somebody else at work on the same memory.
  void (*visitor)() = nullptr;
  long long visit_at = -1;
  int device = 0;
  cudaError_t pending = cudaSuccess;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

char* shared_memory();  // emulation.cpp, with the kernels' own name for it

inline void wait(State state) {
  Machine& m = machine();
  Fiber& self = m.fibers[m.running];
  self.state = state;
  swapcontext(&self.context, &m.scheduler);
}

inline void barrier() { wait(State::kAtBarrier); }

// Everybody in the warp leaves a value and reads one of the 32.
inline std::uint64_t* exchange(std::uint64_t value) {
  Machine& m = machine();
  const size_t self = m.running;
  const unsigned round = m.fibers[self].round++ % 2;
  m.mailbox[round][self] = value;
  wait(State::kAtWarp);
  return &m.mailbox[round][self / kWarp * kWarp];
}

inline void start_fiber() {
  Machine& m = machine();
  m.body();
  m.fibers[m.running].state = State::kDone;
}

enum class Order { kForward, kReverse, kRandom };

inline Order order_wanted() {
  const char* wish = std::getenv("VECSMITH_EMULATED_ORDER");
  const std::string which = wish ? wish : "forward";
  return which == "reverse"  ? Order::kReverse
         : which == "random" ? Order::kRandom
                             : Order::kForward;
}

// Lets go the warps and the block whose every fiber has arrived. True if anything moved.
inline bool release() {
  Machine& m = machine();
  bool moved = false;
  const size_t threads = m.fibers.size();
  for (size_t warp = 0; warp < threads; warp += kWarp) {
    bool all = true;
    for (size_t i = warp; i < warp + kWarp; ++i) all &= m.fibers[i].state == State::kAtWarp;
    if (!all) continue;
    for (size_t i = warp; i < warp + kWarp; ++i) m.fibers[i].state = State::kRunning;
    moved = true;
  }
  bool all = true;
  for (const Fiber& f : m.fibers) all &= f.state == State::kAtBarrier;
  if (all) {
    for (Fiber& f : m.fibers) f.state = State::kRunning;
    if (++m.barriers == m.visit_at && m.visitor) m.visitor();
    moved = true;
  }
  return moved;
}

inline bool run_block(size_t shared_bytes, std::mt19937& random) {
  Machine& m = machine();
  const size_t threads = blockDim.x;
  std::memset(shared_memory(), 0xff, shared_bytes);  // NaN
  std::memset(shared_memory() + shared_bytes, 0x5a, kGuardBytes);
  m.fibers.resize(threads);
  m.mailbox[0].assign(threads, 0);
  m.mailbox[1].assign(threads, 0);
  for (Fiber& f : m.fibers) {
    if (!f.stack) f.stack.reset(new char[kStackBytes]);
    f.state = State::kRunning;
    f.round = 0;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = &m.scheduler;
    makecontext(&f.context, start_fiber, 0);
  }
  const Order wanted = order_wanted();
  std::vector<size_t> order(threads);
  for (size_t i = 0; i < threads; ++i) order[i] = wanted == Order::kReverse ? threads - 1 - i : i;
  size_t done = 0;
  while (done < threads) {
    if (wanted == Order::kRandom) {
      for (size_t i = threads; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    }
    bool moved = false;
    size_t warp = 0;  // the one that runs ahead
    for (const size_t i : order) {
      Fiber& f = m.fibers[i];
      if (f.state != State::kRunning) continue;
      if (moved && wanted != Order::kRandom && i / kWarp != warp) break;
      warp = i / kWarp;
      m.running = i;
      threadIdx = dim3(static_cast<unsigned>(i), 0, 0);
      swapcontext(&m.scheduler, &f.context);
      moved = true;
      done += f.state == State::kDone;
    }
    if (!release() && !moved) {
      m.failure = "divergent: not every thread reached a barrier or a warp operation";
      return false;
    }
  }
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (shared_memory()[shared_bytes + i] != 0x5a) {
      m.failure = "a write behind the end of shared memory";
      return false;
    }
  }
  return true;
}

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::barrier(); }
inline void __syncwarp() { cuda_emulation::exchange(0); }

inline void require_full(unsigned mask) {
  if (mask != 0xffffffffu) {
    std::fputs("cuda_emulation: only full warps are emulated\n", stderr);
    std::abort();
  }
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  static_assert(sizeof(T) <= 8, "");
  require_full(mask);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const unsigned lane = threadIdx.x % cuda_emulation::kWarp;
  const std::uint64_t* all = cuda_emulation::exchange(bits);
  std::memcpy(&value, &all[lane ^ static_cast<unsigned>(lanes)], sizeof(T));
  return value;
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  require_full(mask);
  const std::uint64_t* all = cuda_emulation::exchange(predicate);
  unsigned bits = 0;
  for (int i = 0; i < cuda_emulation::kWarp; ++i) bits |= static_cast<unsigned>(all[i]) << i;
  return bits;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof(T)) {  // a misaligned-address error there
    std::fputs("cuda_emulation: misaligned vector load\n", stderr);
    std::abort();
  }
  return *at;
}
template <class T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at = old + value;
  return old;
}

inline cudaError_t cudaGetLastError() {
  cuda_emulation::Machine& m = cuda_emulation::machine();
  const cudaError_t error = m.pending;
  m.pending = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t) {
  const std::string& failure = cuda_emulation::machine().failure;
  return failure.empty() ? "invalid argument" : failure.c_str();
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_emulation::machine().device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  cuda_emulation::machine().device = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  if (which == cudaDevAttrMultiProcessorCount) {
    *value = 3;
  } else {
    const char* wish = std::getenv("VECSMITH_EMULATED_SHARED");
    *value = wish ? std::atoi(wish) : static_cast<int>(cuda_emulation::kSharedBytes);
  }
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= static_cast<int>(cuda_emulation::kSharedBytes) ? cudaSuccess
                                                                 : cudaErrorInvalidValue;
}
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int,
                                                                 size_t) {
  *blocks = 2;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using namespace cuda_emulation;
  Machine& m = machine();
  m.failure.clear();
  if (config->blockDim.x == 0 || config->blockDim.x % kWarp || config->gridDim.x == 0 ||
      config->dynamicSmemBytes > kSharedBytes) {
    return cudaErrorInvalidValue;
  }
  ::blockDim = config->blockDim;
  ::gridDim = config->gridDim;
  const std::tuple<Parameters...> copies(arguments...);
  m.body = [&] { std::apply(kernel, copies); };
  std::mt19937 random(1);
  for (unsigned block = 0; block < config->gridDim.x; ++block) {
    blockIdx = dim3(block, 0, 0);
    if (!run_block(config->dynamicSmemBytes, random)) {
      m.pending = cudaErrorInvalidValue;
      break;
    }
  }
  return cudaSuccess;
}
