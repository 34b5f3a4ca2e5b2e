// The systems of alternating least squares, as als_solve.h says what they are.
//
// Three kinds of rows, by their number of cells n against the number of factors f:
//
//   few cells    n x n systems, one in each lane of a vector: their matrices are dot products of
//   the
//                gathered factors in tiles of 4 x 4, and Cholesky's factorization takes no more
//                instructions for all lanes than it would for one
//   n < f        one n x n system of the same dot products
//   n >= f       one f x f system, from blocks of cells: tiles of 8 rows and two vectors stay in
//                registers while the cells of a block go by
//
// Single systems are factored as U^T U from the left, with the same tiles. What bounds the speed is
// multiply-adds, and in the first kind, where a row's factors are used n / 2 times, reading them.
#include "cpu/als_solve.h"

#include <string.h>

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

// A pivot that is so small a part of what stood on the diagonal has no digits left.
constexpr float kLeastPivot = 1e-6f;
constexpr int kRows = 8;  // of a tile of a system
#if defined(__AVX512F__)
constexpr int kVectors = 2;
#else
constexpr int kVectors = 1;
#endif
constexpr int kColumns = kVectors * kLanes;
constexpr int64_t kPrefetched = 48;  // cache lines of factors that are asked for ahead

float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }

// --- factors of cells

VECSMITH_INLINE void ask(const AlsTable& table, int64_t id) {
  const float* next = table.factors + id * table.stride;
  for (int64_t i = 0; i < table.dim; i += 16) __builtin_prefetch(next + i, 0, 2);
}
VECSMITH_INLINE int64_t ahead(const AlsTable& table) {
  const int64_t rows = kPrefetched * 16 / als_padded(table.dim);
  return rows < 2 ? 2 : rows;
}

// Cells from .. from + count - 1 as rows of a panel; columns beyond dim are zero.
void gather(const AlsTable& table, const AlsRow& row, int64_t from, int64_t count, float* panel,
            int64_t stride) {
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
void combine(const float* panel, int64_t stride, int64_t count, const float* u, int64_t ustep,
             int64_t steps, float* out) {
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
void add_weightless(const AlsTable& table, const AlsRow& row, float* out, float* scratch,
                    int64_t stride) {
  const int64_t steps = als_padded(table.dim) / kLanes;
  for (int64_t j = row.cells(); j < row.cells() + row.zero; ++j) {
    gather(table, row, j, 1, scratch, stride);
    combine(scratch, stride, 1, row.target + j, 1, steps, out);
  }
}

void write(const AlsTable& table, const AlsRow& row, const float* t) {
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

// --- many small systems, one in each lane

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

// --- one system

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
void add_products(const float* a, int64_t stride, int64_t count, int64_t first, int64_t last,
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
bool factor(float* matrix, int64_t n, int64_t lead, float* inverse) {
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
void solve(const float* matrix, int64_t n, int64_t lead, const float* inverse, float* x) {
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

// t [als_leading(dim)] of the row with cells' targets and, where it is not null, q added to the
// right side.
bool solve_dual(const AlsTable& table, const AlsRow& row, const float* target, const float* q,
                float* t, float* scratch) {
  const int64_t n = row.cells(), stride = als_leading(table.dim), steps = stride / kLanes;
  const float sign = row.negative ? -1.0f : 1.0f;
  memset(t, 0, static_cast<size_t>(stride) * 4);
  if (q)
    for (int64_t i = 0; i < table.dim; ++i) t[i] = q[i] / row.ridge;
  if (n == 0) return true;
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
  for (int64_t i = 0; i < rows; ++i)
    matrix[i * lead + i] = i < n ? matrix[i * lead + i] + row.ridge : 1;
  memset(right, 0, static_cast<size_t>(lead) * 4);
  for (int64_t i = 0; i < n; ++i)
    right[i] = target[i] - (q ? sign * dot(panel + i * stride, t, steps) : 0.0f);
  if (!factor(matrix, rows, lead, inverse)) return false;
  solve(matrix, rows, lead, inverse, right);
  combine(panel, stride, n, right, 1, steps, t);
  return true;
}

bool solve_primal(const AlsTable& table, const AlsRow& row, float* system, float* right) {
  const int64_t lead = als_leading(table.dim), rows = (table.dim + kRows - 1) / kRows * kRows;
  for (int64_t i = 0; i < rows; ++i)
    system[i * lead + i] = i < table.dim ? system[i * lead + i] + row.ridge : 1;
  float* inverse = right + lead;
  if (!factor(system, rows, lead, inverse)) return false;
  solve(system, rows, lead, inverse, right);
  return true;
}

// Rows first .. last - 1 of P^T S P, and with right P^T target.
void share(const AlsTable& table, const AlsRow& row, const float* target, int64_t first,
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

int64_t tile_rows(int64_t dim) { return (dim + kRows - 1) / kRows * kRows; }

// t of the row, as solve_dual.
bool solve_row(const AlsTable& table, const AlsRow& row, const float* target, const float* q,
               float* t, float* scratch) {
  if (als_is_dual(row, table.dim)) return solve_dual(table, row, target, q, t, scratch);
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

int als_lanes() { return kLanes; }

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

namespace {

// The products with a row's matrix and its parts, for those that iterate.
struct Products {
  const AlsTable& table;
  const AlsRow& row;
  float* panel;
  int64_t at_once;
  bool kept;  // the panel holds all cells
  int64_t lead = als_leading(table.dim), steps = lead / kLanes;

  // body(cell, count, rows): blocks of cells of one sign.
  template <class Body>
  VECSMITH_METHOD void each(const Body& body) const {
    for (int64_t from = 0; from < row.cells();) {
      const int64_t end = from < row.positive ? row.positive : row.cells();
      const int64_t count = end - from < at_once ? end - from : at_once;
      float* rows = kept ? panel + from * lead : panel;
      if (!kept) gather(table, row, from, count, rows, lead);
      body(from, count, rows);
      from += count;
    }
  }

  // out += factor P^T (S P v + a): one of v and a, or both, may be null; a [cells].
  void add(const float* v, const float* a, float factor, float* out) const {
    each([&](int64_t from, int64_t count, const float* rows) {
      const float sign = from < row.positive ? 1.0f : -1.0f;
      for (int64_t j = 0; j < count; j += 4) {
        const int four = static_cast<int>(count - j < 4 ? count - j : 4);
        float u[4] = {};
        if (v) {
          if (four == 4)
            dot4(rows + j * lead, lead, v, steps, u);
          else
            for (int r = 0; r < four; ++r) u[r] = dot(rows + (j + r) * lead, v, steps);
        }
        for (int r = 0; r < four; ++r) u[r] = factor * (sign * u[r] + (a ? a[from + j + r] : 0.0f));
        combine(rows + j * lead, lead, four, u, 1, steps, out);
      }
    });
  }
  // a -= S P v.
  void take(const float* v, float* a) const {
    each([&](int64_t from, int64_t count, const float* rows) {
      const float sign = from < row.positive ? 1.0f : -1.0f;
      for (int64_t j = 0; j < count; ++j) a[from + j] -= sign * dot(rows + j * lead, v, steps);
    });
  }
};

}  // namespace

void als_conjugate(const AlsTable& table, const AlsRow& row, int64_t steps, float* scratch) {
  const int64_t lead = als_leading(table.dim), most = als_kept_rows(table.dim) - 1;
  float *t = scratch, *r = t + lead, *p = r + lead, *ap = p + lead, *panel = ap + lead;
  const bool kept = row.cells() <= most;
  if (kept) gather(table, row, 0, row.cells(), panel, lead);
  const Products products{table, row, panel, kept ? most : als_block_rows(table.dim), kept};
  const int64_t vectors = lead / kLanes;
  memset(t, 0, static_cast<size_t>(lead) * 4);
  for (int64_t i = 0; i < table.dim; ++i)
    t[i] = row.columns ? row.out[i] / row.columns[i] : row.out[i];
  // r = P^T c + q - (r I + P^T S P) t
  for (int64_t i = 0; i < lead; ++i) r[i] = 0;
  add_weightless(table, row, r, ap, lead);
  for (int64_t i = 0; i < lead; ++i) r[i] -= row.ridge * t[i];
  products.add(nullptr, row.target, 1.0f, r);
  products.add(t, nullptr, -1.0f, r);
  memcpy(p, r, static_cast<size_t>(lead) * 4);
  float before = dot(r, r, vectors);
  for (int64_t step = 0; step < steps && before > 1e-20f; ++step) {
    for (int64_t i = 0; i < lead; ++i) ap[i] = row.ridge * p[i];
    products.add(p, nullptr, 1.0f, ap);
    const float curve = dot(p, ap, vectors);
    if (!(curve > 0)) break;
    const float length = before / curve;
    for (int64_t i = 0; i < lead; ++i) {
      t[i] += length * p[i];
      r[i] -= length * ap[i];
    }
    const float after = dot(r, r, vectors), share = after / before;
    for (int64_t i = 0; i < lead; ++i) p[i] = r[i] + share * p[i];
    before = after;
  }
  write(table, row, t);
}

bool als_blocks(const AlsTable& table, const AlsRow& row, int64_t block, int64_t sweeps,
                float* scratch) {
  const int64_t width = block < table.dim ? block : table.dim, lead = als_leading(width);
  const int64_t cells = row.cells();
  float* left = scratch;  // c - S P t, of each cell
  float* q = left + als_padded(cells + row.zero);
  float* v = q + als_leading(table.dim);
  float* fine = v + lead;
  float* panel = fine + lead;
  float* rest = panel + als_block_rows(width) * lead;
  memset(q, 0, static_cast<size_t>(als_leading(table.dim)) * 4);
  memcpy(left, row.target, static_cast<size_t>(cells) * 4);
  const auto part = [&](int64_t from, AlsTable* columns, AlsRow* own) {
    const int64_t count = table.dim - from < width ? table.dim - from : width;
    *columns = AlsTable{table.factors + from, table.stride, count};
    *own = row;
    own->columns = row.columns ? row.columns + from : nullptr;
    own->out = row.out + from;
    return count;
  };
  for (int64_t from = 0; from < table.dim; from += width) {
    AlsTable columns;
    AlsRow own;
    const int64_t count = part(from, &columns, &own);
    memset(v, 0, static_cast<size_t>(lead) * 4);
    add_weightless(columns, own, v, panel, lead);
    memcpy(q + from, v, static_cast<size_t>(count) * 4);
    memset(v, 0, static_cast<size_t>(lead) * 4);
    for (int64_t i = 0; i < count; ++i)
      v[i] = own.columns ? own.out[i] / own.columns[i] : own.out[i];
    Products{columns, own, panel, als_block_rows(width), false}.take(v, left);
  }
  for (int64_t sweep = 0; sweep < sweeps; ++sweep)
    for (int64_t from = 0; from < table.dim; from += width) {
      AlsTable columns;
      AlsRow own;
      const int64_t count = part(from, &columns, &own);
      for (int64_t i = 0; i < count; ++i)
        v[i] = q[from + i] - row.ridge * (own.columns ? own.out[i] / own.columns[i] : own.out[i]);
      if (!solve_row(columns, own, left, v, fine, rest)) return false;
      Products{columns, own, panel, als_block_rows(width), false}.take(fine, left);
      for (int64_t i = 0; i < count; ++i)
        own.out[i] += own.columns ? fine[i] * own.columns[i] : fine[i];
    }
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
