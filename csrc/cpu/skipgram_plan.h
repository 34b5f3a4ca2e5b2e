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

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
