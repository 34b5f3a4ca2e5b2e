// word2vec's training step on the CPU (formulas: python/vecsmith/reference/skipgram.py).
//
// A *step* has m input rows and n output rows: a window's contexts against its center and negatives
// (6 x 6 on average), one context against its own, CBOW's mean against them, or the contexts
// against a path of the Huffman tree. All of them run through the same three passes:
//
//   1. scores   all m x n inner products, two inputs x up to six outputs at a time in registers,
//   folded
//               together four at a time;
//   2. sigmoid  over the m x n scores at once, exact (no table), with the loss beside it;
//   3. update   blocked over the dimension: the output rows and their updates stay in registers
//   while each
//               input row is read, updated and written once.
//
// Steps are *planned* in blocks of centers (windows and negatives drawn, ids laid out, rows that
// come twice merged) one block ahead of training, so that the rows of the steps to come are fetched
// while a step runs. Scores and updates can be confined to a range of columns: so a pipeline of
// workers, each owning columns, trains the same steps (skipgram_lagged).
//
// What bounds it: 3 m n D multiply-adds a step (10,800 at D = 100) and, once D is a few hundred or
// the tables outgrow the cache, m/6 + n rows read and written. No STL here: see simd.h.
#include "cpu/skipgram.h"

#include <time.h>

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr int kRedraws = 32;
constexpr int64_t kPublishEvery = 2;
constexpr int kTile = 6;                             // output rows in registers at a time
constexpr int kBlockVectors = kLanes == 16 ? 2 : 1;  // vectors of each row per update block

// --- random draws
// ---------------------------------------------------------------------------------

VECSMITH_INLINE uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

VECSMITH_INLINE uint64_t draw(uint64_t key, uint64_t counter) {
  return mix(key + (counter + 1) * kGolden);
}

VECSMITH_INLINE int32_t sampled_word(const SkipgramJob& job, uint64_t bits) {
  const uint64_t index = ((bits >> 32) * static_cast<uint64_t>(job.vocabulary)) >> 32;
  const int32_t* entry = job.alias + 2 * index;
  // By mask: a branch here is taken at random, and costs more than the draw.
  const int32_t own =
      -static_cast<int32_t>(static_cast<int32_t>((bits & 0xffffffffu) >> 1) < entry[0]);
  return (static_cast<int32_t>(index) & own) | (entry[1] & ~own);
}

// The alias table of a large vocabulary does not stay in the second-level cache.
VECSMITH_INLINE void fetch_alias(const SkipgramJob& job, uint64_t bits) {
  __builtin_prefetch(job.alias + 2 * (((bits >> 32) * static_cast<uint64_t>(job.vocabulary)) >> 32),
                     0, 2);
}

// Merges rows that come twice, in place; `weight` receives how often each came. Returns how many
// are left.
int32_t merge(int32_t* ids, int32_t count, float* weight) {
  int32_t found = 0;
  for (int32_t i = 0; i < count; ++i) {
    int32_t at = 0;
    while (at < found && ids[at] != ids[i]) ++at;
    if (at == found) {
      ids[found] = ids[i];
      weight[found++] = 0;
    }
    weight[at] += 1;
  }
  return found;
}

VECSMITH_INLINE void merge_inputs(SkipgramPlan& plan, int32_t* ids, SkipgramStep& step) {
  float* weight = plan.weights + plan.weight_count;
  step.input_count = merge(ids, step.input_count, weight);
  step.input_weight = weight;
  plan.weight_count += step.input_count;
}

VECSMITH_INLINE void merge_outputs(SkipgramPlan& plan, int32_t* ids, SkipgramStep& step) {
  float* weight = plan.weights + plan.weight_count;
  step.output_count = merge(ids, step.output_count, weight);
  step.output_weight = weight;
  plan.weight_count += step.output_count;
}

// Draws the step's outputs: the positive, then the words of `bits` that differ from it. (Thirty-two
// redraws fail only where hardly any other word exists.)
VECSMITH_INLINE void draw_outputs(const SkipgramJob& job, const uint64_t* bits, int64_t stride,
                                  int32_t positive, SkipgramPlan& plan, SkipgramStep& step) {
  int32_t* ids = plan.ids + plan.id_count;
  int32_t count = 1, same = 0;
  ids[0] = positive;
  for (int32_t k = 0; k < job.negative; ++k) {
    uint64_t b = bits[k * stride];
    int32_t word = sampled_word(job, b);
    for (int again = 0; __builtin_expect(word == positive, 0) && again < kRedraws; ++again) {
      b = mix(b + kGolden);
      word = sampled_word(job, b);
    }
    for (int32_t earlier = 1; earlier < count; ++earlier) same |= ids[earlier] == word;
    ids[count] = word;
    count += word != positive;
  }
  plan.id_count += count;
  step.outputs = ids;
  step.codes = nullptr;
  step.output_count = count;
  step.output_weight = nullptr;
  if (__builtin_expect(same, 0)) merge_outputs(plan, ids, step);
}

// Whether any of the survivors [low, high) equals an earlier one of them.
VECSMITH_INLINE bool repeats(const SkipgramStream& stream, int64_t low, int64_t high) {
  typedef uint8_t bytes __attribute__((vector_size(16)));
  typedef uint8_t bytes_memory __attribute__((vector_size(16), aligned(1), may_alias));
  const int64_t width = high - low;
  if (width > 16) {
    for (int64_t j = 0; j < width; ++j)
      if (stream.repeat[low + j] <= j) return true;
    return false;
  }
  const bytes index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const bytes near = *reinterpret_cast<const bytes_memory*>(stream.repeat + low);
  const bytes end = index - index + static_cast<uint8_t>(width);
  const bytes hit = (bytes)((near <= index) & (index < end));
  uint64_t halves[2];
  __builtin_memcpy(halves, &hit, sizeof halves);
  return (halves[0] | halves[1]) != 0;
}

// --- planning
// -------------------------------------------------------------------------------------

VECSMITH_INLINE float rate_at(const SkipgramJob& job, int64_t position) {
  const double rate = job.rate_start + job.rate_slope * static_cast<double>(position);
  return static_cast<float>(rate > job.rate_least ? rate : job.rate_least);
}

// Copies whole vectors: up to kLanes ids more than asked for are read and written (see
// kSkipgramPadding).
VECSMITH_INLINE void copy_ids(int32_t* to, const int32_t* from, int64_t count) {
  for (int64_t at = 0; at < count; at += kLanes) store(to + at, load(from + at));
}

// Appends a step; `terms` counts its scores before merging.
VECSMITH_INLINE void push(const SkipgramJob& job, SkipgramPlan& plan, SkipgramStep& step,
                          int64_t terms, int32_t group) {
  step.group = group;
  if (group) plan.score_count = 0;
  step.score_at = plan.score_count;
  plan.score_count += static_cast<int64_t>(job.cbow ? 1 : step.input_count) * step.output_count;
  plan.terms += terms;
  plan.steps[plan.step_count++] = step;
}

// Appends the steps of the centers [first, last) of a stream, last - first <= kSkipgramBlock.
void plan_centers(const SkipgramJob& job, const SkipgramStream& stream, int64_t first, int64_t last,
                  SkipgramPlan& plan) {
  const int count = static_cast<int>(last - first);
  const int64_t* position = stream.position + first;
  int32_t reach[kSkipgramBlock];
  for (int c = 0; c < count; ++c) {
    const uint64_t bits = draw(job.key_window, static_cast<uint64_t>(position[c]));
    reach[c] =
        job.shrink_windows
            ? 1 + static_cast<int32_t>(((bits >> 32) * static_cast<uint64_t>(job.window)) >> 32)
            : job.window;
  }
  const bool pairwise = !job.shared_negatives && !job.cbow;
  if (job.negative && !pairwise)
    for (int64_t k = 0; k < job.negative; ++k) {
      uint64_t* bits = plan.bits + k * kSkipgramBlock;
      for (int c = 0; c < count; ++c)
        bits[c] = draw(job.key_negative,
                       static_cast<uint64_t>(position[c]) * static_cast<uint64_t>(job.negative) +
                           static_cast<uint64_t>(k));
      for (int c = 0; c < count; ++c) fetch_alias(job, bits[c]);
    }
  // Drawn for all centers at once; those in which two rows coincide are drawn again with care.
  const bool plain = job.negative && !pairwise && job.negative < kTile;
  int32_t words[kTile][kSkipgramBlock];
  int32_t coincide[kSkipgramBlock] = {};
  if (plain) {
    for (int c = 0; c < count; ++c) words[0][c] = stream.id[first + c];
    for (int k = 0; k < job.negative; ++k) {
      for (int c = 0; c < count; ++c)
        words[k + 1][c] = sampled_word(job, plan.bits[k * kSkipgramBlock + c]);
      for (int earlier = 0; earlier <= k; ++earlier)
        for (int c = 0; c < count; ++c) coincide[c] |= words[k + 1][c] == words[earlier][c];
    }
  }
  const auto low_of = [&](int c) {
    const int64_t k = first + c, least = stream.low[k];
    return k - reach[c] > least ? k - reach[c] : least;
  };
  const auto high_of = [&](int c) {
    const int64_t k = first + c, most = stream.high[k];
    return k + reach[c] + 1 < most ? k + reach[c] + 1 : most;
  };
  // The draws of a center's pairs, a center ahead of their use: the alias table's entries arrive
  // meanwhile.
  const int64_t half = job.max_inputs * job.negative;
  const auto draw_pairs = [&](int c) {
    const uint64_t slots = 2 * static_cast<uint64_t>(job.window) + 1;
    const int64_t k = first + c, low = low_of(c), high = high_of(c);
    uint64_t* bits = plan.bits + (c & 1) * half;
    for (int64_t j = low; j < high; ++j) {
      if (j == k) continue;
      const uint64_t slot = static_cast<uint64_t>(j - k + job.window);
      const uint64_t counter =
          (static_cast<uint64_t>(position[c]) * slots + slot) * static_cast<uint64_t>(job.negative);
      for (int32_t n = 0; n < job.negative; ++n)
        bits[n] = draw(job.key_negative, counter + static_cast<uint64_t>(n));
      for (int32_t n = 0; n < job.negative; ++n) fetch_alias(job, bits[n]);
      bits += job.negative;
    }
  };
  if (count && job.negative && pairwise) draw_pairs(0);
  for (int c = 0; c < count; ++c) {
    const int64_t k = first + c;
    const int32_t center = stream.id[k];
    const int64_t low = low_of(c), high = high_of(c);
    if (job.negative && pairwise && c + 1 < count) draw_pairs(c + 1);
    const int32_t contexts = static_cast<int32_t>(high - low - 1);
    if (contexts == 0) continue;
    const int64_t entering = k + job.window < stream.size ? k + job.window : stream.size - 1;
    int32_t* inputs = plan.ids + plan.id_count;
    copy_ids(inputs, stream.id + low, k - low);
    copy_ids(inputs + (k - low), stream.id + k + 1, high - k - 1);
    plan.id_count += contexts;
    SkipgramStep step;
    step.inputs = inputs;
    step.input_count = contexts;
    step.input_weight = step.output_weight = nullptr;
    step.next_input = stream.id[entering];
    step.alpha = rate_at(job, position[c]);
    const int64_t times = job.cbow ? 1 : contexts;
    if (!job.cbow && (!pairwise || job.path_offsets) && repeats(stream, low, high)) {
      int32_t* merged = inputs;
      if (pairwise) {  // which needs its contexts as they are
        merged = plan.ids + plan.id_count;
        copy_ids(merged, inputs, contexts);
        plan.id_count += contexts;
      }
      step.inputs = merged;
      merge_inputs(plan, merged, step);
    }
    if (job.path_offsets) {
      SkipgramStep path = step;
      path.outputs = job.path_nodes + job.path_offsets[center];
      path.codes = job.path_codes + job.path_offsets[center];
      path.output_count =
          static_cast<int32_t>(job.path_offsets[center + 1] - job.path_offsets[center]);
      path.plain = false;
      // (The path of a vocabulary of one word is empty.)
      if (path.output_count) push(job, plan, path, times * path.output_count, 1);
    }
    if (!job.negative) continue;
    if (!pairwise) {
      if (plain && !coincide[c]) {
        int32_t* outputs = plan.ids + plan.id_count;
        for (int j = 0; j <= job.negative; ++j) outputs[j] = words[j][c];
        step.outputs = outputs;
        step.codes = nullptr;
        step.output_count = job.negative + 1;
        step.plain = !step.input_weight;
        plan.id_count += step.output_count;
        push(job, plan, step, times * step.output_count, 1);
      } else {
        const int64_t before = plan.id_count;
        draw_outputs(job, plan.bits + c, kSkipgramBlock, center, plan, step);
        step.plain = false;
        push(job, plan, step, times * (plan.id_count - before), 1);
      }
      continue;
    }
    // One group of pairs.
    const uint64_t* bits = plan.bits + (c & 1) * half;
    SkipgramStep* const group = plan.steps + plan.step_count;
    bool all_plain = job.negative < kTile;
    step.input_count = 1;
    step.input_weight = nullptr;
    for (int32_t i = 0; i < contexts; ++i) {
      step.inputs = inputs + i;
      step.next_input = inputs[i];
      const int64_t before = plan.id_count;
      draw_outputs(job, bits + i * static_cast<int64_t>(job.negative), 1, center, plan, step);
      all_plain = all_plain && !step.output_weight && step.output_count == job.negative + 1;
      push(job, plan, step, plan.id_count - before, i == 0 ? contexts : 0);
    }
    group->plain = all_plain;
  }
}

// Appends the steps of the given pairs [first, last).
void plan_pairs(const SkipgramJob& job, int64_t first, int64_t last, SkipgramPlan& plan) {
  for (int64_t p = first; p < last; ++p) {
    int32_t* ids = plan.ids + plan.id_count;
    SkipgramStep step;
    step.inputs = ids;
    step.input_count = 1;
    step.input_weight = step.output_weight = nullptr;
    step.next_input = *ids++ = static_cast<int32_t>(job.centers[p]);
    step.outputs = ids;
    step.codes = nullptr;
    step.alpha = static_cast<float>(job.alpha);
    int32_t* const outputs = ids;
    const int32_t positive = static_cast<int32_t>(job.contexts[p]);
    *ids++ = positive;
    int32_t same = 0;
    for (int32_t k = 0; k < job.negative; ++k) {
      const int32_t word = static_cast<int32_t>(job.negatives[p * job.negative + k]);
      for (const int32_t* earlier = outputs + 1; earlier < ids; ++earlier) same |= *earlier == word;
      *ids = word;
      ids += word >= 0 && word != positive;
    }
    const int32_t drawn = step.output_count = static_cast<int32_t>(ids - outputs);
    plan.id_count += drawn + 1;
    if (__builtin_expect(same, 0)) merge_outputs(plan, outputs, step);
    step.plain = !step.output_weight && drawn == job.negative + 1 && job.negative < kTile;
    push(job, plan, step, drawn, 1);
  }
}

void plan_block(const SkipgramJob& job, const SkipgramStream* stream, int64_t first, int64_t last,
                SkipgramPlan& plan) {
  if (stream)
    plan_centers(job, *stream, first, last, plan);
  else
    plan_pairs(job, first, last, plan);
}

VECSMITH_INLINE void clear(SkipgramPlan& plan) {
  plan.step_count = plan.id_count = plan.weight_count = plan.score_count = plan.terms = 0;
}

VECSMITH_INLINE void fetch_row(const float* row, int64_t columns) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < columns * 4; byte += 64) __builtin_prefetch(p + byte, 1, 3);
}

VECSMITH_INLINE void fetch_step(const SkipgramJob& job, const SkipgramStep& step, int64_t first,
                                int64_t last) {
  fetch_row(job.table[kInput] + step.next_input * job.stride[kInput] + first, last - first);
  const int table = step.codes ? kTree : kOutput;
  for (int32_t j = 0; j < step.output_count; ++j)
    fetch_row(job.table[table] + step.outputs[j] * job.stride[table] + first, last - first);
}

// How many steps ahead rows are fetched: windows are long, pairs are short.
VECSMITH_INLINE int64_t steps_ahead(const SkipgramJob& job) {
  return job.tokens && (job.shared_negatives || job.cbow) ? 2 : 3;
}

VECSMITH_INLINE void fetch_ahead(const SkipgramJob& job, const SkipgramPlan& plan,
                                 const SkipgramPlan* next, int64_t later, int64_t first,
                                 int64_t last) {
  if (later < plan.step_count)
    fetch_step(job, plan.steps[later], first, last);
  else if (next && later - plan.step_count < next->step_count)
    fetch_step(job, next->steps[later - plan.step_count], first, last);
}

// --- pass 1: scores
// -------------------------------------------------------------------------------

template <int I, int J>
VECSMITH_INLINE void score_block(const float* const* x, float* const* o, int64_t full, int tail,
                                 float* out) {
  vfloat sum[I * J];
  // The tail first: a tail of four costs half a vector's time, and starts the sums for nothing.
  if (tail == 4) {
    vquarter xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load_as<vquarter>(x[i] + full);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vquarter ov = load_as<vquarter>(o[j] + full);
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] = widen(xv[i] * ov);
    }
  } else if (tail) {
    vfloat xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load_tail(x[i] + full, tail);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vfloat ov = load_tail(o[j] + full, tail);
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] = xv[i] * ov;
    }
  } else {
#pragma GCC unroll 24
    for (int a = 0; a < I * J; ++a) sum[a] = vfloat{};
  }
  for (int64_t at = 0; at < full; at += kLanes) {
    vfloat xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load(x[i] + at);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vfloat ov = in_register(load(o[j] + at));
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] += xv[i] * ov;
    }
  }
#pragma GCC unroll 6
  for (int a = 0; a < I * J; a += 4) {
    const vfloat zero{};
    fold4(sum[a], a + 1 < I * J ? sum[a + 1] : zero, a + 2 < I * J ? sum[a + 2] : zero,
          a + 3 < I * J ? sum[a + 3] : zero, out + a);
  }
}

// scores[i * J + j] = x[i] . o[j]; writes up to three floats beyond the last.
template <int J>
__attribute__((noinline)) void score_tile(const float* const* x, float* const* o, int64_t full,
                                          int tail, int m, float* scores) {
  int i = 0;
  if (kLanes == 16)  // thirty-two registers
    for (; i + 4 <= m; i += 4) score_block<4, J>(x + i, o, full, tail, scores + i * J);
  for (; i + 2 <= m; i += 2) score_block<2, J>(x + i, o, full, tail, scores + i * J);
  if (i < m) score_block<1, J>(x + i, o, full, tail, scores + i * J);
}

// --- pass 2: sigmoid, gradient, loss
// --------------------------------------------------------------
//
// With z = -s for a positive and z = s for a negative output, the loss of a score s is log(1 + e^z)
// and its gradient (label - sigmoid(s)) is sigmoid(z), negative for a negative output. A label is
// the sign bit that turns s into z.

constexpr int32_t kPositive = INT32_MIN, kNegative = 0;

// The losses are log(1 + e^z) = max(z, 0) + log(1 + e^-|z|): the first parts are summed, and of the
// second the arguments (in [1, 2]) are multiplied, so that a logarithm is taken only once in a
// while.
struct Loss {
  vfloat sum = vfloat{}, product = vfloat{} + 1.0f;
  int pending = 0;

  VECSMITH_METHOD void add(vfloat z, vfloat t) {
    sum += max(z, splat(0.0f));
    product *= t + 1.0f;
  }

  // Before `count` more vectors: a product of at most 2^96, and sums of few terms.
  VECSMITH_METHOD void settle(double& loss, int count) {
    if (pending + count > 96) flush(loss);
    pending += count;
  }

  __attribute__((noinline)) void flush(double& loss) {
    const vdouble all = __builtin_convertvector(sum, vdouble) +
                        __builtin_convertvector(log_above_one(product), vdouble);
    for (int lane = 0; lane < kLanes; ++lane) loss += all[lane];
    sum = splat(0.0f);
    product = splat(1.0f);
    pending = 0;
  }
};

// Turns scores into alpha * (label - sigmoid(score)), times `weight` if that is not null. `count`
// is padded to whole vectors by scores and labels that contribute nothing.
template <bool kLoss, bool kWeighted>
VECSMITH_INLINE void gradients(float* score, const int32_t* label, const float* weight,
                               int64_t count, float alpha, Loss& loss, double& total) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const vint sign = load(label + at);
    const vfloat z = (vfloat)((vint)load_fours(score + at) ^ sign);
    const vfloat t = exp_negative(max(-abs(z), splat(-87.0f)));
    const vfloat p = (z >= 0.0f ? splat(1.0f) : t) * reciprocal(t + 1.0f);
    vfloat scaled = p * -alpha;
    if (kWeighted) scaled *= load(weight + at);
    store(score + at, (vfloat)((vint)scaled ^ sign));
    if (kLoss && !kWeighted) {
      loss.settle(total, 1);
      loss.add(z, t);
    }
    if (kLoss && kWeighted) {
      const vdouble terms = __builtin_convertvector(
          load(weight + at) * (max(z, splat(0.0f)) + log_above_one(t + 1.0f)), vdouble);
      for (int lane = 0; lane < kLanes; ++lane) total += terms[lane];
    }
  }
}

// --- pass 3: update
// -------------------------------------------------------------------------------

enum Update {
  kInPlace,    // inputs and outputs are changed where they are
  kAccumulate  // outputs in place; the inputs' updates are added to rows of their own
};

template <class Vec, int J, int V, Update U, bool T>
VECSMITH_INLINE void update_block(const float* const* x, float* const* dx, float* const* o,
                                  int64_t at, int tail, int m, const float* g) {
  constexpr int kStep = sizeof(Vec) / sizeof(float);
  const auto get = [&](const float* row, int v) {
    if constexpr (T)
      return load_tail(row + at, tail);
    else
      return load_as<Vec>(row + at + v * kStep);
  };
  const auto put = [&](float* row, int v, Vec value) {
    if constexpr (T)
      store_tail(row + at, value, tail);
    else
      store_as<Vec>(row + at + v * kStep, value);
  };
  Vec ov[J][V], dv[J][V];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) dv[j][v] = ov[j][v] = get(o[j], v);
  for (int i = 0; i < m; ++i) {
    Vec xv[V], nv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      xv[v] = get(x[i], v);
      nv[v] = U == kInPlace ? xv[v] : get(dx[i], v);
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const Vec gv = g[i * J + j] - Vec{};
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        dv[j][v] += gv * xv[v];
        nv[v] += gv * ov[j][v];
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) put(dx[i], v, nv[v]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) put(o[j], v, dv[j][v]);
}

// o[j] += sum_i g[i * J + j] x[i];  dx[i] += sum_j g[i * J + j] o[j], from the values before.
template <int J, Update U>
__attribute__((noinline)) void update_tile(const float* const* x, float* const* dx, float* const* o,
                                           int64_t full, int tail, int m, const float* g) {
  int64_t at = 0;
  for (; at + kBlockVectors * kLanes <= full; at += kBlockVectors * kLanes)
    update_block<vfloat, J, kBlockVectors, U, false>(x, dx, o, at, tail, m, g);
  for (; at < full; at += kLanes) update_block<vfloat, J, 1, U, false>(x, dx, o, at, tail, m, g);
  if (tail == 4)
    update_block<vquarter, J, 1, U, false>(x, dx, o, at, tail, m, g);
  else if (tail)
    update_block<vfloat, J, 1, U, true>(x, dx, o, at, tail, m, g);
}

void score_any(int n, const float* const* x, float* const* o, int64_t full, int tail, int m,
               float* s) {
  switch (n) {
    case 1:
      return score_tile<1>(x, o, full, tail, m, s);
    case 2:
      return score_tile<2>(x, o, full, tail, m, s);
    case 3:
      return score_tile<3>(x, o, full, tail, m, s);
    case 4:
      return score_tile<4>(x, o, full, tail, m, s);
    case 5:
      return score_tile<5>(x, o, full, tail, m, s);
    default:
      return score_tile<6>(x, o, full, tail, m, s);
  }
}

template <Update U>
void update_any(int n, const float* const* x, float* const* dx, float* const* o, int64_t full,
                int tail, int m, const float* g) {
  switch (n) {
    case 1:
      return update_tile<1, U>(x, dx, o, full, tail, m, g);
    case 2:
      return update_tile<2, U>(x, dx, o, full, tail, m, g);
    case 3:
      return update_tile<3, U>(x, dx, o, full, tail, m, g);
    case 4:
      return update_tile<4, U>(x, dx, o, full, tail, m, g);
    case 5:
      return update_tile<5, U>(x, dx, o, full, tail, m, g);
    default:
      return update_tile<6, U>(x, dx, o, full, tail, m, g);
  }
}

// --- a step
// ---------------------------------------------------------------------------------------

// The columns a phase works on, cut into whole vectors and a tail.
struct Columns {
  int64_t first, full;
  int tail;

  static VECSMITH_METHOD Columns of(int64_t first, int64_t last) {
    const int64_t full = (last - first) / kLanes * kLanes;
    return {first, full, static_cast<int>(last - first - full)};
  }
};

// Tiles of outputs, of almost equal width.
VECSMITH_INLINE int tile_count(int n) { return (n + kTile - 1) / kTile; }
VECSMITH_INLINE int tile_start(int n, int tiles, int tile) { return tile * n / tiles; }

// The rows of a step at the given columns; returns the number of inputs that meet the outputs.
// CBOW's h is gathered into the scratch.
VECSMITH_INLINE int gather(const SkipgramJob& job, const SkipgramStep& step, Columns columns,
                           SkipgramScratch& scratch) {
  const int table = step.codes ? kTree : kOutput;
  float* const input = job.table[kInput] + columns.first;
  float* const output = job.table[table] + columns.first;
  for (int j = 0; j < step.output_count; ++j)
    scratch.output_rows[j] = output + step.outputs[j] * job.stride[table];
  const int m = step.input_count;
  for (int i = 0; i < m; ++i) {
    float* row = input + step.inputs[i] * job.stride[kInput];
    scratch.input_rows[i] = row;
    scratch.input_updates[i] = row;
  }
  return m;
}

// h = the mean or sum of the step's input rows, into `hidden`.
VECSMITH_INLINE void gather_hidden(const SkipgramJob& job, const SkipgramStep& step,
                                   Columns columns, const SkipgramScratch& scratch, float* hidden) {
  const int m = step.input_count;
  const float scale = job.cbow_mean ? 1.0f / static_cast<float>(m) : 1.0f;
  for (int64_t at = 0; at < columns.full; at += kLanes) {
    vfloat sum{};
    for (int i = 0; i < m; ++i) sum += load(scratch.input_rows[i] + at);
    store(hidden + at, sum * scale);
  }
  if (columns.tail) {
    vfloat sum{};
    for (int i = 0; i < m; ++i)
      sum += load_tail(scratch.input_rows[i] + columns.full, columns.tail);
    store_tail(hidden + columns.full, sum * scale, columns.tail);
  }
}

// Pass 1 over the given columns. The scores of a tile are laid out together.
VECSMITH_INLINE void step_scores(const SkipgramJob& job, const SkipgramStep& step, Columns columns,
                                 SkipgramScratch& scratch, float* scores) {
  int m = gather(job, step, columns, scratch);
  const float* const* x = scratch.input_rows;
  const float* hidden = scratch.row;
  if (job.cbow) {
    gather_hidden(job, step, columns, scratch, scratch.row);
    x = &hidden;
    m = 1;
  }
  const int n = step.output_count, tiles = tile_count(n);
  for (int tile = 0; tile < tiles; ++tile) {
    const int start = tile_start(n, tiles, tile), wide = tile_start(n, tiles, tile + 1) - start;
    score_any(wide, x, scratch.output_rows + start, columns.full, columns.tail, m, scores);
    scores += m * wide;
  }
}

// Pass 2 over a group: scores become gradients; kSkipgramPadding floats behind them are
// overwritten.
template <bool kLoss>
VECSMITH_INLINE void group_gradients(const SkipgramJob& job, const SkipgramStep* group,
                                     SkipgramScratch& scratch, float* scores, Loss& loss) {
  const SkipgramStep& last = group[group->group - 1];
  const int64_t count =
      last.score_at + static_cast<int64_t>(job.cbow ? 1 : last.input_count) * last.output_count;
  if (__builtin_expect(group->plain, 1)) {
    // The padding's sigmoid is nothing, whatever its label.
    for (int lane = 0; lane < kLanes; ++lane)
      scores[count + lane] = scratch.common_label[count + lane] ? 200.0f : -200.0f;
    return gradients<kLoss, false>(scores, scratch.common_label, nullptr, count, group->alpha, loss,
                                   scratch.loss);
  }
  int32_t* label = scratch.label;
  float* w = scratch.weight;
  for (const SkipgramStep* step = group; step <= &last; ++step) {
    const int m = job.cbow ? 1 : step->input_count, n = step->output_count, tiles = tile_count(n);
    for (int tile = 0; tile < tiles; ++tile) {
      const int start = tile_start(n, tiles, tile), wide = tile_start(n, tiles, tile + 1) - start;
      for (int i = 0; i < m; ++i, label += wide, w += wide)
        for (int j = 0; j < wide; ++j) {
          const bool positive = step->codes ? step->codes[start + j] == 0 : start + j == 0;
          label[j] = positive ? kPositive : kNegative;
          w[j] = (step->input_weight ? step->input_weight[i] : 1.0f) *
                 (step->output_weight ? step->output_weight[start + j] : 1.0f);
        }
    }
  }
  store(label, vint{} + kNegative);
  store(w, splat(0.0f));
  store(scores + count, splat(-200.0f));
  if (group->group == 1 && !group->input_weight && !group->output_weight)
    gradients<kLoss, false>(scores, scratch.label, nullptr, count, group->alpha, loss,
                            scratch.loss);
  else
    gradients<kLoss, true>(scores, scratch.label, scratch.weight, count, group->alpha, loss,
                           scratch.loss);
}

// The labels of an ordinary step (one positive, `negative` negatives), for any number of inputs.
VECSMITH_INLINE void prepare_labels(const SkipgramJob& job, SkipgramScratch& scratch) {
  const int n = job.negative + 1;
  if (tile_count(n) == 1)
    for (int64_t at = 0; at < scratch.score_capacity; ++at)
      scratch.common_label[at] = at % n == 0 ? kPositive : kNegative;
}

// y += scale * x over a row.
VECSMITH_INLINE void add_row(float* y, const float* x, float scale, Columns columns) {
  for (int64_t at = 0; at < columns.full; at += kLanes)
    store(y + at, load(y + at) + load(x + at) * scale);
  if (columns.tail)
    store_tail(y + columns.full,
               load_tail(y + columns.full, columns.tail) +
                   load_tail(x + columns.full, columns.tail) * scale,
               columns.tail);
}

VECSMITH_INLINE void zero_row(float* y, Columns columns) {
  for (int64_t at = 0; at < columns.full + columns.tail; at += kLanes) store(y + at, vfloat{});
}

// Pass 3 over the given columns; the rows have been gathered by pass 1 if `gathered`.
VECSMITH_INLINE void step_update(const SkipgramJob& job, const SkipgramStep& step, Columns columns,
                                 bool gathered, SkipgramScratch& scratch, const float* g) {
  const int n = step.output_count, tiles = tile_count(n), inputs = step.input_count;
  if (!gathered) gather(job, step, columns, scratch);
  if (!job.cbow && tiles == 1)
    return update_any<kInPlace>(n, scratch.input_rows, scratch.input_updates, scratch.output_rows,
                                columns.full, columns.tail, inputs, g);
  const int64_t padded = (job.dim + 15) / 16 * 16;
  const float* hidden = scratch.row;
  float* hidden_update = scratch.row + padded;
  const float* const* x = scratch.input_rows;
  float* const* dx = scratch.input_updates;
  int m = inputs;
  if (job.cbow) {
    if (!gathered) gather_hidden(job, step, columns, scratch, scratch.row);
    zero_row(hidden_update, columns);
    x = &hidden;
    dx = &hidden_update;
    m = 1;
  } else {
    // An input must not change before the last tile has seen it.
    for (int i = 0; i < m; ++i) {
      scratch.input_updates[i] = scratch.accumulator + i * padded;
      zero_row(scratch.input_updates[i], columns);
    }
  }
  for (int tile = 0; tile < tiles; ++tile) {
    const int start = tile_start(n, tiles, tile), wide = tile_start(n, tiles, tile + 1) - start;
    update_any<kAccumulate>(wide, x, dx, scratch.output_rows + start, columns.full, columns.tail, m,
                            g);
    g += m * wide;
  }
  const float share = job.cbow && !job.cbow_mean ? 1.0f / static_cast<float>(inputs) : 1.0f;
  for (int i = 0; i < inputs; ++i)
    add_row(const_cast<float*>(scratch.input_rows[i]), job.cbow ? hidden_update : dx[i], share,
            columns);
}

template <bool kLoss>
void train_range(const SkipgramJob& job, const SkipgramStream* stream, int64_t first, int64_t last,
                 SkipgramScratch& scratch) {
  const Columns columns = Columns::of(0, job.dim);
  const int64_t ahead = steps_ahead(job);
  prepare_labels(job, scratch);
  Loss loss;
  const auto end_of = [&](int64_t from) {
    return from + kSkipgramBlock < last ? from + kSkipgramBlock : last;
  };
  int now = 0;
  int64_t begin = first, planned = end_of(first);
  clear(scratch.plan[0]);
  plan_block(job, stream, first, planned, scratch.plan[0]);
  while (begin < last) {
    const SkipgramPlan& plan = scratch.plan[now];
    SkipgramPlan& next = scratch.plan[1 - now];
    begin = planned;
    planned = end_of(begin);
    clear(next);
    if (begin < last) plan_block(job, stream, begin, planned, next);
    for (int64_t s = 0; s < plan.step_count;) {
      const SkipgramStep* group = plan.steps + s;
      const int32_t size = group->group;
      for (int32_t i = 0; i < size; ++i)
        step_scores(job, group[i], columns, scratch, scratch.score + group[i].score_at);
      // The sigmoids wait for the scores: meanwhile there is time to ask for the rows to come.
      for (int32_t i = 0; i < size; ++i) fetch_ahead(job, plan, &next, s + i + ahead, 0, job.dim);
      group_gradients<kLoss>(job, group, scratch, scratch.score, loss);
      for (int32_t i = 0; i < size; ++i)
        step_update(job, group[i], columns, size == 1, scratch, scratch.score + group[i].score_at);
      s += size;
    }
    scratch.terms += plan.terms;
    now = 1 - now;
  }
  if (kLoss) loss.flush(scratch.loss);
}

// --- the pipeline
// ---------------------------------------------------------------------------------

VECSMITH_INLINE int64_t read(const SkipgramCounter& counter) {
  return __atomic_load_n(&counter.value, __ATOMIC_ACQUIRE);
}

VECSMITH_INLINE void publish(SkipgramCounter& counter, int64_t value) {
  __atomic_store_n(&counter.value, value, __ATOMIC_RELEASE);
}

// Until the counter has reached `value`. A neighbor who was put to sleep may need our processor:
// after half a millisecond we sleep too. (Only to yield would leave two workers that share a
// processor there, taking turns, each too briefly for the system to move one to another processor.)
void wait_for(const SkipgramCounter& counter, int64_t value) {
  for (int spins = 0; read(counter) < value; ++spins) {
#if defined(__x86_64__)
    _mm_pause();
#endif
    if (spins >= 16384) {
      const timespec moment = {0, 20000};
      nanosleep(&moment, nullptr);
    }
  }
}

// One worker's end of a pipeline: the columns of slices [first_slice, last_slice). Every worker
// plans every step for itself, so that nothing but scores is ever waited for.
template <bool kLoss>
struct Pipeline {
  const SkipgramJob& job;
  SkipgramScratch& scratch;
  SkipgramPipeline& shared;
  const int worker, first_slice, last_slice;
  const Columns columns;
  Loss& loss;
  int64_t known[kSkipgramSlices] = {};  // groups that the others are known to have scored

  VECSMITH_METHOD float* scores_of(int64_t group, int slice) const {
    return shared.scores +
           ((group & shared.ring_mask) * shared.slices + slice) * shared.score_stride;
  }

  // The part of the group's inner products that lies in this worker's columns.
  VECSMITH_METHOD void score(const SkipgramStep* group) {
    for (int slice = first_slice; slice < last_slice; ++slice) {
      const Columns part = Columns::of(shared.column[slice], shared.column[slice + 1]);
      float* scores = scores_of(scratch.scored, slice);
      for (int32_t i = 0; i < group->group; ++i)
        step_scores(job, group[i], part, scratch, scores + group[i].score_at);
    }
    // The lines of later scores come back from those who read them last.
    if (shared.team > 1)
      for (int slice = first_slice; slice < last_slice; ++slice)
        for (int line = 0; line < 3; ++line)
          __builtin_prefetch(scores_of(scratch.scored + 3, slice) + 16 * line, 1, 3);
    scratch.groups[scratch.scored & shared.ring_mask] = group;
    // Not every time: each publication costs a journey of the counter's cache line to the others
    // and back.
    if (++scratch.scored % kPublishEvery == 0) publish(shared.scored[worker], scratch.scored);
  }

  // Applies the oldest group to this worker's columns.
  VECSMITH_METHOD void apply() {
    for (int other = 0; other < shared.team; ++other)
      if (other != worker && known[other] <= scratch.applied + 3 &&
          (known[other] = read(shared.scored[other])) <= scratch.applied) {
        publish(shared.scored[worker], scratch.scored);  // they may be waiting for us
        wait_for(shared.scored[other], scratch.applied + 1);
        known[other] = read(shared.scored[other]);
      }
    // The others' scores of a group a little later travel meanwhile.
    for (int other = 0; other < shared.team; ++other)
      if (other != worker && known[other] > scratch.applied + 2)
        for (int slice = other * shared.slices / shared.team;
             slice < (other + 1) * shared.slices / shared.team; ++slice)
          for (int line = 0; line < 3; ++line)
            __builtin_prefetch(scores_of(scratch.applied + 2, slice) + 16 * line, 0, 3);
    const SkipgramStep* group = scratch.groups[scratch.applied & shared.ring_mask];
    const SkipgramStep& last = group[group->group - 1];
    const int64_t count =
        last.score_at + static_cast<int64_t>(job.cbow ? 1 : last.input_count) * last.output_count;
    for (int64_t at = 0; at < count; at += kLanes) {
      vfloat sum = load(scores_of(scratch.applied, 0) + at);
      for (int slice = 1; slice < shared.slices; ++slice)
        sum += load(scores_of(scratch.applied, slice) + at);
      store(scratch.score + at, sum);
    }
    group_gradients<kLoss>(job, group, scratch, scratch.score, loss);
    for (int32_t i = 0; i < group->group; ++i)
      step_update(job, group[i], columns, false, scratch, scratch.score + group[i].score_at);
    ++scratch.applied;
  }

  void run(const SkipgramStream* stream, int64_t first, int64_t last, bool drain) {
    const int64_t ahead = steps_ahead(job) + 1;
    for (int64_t begin = first; begin < last; begin += kSkipgramBlock) {
      // Every block has a group, so `lag` groups behind lie in as many blocks at most.
      SkipgramPlan& plan = scratch.plan[scratch.blocks++ % scratch.plan_count];
      clear(plan);
      plan_block(job, stream, begin, begin + kSkipgramBlock < last ? begin + kSkipgramBlock : last,
                 plan);
      scratch.terms += plan.terms;
      for (int64_t s = 0; s < plan.step_count; s += plan.steps[s].group) {
        for (int32_t i = 0; i < plan.steps[s].group; ++i)
          fetch_ahead(job, plan, nullptr, s + i + ahead, columns.first,
                      columns.first + columns.full + columns.tail);
        score(plan.steps + s);
        if (scratch.scored - scratch.applied > shared.lag) apply();
      }
    }
    if (drain)
      while (scratch.applied < scratch.scored) apply();
    publish(shared.scored[worker], scratch.scored);
  }
};

}  // namespace

void skipgram_survivors(const SkipgramJob& job, int64_t first, int64_t last,
                        SkipgramStream& stream) {
  const int64_t start = stream.size;
  int64_t size = start;
  constexpr int kChunk = 256;
  for (int64_t at = first; at < last; at += kChunk) {
    const int count = static_cast<int>(last - at < kChunk ? last - at : kChunk);
    if (job.keep) {
      // Drawn 256 at a time in a loop of its own, which the compiler turns into vector arithmetic.
      uint32_t bits[kChunk];
      const uint64_t counter = static_cast<uint64_t>(job.first_position + at);
      for (int i = 0; i < count; ++i)
        bits[i] = static_cast<uint32_t>(
            draw(job.key_subsample, counter + static_cast<uint64_t>(i)) >> 40);
      for (int i = 0; i < count; ++i) {
        const int32_t id = job.tokens[at + i];
        stream.id[size] = id;
        stream.position[size] = job.first_position + at + i;
        size += static_cast<float>(static_cast<int32_t>(bits[i])) * 0x1p-24f < job.keep[id];
      }
    } else {
      for (int i = 0; i < count; ++i) {
        stream.id[size] = job.tokens[at + i];
        stream.position[size++] = job.first_position + at + i;
      }
    }
  }
  // A word alone has no window: dropped, so that every survivor of a stream has a step.
  if (size - start < 2) return;
  // The distance back to the same word, where some window can hold both. (What stands before the
  // sentence may be found too: no window reaches it.)
  const int reach = job.cbow ? 0 : job.window <= 8 ? 2 * job.window : -1;
  for (int64_t begin = start; begin < size; begin += kChunk) {
    const int count = static_cast<int>(size - begin < kChunk ? size - begin : kChunk);
    int32_t distance[kChunk];
    // Windows of more than seventeen words look for themselves.
    for (int i = 0; i < count; ++i) distance[i] = reach < 0 ? 0 : 255;
    for (int back = reach; back >= 1; --back)
      for (int i = 0; i < count; ++i)
        distance[i] = stream.id[begin + i - back] == stream.id[begin + i] ? back : distance[i];
    for (int i = 0; i < count; ++i) {
      stream.repeat[begin + i] = static_cast<uint8_t>(distance[i]);
      stream.low[begin + i] = static_cast<int32_t>(start);
      stream.high[begin + i] = static_cast<int32_t>(size);
    }
  }
  stream.size = size;
}

void skipgram_train(const SkipgramJob& job, const SkipgramStream* stream, int64_t first,
                    int64_t last, SkipgramScratch& scratch) {
  if (first == last) return;  // the sentences may have no survivors
  if (job.compute_loss)
    train_range<true>(job, stream, first, last, scratch);
  else
    train_range<false>(job, stream, first, last, scratch);
}

void skipgram_lagged(const SkipgramJob& job, const SkipgramStream* stream, int64_t first,
                     int64_t last, bool drain, SkipgramScratch& scratch, SkipgramPipeline& pipeline,
                     int worker) {
  prepare_labels(job, scratch);
  const int begin = worker * pipeline.slices / pipeline.team;
  const int end = (worker + 1) * pipeline.slices / pipeline.team;
  const Columns columns = Columns::of(pipeline.column[begin], pipeline.column[end]);
  Loss loss;
  // The last worker has the fewest columns.
  if (job.compute_loss && worker == pipeline.team - 1) {
    Pipeline<true>{job, scratch, pipeline, worker, begin, end, columns, loss}.run(stream, first,
                                                                                  last, drain);
    loss.flush(scratch.loss);
  } else {
    Pipeline<false>{job, scratch, pipeline, worker, begin, end, columns, loss}.run(stream, first,
                                                                                   last, drain);
  }
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
