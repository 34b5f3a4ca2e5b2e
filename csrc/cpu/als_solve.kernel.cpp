// The systems of alternating least squares, as als_solve.h says what they are.
//
// Three kinds of rows, by their number of cells n against the number of factors f:
//
//   few cells    n x n systems, one in each lane of a vector (als_solve_small.kernel.cpp)
//   n < f        one n x n system of dot products of the gathered factors
//   n >= f       one f x f system, from blocks of cells: tiles of 8 rows and two vectors stay in
//                registers while the cells of a block go by
//
// What is solved in steps is in als_solve_steps.kernel.cpp. What bounds the speed here is
// multiply-adds.
#include "cpu/als_solve_system.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {

AlsSigns als_weigh(bool implicit, float alpha, const float* weights, int64_t count, float* scale,
                   float* target, float* weight) {
  AlsSigns signs{0, 0};
  if (implicit) {
    for (int64_t j = 0; j < count; ++j) {
      const float c = alpha * scale[j];
      weight[j] = __builtin_fabsf(c) - 1;
      target[j] = c > 0 ? c : 0;
    }
  } else {
    for (int64_t j = 0; j < count; ++j) {
      weight[j] = weights ? weights[j] : 1;
      target[j] = weight[j] * scale[j];
    }
  }
  for (int64_t from = 0; from < count; from += 1 << 20) {
    const int64_t end = count - from < 1 << 20 ? count : from + (1 << 20);
    int32_t positive = 0, negative = 0;  // vectors of them are as wide as those of floats
    for (int64_t j = from; j < end; ++j) {
      positive += weight[j] > 0;
      negative += weight[j] < 0;
      scale[j] = weight[j] == 0 ? 1 : __builtin_sqrtf(__builtin_fabsf(weight[j]));
      target[j] /= scale[j];
    }
    signs.positive += positive;
    signs.negative += negative;
  }
  return signs;
}

bool als_exact(const AlsTable& table, const AlsRow& row, float* scratch) {
  const int64_t lead = als_leading(table.dim);
  float* t = scratch;
  float* q = t + lead;
  float* rest = q + lead;
  if (row.zero) {
    memset(q, 0, static_cast<size_t>(lead) * 4);
    add_weightless(table, row, q, rest, lead);
  }
  if (!solve_row(table, row, row.target, row.zero ? q : nullptr, t, rest)) return false;
  write(table, row, t);
  return true;
}

void als_share(const AlsTable& table, const AlsRow& row, int64_t first, int64_t last, float* system,
               float* right, float* scratch) {
  if (first == 0) {
    memset(right, 0, static_cast<size_t>(als_leading(table.dim)) * 4);
    add_weightless(table, row, right, scratch, als_leading(table.dim));
  }
  share(table, row, row.target, first, last, system, first == 0 ? right : nullptr, scratch);
}

bool als_finish(const AlsTable& table, const AlsRow& row, float* system, float* right) {
  if (!solve_primal(table, row, system, right)) return false;
  write(table, row, right);
  return true;
}

void als_gram(const AlsTable& table, int64_t count, int64_t first, int64_t last, double* gram,
              float* scratch) {
  const int64_t lead = als_leading(table.dim), at_once = 256;
  float* panel = scratch;
  float* sums = panel + at_once * lead;
  const int64_t end = last < table.dim ? last : table.dim;
  for (int64_t i = first; i < end; ++i)
    for (int64_t j = i; j < table.dim; ++j) gram[i * table.dim + j] = 0;
  for (int64_t from = 0; from < count; from += at_once) {
    const int64_t rows = count - from < at_once ? count - from : at_once;
    const float* a = table.factors + from * table.stride;
    int64_t stride = table.stride;
    if (table.dim % (2 * kAlsPad)) {
      // Tiles are whole: what is beyond the rows is zero in a copy.
      for (int64_t r = 0; r < rows; ++r) {
        memcpy(panel + r * lead, a + r * stride, static_cast<size_t>(table.dim) * 4);
        memset(panel + r * lead + table.dim, 0, static_cast<size_t>(lead - table.dim) * 4);
      }
      a = panel;
      stride = lead;
    }
    memset(sums, 0, static_cast<size_t>((last - first) * lead) * 4);
    add_products<1>(a, stride, rows, first, last, lead, sums - first * lead, lead);
    for (int64_t i = first; i < end; ++i)
      for (int64_t j = i; j < table.dim; ++j)
        gram[i * table.dim + j] += static_cast<double>(sums[(i - first) * lead + j]);
  }
}

void als_multiply(const AlsTable& rows, int64_t count, const float* matrix, AlsShape shape,
                  float* out, int64_t out_stride, float* scratch) {
  const int64_t dim = rows.dim, lead = als_leading(dim);
  for (int64_t from = 0; from < count; from += kRows) {
    const int64_t some = count - from < kRows ? count - from : kRows;
    // Missing rows repeat the last one, and are not written.
    for (int64_t r = 0; r < kRows; ++r)
      memcpy(scratch + r * lead, rows.factors + (from + (r < some ? r : some - 1)) * rows.stride,
             static_cast<size_t>(dim) * 4);
    for (int64_t j = 0; j < dim; j += kColumns) {
      const int64_t first = shape == kAlsLower ? j : 0;
      const int64_t last = shape == kAlsUpper && j + kColumns < dim ? j + kColumns : dim;
      vfloat s[kRows][kVectors] = {};
      for (int64_t k = first; k < last; ++k) {
        vfloat y[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          y[v] = in_register(load(matrix + k * lead + j + v * kLanes));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const vfloat x = splat(scratch[r * lead + k]);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) s[r][v] += x * y[v];
        }
      }
      for (int64_t r = 0; r < some; ++r)
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = j + v * kLanes;
          float* to = out + (from + r) * out_stride + at;
          if (at + kLanes <= dim)
            store(to, s[r][v]);
          else if (at < dim)
            store_tail(to, s[r][v], static_cast<int>(dim - at));
        }
    }
  }
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
