// The driver of a sweep of hierarchical alternating least squares: tiles of rows, threads.
#pragma once

#include "cpu/hals_sweep.h"

namespace vecsmith {

// job: without gram and scale, which are made of `gram` [dim][dim]. Returns the sum over all
// numbers of |change| times the diagonal; the same bits whatever the number of threads.
double hals_sweep_rows(HalsJob job, int64_t rows, const void* gram, int threads);

}  // namespace vecsmith
