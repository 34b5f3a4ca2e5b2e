// Stochastic gradient descent on the factors of a matrix: what the driver (factor_sgd_driver.h) and
// the kernels (once per ISA level) pass to one another. Formulas, the order of updates and the
// random draws: python/vecsmith/reference/factor_sgd.py.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"

namespace vecsmith {

// What the rows of one side have. Strides in floats.
struct FactorSide {
  float* factors;  // [rows][stride]
  float* bias;     // [rows], or null
  float* squares;  // [rows][2]: sums of squared gradients, of the factors and of the bias; or null
  int64_t stride, bias_stride, squares_stride;
};

// Everything that stays the same during a call. Pointers are borrowed.
struct FactorJob {
  FactorSide user, item;
  int64_t dim;
  // The cells: row, column, value.
  const int32_t *users, *items;
  const float* values;
  float mean, rate, ridge, bias_rate, bias_ridge;

  // Of pairs (Bayesian personalized ranking).
  int64_t cells;
  const int64_t* begins;  // [rows + 1], the columns of each row, sorted; null: not looked up
  const int32_t* liked;
  uint64_t key;  // of the draws
};

struct FactorPairsResult {
  double loss;
  int64_t correct, trained;
};

VECSMITH_DECLARE_KERNEL(
    // Trains cells first .. last - 1, one after the other. Returns the sum of their squared errors.
    double factor_sgd_cells(const FactorJob& job, int64_t first, int64_t last);
    // The same of pairs: each cell and a column that is drawn for it.
    void factor_sgd_bpr_cells(const FactorJob& job, int64_t first, int64_t last,
                              FactorPairsResult& result))

}  // namespace vecsmith
