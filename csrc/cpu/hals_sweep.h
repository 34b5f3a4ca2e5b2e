// A sweep of hierarchical alternating least squares: what the driver (hals_sweep_driver.h) and the
// kernels (once per ISA level) pass to one another. Formula:
// python/vecsmith/reference/hals_sweep.py.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"

namespace vecsmith {

// Components whose gradients are found together.
constexpr int64_t kHalsBlock = 4;

// Pointers are borrowed; strides in numbers, of rows and of components.
struct HalsJob {
  bool wide;  // double, not float: all that is pointed to
  int64_t dim;
  void* factor;
  int64_t factor_row, factor_step;
  const void* numerator;
  int64_t numerator_row, numerator_step;
  const void* gram;   // [blocks][dim][kHalsBlock]: of the block's components, zeros behind the last
  const void* scale;  // [dim]: the Gram matrix's diagonal
  double l1;
};

VECSMITH_DECLARE_KERNEL(
    // Rows of a tile.
    int64_t hals_tile(bool wide);
    // Sweeps over rows first .. first + count - 1, at most a tile of them. scratch: 2 hals_tile dim
    // numbers, on a cache line's boundary. Returns the sum of |change| times the diagonal.
    double hals_rows(const HalsJob& job, int64_t first, int64_t count, void* scratch))

}  // namespace vecsmith
