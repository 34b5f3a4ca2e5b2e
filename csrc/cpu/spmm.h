// A sparse matrix times a dense one: what the driver (spmm_driver.h) and the kernels (once per ISA
// level) pass to one another. Formula: python/vecsmith/reference/spmm.py.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"

namespace vecsmith {

// A product with a few columns of the dense matrix. Pointers are borrowed; strides in numbers.
struct SpmmBlock {
  bool wide;                       // double, not float: values, right and out
  bool wide_begins, wide_indices;  // int64, not int32
  const void *begins, *indices;    // [rows + 1], [cells]
  const void* values;              // [cells]
  int64_t cells;                   // of the matrix
  int64_t longest;                 // rows of more cells are left out
  const void* right;               // [columns][right_stride]; of a row spmm_width numbers are read
  int64_t right_stride;
  bool fetch;  // right is larger than the cache
  void* out;   // [rows][out_stride]
  int64_t out_stride;
  int64_t width;  // numbers of a row that are written, at most spmm_most
};

VECSMITH_DECLARE_KERNEL(
    // Numbers in a vector, in the most columns that are taken at once, and in a row that is `width`
    // wide and padded.
    int64_t spmm_lanes(bool wide); int64_t spmm_most(bool wide);
    int64_t spmm_width(bool wide, int64_t width);
    // out = the rows first .. last - 1 of the matrix, times right.
    void spmm_rows(const SpmmBlock& block, int64_t first, int64_t last))

}  // namespace vecsmith
