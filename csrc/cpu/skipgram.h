// The skip-gram operator on the CPU: what the driver (skipgram.cpp) and the kernels
// (skipgram.kernel.cpp, once per ISA level) pass to one another. Formulas, the order of updates and
// the random draws: python/vecsmith/reference/skipgram.py.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"

namespace vecsmith {

enum SkipgramTable { kInput = 0, kOutput = 1, kTree = 2 };

// Everything that stays the same during a call. Pointers are borrowed.
struct SkipgramJob {
  float* table[3];    // [vocabulary, dim]; output or tree may be null
  int64_t stride[3];  // of a row, in floats
  int64_t vocabulary, dim;

  // The text form.
  const int32_t* tokens;
  const int64_t* offsets;  // [sentences + 1]
  int64_t sentences;
  const float* keep;            // [vocabulary] or null
  const int32_t* alias;         // [vocabulary, 2] or null
  const int64_t* path_offsets;  // [vocabulary + 1] or null
  const int32_t* path_nodes;
  const uint8_t* path_codes;
  int32_t window, negative;
  bool cbow, cbow_mean, shrink_windows, shared_negatives;
  double alpha;                               // of the pair form
  double rate_start, rate_slope, rate_least;  // alpha(p) = max(start + slope * p, least)
  uint64_t key_subsample, key_window, key_negative;
  int64_t first_position;

  // The pair form.
  const int64_t *centers, *contexts, *negatives;  // [pairs], [pairs], [pairs, negative]

  bool compute_loss;
  int64_t max_inputs, max_outputs;  // of one step; found by the driver
};

// The survivors of sub-sampling of one or more sentences.
struct SkipgramStream {
  int64_t size;
  int32_t* id;
  int64_t* position;
  int32_t *low, *high;  // the survivors of k's sentence are low[k] .. high[k]-1
  uint8_t* repeat;      // how far back the same word stands; 255: nowhere near
};

// One gradient step: inputs x outputs (see the reference). The steps of a group take their scores
// together, before the first of them changes anything.
struct SkipgramStep {
  const int32_t* inputs;   // rows of the input table
  const int32_t* outputs;  // rows of the output table (of the tree table, if there are codes)
  const uint8_t*
      codes;  // hierarchical softmax: label = 1 - code; null: the first output is positive
  const float* input_weight;   // how often each input comes; null: once
  const float* output_weight;  // the same of the outputs
  int64_t score_at;            // where the step's scores begin among its group's
  int32_t input_count, output_count;
  int32_t group;       // steps of the group that begins here; 0: inside a group
  int32_t next_input;  // a row to fetch ahead of this step
  float alpha;
  bool plain;  // the whole group is steps of one positive and all negatives, without weights
  bool pairs;  // a group in one step: input i meets outputs[0] and its own K = output_count - 1
               // negatives, outputs[1 + i K ...], and all of this happens once per i, in order
};

// Pairs whose negatives are drawn together.
struct SkipgramPairs {
  uint64_t* counter;  // of the draw of the first negative of each
  int32_t* center;
  int32_t* word;  // [negative, pair_capacity], as drawn
  int32_t* coincide;
};

// (static: every ISA level has its own.)
static inline int64_t output_rows(const SkipgramStep& step) {
  return step.pairs ? 1 + static_cast<int64_t>(step.input_count) * (step.output_count - 1)
                    : step.output_count;
}

static inline int64_t padded_dim(const SkipgramJob& job) { return (job.dim + 15) / 16 * 16; }

// Planned steps, and the ids they point into.
struct SkipgramPlan {
  SkipgramStep* steps;
  int32_t* ids;
  float* weights;
  uint64_t* bits;       // scratch
  SkipgramPairs pairs;  // scratch
  int64_t pair_capacity;
  int64_t step_count, id_count, weight_count;
  int64_t score_count;  // of the group being planned
  int64_t terms;        // in the loss
};

// A worker's own copies of rows that others change too: ids first .. first + count - 1 mean these.
// Lock-free workers have copies of consecutive rows, at the end of the table where the frequent
// words (or the tree's root) are; the ids of a shard's copies stand behind those of the table.
struct SkipgramHot {
  int64_t first, count, stride;
  float* row;   // [count]: what this worker trains
  float* base;  // [count]: the shared rows as they were when last merged (lock-free workers)
};

// What one worker owns.
struct SkipgramScratch {
  SkipgramHot hot[3];     // of each table; count = 0 if there are none
  SkipgramPlan* plan;     // blocks in turn
  int64_t planned;        // of them, those that skipgram_plan filled
  float** input_rows;     // [max inputs], and room behind it
  float** output_rows;    // [max outputs, of pairs together], likewise
  float** input_updates;  // [max inputs]: rows of the accumulator
  float* score;           // of a group, padded
  int32_t* label;
  float* weight;
  int32_t* common_label;  // of plain groups
  int64_t score_capacity;
  float* row;          // [2, padded dim]: CBOW's h and its update
  float* accumulator;  // [max inputs, padded dim]: updates over several tiles
  double loss;
  int64_t terms;
};

constexpr int kSkipgramBlock = 32;    // centers planned at a time
constexpr int kSkipgramPairs = 64;    // pairs whose negatives are drawn at a time, at least
constexpr int kSkipgramPadding = 32;  // what may be written behind a group's scores, a plan's ids

// Appends the survivors of tokens[first, last) (one sentence) to the stream; adds their number to
// its size.
VECSMITH_DECLARE_KERNEL(void skipgram_survivors(const SkipgramJob& job, int64_t first, int64_t last,
                                                SkipgramStream& stream))

// Trains the centers [first, last) of the stream (or of the pairs, if stream is null), one step
// after another, in place.
VECSMITH_DECLARE_KERNEL(void skipgram_train(const SkipgramJob& job, const SkipgramStream* stream,
                                            int64_t first, int64_t last, SkipgramScratch& scratch))

// Plans the centers [first, last) without training them, and trains what was planned. In between
// the ids may be changed: hot[t].first + k is row k of the copies of table t.
VECSMITH_DECLARE_KERNEL(void skipgram_plan(const SkipgramJob& job, const SkipgramStream* stream,
                                           int64_t first, int64_t last, SkipgramScratch& scratch))
VECSMITH_DECLARE_KERNEL(void skipgram_train_planned(const SkipgramJob& job,
                                                    SkipgramScratch& scratch))

// row += weight * sum_c (copies[c] - row)
VECSMITH_DECLARE_KERNEL(void skipgram_combine(const SkipgramJob& job, int table, int64_t id,
                                              const float* const* copies, int count, float weight))

// Merges the rows [first, last) of the worker's own copies with the shared ones:
// shared += weight * (own - base); own = base = shared, weight[0] for the first. One worker at a
// time.
VECSMITH_DECLARE_KERNEL(void skipgram_merge(const SkipgramJob& job, int table, int64_t first,
                                            int64_t last, const float* weight, SkipgramHot& hot))

// The driver: the whole call on `threads` workers. sync: centers (or pairs) of each shard between
// two merges; 0: no shards, no locks. result: {loss, terms}.
void skipgram_run(const SkipgramJob& job, int threads, int64_t sync, double* result);
void skipgram_pairs_run(const SkipgramJob& job, int64_t pairs, int threads, int64_t sync,
                        double* result);

uint64_t skipgram_key(uint64_t seed, uint64_t epoch, uint64_t stream);

}  // namespace vecsmith
