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
  const int64_t* offsets;       // [sentences + 1]
  int64_t sentences;
  const float* keep;            // [vocabulary] or null
  const int32_t* alias;         // [vocabulary, 2] or null
  const int64_t* path_offsets;  // [vocabulary + 1] or null
  const int32_t* path_nodes;
  const uint8_t* path_codes;
  int32_t window, negative;
  bool cbow, cbow_mean, shrink_windows, shared_negatives;
  double alpha, min_alpha, words_before, words_total;
  uint64_t key_subsample, key_window, key_negative;
  int64_t first_position;

  // The pair form.
  const int64_t *centers, *contexts, *negatives;  // [pairs], [pairs], [pairs, negative]

  bool compute_loss;
  bool frozen;      // mini-batches: updates are collected and applied later
  int64_t max_outputs;  // of one step
};

// The survivors of sub-sampling of one or more sentences.
struct SkipgramStream {
  int64_t size;
  int32_t* id;
  int64_t* position;
  int32_t *low, *high;  // the survivors of k's sentence are low[k] .. high[k]-1
};

// One gradient step: inputs x outputs (see the reference).
struct SkipgramStep {
  const int32_t* inputs;   // rows of the input table
  const int32_t* outputs;  // rows of the output table (tree table if codes)
  const uint8_t* codes;    // hierarchical softmax: label = 1 - code; null: the first output is positive
  int32_t input_count, output_count;
  int64_t first_slot, center_slot;  // frozen: input i is survivor first_slot + i, skipping center_slot
  int32_t next_input;               // a row to fetch ahead of this step
  float alpha;
};

// A block of planned steps and the ids they point into.
struct SkipgramPlan {
  SkipgramStep* steps;
  int32_t* ids;
  uint64_t* bits;
  int32_t step_count;
};

// The updates of one part of a frozen batch: rows of deltas, input slots first.
struct SkipgramUpdates {
  float* deltas;     // [rows, delta_stride]
  int32_t* rows;     // table row of each delta; -1 where nothing was added
  uint8_t* tables;   // SkipgramTable of each delta
  int64_t row_count, slot_count, first_slot, delta_stride, capacity;
  double loss;
  int64_t terms;
};

// What one worker owns.
struct SkipgramScratch {
  SkipgramPlan plan[2];
  const float** input_rows;  // [max inputs]
  float** output_rows;       // [max outputs]
  float** input_updates;     // [max inputs]
  float** output_updates;    // [max outputs]
  float* gradient;           // [inputs * outputs] in tiles, padded
  float* label;
  float* row;                // [2, padded dim]: CBOW's h and its update
  float* accumulator;        // [max inputs, padded dim]: updates over several tiles
  int32_t* unique;           // [2, max(inputs, outputs)]: rows without duplicates; where they came from
  float* weight;             // [2, max(inputs, outputs)]: how often each came
  double loss;
  int64_t terms;
};

constexpr int kSkipgramBlock = 32;  // centers planned at a time

// Appends the survivors of tokens[first, last) (one sentence) to the stream; adds their number to its size.
VECSMITH_DECLARE_KERNEL(void skipgram_survivors(const SkipgramJob& job, int64_t first, int64_t last,
                                                SkipgramStream& stream))

// Trains the centers [first, last) of the stream (or of the pairs, if stream is null), one step after
// another, in place.
VECSMITH_DECLARE_KERNEL(void skipgram_train(const SkipgramJob& job, const SkipgramStream* stream,
                                            int64_t first, int64_t last, SkipgramScratch& scratch))

// The same centers at the tables' present values; the updates go to `updates`.
VECSMITH_DECLARE_KERNEL(void skipgram_collect(const SkipgramJob& job, const SkipgramStream* stream,
                                              int64_t first, int64_t last, SkipgramScratch& scratch,
                                              SkipgramUpdates& updates))

// Adds the deltas' columns [first, last) to the tables, rows of `share` modulo `shares` only.
VECSMITH_DECLARE_KERNEL(void skipgram_apply(const SkipgramJob& job, const SkipgramUpdates& updates,
                                            int64_t first, int64_t last, int64_t share, int64_t shares))

// The driver: the whole call on `threads` workers. result: {loss, terms}.
void skipgram_run(const SkipgramJob& job, int threads, int64_t batch_positions, double* result);
void skipgram_pairs_run(const SkipgramJob& job, int64_t pairs, int threads, int64_t batch_pairs,
                        double* result);

uint64_t skipgram_key(uint64_t seed, uint64_t epoch, uint64_t stream);

}  // namespace vecsmith
