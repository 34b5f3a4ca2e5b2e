// Systems of alternating least squares that are solved in steps: conjugate gradients, which never
// write a matrix, and blocks of columns (iALS++).
#include "cpu/als_solve_system.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int64_t kFresh = 32;  // rows of a block that is used as soon as it is gathered

// out[r] = <row r of a, v>, of 8 rows.
VECSMITH_INLINE void dot8(const float* a, int64_t stride, const float* v, int64_t steps,
                          float* out) {
  vfloat s[8] = {};
  for (int64_t i = 0; i < steps; ++i) {
    const vfloat x = in_register(load(v + i * kLanes));
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) s[r] += load(a + r * stride + i * kLanes) * x;
  }
  fold4(s[0], s[1], s[2], s[3], out);
  fold4(s[4], s[5], s[6], s[7], out + 4);
}

// out += the sum over j of (x <row j, v> + y a_j) times row j; a may be null. Up to kHeld pairs of
// vectors, v and out stay in registers, and a row is read from memory once.
constexpr int kHeld = 4;
template <int N>
VECSMITH_INLINE void add_projections(const float* rows, int64_t count, const float* v, float x,
                                     const float* a, float y, float* out) {
  constexpr int64_t lead = N * kLanes;
  vfloat own[N], sums[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    own[i] = load(v + i * kLanes);
    sums[i] = load(out + i * kLanes);
  }
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const float* four = rows + j * lead;
    vfloat s[4] = {};
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) s[r] += load(four + r * lead + i * kLanes) * own[i];
    float u[4];
    fold4(s[0], s[1], s[2], s[3], u);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const vfloat w = splat(x * u[r] + (a ? y * a[j + r] : 0.0f));
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) sums[i] += w * load(four + r * lead + i * kLanes);
    }
  }
  for (; j < count; ++j) {
    vfloat s{};
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) s += load(rows + j * lead + i * kLanes) * own[i];
    const vfloat w = splat(x * sum(s) + (a ? y * a[j] : 0.0f));
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sums[i] += w * load(rows + j * lead + i * kLanes);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) store(out + i * kLanes, sums[i]);
}
void add_projections(const float* rows, int64_t steps, int64_t count, const float* v, float x,
                     const float* a, float y, float* out) {
  const int64_t lead = steps * kLanes;
  if (steps <= 2 * kHeld && steps % 2 == 0) {
    with_number<1, kHeld>(steps / 2, [&](auto pairs) VECSMITH_LAMBDA {
      add_projections<2 * pairs.value>(rows, count, v, x, a, y, out);
    });
    return;
  }
  constexpr int kCells = 8;
  for (int64_t j = 0; j < count; j += kCells) {
    const int64_t some = count - j < kCells ? count - j : kCells;
    float u[kCells] = {};
    if (some == kCells)
      dot8(rows + j * lead, lead, v, steps, u);
    else
      for (int64_t r = 0; r < some; ++r) u[r] = dot(rows + (j + r) * lead, v, steps);
    for (int64_t r = 0; r < some; ++r) u[r] = x * u[r] + (a ? y * a[j + r] : 0.0f);
    combine(rows + j * lead, lead, some, u, 1, steps, out);
  }
}

// The products with a row's matrix and its parts, for those that iterate.
struct Products {
  const AlsTable& table;
  const AlsRow& row;
  float* panel;
  bool kept;              // the panel has room for all cells
  bool gathered = false;  // and has them
  int64_t lead = als_leading(table.dim), steps = lead / kLanes;

  // body(cell, count, rows): blocks of cells of one sign.
  template <class Body>
  VECSMITH_METHOD void each(const Body& body) {
    // What was just gathered is used while it is in the first-level cache.
    const int64_t at_once = gathered ? row.cells() : kFresh;
    for (int64_t from = 0; from < row.cells();) {
      const int64_t end = from < row.positive ? row.positive : row.cells();
      const int64_t count = end - from < at_once ? end - from : at_once;
      float* rows = kept ? panel + from * lead : panel;
      if (!gathered) gather(table, row, from, count, rows, lead);
      body(from, count, rows);
      from += count;
    }
    gathered = kept;
  }

  // out += factor P^T (S P v - a); a [cells] or null.
  void add(const float* v, const float* a, float factor, float* out) {
    each([&](int64_t from, int64_t count, const float* rows) VECSMITH_LAMBDA {
      const float sign = from < row.positive ? 1.0f : -1.0f;
      add_projections(rows, steps, count, v, factor * sign, a ? a + from : nullptr, -factor, out);
    });
  }
  // a -= S P v.
  void take(const float* v, float* a) {
    each([&](int64_t from, int64_t count, const float* rows) VECSMITH_LAMBDA {
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
  Products products{table, row, panel, kept};
  const int64_t vectors = lead / kLanes;
  memset(t, 0, static_cast<size_t>(lead) * 4);
  for (int64_t i = 0; i < table.dim; ++i)
    t[i] = row.columns ? row.out[i] / row.columns[i] : row.out[i];
  // r = P^T c + q - (r I + P^T S P) t
  for (int64_t i = 0; i < lead; ++i) r[i] = 0;
  add_weightless(table, row, r, ap, lead);
  for (int64_t i = 0; i < lead; ++i) r[i] -= row.ridge * t[i];
  products.add(t, row.target, -1.0f, r);
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
  if (cells + row.zero == 0) {
    memset(row.out, 0, static_cast<size_t>(table.dim) * 4);
    return true;
  }
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
    Products{columns, own, panel, false}.take(v, left);
  }
  for (int64_t sweep = 0; sweep < sweeps; ++sweep)
    for (int64_t from = 0; from < table.dim; from += width) {
      AlsTable columns;
      AlsRow own;
      const int64_t count = part(from, &columns, &own);
      for (int64_t i = 0; i < count; ++i)
        v[i] = q[from + i] - row.ridge * (own.columns ? own.out[i] / own.columns[i] : own.out[i]);
      if (!solve_row(columns, own, left, v, fine, rest)) return false;
      Products{columns, own, panel, false}.take(fine, left);
      for (int64_t i = 0; i < count; ++i)
        own.out[i] += own.columns ? fine[i] * own.columns[i] : fine[i];
    }
  return true;
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
