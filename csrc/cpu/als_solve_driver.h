// The driver of a half-step of alternating least squares: rows in order of length, threads, rescue.
#pragma once

#include "cpu/als_solve.h"

namespace vecsmith {

enum AlsValue : int32_t {
  kAlsFloat = 0,
  kAlsDouble = 1,
  kAlsInt8 = 2,
  kAlsInt16 = 3,
  kAlsInt32 = 4,
  kAlsInt64 = 5,
  kAlsUint8 = 6  // bool, too
};

// The cells, as compressed rows. Indices are in range.
struct AlsMatrix {
  const void *begins, *indices;    // [rows + 1], [cells]
  bool wide_begins, wide_indices;  // int64, not int32
  const void* values;              // [cells]
  AlsValue type;
  const float* weights;  // [cells], or null
  int64_t rows;
};

enum AlsMethod : int32_t { kAlsExact = 0, kAlsConjugate = 1, kAlsBlocks = 2 };

struct AlsJob {
  AlsTable table;
  // Implicit feedback: c = alpha value is a confidence, w = |c| - 1, b = c where c > 0, else 0.
  // Else w is a cell's weight (1 where there are none) and b = w value.
  bool implicit;
  float alpha;
  AlsMethod method;
  int64_t steps;        // of conjugate gradients, or sweeps over the blocks
  int64_t block;        // numbers of a block
  int64_t exact_below;  // of conjugate gradients: rows of fewer cells are solved exactly
  double ridge;
  const double* ridges;    // [rows] in its place, or null
  const double* spectrum;  // [dim]: column i is (spectrum[i] + ridge)^-1/2 and the ridge 1; or null
  float* out;              // [rows][out_stride]
  int64_t out_stride;
};

// Solves all rows. Returns how many had to be solved again in double precision, their matrix not
// being positive definite in single; where it is not even then, the ridge is raised until it is.
int64_t als_solve_rows(const AlsMatrix& matrix, const AlsJob& job, int threads);

// Y^T Y of count rows: gram [dim][dim], both halves.
void als_gram_matrix(const AlsTable& table, int64_t count, double* gram, int threads);

// out = rows times matrix [dim][dim]; out [count][out_stride] may be the rows.
void als_change_basis(const AlsTable& rows, int64_t count, const float* matrix, AlsShape shape,
                      float* out, int64_t out_stride, int threads);

}  // namespace vecsmith
