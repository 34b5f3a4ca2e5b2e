// Recurrent layers on CUDA: the recurrence of what reference/rnn.py says, a whole sequence in one
// launch, with the recurrent weight on chip all the time. bfloat16 and float16, sums in float32.
//
// What it computes
//   All cells but the residual one, forward and backward, for rows by step (unequal lengths,
//   reverse). Products over all steps at once stay outside: the input's part of the gates, and the
//   gradients of the input and of the weights.
//
// How the work is split
//   Rows are dealt out to groups of blocks, row r to group r % groups, so that all groups have rows
//   of all lengths. The blocks of a group have some units each, with all gates, and keep these rows
//   of the weight (backward: of the transposed one) in shared memory for the whole sequence. A
//   step:
//
//   * copies of what the block reads of its own rows (the input's part; backward: gates, states,
//     gradients) are on their way while it waits for the group;
//   * a product, weights [units, k] by states [k, rows]: the warps share k, so that a state is read
//     once by a block, from L2 right into the registers that the matrix unit reads (past L1: others
//     wrote it), several reads ahead. The warps' sums meet in shared memory, in a fixed order;
//   * gates and new states; c of an LSTM, h of a GRU and their gradients stay in float32 in shared
//     memory, with the thread that owns them; h goes to the output, where the group reads it;
//   * one barrier of the group: blocks arrive when h is written and wait when the next product
//     begins. "gru_reset_before" has a second product, and barrier, after r * h.
//
//   Backward, the gradients before the gates take the place of h: the group exchanges them through
//   the tensor that the gradients of the weights are made of. Nothing that is exchanged is written
//   twice, so one barrier a step is enough.
//
//   A barrier counts in global memory, and the launch is cooperative, so that all blocks are there;
//   on sm_90 and later, a group of at most 16 blocks may be a cluster, with the cluster's barrier.
//   There also a few blocks may share sums: as a cluster they have all of their units together, but
//   each a part of k, and exchange sums by each other's shared memory. States are then read from L2
//   by that much fewer blocks. Rows that do not fit into a group's shared memory go in further
//   passes over the sequence. The bits depend on how many blocks share sums, and on nothing else.
//
// What bounds its speed
//   The chain of steps. Per step a block reads its weights from shared memory, once for kN tiles of
//   rows (128 bytes a cycle), and the states of its group's rows from L2 (64 bytes a cycle, some
//   3 KB a cycle for the whole chip); multiplies; writes and reads the warps' sums; and the group
//   goes through a barrier, which is a trip to L2 for the writes, one for the counter, half of one
//   until somebody looks, and then one for the states: about 1 us of some 2 us that no such kernel
//   has been under. cost() adds these up, and the plan is the cheapest cut. What it makes of an
//   LSTM with 64 rows on an H200 (132 multiprocessors, 227 KB of shared memory each, 1.8 GHz);
//   these are estimates, not measurements:
//
//                       blocks x groups, units   weights     states, block/all   us a step
//     H =  512 forward  16 (cluster) x 8, 32     128 KB      8 KB / 1 MB         1.6  (2.1 without)
//              backward 16 (cluster) x 8, 32     128 KB      32 KB / 4 MB        2.0  (2.5)
//     H = 1024 forward  43 x 3, 24               192 KB      48 KB / 6 MB        4.1
//              backward 64 x 2, 16, 4 share      128 KB      64 KB / 8 MB        4.8  (7.4)
//
//   At H = 512 (2.1 MB of weights, 8 rows a group) half of it is the weights' way out of shared
//   memory and the barrier; at H = 1024 (8.4 MB) the matrix unit, L2, the sums and the barrier have
//   about a quarter each. An LSTM fits up to H of about 1600, a GRU up to 2048.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/rnn.h"
#include "cuda/rnn_backward.cuh"
#include "cuda/rnn_device.cuh"
#include "cuda/rnn_forward.cuh"
#include "cuda/runtime.cuh"

namespace vecsmith::cuda {
namespace {

// kM tiles of 16 units and gates by kN tiles of rows have their sums in a warp's registers.
struct Shape {
  int most_halves, tiles;
};
constexpr Shape kShapes[] = {{8, 4}, {12, 3}, {16, 2}, {28, 1}};
constexpr int kShapeCount = 4;
constexpr std::int64_t kMostUnits = kTile * kShapes[kShapeCount - 1].most_halves;

using Forward = void (*)(RnnForward, RnnLayout);
using Backward = void (*)(RnnBackward, RnnLayout);

template <class T>
Forward forward_of(int shape) {
  constexpr Forward kernels[] = {forward_kernel<T, 4, 4, 3>, forward_kernel<T, 6, 3, 4>,
                                 forward_kernel<T, 8, 2, 4>, forward_kernel<T, 14, 1, 8>};
  return kernels[shape];
}

template <class T>
Backward backward_of(int shape) {
  constexpr Backward kernels[] = {backward_kernel<T, 4, 4, 3>, backward_kernel<T, 6, 3, 4>,
                                  backward_kernel<T, 8, 2, 4>, backward_kernel<T, 14, 1, 8>};
  return kernels[shape];
}

std::int64_t up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// A cut, with what it takes: every size as it would be, also where it does not fit.
struct Cut {
  RnnLayout layout;
  int shape = 0;
  std::int64_t bytes = 0;
  bool fits = false;
};

Cut cut(const RnnGeometry& g, int split, std::int64_t units, std::int64_t groups,
        std::int64_t slots, std::int64_t round, std::int64_t limit) {
  Cut made;
  RnnLayout& l = made.layout;
  const int gates = gates_of(g.cell);
  const bool twice = g.cell == Cell::kGruResetBefore;
  const auto hidden = static_cast<int>(g.hidden);
  l.hidden = hidden;
  l.units = static_cast<int>(units);
  l.split = split;
  l.blocks = static_cast<int>(up((g.hidden + units - 1) / units, split));
  l.groups = static_cast<int>(groups);
  l.slots = static_cast<int>(slots);
  l.tiles = static_cast<int>(slots / kTile);
  const std::int64_t rows = (g.batch + groups - 1) / groups;
  l.passes = static_cast<int>((rows + slots - 1) / slots);
  l.matrices = twice ? 2 : 1;
  l.weight_stride = g.backward ? gates * g.hidden : g.hidden;
  std::int64_t halves = 0, summands = 0, at = 0;
  for (int i = 0; i < l.matrices; ++i) {
    RnnMatrix& m = l.matrix[i];
    const int mine = twice ? 2 - i : gates;  // first r and z, then n
    if (g.backward) {
      // The gradient of r * h is made of that of n; r's and z's give that of h, a step later.
      m.gates = 1;
      m.k = mine * hidden;
      m.column = i * 2 * hidden;
    } else {
      m.gates = mine;
      m.first_gate = i * 2;
      m.k = hidden;
    }
    m.parts = (m.k + kPart - 1) / kPart;
    m.gap_at = g.backward && g.cell == Cell::kGru ? 2 * hidden : m.k;
    m.gap = hidden;
    m.at = static_cast<int>(at);
    const std::int64_t block = split * units / kTile * m.gates;
    const int mine_of_sum = (m.parts + split - 1) / split;
    at += mine_of_sum * block * kWarp;
    halves = std::max(halves, block);
    summands = std::max<std::int64_t>(summands, std::min(mine_of_sum, kWarps));
    if (at > (1 << 24)) return made;  // long past what any device has
  }
  while (made.shape < kShapeCount && kShapes[made.shape].most_halves < halves) ++made.shape;
  if (made.shape == kShapeCount) return made;
  l.round = static_cast<int>(std::min<std::int64_t>(
      {round, kShapes[made.shape].tiles, static_cast<std::int64_t>(l.tiles)}));
  std::int64_t bytes = 16 * at;
  l.bias = static_cast<int>(bytes);
  bytes += g.backward ? 0 : up(4 * gates * units, 16);
  const std::int64_t row = g.backward ? BackwardStage(g.cell, l.units).bytes : 2 * gates * units;
  // Two rows further is eight banks further.
  l.stage_row = static_cast<int>(up(row, 64) + 16);
  l.stage = static_cast<int>(bytes);
  bytes += slots * l.stage_row;
  l.state = static_cast<int>(bytes);
  const std::int64_t states = g.cell == Cell::kTanh || g.cell == Cell::kRelu ? 0
                              : twice && !g.backward                         ? 2
                                                                             : 1;
  bytes += states * units / kTile * l.tiles * kWarp * 8;
  l.partial = static_cast<int>(bytes);
  bytes += summands * l.round * halves * kWarp * 8;
  l.folded = static_cast<int>(bytes);
  bytes += split > 1 ? 2 * l.round * halves * kWarp * 8 : 0;
  made.bytes = bytes;
  made.fits = bytes <= limit;
  return made;
}

// Cycles of all steps of one length, as far as they depend on the cut; see the head.
double cost(const Cut& c) {
  const RnnLayout& l = c.layout;
  const double blocks = static_cast<double>(l.blocks) * l.groups;
  double cycles = 0;
  for (int i = 0; i < l.matrices; ++i) {
    const RnnMatrix& m = l.matrix[i];
    const int halves = l.split * l.units / kTile * m.gates, at_once = kShapes[c.shape].tiles;
    const int parts = (m.parts + l.split - 1) / l.split;
    const double weights = 4.0 * halves * parts * ((l.tiles + at_once - 1) / at_once);
    const double products = 3.25 * ((halves + 1) / 2) * parts * l.tiles;
    const double states = 16.0 * l.tiles * parts * kPart;  // bytes
    const double sums = 4.0 * halves * l.tiles * (std::min(parts, kWarps) + (l.split > 1 ? 2 : 0));
    const double barriers = (l.split > 1 ? 900.0 : 120.0) * ((l.tiles + l.round - 1) / l.round);
    cycles += std::max(weights, products) + std::max(states / 64, states * blocks / 3000) + sums +
              barriers + (l.cluster ? 900 : 1800 + 2.0 * l.blocks);
  }
  return cycles * l.passes;
}

constexpr std::int64_t kMostOfCluster = 16;  // blocks; more than 8 must be asked for

template <class Kernel>
Kernel kernel_of(const RnnGeometry& g, int shape);
template <>
Forward kernel_of<Forward>(const RnnGeometry& g, int shape) {
  return g.fp16 ? forward_of<Fp16>(shape) : forward_of<Bf16>(shape);
}
template <>
Backward kernel_of<Backward>(const RnnGeometry& g, int shape) {
  return g.fp16 ? backward_of<Fp16>(shape) : backward_of<Bf16>(shape);
}

const void* entry_of(const RnnGeometry& g, int shape) {
  return g.backward ? reinterpret_cast<const void*>(kernel_of<Backward>(g, shape))
                    : reinterpret_cast<const void*>(kernel_of<Forward>(g, shape));
}

// A launch of a cut, all of whose blocks, or those of each group, are there at once.
struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  Launch(const Cut& c, Stream stream) {
    const RnnLayout& l = c.layout;
    config.gridDim = dim3(static_cast<unsigned>(l.blocks) * static_cast<unsigned>(l.groups));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(c.bytes);
    config.stream = stream;
    config.attrs = attributes;
    if (l.cluster || l.split > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = static_cast<unsigned>(l.cluster ? l.blocks : l.split);
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    }
    if (!l.cluster) {
      cudaLaunchAttribute& together = attributes[config.numAttrs++];
      together.id = cudaLaunchAttributeCooperative;
      together.val.cooperative = 1;
    }
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
};

void allow(const void* entry, const Cut& c) {
  check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(c.bytes)),
        "cudaFuncSetAttribute");
  if (c.layout.cluster) {
    check(cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "cudaFuncSetAttribute");
  }
}

// How many blocks of clusters of a cut the device has at once; 0 where it has none so large.
std::int64_t room_for_clusters(const RnnGeometry& g, const Cut& c) {
  const void* entry = entry_of(g, c.shape);
  allow(entry, c);
  const Launch launch(c, nullptr);
  int room = 0;
  if (cudaOccupancyMaxActiveClusters(&room, entry, &launch.config) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return std::int64_t{room} * (c.layout.cluster ? c.layout.blocks : c.layout.split);
}

Cut best_cut(const RnnGeometry& g) {
  const auto refuse = [](const std::string& expected) {
    throw std::invalid_argument("rnn on CUDA: expected " + expected);
  };
  if (g.hidden < kTile || g.hidden % kTile || g.hidden > (1 << 16)) {
    refuse("hidden_size to be a multiple of 8, at most 65536, got " + std::to_string(g.hidden));
  }
  if (g.batch < 1 || g.batch > (1 << 30)) {
    refuse("1 to 2^30 sequences, got " + std::to_string(g.batch));
  }
  if (g.units < 0 || g.units % kTile || g.units > kMostUnits || g.groups < 0) {
    refuse("units to be a multiple of 8, at most " + std::to_string(kMostUnits) +
           ", and groups >= 0, got " + std::to_string(g.units) + " and " +
           std::to_string(g.groups));
  }
  if (g.split != 0 && g.split != 1 && g.split != 2 && g.split != 4 && g.split != 8) {
    refuse("1, 2, 4 or 8 blocks that share sums, got " + std::to_string(g.split));
  }
  if (!attribute(cudaDevAttrCooperativeLaunch)) {
    refuse("a device that launches all blocks of a grid at once");
  }
  const std::int64_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const std::int64_t processors = attribute(cudaDevAttrMultiProcessorCount);
  const bool clusters = attribute(cudaDevAttrClusterLaunch) != 0;
  Cut best;
  double least = 0;
  const auto consider = [&](Cut found, bool cluster, std::int64_t& room) {
    found.layout.cluster = cluster;
    const double cycles = cost(found);
    if (best.fits && cycles >= least) return;
    if (cluster || found.layout.split > 1) {
      // In blocks. More groups have fewer rows each, and need less: what the first one of them was
      // told is true of them, too.
      if (room < 0) room = room_for_clusters(g, found);
      if (std::int64_t{found.layout.blocks} * found.layout.groups > room) return;
    }
    best = found;
    least = cycles;
  };
  const std::int64_t from = g.units ? g.units : kTile;
  const std::int64_t to = g.units ? g.units : std::min(kMostUnits, g.hidden);
  for (const int split : {1, 2, 4, 8}) {
    if (g.split ? split != g.split : split > 1 && g.cluster == 1) continue;
    if (split > 1 && !clusters) continue;
    for (std::int64_t units = from; units <= to; units += kTile) {
      const std::int64_t blocks = up((g.hidden + units - 1) / units, split);
      const std::int64_t most = g.groups ? g.groups : std::min(g.batch, processors / blocks);
      std::int64_t room = -1, room_of_split = -1;  // for clusters; not known yet
      for (std::int64_t groups = g.groups ? g.groups : 1; groups <= most; ++groups) {
        const std::int64_t rows = up((g.batch + groups - 1) / groups, kTile);
        // All rows at once, or as many as fit; then as many of their sums at once as fit.
        std::int64_t slots = std::min<std::int64_t>(rows, 64 * kTile);
        while (slots > kTile && !cut(g, split, units, groups, slots, 1, limit).fits) slots -= kTile;
        std::int64_t round = kShapes[0].tiles;
        while (round > 1 && !cut(g, split, units, groups, slots, round, limit).fits) --round;
        const Cut found = cut(g, split, units, groups, slots, round, limit);
        if (!found.fits) break;
        if (g.cluster != 1) consider(found, false, room_of_split);
        if (g.cluster != 0 && clusters && split == 1 && blocks <= kMostOfCluster) {
          consider(found, true, room);
        }
      }
    }
  }
  if (!best.fits && (g.units || g.groups || g.cluster != -1 || g.split)) {
    refuse("the wanted cut of " + std::to_string(g.units) + " units and " +
           std::to_string(g.groups) + " groups to fit the device");
  }
  if (!best.fits) {
    const std::int64_t weight = 2 * gates_of(g.cell) * g.hidden * g.hidden;
    refuse("a recurrent weight that stays in shared memory, with " + std::to_string(limit) +
           " bytes in each of " + std::to_string(processors) +
           " multiprocessors, some of it for sums and states; got hidden_size " +
           std::to_string(g.hidden) + ", " + std::to_string(weight) + " bytes of weights");
  }
  return best;
}

// All blocks that wait for each other must be on the device at once.
void require_room(const RnnGeometry& g, const Cut& c) {
  if (c.layout.cluster)
    return;  // which has been looked at, and is launched as a whole or not at all
  const void* entry = entry_of(g, c.shape);
  allow(entry, c);
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, entry, kThreads,
                                                      static_cast<size_t>(c.bytes)),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const std::int64_t room =
      static_cast<std::int64_t>(resident) * attribute(cudaDevAttrMultiProcessorCount);
  const std::int64_t wanted = static_cast<std::int64_t>(c.layout.blocks) * c.layout.groups;
  if (wanted > room) {
    throw std::invalid_argument("rnn on CUDA: expected room for " + std::to_string(wanted) +
                                " blocks at once, got " + std::to_string(room));
  }
}

template <class Kernel, class Arguments>
void run(const Arguments& a, Stream stream) {
  const Cut c = best_cut(a.geometry);
  require_room(a.geometry, c);
  const Kernel kernel = kernel_of<Kernel>(a.geometry, c.shape);
  const Launch launch(c, stream);
  check(cudaLaunchKernelEx(&launch.config, kernel, a, c.layout), "launch of an rnn kernel");
  check(cudaGetLastError(), "rnn kernel");
}

}  // namespace

RnnPlan plan(const RnnGeometry& g) {
  const Cut c = best_cut(g);
  require_room(g, c);
  RnnPlan plan;
  plan.threads = kThreads;
  plan.units = c.layout.units;
  plan.blocks = c.layout.blocks;
  plan.groups = c.layout.groups;
  plan.slots = c.layout.slots;
  plan.passes = c.layout.passes;
  plan.round = c.layout.round;
  plan.shared_bytes = c.bytes;
  plan.cluster = c.layout.cluster != 0;
  plan.split = c.layout.split;
  return plan;
}

void rnn(const RnnForward& a, Stream stream) { run<Forward>(a, stream); }

void rnn(const RnnBackward& a, Stream stream) { run<Backward>(a, stream); }

}  // namespace vecsmith::cuda
