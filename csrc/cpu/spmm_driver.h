// The driver of the product of a sparse and a dense matrix: blocks of columns, long rows, threads.
#pragma once

#include "cpu/spmm.h"

namespace vecsmith {

// The cells, as compressed rows. Indices are in range.
struct SpmmMatrix {
  const void *begins, *indices;    // [rows + 1], [cells]
  bool wide_begins, wide_indices;  // int64, not int32
  const void* values;              // [cells], of the type of the dense matrix
  int64_t rows, columns;
};

// X [columns][width], and the product [rows][width]. Strides in numbers.
struct SpmmDense {
  bool wide;  // double, not float
  const void* right;
  int64_t right_stride, right_step;  // from row to row, from column to column
  void* out;
  int64_t out_stride;  // from row to row; columns follow one another
  int64_t width;
};

// out = matrix X. The same bits whatever the number of threads.
void spmm_product(const SpmmMatrix& matrix, const SpmmDense& dense, int threads);

}  // namespace vecsmith
