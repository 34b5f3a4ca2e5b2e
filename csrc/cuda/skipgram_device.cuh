// What the CUDA kernels of `skipgram` are made of: rows, a block's memory, the outputs of a step,
// and a group of pairs. Included by skipgram.cu (the text form, whose head says how the work is
// split) and by skipgram_pairs.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/skipgram.h"

// Global, and sized by the launch. float4: the rows in it are read 16 bytes at a time.
extern __shared__ float4 vecsmith_shared[];

namespace vecsmith::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kOutputs = 8;  // output rows in registers at a time
constexpr int kMaxThreads = 256;

// --- Rows. Table rows are read past L1 (__ldcg): the adds of all blocks meet in L2, L1 may be old.

template <bool kVector>
__device__ inline float4 load4(const float* row, int d, int dim) {
  if (kVector && d + 4 <= dim) return __ldcg(reinterpret_cast<const float4*>(row + d));
  float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
  if (d < dim) v.x = __ldcg(row + d);
  if (d + 1 < dim) v.y = __ldcg(row + d + 1);
  if (d + 2 < dim) v.z = __ldcg(row + d + 2);
  if (d + 3 < dim) v.w = __ldcg(row + d + 3);
  return v;
}

template <bool kVector>
__device__ inline void add4(float* row, int d, int dim, float4 v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (kVector && d + 4 <= dim) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                     __cvta_generic_to_global(row + d)),
                 "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
    return;
  }
#endif
  if (d < dim) atomicAdd(row + d, v.x);
  if (d + 1 < dim) atomicAdd(row + d + 1, v.y);
  if (d + 2 < dim) atomicAdd(row + d + 2, v.z);
  if (d + 3 < dim) atomicAdd(row + d + 3, v.w);
}

__device__ inline float dot4(float4 a, float4 b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

__device__ inline void axpy4(float4& y, float a, float4 x) {
  y.x += a * x.x;
  y.y += a * x.y;
  y.z += a * x.z;
  y.w += a * x.w;
}

// Sums v[0..7] over the warp: lane l gets the sum of v[l / 4]. Nine shuffles instead of forty: each
// of the first three exchanges halves the values a lane still carries.
__device__ inline float fold8(float (&v)[kOutputs], int lane) {
#pragma unroll
  for (int half = kOutputs / 2, bit = kWarp / 2; half >= 1; half /= 2, bit /= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float sent = upper ? v[i] : v[i + half];
      const float kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(kAllLanes, sent, bit);
    }
  }
  float sum = v[0];
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  return sum;
}

__device__ inline double warp_sum(double value) {
  for (int bit = kWarp / 2; bit; bit /= 2) value += __shfl_xor_sync(kAllLanes, value, bit);
  return value;
}

// --- A block's memory. -------------------------------------------------------------------------

// Sizes of a block's memory: the ring's rows, the scores with the output lists, then the integers
// of the ring (always on chip).
struct Layout {
  std::int64_t slots = 0;        // of the ring
  std::int64_t inputs = 0;       // of a step that shares its outputs: slots, 1 (CBOW), or 0: none
  std::int64_t row = 0;          // floats of a row in the ring: dim up to a multiple of 4
  std::int64_t ring_rows = 0;    // current, loaded, [a combined input], [gathered updates]
  std::int64_t scored = 0;       // rows of kOutputs scores: inputs, or the chunks of all pairs
  std::int64_t listed = 0;       // entries of the output lists: negative + 1 in each
  std::int64_t lists = 0;        // where the lists are: floats from the scores on
  std::int64_t scores = 0;       // floats: partial scores, gradients, lists
  std::int64_t bookkeeping = 0;  // the integers, in floats' worth
  bool ring_on_chip = true;
  bool scores_on_chip = true;
};

__host__ __device__ inline std::int64_t up_to_4(std::int64_t n) { return (n + 3) / 4 * 4; }

// Four pointers and a few sizes, from which the rest follows: registers are what limits how many
// blocks run at once.
struct Block {
  float* rows;       // a thread reads and writes only its own columns of them
  float* partial;    // [scored, kOutputs, warps], then gradients [scored, kOutputs]
  long long* lists;  // [listed] output words, then their weights (int)
  int* integers;     // of the ring
  int dim, row, slots, inputs, scored, listed, threads, warps;

  __device__ Block(const Layout& layout, float* scratch, std::int64_t dim_) {
    dim = static_cast<int>(dim_);
    row = static_cast<int>(layout.row);
    slots = static_cast<int>(layout.slots);
    inputs = static_cast<int>(layout.inputs);
    scored = static_cast<int>(layout.scored);
    listed = static_cast<int>(layout.listed);
    threads = static_cast<int>(blockDim.x);
    warps = threads / kWarp;
    float* shared = reinterpret_cast<float*>(vecsmith_shared);
    const std::int64_t ring = layout.ring_rows * layout.row;
    const std::int64_t lent =
        (layout.ring_on_chip ? 0 : ring) + (layout.scores_on_chip ? 0 : layout.scores);
    float* far = lent ? scratch + lent * static_cast<std::int64_t>(blockIdx.x) : scratch;
    rows = layout.ring_on_chip ? shared : far;
    (layout.ring_on_chip ? shared : far) += ring;
    partial = layout.scores_on_chip ? shared : far;
    lists = reinterpret_cast<long long*>(partial + layout.lists);
    if (layout.scores_on_chip) shared += layout.scores;
    integers = reinterpret_cast<int*>(shared);
  }

  // Rows of the ring: the value now and as it was read from the table; CBOW's combined input; the
  // updates of the inputs that gather where outputs come in more than one chunk.
  __device__ float4& current(int slot, int d) const { return at(slot, d); }
  __device__ float4& loaded(int slot, int d) const { return at(slots + slot, d); }
  __device__ float4& combined(int d) const { return at(2 * slots, d); }
  __device__ float4& gathered(int input, int d) const {
    return at(2 * slots + (inputs == 1 ? 1 : 0) + input, d);
  }

  __device__ float& score(int input, int output, int warp) const {
    return partial[(input * kOutputs + output) * warps + warp];
  }
  __device__ float* gradient(int input) const {
    return partial + (scored * warps + input) * kOutputs;
  }

  // Entry j of the output lists. A list begins with its positive; -1: none.
  __device__ long long& listed_word(int j) const { return lists[j]; }
  // How often it is an output; 0: not at all, or counted where the word came before.
  __device__ int& weight(int j) const { return reinterpret_cast<int*>(lists + listed)[j]; }

  __device__ int& slot_word(int s) const { return integers[s]; }  // -1: free
  // How many survivors of the ring have the slot's word.
  __device__ int& slot_uses(int s) const { return integers[slots + s]; }
  // The slot of survivor p, at p % slots.
  __device__ int& slot_of(int at) const { return integers[2 * slots + at]; }
  // Occurrences of the slot's word in this center's window.
  __device__ int& multiplicity(int s) const { return integers[3 * slots + s]; }
  // Rows to load (slot) or to retire (~slot), in order.
  __device__ int& command_slot(int i) const { return integers[4 * slots + i]; }
  __device__ int& command_word(int i) const { return integers[6 * slots + i]; }
  __device__ int& commands() const { return integers[8 * slots]; }
  __device__ int& span(int i) const { return integers[8 * slots + 1 + i]; }  // of the window
  __device__ float& rate() const { return *reinterpret_cast<float*>(integers + 8 * slots + 3); }

 private:
  __device__ float4& at(int index, int d) const {
    return *reinterpret_cast<float4*>(rows + (index * row + d));
  }
};

// The integers of the ring, in floats' worth.
inline std::int64_t bookkeeping_floats(const Layout& l) { return up_to_4(8 * l.slots + 4); }

// --- Rows of the ring. -------------------------------------------------------------------------

template <bool kVector>
__device__ inline void load_row(const Block& b, const Table& table, int slot, std::int64_t word) {
  const float* from = table.data + word * table.stride;
  for (int d = 4 * static_cast<int>(threadIdx.x); d < b.dim; d += 4 * b.threads) {
    const float4 v = load4<kVector>(from, d, b.dim);
    b.current(slot, d) = v;
    b.loaded(slot, d) = v;
  }
}

template <bool kVector>
__device__ inline void retire_row(const Block& b, const Table& table, int slot, std::int64_t word) {
  float* to = table.data + word * table.stride;
  for (int d = 4 * static_cast<int>(threadIdx.x); d < b.dim; d += 4 * b.threads) {
    float4 v = b.current(slot, d);
    axpy4(v, -1.f, b.loaded(slot, d));
    add4<kVector>(to, d, b.dim, v);
  }
}

// --- A step's outputs. -------------------------------------------------------------------------

// The output rows of a step: a list of the block's (the positive first), or a tree path.
struct Targets {
  Table table;
  int count;
  int first;                  // of the list, among all that are listed
  const std::int32_t* nodes;  // null: a list
  const std::uint8_t* codes;

  __device__ std::int64_t row(const Block& b, int j) const {
    return nodes ? static_cast<std::int64_t>(__ldg(nodes + j))
                 : static_cast<std::int64_t>(b.listed_word(first + j));
  }
  __device__ int weight(const Block& b, int j) const { return nodes ? 1 : b.weight(first + j); }
  __device__ float label(int j) const {
    return nodes ? 1.f - static_cast<float>(__ldg(codes + j)) : (j == 0 ? 1.f : 0.f);
  }
};

struct Sum {
  double loss = 0, terms = 0;
};

template <bool kVector>
__device__ inline void load_outputs(const Block& b, const Targets& t, int chunk, int d,
                                    float4 (&o)[kOutputs]) {
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    o[j] = make_float4(0.f, 0.f, 0.f, 0.f);
    if (d < b.dim && chunk + j < t.count && t.weight(b, chunk + j) > 0) {
      o[j] = load4<kVector>(t.table.data + t.row(b, chunk + j) * t.table.stride, d, b.dim);
    }
  }
}

// What the score of one term adds to the sums and to the gradient. The term is there `times` times
// `weight` times; the gradient is that of its output's `weight`.
__device__ inline float term(float score, float label, int times, int weight, float rate,
                             bool with_loss, Sum& sum) {
  const double many = static_cast<double>(times) * weight;
  sum.terms += many;
  if (with_loss) {
    const double z = label > 0.5f ? -score : score;
    sum.loss += many * ((z > 0 ? z : 0.0) + log1p(exp(z > 0 ? -z : z)));
  }
  return rate * (label - 1.f / (1.f + expf(-score))) * static_cast<float>(weight);
}

// The weights of `lists` lists of `list` words each: how often a word comes in its list from an
// entry on, 0 where it came before or is none. Needs a barrier before and after.
__device__ inline void weigh(const Block& b, int lists, int list) {
  for (int e = static_cast<int>(threadIdx.x); e < lists * list; e += b.threads) {
    const int first = e / list * list;
    const long long word = b.listed_word(e);
    int weight = 0;
    if (e == first) {
      weight = 1;  // the negatives are never the positive
    } else if (word >= 0) {
      for (int i = first + 1; i < first + list; ++i) {
        if (b.listed_word(i) != word) continue;
        if (i < e) {
          weight = 0;
          break;
        }
        ++weight;
      }
    }
    b.weight(e) = weight;
  }
}

__device__ inline void add_loss(double* loss, const Sum& sum) {
  const double total = warp_sum(sum.loss), terms = warp_sum(sum.terms);
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(loss, total);
    atomicAdd(loss + 1, terms);
  }
}

// --- A group of pairs. -------------------------------------------------------------------------

// A group of the reference: pairs (kOne: one), pair i with the row of slot_of(i) as its input and
// list i, of `list` entries, as its outputs. All gradients are taken before the first pair's
// update. Begins and is left like a step.
template <bool kVector, bool kOne, class SlotOf>
__device__ void pair_group(const Block& b, const Table& outputs, int pairs, int list,
                           const SlotOf& slot_of, float rate, bool with_loss, Sum& sum) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int tile = 4 * b.threads, chunks = (list + kOutputs - 1) / kOutputs;
  const bool kept = kOne && chunks == 1 && b.dim <= tile;  // o, from half to half
  float4 o[kOutputs];
  // Every thread makes every turn of this loop, for the shuffles.
#pragma unroll 1
  for (int start = 0; start < b.dim; start += tile) {
    const int d = start + 4 * thread;
#pragma unroll 1
    for (int i = 0; i < pairs; ++i) {
      const Targets t{outputs, list, i * list, nullptr, nullptr};
      float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
      if (d < b.dim) x = b.current(slot_of(i), d);
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        load_outputs<kVector>(b, t, chunk * kOutputs, d, o);
        float v[kOutputs];
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) v[j] = dot4(x, o[j]);
        const float score = fold8(v, lane);
        if (lane % 4 == 0) {
          float& to = b.score(i * chunks + chunk, lane / 4, warp);
          to = start == 0 ? score : to + score;
        }
      }
    }
  }
  __syncthreads();

  for (int e = thread; e < pairs * chunks * kOutputs; e += b.threads) {
    const int i = e / (chunks * kOutputs), j = e % (chunks * kOutputs);
    const int weight = j < list ? b.weight(i * list + j) : 0;
    float g = 0.f;
    if (weight) {
      float score = 0.f;
      for (int w = 0; w < b.warps; ++w) score += b.score(e / kOutputs, e % kOutputs, w);
      g = term(score, j == 0 ? 1.f : 0.f, 1, weight, rate, with_loss, sum);
    }
    b.gradient(0)[e] = g;
  }
  __syncthreads();

#pragma unroll 1
  for (int d = 4 * thread; d < b.dim; d += tile) {
#pragma unroll 1
    for (int i = 0; i < pairs; ++i) {
      const Targets t{outputs, list, i * list, nullptr, nullptr};
      const float4 x = b.current(slot_of(i), d);
      float4 next = x;
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (!kept) load_outputs<kVector>(b, t, chunk * kOutputs, d, o);
        const float* gradient = b.gradient(i * chunks + chunk);
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) {
          const float g = gradient[j];
          axpy4(next, g, o[j]);
          const int at = chunk * kOutputs + j;
          if (at < list && t.weight(b, at) > 0) {
            float4 update = make_float4(0.f, 0.f, 0.f, 0.f);
            axpy4(update, g, x);
            add4<kVector>(outputs.data + t.row(b, at) * outputs.stride, d, b.dim, update);
          }
        }
      }
      b.current(slot_of(i), d) = next;
    }
  }
}

}  // namespace
}  // namespace vecsmith::cuda
