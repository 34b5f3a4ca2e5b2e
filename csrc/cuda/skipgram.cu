// word2vec's training step on CUDA: what reference/skipgram.py says, windows and negatives drawn on
// the device, context rows kept on chip for their lifetime (after FULL-W2V, Randall et al. 2021).
//
// What it computes
//   Skip-gram and CBOW with negative sampling and hierarchical softmax, in place, from text
//   (`text_kernel`) or from index tensors (`pairs_kernel`). Draws are the reference's bit for bit.
//
// How the work is split
//   A block takes a run of consecutive survivors and walks it center by center. Threads lie across
//   the dimension, four consecutive values each; T threads cover a tile of 4 T values, and wider
//   tables are walked in tiles. A thread touches the same columns of every row for its whole life,
//   so rows need no barrier: only scores and bookkeeping pass between threads.
//
//   * The ring: rows of the words within `window` of the center, in shared memory (or, where they
//     do not fit, in scratch memory that stays in L2). A row is loaded when its first occurrence
//     enters the ring, updated on chip, and when its last occurrence leaves, the *difference* to
//     what was loaded is added to the table: updates of concurrent blocks are not lost. Slots are
//     keyed by word, so a word that occurs twice in the ring has one row, and its second occurrence
//     sees the updates of the first: a block is exactly one group after another. What blocks do not
//     see is each other's updates of a row during its lifetime, at most 2 window + 1 centers per
//     occurrence: Hogwild with that much more delay.
//   * Outputs: up to eight rows at a time in registers, read once, used for the whole window, added
//     back once. Negatives drawn twice in a set are one row with weight two: all values in a step
//     are those before it. Longer lists (tree paths, many negatives) go in chunks of eight; the
//     inputs' updates then gather beside the ring until the last chunk.
//   * "pair": the lists of all pairs of a center are drawn at once, all their gradients are taken,
//     and then their rows are read again and updated pair by pair: six barriers a center, none
//     between pairs.
//   * Scores: a thread's partial products for eight outputs are folded over the warp in nine
//     shuffles, then summed over warps in shared memory.
//
// What bounds its speed
//   Device memory and L2. At D = 128, window 5, 5 negatives, a survivor loads and adds back its own
//   row once (its lifetime) and six output rows: 14 rows of 512 bytes, 7.2 KB, whatever the window
//   holds, and 40 bytes of alias table. One row per context instead of a ring would be 12.3 KB.
//   "pair" draws new outputs for each of 6 contexts: 37.9 KB, and reads 18.4 KB again, from L2. A
//   tree path of 17 nodes 18.4 KB; CBOW 7.2 KB. Arithmetic is 6 m n D = 28 k operations and 54
//   shuffles of a warp.
//   The adds go to L2 as 16-byte vectors on sm_90 and later.

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/skipgram.h"

// Global, and sized by the launch. float4: the rows in it are read 16 bytes at a time.
extern __shared__ float4 vecsmith_shared[];

namespace vecsmith::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kOutputs = 8;  // output rows in registers at a time
constexpr int kMaxThreads = 256;
constexpr int kRedraws = 32;
constexpr int kShortestRun = 64;  // survivors; a run also loads its neighbours' rows, once

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ull;
constexpr std::uint64_t kSubsample = 0, kWindow = 1, kNegative = 2;  // streams

__host__ __device__ inline std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

std::uint64_t stream_key(std::uint64_t seed, std::uint64_t epoch, std::uint64_t stream) {
  return mix(mix(mix(seed + kGolden) + epoch + kGolden) + stream + kGolden);
}

__device__ inline std::uint64_t draw(std::uint64_t key, std::uint64_t counter) {
  return mix(key + (counter + 1) * kGolden);
}

// 0 .. n-1 from the high 32 bits.
__device__ inline std::int64_t below(std::uint64_t bits, std::int64_t n) {
  return static_cast<std::int64_t>(((bits >> 32) * static_cast<std::uint64_t>(n)) >> 32);
}

__device__ inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A word drawn for `positive`, or -1 where 32 further draws did not help.
__device__ inline std::int64_t draw_negative(std::uint64_t bits, std::int64_t positive,
                                             const std::int32_t* alias, std::int64_t vocabulary) {
  for (int attempt = 0; attempt <= kRedraws; ++attempt) {
    const std::int64_t index = below(bits, vocabulary);
    const std::int64_t threshold = __ldg(alias + 2 * index);
    const std::int64_t low = static_cast<std::int64_t>((bits & 0xFFFFFFFFull) >> 1);
    const std::int64_t word = low < threshold ? index : __ldg(alias + 2 * index + 1);
    if (word != positive) return word;
    bits = mix(bits + kGolden);
  }
  return -1;
}

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

std::int64_t bookkeeping_floats(const Layout& l) { return up_to_4(8 * l.slots + 4); }

// --- The ring. ---------------------------------------------------------------------------------

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

// First slot that holds `word`, or -1; by one whole warp.
__device__ inline int find_slot(const Block& b, int word, int lane) {
  for (int base = 0; base < b.slots; base += kWarp) {
    const bool hit = base + lane < b.slots && b.slot_word(base + lane) == word;
    const unsigned hits = __ballot_sync(kAllLanes, hit);
    if (hits) return base + __ffs(static_cast<int>(hits)) - 1;
  }
  return -1;
}

// Bookkeeping of the move from survivors [lo, hi) to [new_lo, new_hi), counted from `words`, by one
// whole warp: what to retire and to load, in order, as commands.
__device__ inline void plan_move(const Block& b, const std::int32_t* words, int lo, int hi,
                                 int new_lo, int new_hi, int lane) {
  int commands = 0;
  for (int p = lo; p < hi && p < new_lo; ++p) {
    const int slot = b.slot_of(p % b.slots);
    const int uses = b.slot_uses(slot) - 1;
    const int word = b.slot_word(slot);
    __syncwarp();
    if (lane == 0) {
      b.slot_uses(slot) = uses;
      if (uses == 0) {
        b.slot_word(slot) = -1;
        b.command_slot(commands) = ~slot;
        b.command_word(commands) = word;
      }
    }
    if (uses == 0) ++commands;
    __syncwarp();
  }
  for (int p = hi > new_lo ? hi : new_lo; p < new_hi; ++p) {
    const int word = words[p];
    int slot = find_slot(b, word, lane);
    const bool fresh = slot < 0;
    if (fresh) slot = find_slot(b, -1, lane);
    __syncwarp();
    if (lane == 0) {
      b.slot_of(p % b.slots) = slot;
      b.slot_uses(slot) = fresh ? 1 : b.slot_uses(slot) + 1;
      if (fresh) {
        b.slot_word(slot) = word;
        b.command_slot(commands) = slot;
        b.command_word(commands) = word;
      }
    }
    if (fresh) ++commands;
    __syncwarp();
  }
  if (lane == 0) b.commands() = commands;
}

template <bool kVector>
__device__ inline void run_commands(const Block& b, const Table& table) {
  const int commands = b.commands();
  for (int i = 0; i < commands; ++i) {
    const int slot = b.command_slot(i);
    const std::int64_t word = b.command_word(i);
    if (slot < 0) {
      retire_row<kVector>(b, table, ~slot, word);
    } else {
      load_row<kVector>(b, table, slot, word);
    }
  }
}

// --- A step. -----------------------------------------------------------------------------------

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

// One step of the reference, in which all inputs share the outputs: the ring's rows with a
// multiplicity, or (kCbow) their combination. Begins with values that a barrier has made visible;
// callers put one before they change multiplicities or targets again.
template <bool kVector, bool kCbow>
__device__ void step(const Block& b, const Targets& t, bool mean, float rate, bool with_loss,
                     Sum& sum) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int inputs = kCbow ? 1 : b.slots;
  const int tile = 4 * b.threads;
  const bool one_tile = b.dim <= tile, one_chunk = t.count <= kOutputs;
  float spread = 1.f;

  if (kCbow) {
    int members = 0;
    for (int s = 0; s < b.slots; ++s) members += b.multiplicity(s);
    const float gather = mean ? 1.f / static_cast<float>(members) : 1.f;
    spread = mean ? 1.f : 1.f / static_cast<float>(members);
    for (int d = 4 * thread; d < b.dim; d += tile) {
      float4 h = make_float4(0.f, 0.f, 0.f, 0.f);
      for (int s = 0; s < b.slots; ++s) {
        const int times = b.multiplicity(s);
        if (times) axpy4(h, gather * static_cast<float>(times), b.current(s, d));
      }
      b.combined(d) = h;
    }
  }
  const auto times_of = [&](int i) { return kCbow ? 1 : b.multiplicity(i); };

#pragma unroll 1
  for (int chunk = 0; chunk < t.count; chunk += kOutputs) {
    const bool first_chunk = chunk == 0, last_chunk = chunk + kOutputs >= t.count;
    float4 o[kOutputs];
    // Every thread makes every turn of this loop, for the shuffles.
#pragma unroll 1
    for (int start = 0; start < b.dim; start += tile) {
      const int d = start + 4 * thread;
      load_outputs<kVector>(b, t, chunk, d, o);
#pragma unroll 1
      for (int i = 0; i < inputs; ++i) {
        if (times_of(i) == 0) continue;
        float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
        if (d < b.dim) x = kCbow ? b.combined(d) : b.current(i, d);
        float v[kOutputs];
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) v[j] = dot4(x, o[j]);
        const float score = fold8(v, lane);
        if (lane % 4 == 0) {
          float& to = b.score(i, lane / 4, warp);
          to = start == 0 ? score : to + score;
        }
      }
    }
    __syncthreads();

    for (int e = thread; e < inputs * kOutputs; e += b.threads) {
      const int i = e / kOutputs;
      const int j = chunk + e % kOutputs;
      const int times = times_of(i), weight = j < t.count ? t.weight(b, j) : 0;
      float g = 0.f;
      if (times && weight) {
        float score = 0.f;
        for (int w = 0; w < b.warps; ++w) score += b.score(i, e % kOutputs, w);
        g = term(score, t.label(j), times, weight, rate, with_loss, sum);
      }
      b.gradient(0)[e] = g;
    }
    __syncthreads();

#pragma unroll 1
    for (int start = 0; start < b.dim; start += tile) {
      const int d = start + 4 * thread;
      if (d >= b.dim) continue;
      if (!one_tile) load_outputs<kVector>(b, t, chunk, d, o);
      float4 update[kOutputs];
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) update[j] = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
      for (int i = 0; i < inputs; ++i) {
        const int times = times_of(i);
        if (times == 0) continue;
        const float* gradient = b.gradient(i);
        float4 x = kCbow ? b.combined(d) : b.current(i, d);
        float4 dx = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int j = 0; j < kOutputs; ++j) {
          const float g = gradient[j];
          axpy4(dx, g, o[j]);
          axpy4(update[j], g * static_cast<float>(times), x);
        }
        if (!one_chunk) {
          float4& gathered = b.gathered(i, d);
          if (!first_chunk) axpy4(dx, 1.f, gathered);
          gathered = dx;
        }
        if (!last_chunk) continue;
        if (kCbow) {
          for (int s = 0; s < b.slots; ++s) {
            const int each = b.multiplicity(s);
            if (each) axpy4(b.current(s, d), spread * static_cast<float>(each), dx);
          }
        } else {
          axpy4(x, static_cast<float>(times), dx);
          b.current(i, d) = x;
        }
      }
#pragma unroll
      for (int j = 0; j < kOutputs; ++j) {
        if (chunk + j < t.count && t.weight(b, chunk + j) > 0) {
          add4<kVector>(t.table.data + t.row(b, chunk + j) * t.table.stride, d, b.dim, update[j]);
        }
      }
    }
  }
}

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

// --- Kernels. ----------------------------------------------------------------------------------

struct Keys {
  std::uint64_t window, negative;
};

template <bool kVector, Mode kMode>
__global__ void __launch_bounds__(kMaxThreads, 2)
    text_kernel(const TextArguments a, const Layout layout, const Keys keys) {
  const Block b(layout, a.scratch, a.dim);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const std::int64_t blocks = gridDim.x, block = blockIdx.x;
  const std::int64_t share = a.count / blocks, rest = a.count % blocks;
  const std::int64_t begin = block * share + (block < rest ? block : rest);
  const std::int64_t end = begin + share + (block < rest ? 1 : 0);
  const int list = static_cast<int>(a.negative) + 1;
  const bool with_loss = a.compute_loss;
  Sum sum;

  for (int s = thread; s < b.slots; s += b.threads) {
    b.slot_word(s) = -1;
    b.slot_uses(s) = 0;
  }
  // From here on survivors are counted from `origin`, the first that this run can meet: 32 bits.
  const std::int64_t origin = begin - a.window;
  const int window = static_cast<int>(a.window);
  const int run = static_cast<int>(end - begin);
  int lo = 0, hi = 0;  // the survivors in the ring: none yet
  for (int k = window; k < window + run; ++k) {
    const std::int64_t at = origin + k;
    const std::int64_t center = a.words[at], position = a.positions[at];
    const int before = static_cast<int>(least(at - a.first[at], window));
    const int after = static_cast<int>(least(a.last[at] - at - 1, window));
    const int new_lo = k - before, new_hi = k + after + 1;
    __syncthreads();  // The last center is done with what is shared.
    if (thread < kWarp) {
      plan_move(b, a.words + origin, lo, hi, new_lo, new_hi, lane);
      int reach = window;
      if (a.shrink_windows) {
        const std::uint64_t bits = draw(keys.window, static_cast<std::uint64_t>(position));
        reach = 1 + static_cast<int>(below(bits, a.window));
      }
      const int start = k - (before < reach ? before : reach);
      const int stop = k + (after < reach ? after : reach) + 1;
      for (int s = lane; s < b.slots; s += kWarp) b.multiplicity(s) = 0;
      __syncwarp();
      for (int p = start + lane; p < stop; p += kWarp) {
        if (p != k) atomicAdd(&b.multiplicity(b.slot_of(p % b.slots)), 1);
      }
      if (lane == 0) {
        b.span(0) = start;
        b.span(1) = stop;
        const double done =
            static_cast<double>(a.words_before + position) / static_cast<double>(a.words_total);
        const double rate = a.alpha + (a.min_alpha - a.alpha) * done;
        const double floor = a.alpha < a.min_alpha ? a.alpha : a.min_alpha;
        b.rate() = static_cast<float>(rate > floor ? rate : floor);
      }
    }
    // Entry j of the list for the steps numbered n: position, or position and place in the window.
    const auto draw_entry = [&](std::uint64_t n, int j) -> long long {
      if (j == 0) return center;
      const std::uint64_t counter =
          n * static_cast<std::uint64_t>(a.negative) + static_cast<std::uint64_t>(j - 1);
      return draw_negative(draw(keys.negative, counter), center, a.alias, a.vocabulary);
    };
    if (kMode != Mode::kPair && a.negative) {
      for (int j = thread; j < list; j += b.threads) {
        b.listed_word(j) = draw_entry(static_cast<std::uint64_t>(position), j);
      }
    }
    __syncthreads();
    lo = new_lo;
    hi = new_hi;
    run_commands<kVector>(b, a.inputs);
    const int start = b.span(0), stop = b.span(1);
    if (stop - start < 2) continue;  // nobody around; the same for every thread
    const float rate = b.rate();
    const int pairs = stop - start - 1;
    const auto survivor_of = [&](int i) { return start + i + (start + i >= k ? 1 : 0); };
    if (kMode == Mode::kPair && a.negative) {
      const std::uint64_t places = 2 * static_cast<std::uint64_t>(a.window) + 1;
      for (int e = thread; e < pairs * list; e += b.threads) {
        const int place = survivor_of(e / list) - k + window;
        b.listed_word(e) = draw_entry(
            static_cast<std::uint64_t>(position) * places + static_cast<std::uint64_t>(place),
            e % list);
      }
      __syncthreads();
    }
    if (a.negative) weigh(b, kMode == Mode::kPair ? pairs : 1, list);
    __syncthreads();
    if (a.tree.data) {
      const std::int64_t from = a.path_offsets[center];
      const Targets path{a.tree, static_cast<int>(a.path_offsets[center + 1] - from), 0,
                         a.path_nodes + from, a.path_codes + from};
      step<kVector, kMode == Mode::kCbow>(b, path, a.cbow_mean, rate, with_loss, sum);
    }
    if (a.negative == 0) continue;
    if (kMode == Mode::kPair) {
      const auto slot_of = [&](int i) { return b.slot_of(survivor_of(i) % b.slots); };
      pair_group<kVector, false>(b, a.outputs, pairs, list, slot_of, rate, with_loss, sum);
    } else {
      const Targets words{a.outputs, list, 0, nullptr, nullptr};
      step<kVector, kMode == Mode::kCbow>(b, words, a.cbow_mean, rate, with_loss, sum);
    }
  }
  __syncthreads();
  if (thread < kWarp) plan_move(b, a.words + origin, lo, hi, hi, hi, lane);
  __syncthreads();
  run_commands<kVector>(b, a.inputs);
  add_loss(a.loss, sum);
}

// A run of pairs; the row of a center stays on chip while pairs of the same center follow.
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
  const float rate = static_cast<float>(a.alpha);
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

__global__ void mark_kernel(const std::int32_t* tokens, const float* keep, std::uint8_t* mask,
                            std::int64_t start, std::int64_t count, std::int64_t first_position,
                            std::uint64_t key) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const std::uint64_t bits = draw(key, static_cast<std::uint64_t>(first_position + start + i));
    const float u = static_cast<float>(static_cast<std::uint32_t>(bits >> 40)) * (1.f / 16777216.f);
    mask[i] = u < keep[tokens[start + i]] ? 1 : 0;
  }
}

// --- Host side. --------------------------------------------------------------------------------

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // Reported here; not again by somebody else's next call.
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

bool aligned(const Table& t) {
  return t.data == nullptr ||
         (reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride % 4 == 0);
}

int threads_for(std::int64_t dim) {
  const std::int64_t groups = (dim + 3) / 4;
  return static_cast<int>(
      std::min<std::int64_t>((groups + kWarp - 1) / kWarp * kWarp, kMaxThreads));
}

// Puts the ring and the scores on chip where they fit, and counts.
Plan lay_out(Layout& l, int threads, bool many_chunks) {
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

using TextKernel = void (*)(TextArguments, Layout, Keys);
using PairsKernel = void (*)(PairsArguments, Layout);

template <bool kVector>
TextKernel text_kernel_of(Mode mode) {
  switch (mode) {
    case Mode::kPair:
      return text_kernel<kVector, Mode::kPair>;
    case Mode::kCbow:
      return text_kernel<kVector, Mode::kCbow>;
    default:
      return text_kernel<kVector, Mode::kWindow>;
  }
}

TextKernel kernel_of(const TextArguments& a) {
  const bool vector = aligned(a.inputs) && aligned(a.outputs) && aligned(a.tree);
  return vector ? text_kernel_of<true>(a.mode) : text_kernel_of<false>(a.mode);
}

PairsKernel kernel_of(const PairsArguments& a) {
  return aligned(a.inputs) && aligned(a.outputs) ? pairs_kernel<true> : pairs_kernel<false>;
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

void check_sizes(std::int64_t dim, std::int64_t count, std::int64_t negative) {
  if (dim < 1 || dim > (1 << 30) || count < 0 || negative < 0 || negative > (1 << 24)) {
    throw std::invalid_argument(
        "skipgram on CUDA: expected 1 <= dim <= 2^30, count >= 0 and 0 <= negative <= 2^24, got " +
        std::to_string(dim) + ", " + std::to_string(count) + ", " + std::to_string(negative));
  }
}

Plan plan_with(const TextArguments& a, Layout& l) {
  check_sizes(a.dim, a.count, a.negative);
  if (a.window < 1 || a.window > (1 << 24)) {
    throw std::invalid_argument("skipgram on CUDA: expected 1 <= window <= 2^24, got " +
                                std::to_string(a.window));
  }
  l.slots = 2 * a.window + 1;
  l.row = up_to_4(a.dim);
  const std::int64_t list = a.negative ? a.negative + 1 : 0;
  const bool tree = a.tree.data != nullptr;
  bool many_chunks = tree;
  if (a.mode == Mode::kPair) {
    const std::int64_t pairs = 2 * a.window;
    l.inputs = tree ? l.slots : 0;
    l.scored = std::max(l.inputs, pairs * ((list + kOutputs - 1) / kOutputs));
    l.listed = pairs * list;
  } else {
    l.inputs = a.mode == Mode::kCbow ? 1 : l.slots;
    l.scored = l.inputs;
    l.listed = list;
    many_chunks |= list > kOutputs;
  }
  Plan plan = lay_out(l, threads_for(a.dim), many_chunks);
  choose_blocks(plan, kernel_of(a), a.count, a.blocks);
  return plan;
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

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "CUDA device");
  if (device != before_) {
    check(cudaSetDevice(device), "CUDA device");
    changed_ = true;
  }
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

Plan plan(const TextArguments& a) {
  Layout layout;
  return plan_with(a, layout);
}

Plan plan(const PairsArguments& a) {
  Layout layout;
  return plan_with(a, layout);
}

void train(const TextArguments& a, Stream stream) {
  Layout layout;
  const Plan plan = plan_with(a, layout);
  if (a.count == 0) return;
  check_scratch(plan, a);
  const Keys keys{stream_key(a.seed, a.epoch, kWindow), stream_key(a.seed, a.epoch, kNegative)};
  launch(kernel_of(a), plan, stream, a, layout, keys);
}

void train(const PairsArguments& a, Stream stream) {
  Layout layout;
  const Plan plan = plan_with(a, layout);
  if (a.count == 0) return;
  check_scratch(plan, a);
  launch(kernel_of(a), plan, stream, a, layout);
}

void mark_survivors(const std::int32_t* tokens, const float* keep, std::uint8_t* mask,
                    std::int64_t start, std::int64_t count, std::int64_t first_position,
                    std::uint64_t seed, std::uint64_t epoch, Stream stream) {
  if (count <= 0) return;
  Plan plan;
  plan.threads = kMaxThreads;
  plan.blocks = std::min<std::int64_t>((count + kMaxThreads - 1) / kMaxThreads, 1 << 16);
  launch(mark_kernel, plan, stream, tokens, keep, mask, start, count, first_position,
         stream_key(seed, epoch, kSubsample));
}

}  // namespace vecsmith::cuda
