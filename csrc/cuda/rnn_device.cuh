// What the CUDA kernels of `rnn` are made of: 16-bit numbers, the matrix units, the barrier between
// the blocks of a group, and the product of a block's weights with the rows of a step. Included by
// rnn.cu, whose head says how the work is split.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/rnn.h"

// Global, and sized by the launch.
extern __shared__ float4 vecsmith_shared[];

namespace vecsmith::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;
constexpr int kTile = 8;   // units of half a matrix tile, and rows of one
constexpr int kPart = 32;  // of the sum of a product: what a lane's 16 bytes times four are
constexpr int kMostMatrices = 2;
constexpr int kMostGates = 4;
constexpr int kMostSplit = 8;

// --- What the host's compiler has another version of (tests/cuda_emulation). ---------------------

#ifdef VECSMITH_CUDA_EMULATION

struct Bf16 {
  static float load(std::uint16_t bits) { return cuda_emulation::from_bf16(bits); }
  static std::uint16_t store(float value) { return cuda_emulation::to_bf16(value); }
};
struct Fp16 {
  static float load(std::uint16_t bits) { return cuda_emulation::from_fp16(bits); }
  static std::uint16_t store(float value) { return cuda_emulation::to_fp16(value); }
};

template <class T>
inline void multiply_tile(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                          unsigned b0, unsigned b1) {
  cuda_emulation::multiply_16_8_16(d, {a0, a1, a2, a3, b0, b1}, T::load);
}

inline uint4 load_l2(const std::uint16_t* at) { return __ldcg(reinterpret_cast<const uint4*>(at)); }
inline void copy_async(void* to, const void* from) {
  *static_cast<uint4*>(to) = __ldcg(static_cast<const uint4*>(from));
}
inline void await_copies() {}
inline void add_release(unsigned* counter) { ++*counter; }
inline void await_acquire(const unsigned* counter, unsigned target) {
  cuda_emulation::await(counter, target);
}
inline void arrive_cluster() { cuda_emulation::arrive_cluster(); }
inline void await_cluster() { cuda_emulation::await_cluster(); }
inline float2 read_peer(const float2* at, int rank) {
  return *static_cast<const float2*>(cuda_emulation::shared_of_peer(at, rank));
}

#else

struct Bf16 {
  __device__ static float load(std::uint16_t bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
  __device__ static std::uint16_t store(float value) {
    std::uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
};
struct Fp16 {
  __device__ static float load(std::uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  __device__ static std::uint16_t store(float value) {
    std::uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
};

// d [16, 8] += a [16, 16] b [16, 8], spread over a warp.
template <class T>
__device__ inline void multiply_tile(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                     unsigned a3, unsigned b0, unsigned b1);
template <>
__device__ inline void multiply_tile<Bf16>(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                           unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_tile<Fp16>(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                           unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Past L1, which may hold what the row was before another block wrote it.
__device__ inline uint4 load_l2(const std::uint16_t* at) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(at)));
  return v;
}

// 16 bytes from global to shared memory, there after await_copies() (for the thread that asked) and
// a barrier (for the others).
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
__device__ inline void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Whoever sees the counter's new value sees what the block wrote before its last barrier.
__device__ inline void add_release(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter))
               : "memory");
}
__device__ inline void await_acquire(const unsigned* counter, unsigned target) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(seen)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
  } while (static_cast<int>(seen - target) < 0);
}

// Every thread of a cluster does both, in turns.
__device__ inline void arrive_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void await_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// What another block of the cluster has at this place of its shared memory.
__device__ inline float2 read_peer(const float2* at, int rank) {
  float2 v = *at;
#if __CUDA_ARCH__ >= 900
  unsigned place;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(place)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(at))), "r"(rank));
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(place));
#endif
  return v;
}

#endif

__device__ inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// --- A block's memory and place. ----------------------------------------------------------------

// The weights of one product. Of the rows of `gates` gates, from `first_gate` on, a block keeps
// those of its own units; half a tile has kTile units of one gate.
struct RnnMatrix {
  int gates = 0, first_gate = 0;
  int k = 0;       // the sum's length, a multiple of kTile
  int parts = 0;   // k / kPart, rounded up
  int column = 0;  // where the sum begins in a row of the weight, and of what it multiplies
  int gap_at = 0;  // from here on the latter's columns lie `gap` further
  int gap = 0;
  int at = 0;  // in shared memory: 16-byte words
};

// Offsets in shared memory are bytes. The weights are at its beginning.
struct RnnLayout {
  int hidden = 0, units = 0, blocks = 0, groups = 0;
  int cluster = 0;  // whether the blocks of a group are one
  int split = 1;    // blocks that share the sums of all their units; a cluster where there are more
  int slots = 0, tiles = 0, passes = 0;
  int matrices = 0;
  int round = 0;  // tiles of rows whose sums are put together at once
  RnnMatrix matrix[kMostMatrices];
  std::int64_t weight_stride = 0;
  int bias = 0;   // float [gates, units]
  int stage = 0;  // [slots, stage_row]: what a step reads of its own rows
  int stage_row = 0;
  int state = 0;    // float2 [states, units / 8, tiles, lanes]
  int partial = 0;  // float2 [warps, round, half tiles, lanes]
  int folded = 0;   // float2 [2, round, half tiles, lanes], where sums are shared
};

// Where this thread and its block stand.
struct RnnPlace {
  int group, first_unit, own;    // own: units of the block
  int rank, set_first, set_own;  // among those that share sums, and their units
  int warp, lane, column, pair;  // of a tile of sums: unit `column`, rows 2 pair and 2 pair + 1

  __device__ explicit RnnPlace(const RnnLayout& l) {
    const int block = static_cast<int>(blockIdx.x);
    group = block / l.blocks;
    const int member = block % l.blocks;
    rank = member % l.split;
    first_unit = member * l.units;
    own = within(l.hidden - first_unit, l.units);
    set_first = first_unit - rank * l.units;
    set_own = within(l.hidden - set_first, l.split * l.units);
    warp = static_cast<int>(threadIdx.x) / kWarp;
    lane = static_cast<int>(threadIdx.x) % kWarp;
    column = lane / 4;
    pair = lane % 4;
  }
  __device__ static int within(int n, int most) { return n < 0 ? 0 : n < most ? n : most; }
  // The row of the batch that a slot of a pass holds. Longer rows come first, in every group.
  __device__ std::int64_t row(const RnnLayout& l, int pass, int slot) const {
    return (static_cast<std::int64_t>(pass) * l.slots + slot) * l.groups + group;
  }
  // Slots of a pass whose rows are among the first `rows`: the first ones.
  __device__ int active(const RnnLayout& l, int pass, std::int64_t rows) const {
    const std::int64_t mine = (rows - group + l.groups - 1) / l.groups;
    const std::int64_t left = mine - static_cast<std::int64_t>(pass) * l.slots;
    return static_cast<int>(left < 0 ? 0 : left < l.slots ? left : l.slots);
  }
};

template <class T>
__device__ inline T* shared_at(int offset) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(vecsmith_shared) + offset);
}

__device__ inline std::int64_t start_of(const RnnSteps& steps, std::int64_t batch, std::int64_t t) {
  return steps.starts ? __ldg(reinterpret_cast<const long long*>(steps.starts) + t) : t * batch;
}

// Rows of one step: none where there is no such step.
struct RnnRows {
  std::int64_t start = 0, size = 0;

  __device__ RnnRows(const RnnSteps& steps, std::int64_t batch, std::int64_t t) {
    if (t < 0 || t >= steps.count) return;
    start = start_of(steps, batch, t);
    size = start_of(steps, batch, t + 1) - start;
  }
};

// --- The barrier between the blocks of a group. --------------------------------------------------

// Blocks arrive, and wait later, just before they need what the others wrote. A cluster has a
// barrier of its own; other groups count in global memory.
struct RnnBarrier {
  unsigned* counter;
  unsigned blocks, target = 0;
  bool cluster, waited = true;

  __device__ RnnBarrier(const RnnLayout& l, const RnnPlace& p, unsigned* counters)
      : counter(counters + p.group * kCounterStride),
        blocks(static_cast<unsigned>(l.blocks)),
        cluster(l.cluster != 0) {}

  // The block is done with the step, too: whoever goes on may write to the stage.
  __device__ void arrive() {
    if (cluster) wait();
    __syncthreads();
    if (cluster) {
      arrive_cluster();
    } else {
      if (threadIdx.x == 0) add_release(counter);
      target += blocks;
    }
    waited = false;
  }
  __device__ void wait() {
    if (waited) return;
    if (cluster) {
      await_cluster();
    } else {
      if (threadIdx.x == 0) await_acquire(counter, target);
      __syncthreads();
    }
    waited = true;
  }
};

// --- The product. -------------------------------------------------------------------------------

// The parts of a sum that a block has, and how many of its warps share them.
struct RnnParts {
  int first, count, warps;

  __device__ RnnParts(const RnnLayout& l, const RnnPlace& p, const RnnMatrix& m) {
    first = m.parts * p.rank / l.split;
    count = m.parts * (p.rank + 1) / l.split - first;
    warps = count < kWarps ? count : kWarps;
  }
};

// A lane of a warp reads 16 bytes: eight neighbors along k, of unit lane / 4 of half a tile of the
// weights, or of row lane / 4 of a tile of rows. Four lanes have 32 along k, for two steps of the
// matrix unit. That one believes that they are others of the same 32, but the same ones on both
// sides, and a sum has no order. So nothing is reordered: rows go from L2 into registers.
__device__ inline void load_weights(const RnnLayout& l, const RnnPlace& p,
                                    const std::uint16_t* weight) {
  for (int i = 0; i < l.matrices; ++i) {
    const RnnMatrix& m = l.matrix[i];
    const int halves = p.set_own / kTile * m.gates;
    const RnnParts parts(l, p, m);
    uint4* to = shared_at<uint4>(0) + m.at;
    for (int n = p.warp; n < parts.count * halves; n += kWarps) {
      const int part = parts.first + n / halves, half = n % halves;
      const int gate = m.first_gate + half % m.gates;
      const int unit = p.set_first + half / m.gates * kTile + p.column;
      const int k = part * kPart + p.pair * kTile;
      const std::int64_t row = static_cast<std::int64_t>(gate) * l.hidden + unit;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (k < m.k) {
        v = *reinterpret_cast<const uint4*>(weight + row * l.weight_stride + m.column + k);
      }
      to[n * kWarp + p.lane] = v;
    }
  }
}

// This warp's part of the sums of a block's units for kN tiles of rows, `count` of which are
// wanted. rows: the lane's row of each tile, or null for zeros. kAhead reads along k are on their
// way.
template <class T, int kM, int kN, int kAhead>
__device__ inline void multiply(const RnnMatrix& m, const RnnParts& parts, int halves,
                                const RnnPlace& p, const std::uint16_t* const (&rows)[kN],
                                int count, float (&sums)[kM][kN][4]) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0;
  }
  if (p.warp >= parts.warps || count <= 0) return;
  const int first = parts.first + parts.count * p.warp / parts.warps;
  const int last = parts.first + parts.count * (p.warp + 1) / parts.warps;
  const auto read = [&](int part, int j) {
    const int k = part * kPart + p.pair * kTile;
    if (part >= last || k >= m.k || rows[j] == nullptr) return make_uint4(0, 0, 0, 0);
    return load_l2(rows[j] + (k < m.gap_at ? k : k + m.gap));
  };
  uint4 ahead[kAhead][kN];
#pragma unroll
  for (int d = 0; d < kAhead; ++d) {
#pragma unroll
    for (int j = 0; j < kN; ++j) ahead[d][j] = read(first + d, j);
  }
#pragma unroll 1
  for (int from = first; from < last; from += kAhead) {
#pragma unroll
    for (int d = 0; d < kAhead; ++d) {
      const int part = from + d;
      if (part >= last) break;
      uint4 b[kN];
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        b[j] = ahead[d][j];
        ahead[d][j] = read(part + kAhead, j);
      }
      const uint4* weights =
          shared_at<uint4>(0) + m.at + (part - parts.first) * halves * kWarp + p.lane;
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        if (2 * i >= halves) break;
        const uint4 low = weights[2 * i * kWarp];
        uint4 high = make_uint4(0, 0, 0, 0);
        if (2 * i + 1 < halves) high = weights[(2 * i + 1) * kWarp];
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          if (j >= count) break;
          multiply_tile<T>(sums[i][j], low.x, high.x, low.y, high.y, b[j].x, b[j].y);
          multiply_tile<T>(sums[i][j], low.z, high.z, low.w, high.w, b[j].z, b[j].w);
        }
      }
    }
  }
}

// One product of a step. row_of(slot) is what a slot's row multiplies, or null; finish(units, tile,
// sums) gets, for the rows 2 pair and 2 pair + 1 of a tile and unit `column` of eight, the sums of
// all gates. A slot's unit is always finished by the same thread. `products` tiles of `tiles` have
// a product, the other sums are zero. turn: of the sets of shared sums. Ends without a barrier.
template <class T, int kM, int kN, int kAhead, class RowOf, class Finish>
__device__ inline void product(const RnnLayout& l, const RnnMatrix& m, const RnnPlace& p, int tiles,
                               int products, int& turn, const RowOf& row_of, const Finish& finish) {
  const RnnParts parts(l, p, m);
  const int units = p.own / kTile, warps = parts.warps;
  const int halves = p.set_own / kTile * m.gates;
  const int own_half = (p.first_unit - p.set_first) / kTile * m.gates;
  float2* partial = shared_at<float2>(l.partial);
  // The sum of this block's warps, in their order.
  const auto fold = [&](int tile, int half) {
    const float2* at = partial + (tile * halves + half) * kWarp + p.lane;
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w >= warps) break;
      const float2 part = at[w * l.round * halves * kWarp];
      sum.x += part.x;
      sum.y += part.y;
    }
    return sum;
  };
#pragma unroll 1
  for (int chunk = 0; chunk < tiles; chunk += kN) {
    const std::uint16_t* rows[kN];
#pragma unroll
    for (int j = 0; j < kN; ++j) rows[j] = row_of((chunk + j) * kTile + p.column);
    float sums[kM][kN][4];
    multiply<T, kM, kN, kAhead>(m, parts, halves, p, rows, products - chunk, sums);
#pragma unroll 1
    for (int from = 0; from < kN && chunk + from < tiles; from += l.round) {
      if (chunk + from) __syncthreads();  // the room for sums is free again
      if (p.warp < warps) {
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          if (j < from || j >= from + l.round || chunk + j >= tiles) continue;
          float2* to = partial + (p.warp * l.round + j - from) * halves * kWarp + p.lane;
#pragma unroll
          for (int i = 0; i < kM; ++i) {
            const float (&s)[4] = sums[i][j];
            if (2 * i < halves) to[2 * i * kWarp] = make_float2(s[0], s[1]);
            if (2 * i + 1 < halves) to[(2 * i + 1) * kWarp] = make_float2(s[2], s[3]);
          }
        }
      }
      await_copies();
      __syncthreads();
      int count = tiles - chunk - from;
      count = count < l.round ? count : l.round;
      count = count < kN - from ? count : kN - from;
      // Each block of a cluster has sums over its part of k of all their units. Two sets of them
      // take turns: when a block has arrived, it has read the set before.
      const float2* folded = nullptr;
      if (l.split > 1) {
        turn ^= 1;
        float2* to = shared_at<float2>(l.folded) + turn * l.round * halves * kWarp + p.lane;
        for (int n = p.warp; n < halves * count; n += kWarps) {
          to[n * kWarp] = fold(n / halves, n % halves);
        }
        arrive_cluster();
        await_cluster();
        folded = to;
      }
#pragma unroll 1
      for (int n = p.warp; n < units * count; n += kWarps) {
        const int tile = n / units, unit = n % units;
        float2 totals[kMostGates];
#pragma unroll
        for (int g = 0; g < kMostGates; ++g) {
          if (g >= m.gates) break;
          const int half = own_half + unit * m.gates + g;
          if (l.split == 1) {
            totals[g] = fold(tile, half);
            continue;
          }
          float2 parts_of_sum[kMostSplit];  // all are on their way at once
#pragma unroll
          for (int rank = 0; rank < kMostSplit; ++rank) {
            if (rank >= l.split) break;
            parts_of_sum[rank] = read_peer(folded + (tile * halves + half) * kWarp, rank);
          }
          float2 sum = make_float2(0.f, 0.f);
#pragma unroll
          for (int rank = 0; rank < kMostSplit; ++rank) {
            if (rank >= l.split) break;
            sum.x += parts_of_sum[rank].x;
            sum.y += parts_of_sum[rank].y;
          }
          totals[g] = sum;
        }
        finish(unit, chunk + from + tile, totals);
      }
    }
  }
}

// --- What a step reads of its own rows. ----------------------------------------------------------

// Asks for `bytes` (a multiple of 16) of the row of each of `slots` slots, to `offset` in its part
// of the stage. source(slot) is where from.
template <class Source>
__device__ inline void stage(const RnnLayout& l, int offset, int bytes, int slots,
                             const Source& source) {
  const int words = bytes / 16;
  for (int i = static_cast<int>(threadIdx.x); i < slots * words; i += kThreads) {
    const int slot = i / words, word = i % words;
    const void* from = source(slot);
    copy_async(shared_at<char>(l.stage + slot * l.stage_row + offset + 16 * word),
               static_cast<const char*>(from) + 16 * word);
  }
}

}  // namespace
}  // namespace vecsmith::cuda
