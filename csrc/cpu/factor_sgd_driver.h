// The driver of stochastic gradient descent on factors: blocks of cells, their order, threads.
#pragma once

#include "cpu/factor_sgd.h"

namespace vecsmith {

// A matrix of blocks: of bands of rows and bands of columns, as many of both. Cell k of block (a,
// c) stands at offsets[a * bands + c] + k.
//
// An epoch goes through the bands of rows, and through the blocks of each. A worker takes a band of
// rows, which stays in its second-level cache, and is a block or more behind the worker that has
// the band before: no row and no column sees its cells in another order, whatever the number of
// threads.
struct FactorBlocks {
  int64_t bands;
  const int64_t* offsets;         // [bands * bands + 1]
  const int64_t *rows, *columns;  // [bands]: the order of this epoch
};

// One epoch over all cells. Returns the sum of squared errors, each before its update.
double factor_sgd_epoch(const FactorJob& job, const FactorBlocks& blocks, int threads);

// One epoch over pairs. The columns that are drawn may be of any block: with several threads they
// are read and written without a lock (Hogwild).
FactorPairsResult factor_sgd_bpr_epoch(const FactorJob& job, const FactorBlocks& blocks,
                                       int threads);

// Lays out cells, given in any order, as blocks, each shuffled by draws of (key, block, position).
struct FactorLayout {
  int64_t cells, bands;
  const int32_t *users, *items;
  const float* values;
  const int32_t *user_band, *item_band;  // of each row, of each column
  uint64_t key;
  int32_t *new_users, *new_items;
  float* new_values;
  int64_t* offsets;  // [bands * bands + 1]
};
void factor_sgd_layout(const FactorLayout& layout, int threads);

}  // namespace vecsmith
