// The factors of a row's cells, gathered, and products with them, for the kernels of alternating
// least squares alone.
#pragma once

#include <string.h>

#include "cpu/als_solve.h"
#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

// A pivot that is so small a part of what stood on the diagonal has no digits left.
constexpr float kLeastPivot = 1e-6f;
constexpr int64_t kPrefetched = 48;  // cache lines of factors that are asked for ahead

VECSMITH_INLINE void ask(const AlsTable& table, int64_t id) {
  const float* next = table.factors + id * table.stride;
  for (int64_t i = 0; i < table.dim; i += 16) __builtin_prefetch(next + i, 0, 2);
}
VECSMITH_INLINE int64_t ahead(const AlsTable& table) {
  const int64_t rows = kPrefetched * 16 / als_padded(table.dim);
  return rows < 2 ? 2 : rows;
}

// Cells from .. from + count - 1 as rows of a panel; columns beyond dim are zero.
inline void gather(const AlsTable& table, const AlsRow& row, int64_t from, int64_t count,
                   float* panel, int64_t stride) {
  const int64_t whole = table.dim / kLanes * kLanes;
  const int rest = static_cast<int>(table.dim - whole);
  const int64_t cells = row.cells() + row.zero, distance = ahead(table);
  for (int64_t j = from == 0 ? 0 : distance; from == 0 && j < distance && j < cells; ++j)
    ask(table, row.ids[j]);
  for (int64_t j = 0; j < count; ++j) {
    if (from + j + distance < cells) ask(table, row.ids[from + j + distance]);
    const float* p = table.factors + row.ids[from + j] * table.stride;
    float* to = panel + j * stride;
    const vfloat scale = splat(row.scale[from + j]);
    if (row.columns) {
      for (int64_t i = 0; i < whole; i += kLanes)
        store(to + i, load(p + i) * load(row.columns + i) * scale);
      if (rest)
        store(to + whole,
              load_tail(p + whole, rest) * load_tail(row.columns + whole, rest) * scale);
    } else {
      for (int64_t i = 0; i < whole; i += kLanes) store(to + i, load(p + i) * scale);
      if (rest) store(to + whole, load_tail(p + whole, rest) * scale);
    }
    for (int64_t i = (table.dim + kLanes - 1) / kLanes * kLanes; i < stride; i += kLanes)
      store(to + i, vfloat{});
  }
}

// out += the sum over j of u[j * ustep] times row j.
template <int N>
VECSMITH_INLINE void add_rows(const float* panel, int64_t stride, int64_t count, const float* u,
                              int64_t ustep, float* out) {
  vfloat sums[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) sums[v] = load(out + v * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    const vfloat w = splat(u[j * ustep]);
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) sums[v] += w * load(panel + j * stride + v * kLanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) store(out + v * kLanes, sums[v]);
}
inline void combine(const float* panel, int64_t stride, int64_t count, const float* u,
                    int64_t ustep, int64_t steps, float* out) {
  int64_t s = 0;
  for (; s + 8 <= steps; s += 8)
    add_rows<8>(panel + s * kLanes, stride, count, u, ustep, out + s * kLanes);
  if (s < steps)
    with_number<1, 7>(steps - s, [&](auto n) VECSMITH_LAMBDA {
      add_rows<n.value>(panel + s * kLanes, stride, count, u, ustep, out + s * kLanes);
    });
}

VECSMITH_INLINE float sum(vfloat v) {
  float out[4];
  fold4(v, vfloat{}, vfloat{}, vfloat{}, out);
  return out[0];
}
VECSMITH_INLINE float dot(const float* a, const float* b, int64_t steps) {
  vfloat s{};
  for (int64_t i = 0; i < steps; ++i) s += load(a + i * kLanes) * load(b + i * kLanes);
  return sum(s);
}
// out[r] = <row r of a, v>, of 4 rows.
VECSMITH_INLINE void dot4(const float* a, int64_t stride, const float* v, int64_t steps,
                          float* out) {
  vfloat s[4] = {};
  for (int64_t i = 0; i < steps; ++i) {
    const vfloat x = load(v + i * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) s[r] += load(a + r * stride + i * kLanes) * x;
  }
  fold4(s[0], s[1], s[2], s[3], out);
}

// The part of cells of weight 0: out = the sum of b_j p_j. scratch: a row.
inline void add_weightless(const AlsTable& table, const AlsRow& row, float* out, float* scratch,
                           int64_t stride) {
  const int64_t steps = als_padded(table.dim) / kLanes;
  for (int64_t j = row.cells(); j < row.cells() + row.zero; ++j) {
    gather(table, row, j, 1, scratch, stride);
    combine(scratch, stride, 1, row.target + j, 1, steps, out);
  }
}

inline void write(const AlsTable& table, const AlsRow& row, const float* t) {
  for (int64_t i = 0; i < table.dim; ++i) row.out[i] = row.columns ? t[i] * row.columns[i] : t[i];
}

// out[c * 4 + r] = <row r of a, row c of b>.
VECSMITH_INLINE void dots(const float* a, const float* b, int64_t stride, int64_t steps,
                          float* out) {
#if defined(__AVX512F__)
  constexpr int kAtOnce = 4;
#else
  constexpr int kAtOnce = 2;
#endif
  for (int c0 = 0; c0 < 4; c0 += kAtOnce) {
    vfloat s[kAtOnce][4] = {};
    for (int64_t i = 0; i < steps; ++i) {
      vfloat x[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) x[r] = in_register(load(a + r * stride + i * kLanes));
#pragma GCC unroll 4
      for (int c = 0; c < kAtOnce; ++c) {
        const vfloat y = in_register(load(b + (c0 + c) * stride + i * kLanes));
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) s[c][r] += x[r] * y;
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kAtOnce; ++c) fold4(s[c][0], s[c][1], s[c][2], s[c][3], out + 4 * (c0 + c));
  }
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
