// Planning: the windows and negatives of a block of centers are drawn (SplitMix64, see the
// reference), rows that come twice merged, and the ids laid out as steps. And asking for the rows
// of the steps to come. Included by skipgram.kernel.cpp alone.
#pragma once

#include "cpu/simd.h"
#include "cpu/skipgram.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr int kRedraws = 32;
// Comparing all rows of a step with all others is quick for so many; more go through a table, if it
// is at most half full of them.
constexpr int kFew = 64, kSlotBits = 12, kSlots = 1 << kSlotBits;
constexpr int kTile = 6;  // output rows in registers at a time

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

// Merges rows that come twice by a table of slots: where each row is among those that are left.
int32_t merge_many(int32_t* ids, int32_t count, float* weight) {
  int16_t slots[kSlots];
  for (int i = 0; i < kSlots; ++i) slots[i] = -1;
  int32_t found = 0;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t id = ids[i];
    uint32_t slot = (static_cast<uint32_t>(id) * 0x9E3779B1u) >> (32 - kSlotBits);
    while (slots[slot] >= 0 && ids[slots[slot]] != id) slot = (slot + 1) & (kSlots - 1);
    if (slots[slot] < 0) {
      slots[slot] = static_cast<int16_t>(found);
      ids[found] = id;
      weight[found++] = 0;
    }
    weight[slots[slot]] += 1;
  }
  return found;
}

// Merges rows that come twice, in place; `weight` receives how often each came. Returns how many
// are left.
int32_t merge(int32_t* ids, int32_t count, float* weight) {
  if (count > kFew && count <= kSlots / 2) return merge_many(ids, count, weight);
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

// Of rows that need not come twice: where none does, they have no weights.
VECSMITH_INLINE void merge_outputs(SkipgramPlan& plan, int32_t* ids, SkipgramStep& step) {
  float* weight = plan.weights + plan.weight_count;
  const int32_t found = merge(ids, step.output_count, weight);
  if (found == step.output_count) return;
  step.output_count = found;
  step.output_weight = weight;
  plan.weight_count += found;
}

// Draws the step's outputs: the positive, then the words of `bits` that differ from it. (Thirty-two
// redraws fail only where hardly any other word exists.)
VECSMITH_INLINE void draw_outputs(const SkipgramJob& job, const uint64_t* bits, int64_t stride,
                                  int32_t positive, SkipgramPlan& plan, SkipgramStep& step) {
  int32_t* ids = plan.ids + plan.id_count;
  int32_t count = 1, same = job.negative > kFew;
  ids[0] = positive;
  for (int32_t k = 0; k < job.negative; ++k) {
    uint64_t b = bits[k * stride];
    int32_t word = sampled_word(job, b);
    for (int again = 0; __builtin_expect(word == positive, 0) && again < kRedraws; ++again) {
      b = mix(b + kGolden);
      word = sampled_word(job, b);
    }
    if (job.negative <= kFew)
      for (int32_t earlier = 1; earlier < count; ++earlier) same |= ids[earlier] == word;
    ids[count] = word;
    count += word != positive;
  }
  plan.id_count += count;
  step.outputs = ids;
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

// The window of survivor k: the survivors low .. high-1 of its sentence, without k.
struct Window {
  int64_t k, low, high;

  VECSMITH_METHOD int32_t contexts() const { return static_cast<int32_t>(high - low - 1); }

  static VECSMITH_METHOD Window of(const SkipgramStream& stream, int64_t k, int64_t reach) {
    const int64_t least = stream.low[k], most = stream.high[k];
    return {k, k - reach > least ? k - reach : least, k + reach + 1 < most ? k + reach + 1 : most};
  }
};

// The reduced windows of `count` centers.
VECSMITH_INLINE void draw_reach(const SkipgramJob& job, const int64_t* position, int count,
                                int32_t* reach) {
  for (int c = 0; c < count; ++c) {
    const uint64_t bits = draw(job.key_window, static_cast<uint64_t>(position[c]));
    reach[c] =
        job.shrink_windows
            ? 1 + static_cast<int32_t>(((bits >> 32) * static_cast<uint64_t>(job.window)) >> 32)
            : job.window;
  }
}

// A step with the words of a window as inputs, and no outputs yet.
VECSMITH_INLINE SkipgramStep begin_step(const SkipgramJob& job, const SkipgramStream& stream,
                                        const Window& w, SkipgramPlan& plan) {
  SkipgramStep step;
  int32_t* inputs = plan.ids + plan.id_count;
  copy_ids(inputs, stream.id + w.low, w.k - w.low);
  copy_ids(inputs + (w.k - w.low), stream.id + w.k + 1, w.high - w.k - 1);
  plan.id_count += w.contexts();
  step.inputs = inputs;
  step.input_count = w.contexts();
  step.input_weight = step.output_weight = nullptr;
  step.codes = nullptr;
  const int64_t entering = w.k + job.window < stream.size ? w.k + job.window : stream.size - 1;
  step.next_input = stream.id[entering];
  step.alpha = rate_at(job, stream.position[w.k]);
  step.plain = step.pairs = false;
  return step;
}

// The step of the center's path through the tree, if it has one (that of a vocabulary of one word
// is empty). `step` has its inputs.
VECSMITH_INLINE void plan_path(const SkipgramJob& job, int32_t center, int64_t times,
                               SkipgramStep step, SkipgramPlan& plan) {
  const int64_t begin = job.path_offsets[center];
  step.output_count = static_cast<int32_t>(job.path_offsets[center + 1] - begin);
  int32_t* outputs = plan.ids + plan.id_count;
  for (int32_t j = 0; j < step.output_count; ++j) outputs[j] = job.path_nodes[begin + j];
  plan.id_count += step.output_count;
  step.outputs = outputs;
  step.codes = job.path_codes + begin;
  if (step.output_count) push(job, plan, step, times * step.output_count, 1);
}

// Appends the steps of the centers [first, last) of a stream, last - first <= kSkipgramBlock: of a
// window, or of CBOW.
void plan_windows(const SkipgramJob& job, const SkipgramStream& stream, int64_t first, int64_t last,
                  SkipgramPlan& plan) {
  const int count = static_cast<int>(last - first);
  const int64_t* position = stream.position + first;
  int32_t reach[kSkipgramBlock];
  draw_reach(job, position, count, reach);
  for (int64_t k = 0; k < job.negative; ++k) {
    uint64_t* bits = plan.bits + k * kSkipgramBlock;
    for (int c = 0; c < count; ++c)
      bits[c] = draw(job.key_negative,
                     static_cast<uint64_t>(position[c]) * static_cast<uint64_t>(job.negative) +
                         static_cast<uint64_t>(k));
    for (int c = 0; c < count; ++c) fetch_alias(job, bits[c]);
  }
  // Drawn for all centers at once; those in which two rows coincide are drawn again with care.
  const bool plain = job.negative && job.negative < kTile;
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
  for (int c = 0; c < count; ++c) {
    const Window window = Window::of(stream, first + c, reach[c]);
    if (window.contexts() == 0) continue;
    const int32_t center = stream.id[window.k];
    SkipgramStep step = begin_step(job, stream, window, plan);
    const int64_t times = job.cbow ? 1 : window.contexts();
    if (!job.cbow && repeats(stream, window.low, window.high))
      merge_inputs(plan, const_cast<int32_t*>(step.inputs), step);
    if (job.path_offsets) plan_path(job, center, times, step, plan);
    if (!job.negative) continue;
    if (plain && !coincide[c]) {
      int32_t* outputs = plan.ids + plan.id_count;
      for (int j = 0; j <= job.negative; ++j) outputs[j] = words[j][c];
      step.outputs = outputs;
      step.output_count = job.negative + 1;
      step.plain = !step.input_weight;
      plan.id_count += step.output_count;
      push(job, plan, step, times * step.output_count, 1);
    } else {
      const int64_t before = plan.id_count;
      draw_outputs(job, plan.bits + c, kSkipgramBlock, center, plan, step);
      push(job, plan, step, times * (plan.id_count - before), 1);
    }
  }
}

// Appends the steps of a center's pairs, as one group: one step if nothing coincides in any of
// them. counter: of the draws of the first negative of each; words: the negatives drawn,
// words[k * stride + i].
VECSMITH_INLINE void plan_group(const SkipgramJob& job, int32_t center, SkipgramStep step,
                                bool simple, const uint64_t* counter, const int32_t* words,
                                int64_t stride, SkipgramPlan& plan) {
  const int32_t contexts = step.input_count, negative = job.negative;
  if (simple) {
    int32_t* outputs = plan.ids + plan.id_count;
    step.outputs = outputs;
    step.output_count = negative + 1;
    step.plain = step.pairs = true;
    *outputs++ = center;
    for (int32_t i = 0; i < contexts; ++i)
      for (int32_t k = 0; k < negative; ++k) *outputs++ = words[k * stride + i];
    plan.id_count = outputs - plan.ids;
    return push(job, plan, step, static_cast<int64_t>(contexts) * (negative + 1), 1);
  }
  SkipgramStep* const group = plan.steps + plan.step_count;
  bool plain = negative < kTile;
  const int32_t* const inputs = step.inputs;
  step.input_count = 1;
  for (int32_t i = 0; i < contexts; ++i) {
    step.inputs = inputs + i;
    for (int32_t n = 0; n < negative; ++n)
      plan.bits[n] = draw(job.key_negative, counter[i] + static_cast<uint64_t>(n));
    const int64_t before = plan.id_count;
    draw_outputs(job, plan.bits, 1, center, plan, step);
    plain = plain && !step.output_weight && step.output_count == negative + 1;
    push(job, plan, step, plan.id_count - before, i == 0 ? contexts : 0);
  }
  group->plain = plain;
}

// The same of centers whose pairs have negatives of their own.
void plan_pairwise(const SkipgramJob& job, const SkipgramStream& stream, int64_t first,
                   int64_t last, SkipgramPlan& plan) {
  const int count = static_cast<int>(last - first);
  int32_t reach[kSkipgramBlock];
  draw_reach(job, stream.position + first, count, reach);
  const uint64_t slots = 2 * static_cast<uint64_t>(job.window) + 1;
  const int64_t negative = job.negative, capacity = plan.pair_capacity;
  const bool plain = negative < kTile;
  SkipgramPairs& pairs = plan.pairs;
  for (int begin = 0, end; begin < count; begin = end) {
    // As many centers as there is room for their pairs, drawn together.
    int64_t size = 0;
    for (end = begin; end < count; ++end) {
      const Window w = Window::of(stream, first + end, reach[end]);
      if (size + w.contexts() > capacity) break;
      const uint64_t base =
          static_cast<uint64_t>(stream.position[w.k]) * slots + static_cast<uint64_t>(job.window);
      for (int64_t j = w.low; j < w.high; ++j) {
        pairs.counter[size] =
            (base + static_cast<uint64_t>(j - w.k)) * static_cast<uint64_t>(negative);
        pairs.center[size] = stream.id[w.k];
        size += j != w.k;
      }
    }
    if (plain) {
      for (int64_t i = 0; i < size; ++i) pairs.coincide[i] = 0;
      for (int64_t k = 0; k < negative; ++k) {
        uint64_t* bits = plan.bits + k * capacity;
        for (int64_t i = 0; i < size; ++i)
          bits[i] = draw(job.key_negative, pairs.counter[i] + static_cast<uint64_t>(k));
        for (int64_t i = 0; i < size; ++i) fetch_alias(job, bits[i]);
      }
      for (int64_t k = 0; k < negative; ++k) {
        int32_t* words = pairs.word + k * capacity;
        const uint64_t* bits = plan.bits + k * capacity;
        for (int64_t i = 0; i < size; ++i) words[i] = sampled_word(job, bits[i]);
        for (int64_t i = 0; i < size; ++i) pairs.coincide[i] |= words[i] == pairs.center[i];
        for (const int32_t* earlier = pairs.word; earlier < words; earlier += capacity)
          for (int64_t i = 0; i < size; ++i) pairs.coincide[i] |= words[i] == earlier[i];
      }
    }
    int64_t at = 0;
    for (int c = begin; c < end; ++c) {
      const Window window = Window::of(stream, first + c, reach[c]);
      const int32_t contexts = window.contexts();
      if (contexts == 0) continue;
      const int32_t center = stream.id[window.k];
      const SkipgramStep step = begin_step(job, stream, window, plan);
      if (job.path_offsets) {
        SkipgramStep path = step;
        if (repeats(stream, window.low, window.high)) {  // merged in a copy
          int32_t* merged = plan.ids + plan.id_count;
          copy_ids(merged, step.inputs, contexts);
          plan.id_count += contexts;
          path.inputs = merged;
          merge_inputs(plan, merged, path);
        }
        plan_path(job, center, contexts, path, plan);
      }
      int32_t coincide = !plain;
      for (int64_t i = at; plain && i < at + contexts; ++i) coincide |= pairs.coincide[i];
      plan_group(job, center, step, !coincide, pairs.counter + at, pairs.word + at, capacity, plan);
      at += contexts;
    }
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
    step.pairs = false;
    step.alpha = static_cast<float>(job.alpha);
    int32_t* const outputs = ids;
    const int32_t positive = static_cast<int32_t>(job.contexts[p]);
    *ids++ = positive;
    int32_t same = job.negative > kFew;
    for (int32_t k = 0; k < job.negative; ++k) {
      const int32_t word = static_cast<int32_t>(job.negatives[p * job.negative + k]);
      if (job.negative <= kFew)
        for (const int32_t* earlier = outputs + 1; earlier < ids; ++earlier)
          same |= *earlier == word;
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
  if (!stream)
    plan_pairs(job, first, last, plan);
  else if (job.negative && !job.shared_negatives && !job.cbow)
    plan_pairwise(job, *stream, first, last, plan);
  else
    plan_windows(job, *stream, first, last, plan);
}

VECSMITH_INLINE void clear(SkipgramPlan& plan) {
  plan.step_count = plan.id_count = plan.weight_count = plan.score_count = plan.terms = 0;
}

// Into the second-level cache: requests for the first level queue behind its few line buffers, and
// the processor waits for them (a fifth of the time at D = 300).
VECSMITH_INLINE void fetch_row(const float* row, int64_t columns) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < columns * 4; byte += 64) __builtin_prefetch(p + byte, 0, 2);
}

// Pointers to the rows of a table, or to the worker's own copies of them.
// Eight at a time: up to seven ids more than asked for are read, and as many pointers written.
VECSMITH_INLINE void rows_of(const SkipgramJob& job, const SkipgramHot& hot, int table,
                             const int32_t* ids, int64_t n, float** rows) {
  const int64_t shared = reinterpret_cast<int64_t>(job.table[table]);
  const int64_t copies = reinterpret_cast<int64_t>(hot.row);
  const int64_t stride = 4 * job.stride[table], copy_stride = 4 * hot.stride;
  const uint64_t count = static_cast<uint64_t>(hot.count);
  for (int64_t at = 0; at < n; at += 8) {
    int64_t address[8];
    for (int lane = 0; lane < 8; ++lane) {
      const int64_t id = ids[at + lane], own = id - hot.first;
      const int64_t mask = -static_cast<int64_t>(static_cast<uint64_t>(own) < count);
      const int64_t here = shared + id * stride, there = copies + own * copy_stride;
      address[lane] = here ^ ((here ^ there) & mask);
    }
    __builtin_memcpy(rows + at, address, sizeof address);
  }
}

VECSMITH_INLINE void fetch_step(const SkipgramJob& job, const SkipgramHot* hot,
                                const SkipgramStep& step) {
  float* rows[8];
  const int32_t input[8] = {step.next_input};
  rows_of(job, hot[kInput], kInput, input, 1, rows);
  fetch_row(rows[0], job.dim);
  const int table = step.codes ? kTree : kOutput;
  const int64_t n = output_rows(step);
  for (int64_t at = 0; at < n; at += 8) {
    rows_of(job, hot[table], table, step.outputs + at, 8, rows);
    for (int64_t j = 0; j < 8 && at + j < n; ++j) fetch_row(rows[j], job.dim);
  }
}

// How many steps ahead rows are fetched: one center's pairs are many rows, one given pair is few.
VECSMITH_INLINE int64_t steps_ahead(const SkipgramJob& job) {
  if (!job.offsets) return 3;
  return job.shared_negatives || job.cbow ? 2 : 1;
}

VECSMITH_INLINE void fetch_ahead(const SkipgramJob& job, const SkipgramScratch& scratch,
                                 const SkipgramPlan& plan, const SkipgramPlan* next,
                                 int64_t later) {
  if (later < plan.step_count)
    fetch_step(job, scratch.hot, plan.steps[later]);
  else if (next && later - plan.step_count < next->step_count)
    fetch_step(job, scratch.hot, next->steps[later - plan.step_count]);
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
