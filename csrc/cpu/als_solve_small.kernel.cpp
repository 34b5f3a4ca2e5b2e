// Rows of few cells, one in each lane of a vector: their matrices are dot products of the gathered
// factors in tiles of 4 x 4, and Cholesky's factorization takes no more instructions for all lanes
// than it would for one. A row's factors are used n / 2 times: what bounds the speed of short rows
// is reading them.
#include "cpu/als_solve_rows.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

VECSMITH_INLINE int64_t below(int64_t i) { return i * (i + 1) / 2; }  // where row i begins

// Of block row i and block column j, what columns before leave: [r][c].
VECSMITH_INLINE void eliminate(const float* matrix, int64_t i, int64_t j, vfloat (*s)[4]) {
  const float* left[4];
  const float* right[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    left[r] = matrix + below(4 * i + r) * kLanes;
    right[r] = matrix + below(4 * j + r) * kLanes;
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
      if (i != j || c <= r) s[r][c] = load(left[r] + (4 * j + c) * kLanes);
  for (int64_t k = 0; k < 4 * j; ++k) {
    vfloat x[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) x[r] = in_register(load(left[r] + k * kLanes));
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const vfloat y = in_register(load(right[c] + k * kLanes));
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) s[r][c] -= x[r] * y;
    }
  }
}

// L L^T of `blocks` blocks of four rows, in place; inverse: of the diagonal of L. Returns which
// lanes failed.
uint32_t factor_lanes(float* matrix, int64_t blocks, float* inverse) {
  vint failed{};
  for (int64_t j = 0; j < blocks; ++j) {
    vfloat before[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
      before[c] = load(matrix + (below(4 * j + c) + 4 * j + c) * kLanes) * kLeastPivot;
    vfloat own[4][4] = {}, inv[4];
    eliminate(matrix, j, j, own);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const vint bad = !(own[c][c] > before[c]);
      failed |= bad;
      const vfloat d = bad ? splat(1.0f) : own[c][c];
#pragma GCC unroll 64
      for (int lane = 0; lane < kLanes; ++lane) inv[c][lane] = __builtin_sqrtf(d[lane]);
      inv[c] = 1.0f / inv[c];
      store(inverse + (4 * j + c) * kLanes, inv[c]);
#pragma GCC unroll 4
      for (int r = c; r < 4; ++r) own[r][c] *= inv[c];
#pragma GCC unroll 4
      for (int k = c + 1; k < 4; ++k)
#pragma GCC unroll 4
        for (int r = k; r < 4; ++r) own[r][k] -= own[r][c] * own[k][c];
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
      for (int c = 0; c <= r; ++c)
        store(matrix + (below(4 * j + r) + 4 * j + c) * kLanes, own[r][c]);
    for (int64_t i = j + 1; i < blocks; ++i) {
      vfloat s[4][4] = {};
      eliminate(matrix, i, j, s);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c)
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 4
          for (int k = 0; k < c; ++k) s[r][c] -= s[r][k] * own[c][k];
          s[r][c] *= inv[c];
        }
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c)
          store(matrix + (below(4 * i + r) + 4 * j + c) * kLanes, s[r][c]);
    }
  }
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= failed[lane] ? 1u << lane : 0u;
  return bits;
}

// u of L L^T u = c, in place of c: rows of kLanes.
void solve_lanes(const float* matrix, int64_t n, const float* inverse, float* c) {
  for (int64_t i = 0; i < n; ++i) {
    vfloat s = load(c + i * kLanes);
    for (int64_t j = 0; j < i; ++j)
      s -= load(matrix + (below(i) + j) * kLanes) * load(c + j * kLanes);
    store(c + i * kLanes, s * load(inverse + i * kLanes));
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    const vfloat u = load(c + i * kLanes) * load(inverse + i * kLanes);
    store(c + i * kLanes, u);
    for (int64_t j = 0; j < i; ++j)
      store(c + j * kLanes, load(c + j * kLanes) - u * load(matrix + (below(i) + j) * kLanes));
  }
}

}  // namespace

int als_lanes() { return kLanes; }

uint32_t als_small(const AlsTable& table, const AlsRow* rows, int count, float* scratch) {
  const int64_t stride = als_padded(table.dim), steps = stride / kLanes;
  int64_t most = 0;
  for (int i = 0; i < count; ++i) most = rows[i].cells() > most ? rows[i].cells() : most;
  const int64_t n = (most + 3) / 4 * 4;
  float* panels = scratch;
  float* matrix = panels + count * n * stride;
  float* right = matrix + below(n) * kLanes;
  float* inverse = right + n * kLanes;
  float* t = inverse + n * kLanes;
  float* one = t + stride;
  if (count < kLanes) {
    memset(matrix, 0, static_cast<size_t>(below(n) * kLanes) * 4);
    memset(right, 0, static_cast<size_t>(n * kLanes) * 4);
    for (int64_t i = 0; i < n; ++i) store(matrix + (below(i) + i) * kLanes, splat(1.0f));
  }
  for (int lane = 0; lane < count; ++lane) {
    const AlsRow& row = rows[lane];
    const int64_t own = row.cells();
    float* panel = panels + lane * n * stride;
    if (lane + 1 < count)
      for (int64_t j = 0; j < rows[lane + 1].cells(); ++j) ask(table, rows[lane + 1].ids[j]);
    gather(table, row, 0, own, panel, stride);
    memset(panel + own * stride, 0, static_cast<size_t>((n - own) * stride) * 4);
    const float sign = row.negative ? -1.0f : 1.0f;
    for (int64_t i = 0; i < n; i += 4)
      for (int64_t j = 0; j <= i; j += 4) {
        float found[16];
        dots(panel + j * stride, panel + i * stride, stride, steps, found);
        for (int r = 0; r < 4; ++r)
          for (int c = 0; c < 4; ++c)
            if (j < i || c <= r)
              matrix[(below(i + r) + j + c) * kLanes + lane] = sign * found[4 * r + c];
      }
    for (int64_t i = 0; i < n; ++i) {
      float* at = matrix + (below(i) + i) * kLanes + lane;
      *at = i < own ? *at + row.ridge : 1.0f;
      right[i * kLanes + lane] = i < own ? row.target[i] : 0.0f;
    }
    if (row.zero && own) {
      memset(t, 0, static_cast<size_t>(stride) * 4);
      add_weightless(table, row, t, one, stride);
      for (int64_t i = 0; i < own; ++i)
        right[i * kLanes + lane] -= sign / row.ridge * dot(panel + i * stride, t, steps);
    }
  }
  const uint32_t failed = factor_lanes(matrix, n / 4, inverse);
  solve_lanes(matrix, n, inverse, right);
  for (int lane = 0; lane < count; ++lane) {
    const AlsRow& row = rows[lane];
    memset(t, 0, static_cast<size_t>(stride) * 4);
    if (row.zero) {
      add_weightless(table, row, t, one, stride);
      for (int64_t i = 0; i < stride; ++i) t[i] /= row.ridge;
    }
    combine(panels + lane * n * stride, stride, row.cells(), right + lane, kLanes, steps, t);
    write(table, row, t);
  }
  return failed & ((1u << count) - 1);
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
