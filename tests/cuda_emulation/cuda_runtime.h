// Runs CUDA device code on the host, so that tests execute the very .cu files of the project on a
// machine with no GPU: this file stands where <cuda_runtime.h> is included, and g++ compiles.
//
// One fiber per CUDA thread, the blocks of a launch one after another; those of a cluster or of a
// cooperative launch all at once. A fiber runs until it reaches a barrier or a warp operation, and
// then waits for all the others; so results depend on the order in which fibers are scheduled
// exactly where a barrier is missing. VECSMITH_EMULATED_ORDER chooses it: forward and reverse let
// one warp, and one block, run ahead of the others, random is fair. A barrier that not all threads
// reach, or a counter that never comes to what a block waits for, is an error here (a hang or worse
// there). Shared memory is NaN when a block starts, and a guard behind its end is checked.
#pragma once

#define VECSMITH_CUDA_EMULATION 1

#include <ucontext.h>

#include <algorithm>
#include <array>
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

struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720
};
using cudaStream_t = struct CUstream_st*;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrClusterLaunch = 120,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4
};
union cudaLaunchAttributeValue {
  char pad[64];
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

namespace cuda_emulation {

constexpr size_t kSharedBytes = 232448;  // what an H100 gives a block
constexpr size_t kGuardBytes = 4096;
constexpr size_t kStackBytes = 64 * 1024;
constexpr int kWarp = 32;
constexpr int kResident = 2;  // blocks of a multiprocessor

enum class State { kRunning, kAtBarrier, kAtWarp, kAtCounter, kDone };
using Wide = std::array<std::uint32_t, 6>;  // a lane's part of two matrices

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::kRunning;
  unsigned round = 0;                 // of warp operations: two sets of mailboxes take turns
  const unsigned* counter = nullptr;  // what kAtCounter waits for
  unsigned target = 0;
  unsigned clusters = 0;  // barriers of the cluster at which it has arrived
  bool at_cluster = false;
};

struct Machine {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;  // of the blocks that are there, one block after another
  size_t threads = 0;         // of a block
  size_t running = 0;
  size_t shared_bytes = 0;
  std::vector<std::vector<char>> shared;  // the blocks', but for the one that is in place
  size_t in_place = 0;
  size_t cluster = 1;              // its blocks
  std::vector<unsigned> arrivals;  // at each cluster's barriers
  std::vector<std::uint64_t> mailbox[2];
  std::vector<Wide> wide[2];
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

// Waits until a counter that others add to has come to `target`.
inline void await(const unsigned* counter, unsigned target) {
  Machine& m = machine();
  if (static_cast<int>(*counter - target) >= 0) return;
  m.fibers[m.running].counter = counter;
  m.fibers[m.running].target = target;
  wait(State::kAtCounter);
}

// The barrier of a cluster: every thread arrives and waits, in turns.
inline void arrive_cluster() {
  Machine& m = machine();
  Fiber& self = m.fibers[m.running];
  if (self.at_cluster) {
    std::fputs("cuda_emulation: arrived at a cluster's barrier twice\n", stderr);
    std::abort();
  }
  self.at_cluster = true;
  ++self.clusters;
  ++m.arrivals[m.running / (m.threads * m.cluster)];
}
inline void await_cluster() {
  Machine& m = machine();
  const size_t self = m.running;
  if (!m.fibers[self].at_cluster) {
    std::fputs("cuda_emulation: waits at a cluster's barrier without having arrived\n", stderr);
    std::abort();
  }
  m.fibers[self].at_cluster = false;
  const size_t threads = m.threads * m.cluster;
  await(&m.arrivals[self / threads], m.fibers[self].clusters * static_cast<unsigned>(threads));
}

// Lets go the warps of a block and the block itself, where every fiber has arrived, and those whose
// counter has come. True if anything moved.
inline bool release(size_t block) {
  Machine& m = machine();
  bool moved = false;
  Fiber* const fibers = &m.fibers[block * m.threads];
  for (size_t warp = 0; warp < m.threads; warp += kWarp) {
    bool all = true;
    for (size_t i = warp; i < warp + kWarp; ++i) all &= fibers[i].state == State::kAtWarp;
    if (!all) continue;
    for (size_t i = warp; i < warp + kWarp; ++i) fibers[i].state = State::kRunning;
    moved = true;
  }
  bool all = true;
  for (size_t i = 0; i < m.threads; ++i) {
    Fiber& f = fibers[i];
    all &= f.state == State::kAtBarrier;
    if (f.state == State::kAtCounter && static_cast<int>(*f.counter - f.target) >= 0) {
      f.state = State::kRunning;
      moved = true;
    }
  }
  if (all) {
    for (size_t i = 0; i < m.threads; ++i) fibers[i].state = State::kRunning;
    if (++m.barriers == m.visit_at && m.visitor) m.visitor();
    moved = true;
  }
  return moved;
}

// Brings a block's shared memory to where the kernels look for it.
inline void enter(size_t block) {
  Machine& m = machine();
  if (block == m.in_place) return;
  const size_t bytes = m.shared_bytes + kGuardBytes;
  m.shared[m.in_place].assign(shared_memory(), shared_memory() + bytes);
  std::memcpy(shared_memory(), m.shared[block].data(), bytes);
  m.in_place = block;
}

// Where another block of the cluster has what this block has at a place of its shared memory.
inline const void* shared_of_peer(const void* place, int rank) {
  Machine& m = machine();
  const size_t block = m.running / m.threads;
  const size_t peer = block / m.cluster * m.cluster + static_cast<size_t>(rank);
  const auto offset = static_cast<const char*>(place) - shared_memory();
  if (static_cast<size_t>(rank) >= m.cluster || offset < 0 ||
      static_cast<size_t>(offset) >= m.shared_bytes) {
    std::fputs("cuda_emulation: no such place in the cluster's shared memory\n", stderr);
    std::abort();
  }
  return (peer == m.in_place ? shared_memory() : m.shared[peer].data()) + offset;
}

// Every fiber of a block that can run does, once; but where one warp is to run ahead, that warp.
inline bool sweep(size_t block, unsigned first_block, Order wanted, std::mt19937& random) {
  Machine& m = machine();
  std::vector<size_t> order(m.threads);
  for (size_t i = 0; i < m.threads; ++i) {
    order[i] = wanted == Order::kReverse ? m.threads - 1 - i : i;
  }
  if (wanted == Order::kRandom) {
    for (size_t i = m.threads; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }
  bool moved = false;
  size_t warp = 0;  // the one that runs ahead
  for (const size_t i : order) {
    Fiber& f = m.fibers[block * m.threads + i];
    if (f.state != State::kRunning) continue;
    if (moved && wanted != Order::kRandom && i / kWarp != warp) break;
    enter(block);
    warp = i / kWarp;
    m.running = block * m.threads + i;
    threadIdx = dim3(static_cast<unsigned>(i), 0, 0);
    blockIdx = dim3(first_block + static_cast<unsigned>(block), 0, 0);
    swapcontext(&m.scheduler, &f.context);
    moved = true;
  }
  return moved;
}

// Blocks that are there at once, from the first on.
inline bool run_blocks(unsigned first_block, size_t blocks, size_t shared_bytes,
                       std::mt19937& random) {
  Machine& m = machine();
  m.threads = blockDim.x;
  m.shared_bytes = shared_bytes;
  m.in_place = 0;
  m.arrivals.assign(blocks / m.cluster, 0);
  std::memset(shared_memory(), 0xff, shared_bytes);  // NaN
  std::memset(shared_memory() + shared_bytes, 0x5a, kGuardBytes);
  m.shared.assign(blocks,
                  std::vector<char>(shared_memory(), shared_memory() + shared_bytes + kGuardBytes));
  m.fibers.resize(blocks * m.threads);
  for (int i = 0; i < 2; ++i) {
    m.mailbox[i].assign(m.fibers.size(), 0);
    m.wide[i].assign(m.fibers.size(), Wide{});
  }
  for (Fiber& f : m.fibers) {
    if (!f.stack) f.stack.reset(new char[kStackBytes]);
    f.state = State::kRunning;
    f.round = 0;
    f.clusters = 0;
    f.at_cluster = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = &m.scheduler;
    makecontext(&f.context, start_fiber, 0);
  }
  const Order wanted = order_wanted();
  std::vector<size_t> order(blocks);
  for (size_t i = 0; i < blocks; ++i) order[i] = wanted == Order::kReverse ? blocks - 1 - i : i;
  const auto done = [](const Fiber& f) { return f.state == State::kDone; };
  while (!std::all_of(m.fibers.begin(), m.fibers.end(), done)) {
    if (wanted == Order::kRandom) {
      for (size_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    }
    bool moved = false;
    for (const size_t block : order) {
      // Whoever is not fair goes on until it waits for another block, or is done.
      bool going = true;
      while (going) {
        going = sweep(block, first_block, wanted, random);
        going |= release(block);
        moved |= going;
        if (wanted == Order::kRandom) break;
      }
    }
    if (!moved) {
      const bool counter = std::any_of(m.fibers.begin(), m.fibers.end(),
                                       [](const Fiber& f) { return f.state == State::kAtCounter; });
      m.failure = counter ? "divergent: not every block reached a barrier of the grid"
                          : "divergent: not every thread reached a barrier or a warp operation";
      return false;
    }
  }
  for (size_t block = 0; block < blocks; ++block) {
    enter(block);
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (shared_memory()[shared_bytes + i] != 0x5a) {
        m.failure = "a write behind the end of shared memory";
        return false;
      }
    }
  }
  return true;
}

// --- What the kernels write in PTX. --------------------------------------------------------------

inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// bfloat16 and float16, rounded to nearest, ties to even, as cvt.rn does.
inline float from_bf16(std::uint16_t bits) {
  return bits_to_float(static_cast<std::uint32_t>(bits) << 16);
}
inline std::uint16_t to_bf16(float value) {
  if (value != value) return 0x7fff;
  const std::uint32_t bits = float_to_bits(value);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_fp16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? std::nanf("") : sign * HUGE_VALF;
  return sign * (exponent ? std::ldexp(1024.f + static_cast<float>(fraction), exponent - 25)
                          : std::ldexp(static_cast<float>(fraction), -24));
}
inline std::uint16_t to_fp16(float value) {
  if (value != value) return 0x7fff;
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float a = std::fabs(value);
  if (a == 0.f) return sign;
  if (a >= 65520.f) return static_cast<std::uint16_t>(sign | 0x7c00);
  int exponent = 0;
  std::frexp(a, &exponent);                 // a = f 2^exponent, f in [1/2, 1)
  exponent = std::max(exponent - 11, -24);  // of the last place
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(a, -exponent)));
  // A carry out of the fraction goes into the exponent by itself.
  return static_cast<std::uint16_t>(sign | (((exponent + 24) << 10) + fraction));
}

// mma.sync.m16n8k16: d [16, 8] += a [16, 16] b [16, 8], of which lane 4 g + q holds
//   a: rows g and g + 8 (odd registers), columns 2 q, 2 q + 1 and these + 8 (registers 2, 3)
//   b: column g, rows 2 q, 2 q + 1 and these + 8 (register 1)
//   d: rows g and g + 8 (places 2, 3), columns 2 q, 2 q + 1
template <class ToFloat>
void multiply_16_8_16(float (&d)[4], const Wide& registers, const ToFloat& to_float) {
  Machine& m = machine();
  const size_t self = m.running;
  const unsigned round = m.fibers[self].round++ % 2;
  m.wide[round][self] = registers;
  wait(State::kAtWarp);
  const Wide* lanes = &m.wide[round][self / kWarp * kWarp];
  const auto element = [&](int lane, int reg, int k) {
    return to_float(static_cast<std::uint16_t>(lanes[lane][reg] >> (16 * (k % 2))));
  };
  const int g = static_cast<int>(self) % kWarp / 4, q = static_cast<int>(self) % 4;
  for (int i = 0; i < 4; ++i) {
    const int half = i / 2, column = 2 * q + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      sum += element(4 * g + k % 8 / 2, half + 2 * (k / 8), k) *
             element(4 * column + k % 8 / 2, 4 + k / 8, k);
    }
    d[i] += sum;
  }
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
inline int multiprocessors() {
  const char* wish = std::getenv("VECSMITH_EMULATED_MULTIPROCESSORS");
  return wish ? std::atoi(wish) : 3;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  if (which == cudaDevAttrMultiProcessorCount) {
    *value = multiprocessors();
  } else if (which == cudaDevAttrCooperativeLaunch || which == cudaDevAttrClusterLaunch) {
    *value = 1;
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
  *blocks = cuda_emulation::kResident;
  return cudaSuccess;
}

inline unsigned cluster_of(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) return attribute.val.clusterDim.x;
  }
  return 0;
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                                  const cudaLaunchConfig_t* config) {
  *clusters = multiprocessors() * cuda_emulation::kResident / static_cast<int>(cluster_of(*config));
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
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    cooperative |= attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative != 0;
  }
  const unsigned blocks = config->gridDim.x, cluster = cluster_of(*config);
  const unsigned at_once = cooperative ? blocks : cluster ? cluster : 1;
  m.cluster = cluster ? cluster : 1;
  if (blocks % at_once || blocks % m.cluster || m.cluster > 16) return cudaErrorInvalidValue;
  if (cooperative && blocks > static_cast<unsigned>(multiprocessors() * kResident)) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  for (unsigned block = 0; block < blocks; block += at_once) {
    if (!run_blocks(block, at_once, config->dynamicSmemBytes, random)) {
      m.pending = cudaErrorInvalidValue;
      break;
    }
  }
  return cudaSuccess;
}
