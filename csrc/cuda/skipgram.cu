// word2vec's training step on CUDA: what reference/skipgram.py says, windows and negatives drawn on
// the device, context rows kept on chip for their lifetime (after FULL-W2V, Randall et al. 2021).
//
// What it computes
//   Skip-gram and CBOW with negative sampling and hierarchical softmax, in place, from text. Draws
//   are the reference's bit for bit. (From index tensors: skipgram_pairs.cu.)
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
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/skipgram.h"
#include "cuda/skipgram_device.cuh"
#include "cuda/skipgram_launch.cuh"

namespace vecsmith::cuda {
namespace {

// --- Draws. ------------------------------------------------------------------------------------

constexpr int kRedraws = 32;
constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ull;
constexpr std::uint64_t kSubsample = 0, kWindow = 1, kNegative = 2;  // streams

__host__ __device__ inline std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

__host__ __device__ inline std::uint64_t stream_key(std::uint64_t seed, std::uint64_t epoch,
                                                    std::uint64_t stream) {
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

// --- The ring. ---------------------------------------------------------------------------------

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

// --- Kernels. ----------------------------------------------------------------------------------

struct Keys {
  std::uint64_t window, negative;
};

template <bool kVector, Mode kMode>
__global__ void __launch_bounds__(kMaxThreads, 2)
    text_kernel(const TextArguments a, const Layout layout, const Keys given) {
  const Block b(layout, a.scratch, a.dim);
  const std::int64_t* const place = a.place;
  const auto place_key = [&](std::uint64_t stream) {
    return stream_key(static_cast<std::uint64_t>(place[0]), static_cast<std::uint64_t>(place[1]),
                      stream);
  };
  const Keys keys = place ? Keys{place_key(kWindow), place_key(kNegative)} : given;
  const std::int64_t count = a.live ? *a.live : a.count;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const std::int64_t blocks = gridDim.x, block = blockIdx.x;
  const std::int64_t share = count / blocks, rest = count % blocks;
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
        const double alpha = a.rates ? a.rates[0] : a.alpha;
        const double min_alpha = a.rates ? a.rates[1] : a.min_alpha;
        const std::int64_t before_it = place ? place[3] : a.words_before;
        const double done =
            static_cast<double>(before_it + position) / static_cast<double>(a.words_total);
        const double rate = alpha + (min_alpha - alpha) * done;
        const double floor = alpha < min_alpha ? alpha : min_alpha;
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

__global__ void mark_kernel(const std::int32_t* tokens, const float* keep, std::uint8_t* mask,
                            std::int64_t start, std::int64_t count, std::int64_t first_position,
                            std::uint64_t key, const std::int64_t* place) {
  if (place) {
    key = stream_key(static_cast<std::uint64_t>(place[0]), static_cast<std::uint64_t>(place[1]),
                     kSubsample);
    first_position = place[2];
  }
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const std::uint64_t bits = draw(key, static_cast<std::uint64_t>(first_position + start + i));
    const float u = static_cast<float>(static_cast<std::uint32_t>(bits >> 40)) * (1.f / 16777216.f);
    mask[i] = u < keep[tokens[start + i]] ? 1 : 0;
  }
}

// --- Host side. --------------------------------------------------------------------------------

using TextKernel = void (*)(TextArguments, Layout, Keys);

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

void train(const TextArguments& a, Stream stream) {
  Layout layout;
  const Plan plan = plan_with(a, layout);
  if (a.count == 0) return;
  check_scratch(plan, a);
  const Keys keys{stream_key(a.seed, a.epoch, kWindow), stream_key(a.seed, a.epoch, kNegative)};
  launch(kernel_of(a), plan, stream, a, layout, keys);
}

void mark_survivors(const std::int32_t* tokens, const float* keep, std::uint8_t* mask,
                    std::int64_t start, std::int64_t count, std::int64_t first_position,
                    std::uint64_t seed, std::uint64_t epoch, const std::int64_t* place,
                    Stream stream) {
  if (count <= 0) return;
  Plan plan;
  plan.threads = kMaxThreads;
  plan.blocks = std::min<std::int64_t>((count + kMaxThreads - 1) / kMaxThreads, 1 << 16);
  launch(mark_kernel, plan, stream, tokens, keep, mask, start, count, first_position,
         stream_key(seed, epoch, kSubsample), place);
}

}  // namespace vecsmith::cuda
