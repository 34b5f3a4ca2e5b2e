// The systems of one half-step of alternating least squares: what the driver (als_solve_driver.h)
// hands to the kernels. Formulas: python/vecsmith/reference/als_solve.py.
//
// A row has cells j = 1 .. n with factors p_j [f], weights w_j and targets b_j, and looks for
//
//   (r I + sum_j w_j p_j p_j^T) t = sum_j b_j p_j
//
// (what is known of cells that are not there, Y^T Y with implicit feedback, was made r I before, by
// another choice of the factors' basis). With P the rows sqrt|w_j| p_j and c_j = b_j / sqrt|w_j|
// that is (r I + P^T S P) t = P^T c, S the signs: f numbers are looked for. Where all signs are the
// same and n < f the n numbers u of
//
//   (r I + s P P^T) u = c,   t = P^T u
//
// are less work (Woodbury): n^2 f / 2 + n^3 / 6 products in the place of n f^2 / 2 + f^3 / 6.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"

namespace vecsmith {

// Vectors of all levels fit whole into rows of so many floats.
constexpr int64_t kAlsPad = 16;
// Rows of at most so many cells are solved many at a time, one in each lane of a vector.
constexpr int64_t kAlsSmall = 96;
constexpr int kAlsMostLanes = 16;
// Rows of cells that are multiplied at once where there is a system of f numbers: 256 KB of them.
constexpr int64_t kAlsBlockFloats = 65536;

inline int64_t als_padded(int64_t n) { return (n + kAlsPad - 1) / kAlsPad * kAlsPad; }
// Leading dimension of a system of n numbers, and of a panel of factors: two vectors of the widest
// level.
inline int64_t als_leading(int64_t n) {
  return (n + 2 * kAlsPad - 1) / (2 * kAlsPad) * 2 * kAlsPad;
}
inline int64_t als_block_rows(int64_t dim) {
  const int64_t rows = kAlsBlockFloats / als_leading(dim) / 16 * 16;
  return rows < 32 ? 32 : rows;
}

// The factors of the cells.
struct AlsTable {
  const float* factors;  // [rows][stride]
  int64_t stride, dim;
};

struct AlsRow {
  // First `positive` cells with w > 0, then `negative` ones, then `zero` ones.
  const int64_t* ids;
  const float* scale;   // sqrt|w|; 1 where w = 0
  const float* target;  // b / sqrt|w|; b where w = 0
  int64_t positive, negative, zero;
  float ridge;
  const float*
      columns;  // [dim] what each column of the factors, and t, is multiplied with; or null
  float* out;   // [dim]; conjugate gradients and blocks begin with what is there

  int64_t cells() const { return positive + negative; }
  bool one_sign() const { return positive == 0 || negative == 0; }
};

// Whether the system of n numbers is less work than that of f, and there is one.
inline bool als_is_dual(const AlsRow& row, int64_t dim) {
  return row.one_sign() && row.cells() < dim;
}
inline bool als_is_small(const AlsRow& row, int64_t dim) {
  return als_is_dual(row, dim) && row.cells() <= kAlsSmall;
}

// Floats of scratch.
inline int64_t als_small_scratch(int64_t dim) {
  const int64_t n = kAlsSmall;
  return kAlsMostLanes * (n * als_padded(dim) + n * (n + 1) / 2 + 2 * n) + 2 * als_padded(dim);
}
inline int64_t als_system_floats(int64_t n) { return als_leading(n) * als_leading(n); }
inline int64_t als_exact_scratch(int64_t dim) {
  // Either the panel of fewer cells than dim and their system, or a block of cells and a system of
  // dim; right sides and what belongs to them.
  const int64_t lead = als_leading(dim), block = als_block_rows(dim);
  return (lead > block ? lead : block) * lead + als_system_floats(dim) + 4 * lead;
}
// Cells whose factors conjugate gradients keep; those of longer rows are gathered in each step.
inline int64_t als_kept_rows(int64_t dim) {
  const int64_t rows = (int64_t{4} << 20) / als_leading(dim) / 16 * 16;
  return rows < 32 ? 32 : rows;
}
inline int64_t als_conjugate_scratch(int64_t dim) {
  return (als_kept_rows(dim) + 4) * als_leading(dim);
}
// most: cells of the longest row.
inline int64_t als_blocks_scratch(int64_t dim, int64_t block, int64_t most) {
  const int64_t width = block < dim ? block : dim;
  return als_exact_scratch(width) + (als_block_rows(width) + 2) * als_leading(width) +
         als_padded(most) + als_leading(dim);
}

// Where a square matrix has numbers that are not zero.
enum AlsShape : int32_t { kAlsFull = 0, kAlsUpper = 1, kAlsLower = 2 };
constexpr int64_t kAlsTileRows = 8;

// How many of a row's weights are above 0, and below.
struct AlsSigns {
  int64_t positive, negative;
};

VECSMITH_DECLARE_KERNEL(
    // What cells are in AlsRow, in their order: scale has their values before; weights as in
    // AlsJob.
    AlsSigns als_weigh(bool implicit, float alpha, const float* weights, int64_t count,
                       float* scale, float* target, float* weight);
    // Rows that a call of als_small takes at most.
    int als_lanes();
    // Small rows (als_is_small), each into its out. Returns which of them failed, as bits: their
    // matrix is not positive definite in float32.
    uint32_t als_small(const AlsTable& table, const AlsRow* rows, int count, float* scratch);
    // One row, exactly. False: it failed.
    bool als_exact(const AlsTable& table, const AlsRow& row, float* scratch);
    // The same in parts, for a row that several workers share: first each one's part of the rows of
    // the matrix of f numbers, into system [als_system_floats(dim)] and, by the worker that has the
    // first row, the right side [als_leading(dim)], then one of them the rest.
    void als_share(const AlsTable& table, const AlsRow& row, int64_t first, int64_t last,
                   float* system, float* right, float* scratch);
    bool als_finish(const AlsTable& table, const AlsRow& row, float* system, float* right);
    // `steps` steps of conjugate gradients from what is in out.
    void als_conjugate(const AlsTable& table, const AlsRow& row, int64_t steps, float* scratch);
    // `sweeps` times over all blocks of `block` numbers of out, each solved exactly while the
    // others stand (iALS++). False: a block failed.
    bool als_blocks(const AlsTable& table, const AlsRow& row, int64_t block, int64_t sweeps,
                    float* scratch);
    // Rows first .. last - 1 (multiples of 8) of the upper half of Y^T Y, in sums of double
    // precision of sums of 256 rows: gram [dim][dim].
    void als_gram(const AlsTable& table, int64_t count, int64_t first, int64_t last, double* gram,
                  float* scratch);
    // out = rows times matrix [dim][als_leading(dim)], which has zeros behind its columns; out may
    // be the rows. scratch: kAlsTileRows rows of als_leading(dim).
    void als_multiply(const AlsTable& rows, int64_t count, const float* matrix, AlsShape shape,
                      float* out, int64_t out_stride, float* scratch))

}  // namespace vecsmith
