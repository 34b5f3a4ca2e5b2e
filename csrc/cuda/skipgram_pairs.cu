// Skip-gram from given pairs on CUDA: `skipgram_pairs` of reference/skipgram.py.
//
// A block takes a run of consecutive pairs and trains them one after another. Threads lie across
// the dimension as in the text form (skipgram.cu). The row of a center stays on chip while pairs of
// the same center follow; then the difference to what was loaded is added to the table, so that
// updates of concurrent blocks are not lost. Nothing is drawn here: negatives come with the pairs.
//
// What bounds its speed: device memory and L2. Each pair reads its 1 + negative output rows and
// adds to them; sorted by center, an input row is read and added back once per run.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/skipgram.h"
#include "cuda/skipgram_device.cuh"
#include "cuda/skipgram_launch.cuh"

namespace vecsmith::cuda {
namespace {

template <bool kVector>
__global__ void __launch_bounds__(kMaxThreads, 2)
    pairs_kernel(const PairsArguments a, const Layout layout) {
  const Block b(layout, a.scratch, a.dim);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t blocks = gridDim.x, block = blockIdx.x;
  const std::int64_t share = a.count / blocks, rest = a.count % blocks;
  const std::int64_t begin = block * share + (block < rest ? block : rest);
  const std::int64_t end = begin + share + (block < rest ? 1 : 0);
  const int list = static_cast<int>(a.negative) + 1;
  const float rate = static_cast<float>(a.rates ? a.rates[0] : a.alpha);
  Sum sum;

  std::int64_t held = -1;
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t center = a.centers[i];
    if (center != held) {
      if (held >= 0) retire_row<kVector>(b, a.inputs, 0, held);
      load_row<kVector>(b, a.inputs, 0, center);
      held = center;
    }
    const long long positive = a.contexts[i];
    __syncthreads();  // The last pair is done with its negatives.
    for (int j = thread; j < list; j += b.threads) {
      long long word = positive;
      if (j) {
        word = a.negatives[i * a.negatives_stride + j - 1];
        if (word == positive) word = -1;
      }
      b.listed_word(j) = word;
    }
    __syncthreads();
    weigh(b, 1, list);
    __syncthreads();
    const auto slot_of = [](int) { return 0; };
    pair_group<kVector, true>(b, a.outputs, 1, list, slot_of, rate, a.compute_loss, sum);
  }
  if (held >= 0) retire_row<kVector>(b, a.inputs, 0, held);
  add_loss(a.loss, sum);
}

using PairsKernel = void (*)(PairsArguments, Layout);

PairsKernel kernel_of(const PairsArguments& a) {
  return aligned(a.inputs) && aligned(a.outputs) ? pairs_kernel<true> : pairs_kernel<false>;
}

Plan plan_with(const PairsArguments& a, Layout& l) {
  check_sizes(a.dim, a.count, a.negative);
  l.slots = 1;
  l.row = up_to_4(a.dim);
  l.listed = a.negative + 1;
  l.scored = (l.listed + kOutputs - 1) / kOutputs;
  Plan plan = lay_out(l, threads_for(a.dim), false);
  choose_blocks(plan, kernel_of(a), a.count, a.blocks);
  return plan;
}

}  // namespace

Plan plan(const PairsArguments& a) {
  Layout layout;
  return plan_with(a, layout);
}

void train(const PairsArguments& a, Stream stream) {
  Layout layout;
  const Plan plan = plan_with(a, layout);
  if (a.count == 0) return;
  check_scratch(plan, a);
  launch(kernel_of(a), plan, stream, a, layout);
}

}  // namespace vecsmith::cuda
