// Rows of tables by index, pooled over bags, and the updates of the touched rows: the jobs that the
// drivers (embedding_bag_driver.h) hand to the kernels
// (embedding_bag.kernel.cpp). Formulas: python/vecsmith/reference/embedding_bag.py.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "cpu/rows.h"

namespace vecsmith {

// The numbers of ops/embedding_bag.py.
enum BagMode : int32_t { kNone = 0, kSum = 1, kMean = 2, kMax = 3 };

// Which rows, and how they are pooled: bag b is the positions bag_begin(b) .. bag_begin(b + 1).
struct Bags {
  const void* indices;  // int64_t, or int32_t, [count]
  bool wide;            // int64_t; also that of `offsets`
  int64_t count;
  const void* offsets;  // [offset_count], or null: bags of `length`
  int64_t offset_count;
  int64_t bags;
  int64_t length;
  const void* weights;  // per sample, or null
  ElementType weight_type;
  BagMode mode;
  int64_t padding;  // left out; -1: none
  int64_t rows;     // of the table

  int64_t offset(int64_t i) const {
    return wide ? static_cast<const int64_t*>(offsets)[i] : static_cast<const int32_t*>(offsets)[i];
  }
  int64_t index(int64_t i) const {
    return wide ? static_cast<const int64_t*>(indices)[i] : static_cast<const int32_t*>(indices)[i];
  }
  int64_t bag_begin(int64_t bag) const {
    if (offset_count < 0) return bag * length;
    return bag < offset_count ? offset(bag) : count;
  }
  // Positions in bags: what stands behind the last one is left out.
  int64_t samples() const { return mode == kNone ? count : bags ? bag_begin(bags) : 0; }
};

struct BagForward {
  Bags bags;
  Rows table;
  void* out;           // [bags, dim] of the table's type, or float for a quantized table
  int64_t* positions;  // [bags, dim], with kMax
};

// Samples are gathered in blocks: so many addresses are made at once, and a block's rows are asked
// for while the one before it is summed.
constexpr int64_t kBagBlock = 512;

// A stretch of a bag within a block.
struct BagPiece {
  int64_t bag;
  int32_t begin, end;   // of the block's samples
  int32_t first, last;  // whether the bag begins, and ends, with it
};

constexpr int64_t kBagAhead = 32;  // the most rows that are asked for ahead

struct BagBlock {
  const char* row[kBagBlock + kBagAhead];  // behind its own, the first of the next block
  int32_t position[kBagBlock];             // relative to `base`
  float weight[kBagBlock];
  BagPiece piece[kBagBlock];
  int64_t samples, pieces, base;
};

struct BagScratch {
  BagBlock block[2];
  float* sum;    // [dim in whole vectors], of a bag that goes on in the next block
  int64_t kept;  // entries so far of that bag
  int64_t bad;   // where an index is out of range; -1: nowhere
};

// A rule of ops/_update_rule.py, or where the sums go.
enum RuleKind : int32_t {
  kStore,    // values[u] = g
  kScatter,  // values[row] = g
  kSgd,
  kMomentum,
  kAdagrad,
  kRowwiseAdagrad,
  kAdam,
  kRowwiseAdam
};

struct Rule {
  RuleKind kind;
  float rate, eps;
  float blend1, blend2;   // 1 - beta
  float momentum, fresh;  // fresh: 1 - dampening
  bool nesterov;
  float decay;
  bool maximize;
};

// One sample of a sorted list. source: its bag, or its position where more than the bag's gradient
// is needed (weights per sample, maxima).
struct SortedSample {
  uint32_t source, row;
};

struct BagUpdate {
  Bags bags;
  Rows grad;  // [bags, dim]
  const int64_t* positions;
  Rows table;  // changed in place; of kStore and kScatter where the sums are written
  float* state[2];
  Rule rule;
  int64_t first_row;           // of the table: what a sample's row is counted from
  const SortedSample* sorted;  // by row, and within a row by position
  const int32_t* bag_of;       // [count], or null where a sample's source is the bag
  const float* bag_scale;      // [bags], 1 / size, or null
  const uint32_t* begins;      // [segments + 1]: where each row's samples begin
  int64_t segments;
  int64_t* row_ids;  // [segments], with kStore
  // Rows of more than kLongSegment samples are summed in parts of so many, whoever sums them.
  const int64_t* part_of;    // [long rows + 1] first part of each
  const int64_t* long_rows;  // [long rows], ascending segments
  int64_t long_count;
  float* parts;  // [parts, padded dim]
  int64_t part_stride;
};

constexpr int64_t kLongSegment = 1024;

VECSMITH_DECLARE_KERNEL(
    // Bags first .. last-1, until an index is out of range (scratch.bad).
    void embedding_bag_forward(const BagForward& job, int64_t first, int64_t last,
                               BagScratch& scratch);
    // Segments first .. last-1; `sum` has room for the job's padded dim.
    void embedding_bag_update(const BagUpdate& job, int64_t first, int64_t last, float* sum);
    // The sum of sorted samples first .. last-1 (of one row).
    void embedding_bag_part(const BagUpdate& job, int64_t first, int64_t last, float* sum);
    // out[n] = <grad[bag(n)], table[index(n)]> for the positions of bags first .. last-1.
    void embedding_bag_dots(const Bags& bags, const Rows& grad, const Rows& table, int64_t first,
                            int64_t last, void* out, ElementType type);
    // Samples first .. last-1 whose rows are in low .. low+span-1: how many, and (with `positions`)
    // their positions and rows; up to 16 more than there are may be written.
    int64_t embedding_bag_select(const Bags& bags, int64_t first, int64_t last, uint32_t low,
                                 uint32_t span, uint32_t* positions, uint32_t* rows);
    // The first of samples first .. last-1 that is no row of the table; -1 if there is none.
    int64_t embedding_bag_bad(const Bags& bags, int64_t first, int64_t last);
    // Whether all are finite.
    bool all_finite(const void* values, ElementType type, int64_t count))

}  // namespace vecsmith
