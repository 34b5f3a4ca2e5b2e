// One row's system, of its n cells or of the f factors, for the kernels of alternating least
// squares alone: its matrix from the gathered factors, U^T U of it from the left, and the solution,
// all in tiles of 8 rows and two vectors that stay in registers.
#pragma once

#include "cpu/als_solve_rows.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

// Of the diagonal of a row's matrix: with a ridge below it the f numbers are solved for.
constexpr float kLeastRidge = 1e-4f;
constexpr int kRows = 8;  // of a tile of a system
#if defined(__AVX512F__)
constexpr int kVectors = 2;
#else
constexpr int kVectors = 1;
#endif
constexpr int kColumns = kVectors * kLanes;

inline float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }

// s[r][v] += or -= the sum over k of a[k][i + r] a[k][j + v]: kSign 1 or -1.
template <int kSign, int V>
VECSMITH_INLINE void multiply(const float* a, int64_t stride, int64_t count, int64_t i, int64_t j,
                              vfloat (*s)[V]) {
  const float *left = a + i, *right = a + j;
  for (int64_t k = 0; k < count; ++k, left += stride, right += stride) {
    vfloat y[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) y[v] = in_register(load(right + v * kLanes));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const vfloat x = splat(left[r]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        if constexpr (kSign > 0)
          s[r][v] += x * y[v];
        else
          s[r][v] -= x * y[v];
      }
    }
  }
}

template <int V>
VECSMITH_INLINE void load_tile(const float* matrix, int64_t stride, vfloat (*s)[V]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) s[r][v] = load(matrix + r * stride + v * kLanes);
}
template <int V>
VECSMITH_INLINE void store_tile(float* matrix, int64_t stride, vfloat (*s)[V]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(matrix + r * stride + v * kLanes, s[r][v]);
}

// body(Number<V>, column): the tiles of rows i .. i + kRows - 1 from the diagonal on, of V vectors.
// The first is a narrow one where a wide one would be half below the diagonal.
template <class Body>
VECSMITH_INLINE void each_tile(int64_t i, int64_t columns, const Body& body) {
  int64_t j = i / kColumns * kColumns;
  if (kVectors > 1 && i - j >= kLanes) {
    body(Number<1>{}, j + kLanes);
    j += kColumns;
  }
  for (; j < columns; j += kColumns) body(Number<kVectors>{}, j);
}

// Rows first .. last - 1 of the upper half of matrix += or -= A^T A.
template <int kSign>
inline void add_products(const float* a, int64_t stride, int64_t count, int64_t first, int64_t last,
                         int64_t columns, float* matrix, int64_t lead) {
  for (int64_t i = first; i < last; i += kRows)
    each_tile(i, columns, [&](auto vectors, int64_t j) VECSMITH_LAMBDA {
      vfloat s[kRows][vectors.value];
      load_tile(matrix + i * lead + j, lead, s);
      multiply<kSign>(a, stride, count, i, j, s);
      store_tile(matrix + i * lead + j, lead, s);
    });
}

// U^T U = matrix [n][lead], n a multiple of kRows, in place, in the upper half; inverse: of U's
// diagonal. False: it is not positive definite.
inline bool factor(float* matrix, int64_t n, int64_t lead, float* inverse) {
  for (int64_t i = 0; i < n; i += kRows) {
    float before[kRows];
    for (int r = 0; r < kRows; ++r) before[r] = matrix[(i + r) * lead + i + r];
    // What is on the diagonal first: it says what the others of these rows are divided by.
    float* own = matrix + i * lead + i;
    each_tile(i, i + kRows, [&](auto vectors, int64_t j) VECSMITH_LAMBDA {
      vfloat s[kRows][vectors.value];
      float* tile = matrix + i * lead + j;
      load_tile(tile, lead, s);
      multiply<-1>(matrix, lead, i, i, j, s);
      store_tile(tile, lead, s);
    });
    float u[kRows][kRows], inv[kRows];
    for (int r = 0; r < kRows; ++r)
      for (int c = r; c < kRows; ++c) u[r][c] = own[r * lead + c];
    for (int r = 0; r < kRows; ++r) {
      if (!(u[r][r] > before[r] * kLeastPivot)) return false;
      inv[r] = inverse_root(u[r][r]);
      for (int c = r; c < kRows; ++c) u[r][c] *= inv[r];
      for (int k = r + 1; k < kRows; ++k)
        for (int c = k; c < kRows; ++c) u[k][c] -= u[r][k] * u[r][c];
      inverse[i + r] = inv[r];
    }
    each_tile(i, lead, [&](auto vectors, int64_t j) VECSMITH_LAMBDA {
      constexpr int V = vectors.value;
      vfloat s[kRows][V];
      float* tile = matrix + i * lead + j;
      load_tile(tile, lead, s);
      if (j >= i + kRows) multiply<-1>(matrix, lead, i, i, j, s);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int k = 0; k < r; ++k)
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) s[r][v] -= u[k][r] * s[k][v];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) s[r][v] *= inv[r];
      }
      store_tile(tile, lead, s);
    });
  }
  return true;
}

// x of U^T U x = x, of n numbers; those behind, up to lead, are zero and stay it.
inline void solve(const float* matrix, int64_t n, int64_t lead, const float* inverse, float* x) {
  for (int64_t i = 0; i < n; ++i) {
    const float y = x[i] * inverse[i];
    const float* u = matrix + i * lead;
    x[i] = y;
    int64_t j = i + 1;
    for (; j < n && j % kLanes; ++j) x[j] -= y * u[j];
    for (; j < n; j += kLanes) store(x + j, load(x + j) - y * load(u + j));
  }
  for (int64_t i = n - 4; i >= 0; i -= 4) {
    // Four rows' products with what is known, the vector that they begin in by itself.
    float s[4] = {};
    int64_t j = i + 4;
    for (; j < n && j % kLanes; ++j)
      for (int r = 0; r < 4; ++r) s[r] += matrix[(i + r) * lead + j] * x[j];
    float more[4];
    dot4(matrix + i * lead + j, lead, x + j, j < n ? (n - j + kLanes - 1) / kLanes : 0, more);
    for (int r = 3; r >= 0; --r) {
      float known = s[r] + more[r];
      for (int k = r + 1; k < 4; ++k) known += matrix[(i + r) * lead + i + k] * x[i + k];
      x[i + r] = (x[i + r] - known) * inverse[i + r];
    }
  }
}

enum class Solved { kYes, kNo, kOtherwise };

// t [als_leading(dim)] of the row with cells' targets and, where it is not null, q added to the
// right side.
inline Solved solve_dual(const AlsTable& table, const AlsRow& row, const float* target,
                         const float* q, float* t, float* scratch) {
  const int64_t n = row.cells(), stride = als_leading(table.dim), steps = stride / kLanes;
  const float sign = row.negative ? -1.0f : 1.0f;
  if (q && !(row.ridge > 0)) return Solved::kOtherwise;
  memset(t, 0, static_cast<size_t>(stride) * 4);
  if (q)
    for (int64_t i = 0; i < table.dim; ++i) t[i] = q[i] / row.ridge;
  if (n == 0) return Solved::kYes;
  const int64_t fours = (n + 3) / 4 * 4, rows = (n + kRows - 1) / kRows * kRows;
  const int64_t lead = als_leading(n);
  float* panel = scratch;
  float* matrix = panel + als_leading(table.dim) * stride;
  float* right = matrix + als_system_floats(table.dim);
  float* inverse = right + stride;
  gather(table, row, 0, n, panel, stride);
  memset(panel + n * stride, 0, static_cast<size_t>((fours - n) * stride) * 4);
  memset(matrix, 0, static_cast<size_t>(rows * lead) * 4);
  for (int64_t i = 0; i < fours; i += 4)
    for (int64_t j = i; j < fours; j += 4) {
      float found[16];
      dots(panel + j * stride, panel + i * stride, stride, steps, found);
      for (int r = 0; r < 4; ++r)
        for (int c = 0; c < 4; ++c) matrix[(i + r) * lead + j + c] = sign * found[4 * r + c];
    }
  // What is left of q / r is the difference of two numbers, r to the matrix's part of it.
  if (q)
    for (int64_t i = 0; i < n; ++i)
      if (!(row.ridge > kLeastRidge * __builtin_fabsf(matrix[i * lead + i])))
        return Solved::kOtherwise;
  for (int64_t i = 0; i < rows; ++i)
    matrix[i * lead + i] = i < n ? matrix[i * lead + i] + row.ridge : 1;
  memset(right, 0, static_cast<size_t>(lead) * 4);
  for (int64_t i = 0; i < n; ++i)
    right[i] = target[i] - (q ? sign * dot(panel + i * stride, t, steps) : 0.0f);
  if (!factor(matrix, rows, lead, inverse)) return Solved::kNo;
  solve(matrix, rows, lead, inverse, right);
  combine(panel, stride, n, right, 1, steps, t);
  return Solved::kYes;
}

inline bool solve_primal(const AlsTable& table, const AlsRow& row, float* system, float* right) {
  const int64_t lead = als_leading(table.dim), rows = (table.dim + kRows - 1) / kRows * kRows;
  for (int64_t i = 0; i < rows; ++i)
    system[i * lead + i] = i < table.dim ? system[i * lead + i] + row.ridge : 1;
  float* inverse = right + lead;
  if (!factor(system, rows, lead, inverse)) return false;
  solve(system, rows, lead, inverse, right);
  return true;
}

// Rows first .. last - 1 of P^T S P, and with right P^T target.
inline void share(const AlsTable& table, const AlsRow& row, const float* target, int64_t first,
                  int64_t last, float* system, float* right, float* panel) {
  const int64_t lead = als_leading(table.dim), at_once = als_block_rows(table.dim);
  memset(system + first * lead, 0, static_cast<size_t>((last - first) * lead) * 4);
  for (int64_t from = 0; from < row.cells();) {
    const bool plus = from < row.positive;
    const int64_t end = plus ? row.positive : row.cells();
    const int64_t count = end - from < at_once ? end - from : at_once;
    gather(table, row, from, count, panel, lead);
    if (plus)
      add_products<1>(panel, lead, count, first, last, lead, system, lead);
    else
      add_products<-1>(panel, lead, count, first, last, lead, system, lead);
    if (right) combine(panel, lead, count, target + from, 1, lead / kLanes, right);
    from += count;
  }
}

inline int64_t tile_rows(int64_t dim) { return (dim + kRows - 1) / kRows * kRows; }

// t of the row, as solve_dual.
inline bool solve_row(const AlsTable& table, const AlsRow& row, const float* target, const float* q,
                      float* t, float* scratch) {
  if (als_is_dual(row, table.dim)) {
    const Solved solved = solve_dual(table, row, target, q, t, scratch);
    if (solved != Solved::kOtherwise) return solved == Solved::kYes;
  }
  const int64_t lead = als_leading(table.dim);
  float* system = scratch;
  float* right =
      system + als_system_floats(table.dim);  // and the inverse of the diagonal behind it
  memset(right, 0, static_cast<size_t>(lead) * 4);
  if (q) memcpy(right, q, static_cast<size_t>(table.dim) * 4);
  share(table, row, target, 0, tile_rows(table.dim), system, right, right + 2 * lead);
  if (!solve_primal(table, row, system, right)) return false;
  memcpy(t, right, static_cast<size_t>(lead) * 4);
  return true;
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
