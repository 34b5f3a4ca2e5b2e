// The host side that the forms of `skipgram` on CUDA share: how a block's memory is laid out, into
// how many blocks a launch is cut, and the launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/runtime.cuh"
#include "cuda/skipgram.h"
#include "cuda/skipgram_device.cuh"

namespace vecsmith::cuda {
namespace {

constexpr int kShortestRun = 64;  // survivors; a run also loads its neighbors' rows, once

inline bool aligned(const Table& t) {
  return t.data == nullptr ||
         (reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride % 4 == 0);
}

inline int threads_for(std::int64_t dim) {
  const std::int64_t groups = (dim + 3) / 4;
  return static_cast<int>(
      std::min<std::int64_t>((groups + kWarp - 1) / kWarp * kWarp, kMaxThreads));
}

// Puts the ring and the scores on chip where they fit, and counts.
inline Plan lay_out(Layout& l, int threads, bool many_chunks) {
  Plan plan;
  plan.threads = threads;
  l.ring_rows = 2 * l.slots + (l.inputs == 1 ? 1 : 0) + (many_chunks ? l.inputs : 0);
  l.lists = up_to_4(l.scored * kOutputs * (threads / kWarp + 1));
  l.scores = l.lists + up_to_4(3 * l.listed);
  l.bookkeeping = bookkeeping_floats(l);
  const std::int64_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) / 4;
  const std::int64_t ring = l.ring_rows * l.row;
  if (std::max(ring, l.scores) > 0x7fffffff) {
    throw std::invalid_argument(
        "skipgram on CUDA: expected the rows and the scores of a window to be less than 2^31 "
        "floats "
        "each, got " +
        std::to_string(ring) + " and " + std::to_string(l.scores));
  }
  l.ring_on_chip = ring + l.scores + l.bookkeeping <= limit;
  l.scores_on_chip = l.ring_on_chip || l.scores + l.bookkeeping <= limit;
  const std::int64_t on_chip =
      (l.ring_on_chip ? ring : 0) + (l.scores_on_chip ? l.scores : 0) + l.bookkeeping;
  if (on_chip > limit) {
    throw std::invalid_argument(
        "skipgram on CUDA: expected the bookkeeping of a window to fit in " +
        std::to_string(4 * limit) + " bytes of shared memory, got " + std::to_string(4 * on_chip));
  }
  plan.shared_bytes = 4 * on_chip;
  plan.scratch_floats = (l.ring_on_chip ? 0 : ring) + (l.scores_on_chip ? 0 : l.scores);
  return plan;
}

// As many blocks as the device holds at once, as long as each has a run worth its start.
template <class Kernel>
void choose_blocks(Plan& plan, Kernel kernel, std::int64_t count, std::int64_t wanted) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(plan.shared_bytes)),
        "cudaFuncSetAttribute");
  std::int64_t blocks = wanted;
  if (blocks <= 0) {
    int resident = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
              &resident, reinterpret_cast<const void*>(kernel), plan.threads,
              static_cast<size_t>(plan.shared_bytes)),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    const std::int64_t fill = static_cast<std::int64_t>(std::max(resident, 1)) *
                              attribute(cudaDevAttrMultiProcessorCount);
    blocks = std::min(fill, (count + kShortestRun - 1) / kShortestRun);
  }
  // A block counts its survivors in 32 bits.
  blocks = std::max(blocks, count >> 30);
  plan.blocks = std::max<std::int64_t>(1, std::min(blocks, count));
  plan.scratch_floats *= plan.blocks;
}

inline void check_sizes(std::int64_t dim, std::int64_t count, std::int64_t negative) {
  if (dim < 1 || dim > (1 << 30) || count < 0 || negative < 0 || negative > (1 << 24)) {
    throw std::invalid_argument(
        "skipgram on CUDA: expected 1 <= dim <= 2^30, count >= 0 and 0 <= negative <= 2^24, got " +
        std::to_string(dim) + ", " + std::to_string(count) + ", " + std::to_string(negative));
  }
}

template <class Arguments>
void check_scratch(const Plan& plan, const Arguments& a) {
  if (a.scratch_floats < plan.scratch_floats || (plan.scratch_floats && a.scratch == nullptr)) {
    throw std::invalid_argument(
        "skipgram on CUDA: expected " + std::to_string(plan.scratch_floats) +
        " floats of scratch memory, got " + std::to_string(a.scratch_floats));
  }
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Plan& plan, Stream stream,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch of a skipgram kernel");
  check(cudaGetLastError(), "skipgram kernel");
}

}  // namespace
}  // namespace vecsmith::cuda
