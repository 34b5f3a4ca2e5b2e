// Embedding tables on the CPU: pooled gathers, and the sums and steps of touched rows (formulas:
// python/vecsmith/reference/embedding_bag.py).
//
// Forward: samples are taken in blocks of 512. For each block the addresses of its rows are made
// (and the indices checked) at once; then bag after bag is summed with the sums in registers, up to
// eight vectors wide, while rows some way ahead are asked for. What bounds it: one row read per
// sample, from memory where the table is large.
//
// Update: the samples come sorted by row. The gradient of a row is summed into the first-level
// cache, and then the row of the table and of the optimizer's state is read and written once, the
// rows to come being asked for meanwhile. What bounds it: (1 + states) rows read and written per
// distinct row.
//
// A last vector that would pass the end of a row begins earlier instead and overlaps its neighbor
// where things are only read or stored alike; where rows are changed in place, tails are masked.
#include "cpu/embedding_bag.h"

#include "cpu/elements.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

// body(columns of up to V vectors from `at`) over a row: body(Number<V>, at, n) where n is kLanes,
// or dim if that is less. The last vector may begin before at + (V - 1) kLanes (see above).
template <int kMost, class Body>
VECSMITH_INLINE void over_columns(int64_t dim, const Body& body) {
  if (dim < kLanes) return body(Number<1>{}, 0, static_cast<int>(dim));
  for (int64_t at = 0; at < dim; at += kMost * kLanes) {
    const int64_t left = (dim - at + kLanes - 1) / kLanes;
    with_number<1, kMost>(left < kMost ? left : kMost,
                          [&](auto v) VECSMITH_LAMBDA { body(v, at, kLanes); });
  }
}

// Where vector v of a block begins that ends with its row.
VECSMITH_INLINE int64_t column(int64_t at, int v, int64_t dim, int n) {
  const int64_t c = at + v * kLanes;
  return c + n <= dim ? c : dim - n;
}

// Into the second-level cache: requests for the first level queue behind its few line buffers, and
// the processor waits for them.
VECSMITH_INLINE void fetch(const char* p, int64_t bytes) {
  const char* const end = p + bytes;
  for (; p < end; p += 64) __builtin_prefetch(p, 0, 2);
}

VECSMITH_INLINE int64_t row_bytes(const Rows& rows) {
  const int64_t size = rows.type == kFloat32 ? 4 : rows.type == kQuantized8 ? 1 : 2;
  return rows.dim * size + (rows.type == kQuantized8 ? 8 : 0);
}

VECSMITH_INLINE float weight_at(const void* weights, ElementType type, int64_t n) {
  const char* p = static_cast<const char*>(weights);
  if (type == kFloat32) return Float32::get(p, n, 1)[0];
  return type == kFloat16 ? Float16::get(p, n, 1)[0] : Bfloat16::get(p, n, 1)[0];
}

// --- forward
// --------------------------------------------------------------------------------------

// How far ahead rows are asked for: about as many cache lines as can be on the way.
VECSMITH_INLINE int64_t rows_ahead(int64_t bytes) {
  const int64_t lines = (bytes + 127) / 64, ahead = 160 / lines;
  return ahead < 2 ? 2 : ahead > kBagAhead ? kBagAhead : ahead;
}

struct Cursor {
  int64_t bag, position;  // the next sample, in this bag
};

// Addresses of samples from .. from+count-1; false where one of them is no row (`bad`).
template <class Index>
VECSMITH_INLINE bool addresses(const Bags& bags, const Rows& table, int64_t from, int64_t count,
                               const char** row, int64_t& bad) {
  const Index* indices = static_cast<const Index*>(bags.indices) + from;
  const auto rows = static_cast<uint64_t>(bags.rows);
  uint64_t most = 0;
  for (int64_t k = 0; k < count; ++k) {
    const auto id = static_cast<uint64_t>(static_cast<int64_t>(indices[k]));
    most = most > id ? most : id;
    row[k] = table.data + id * static_cast<uint64_t>(table.stride);
  }
  if (__builtin_expect(count == 0 || most < rows, 1)) return true;
  for (int64_t k = 0; k < count; ++k)
    if (static_cast<uint64_t>(static_cast<int64_t>(indices[k])) >= rows) {
      bad = from + k;
      return false;
    }
  return true;
}

// The next samples of bags .. last-1, in a block of pieces.
template <class Index>
VECSMITH_INLINE bool fill(const Bags& bags, const Rows& table, int64_t last, Cursor& cursor,
                          BagBlock& block, int64_t& bad) {
  const Index* indices = static_cast<const Index*>(bags.indices);
  const Index* offsets = static_cast<const Index*>(bags.offsets);
  const auto begin_of = [&](int64_t bag) VECSMITH_LAMBDA {
    return bags.offset_count < 0
               ? bag * bags.length
               : (bag < bags.offset_count ? static_cast<int64_t>(offsets[bag]) : bags.count);
  };
  const int64_t base = block.base = cursor.position;
  const int64_t left = begin_of(last) - base, count = left < kBagBlock ? left : kBagBlock;
  if (!addresses<Index>(bags, table, base, count, block.row, bad)) return false;
  if (bags.mode == kMax || bags.padding >= 0)
    for (int64_t k = 0; k < count; ++k) block.position[k] = static_cast<int32_t>(k);
  if (bags.weights)
    for (int64_t k = 0; k < count; ++k)
      block.weight[k] = weight_at(bags.weights, bags.weight_type, base + k);
  int64_t at = 0;  // of the block's samples; behind `cursor` where padding was left out
  block.pieces = 0;
  while (cursor.bag < last && block.pieces < kBagBlock) {
    const int64_t begin = begin_of(cursor.bag), end = begin_of(cursor.bag + 1);
    const int64_t stop = end < base + count ? end : base + count;
    BagPiece& piece = block.piece[block.pieces++];
    piece.bag = cursor.bag;
    piece.begin = static_cast<int32_t>(at);
    piece.first = cursor.position == begin;
    piece.last = stop == end;
    if (bags.padding < 0) {
      at = stop - base;
    } else {
      for (int64_t k = cursor.position - base; k < stop - base; ++k) {
        block.row[at] = block.row[k];
        block.position[at] = static_cast<int32_t>(k);
        if (bags.weights) block.weight[at] = block.weight[k];
        at += static_cast<int64_t>(indices[base + k]) != bags.padding;
      }
    }
    piece.end = static_cast<int32_t>(at);
    cursor.position = stop;
    if (!piece.last) break;
    ++cursor.bag;
    if (stop == base + count && count == kBagBlock) break;
  }
  block.samples = at;
  return true;
}

// The same for mode "none": samples first .. last-1, whatever their bags.
template <class Index>
VECSMITH_INLINE bool fill_plain(const Bags& bags, const Rows& table, int64_t last, Cursor& cursor,
                                BagBlock& block, int64_t& bad) {
  const int64_t left = last - cursor.position, from = cursor.position;
  const int64_t take = left < kBagBlock ? left : kBagBlock;
  if (!addresses<Index>(bags, table, from, take, block.row, bad)) return false;
  block.samples = take;
  block.base = from;
  cursor.position += take;
  return true;
}

// One bag's stretch: sums (times their weights) of vectors `at` .. in registers. What goes on in
// the next block is kept by vector, not by column: where the last vector overlaps its neighbor,
// each has its own copy of the columns that they share.
template <class E, class Out, int V, bool kWeighted>
VECSMITH_INLINE void pool_columns(const BagForward& job, const BagBlock& block,
                                  const BagPiece& piece, int64_t at, int n, float scale,
                                  int64_t ahead, int64_t bytes, float* going_on) {
  const int64_t dim = job.table.dim;
  vfloat sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    sum[v] = piece.first ? vfloat{}
                         : Float32::get(reinterpret_cast<char*>(going_on), at + v * kLanes, n);
  for (int32_t i = piece.begin; i < piece.end; ++i) {
    if (at == 0) fetch(block.row[i + ahead], bytes);
    const RowOf<E> row(block.row[i], dim);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const vfloat x = row.get(column(at, v, dim, n), n);
      if (kWeighted)
        sum[v] += x * block.weight[i];
      else
        sum[v] += x;
    }
  }
  if (piece.last) {
    char* out = static_cast<char*>(job.out) + piece.bag * dim * Out::size;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) Out::put(out, column(at, v, dim, n), sum[v] * scale, n);
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      Float32::put(reinterpret_cast<char*>(going_on), at + v * kLanes, sum[v], n);
  }
}

template <class E, class Out, bool kWeighted>
__attribute__((noinline)) void pool_block(const BagForward& job, const BagBlock& block,
                                          int64_t ahead, BagScratch& scratch) {
  const int64_t bytes = row_bytes(job.table);
  for (int64_t p = 0; p < block.pieces; ++p) {
    const BagPiece& piece = block.piece[p];
    if (piece.first) scratch.kept = 0;
    scratch.kept += piece.end - piece.begin;
    const float scale =
        job.bags.mode == kMean && scratch.kept ? 1.0f / static_cast<float>(scratch.kept) : 1.0f;
    over_columns<8>(job.table.dim, [&](auto v, int64_t at, int n) VECSMITH_LAMBDA {
      pool_columns<E, Out, v.value, kWeighted>(job, block, piece, at, n, scale, ahead, bytes,
                                               scratch.sum);
    });
  }
}

constexpr int32_t kUnchanged = INT32_MIN;

template <class E, class Out, int V>
VECSMITH_INLINE void max_columns(const BagForward& job, const BagBlock& block,
                                 const BagPiece& piece, int64_t at, int n, int64_t ahead,
                                 int64_t bytes, BagScratch& scratch) {
  const int64_t dim = job.table.dim;
  char* going_on = reinterpret_cast<char*>(scratch.sum);
  int64_t* positions = job.positions + piece.bag * dim;
  const bool fresh = scratch.kept == 0;  // nothing of this bag has been seen
  vfloat best[V];
  vint where[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    best[v] = fresh ? vfloat{} : Float32::get(going_on, at + v * kLanes, n);
    where[v] = vint{} + kUnchanged;
  }
  for (int32_t i = piece.begin; i < piece.end; ++i) {
    if (at == 0) fetch(block.row[i + ahead], bytes);
    const RowOf<E> row(block.row[i], dim);
    const vint here = vint{} + block.position[i];
    const vint all = vint{} - static_cast<int32_t>(fresh && i == piece.begin);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const vfloat x = row.get(column(at, v, dim, n), n);
      const vint larger = (x > best[v]) | all;
      best[v] = larger ? x : best[v];
      where[v] = larger ? here : where[v];
    }
  }
  char* out = static_cast<char*>(job.out) + piece.bag * dim * Out::size;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const int64_t c = column(at, v, dim, n);
    if (piece.last)
      Out::put(out, c, best[v], n);
    else
      Float32::put(going_on, at + v * kLanes, best[v], n);
    const bool empty = fresh && piece.begin == piece.end;
    for (int lane = 0; lane < n; ++lane) {
      if (empty)
        positions[c + lane] = -1;
      else if (where[v][lane] != kUnchanged)
        positions[c + lane] = block.base + where[v][lane];
    }
  }
}

template <class E, class Out>
__attribute__((noinline)) void max_block(const BagForward& job, const BagBlock& block,
                                         int64_t ahead, BagScratch& scratch) {
  const int64_t bytes = row_bytes(job.table);
  for (int64_t p = 0; p < block.pieces; ++p) {
    const BagPiece& piece = block.piece[p];
    if (piece.first) scratch.kept = 0;
    over_columns<4>(job.table.dim, [&](auto v, int64_t at, int n) VECSMITH_LAMBDA {
      max_columns<E, Out, v.value>(job, block, piece, at, n, ahead, bytes, scratch);
    });
    scratch.kept += piece.end - piece.begin;
  }
}

template <class E, class Out>
__attribute__((noinline)) void copy_block(const BagForward& job, const BagBlock& block,
                                          int64_t ahead) {
  const int64_t dim = job.table.dim, bytes = row_bytes(job.table);
  char* out = static_cast<char*>(job.out) + block.base * dim * Out::size;
  for (int64_t i = 0; i < block.samples; ++i, out += dim * Out::size) {
    fetch(block.row[i + ahead], bytes);
    const RowOf<E> row(block.row[i], dim);
    over_columns<4>(dim, [&](auto v, int64_t at, int n) VECSMITH_LAMBDA {
      vfloat x[v.value];
#pragma GCC unroll 4
      for (int k = 0; k < v.value; ++k) x[k] = row.get(column(at, k, dim, n), n);
#pragma GCC unroll 4
      for (int k = 0; k < v.value; ++k) Out::put(out, column(at, k, dim, n), x[k], n);
    });
  }
}

template <class E, class Out>
VECSMITH_INLINE void forward_block(const BagForward& job, const BagBlock& block, int64_t ahead,
                                   BagScratch& scratch) {
  if (job.bags.mode == kNone)
    copy_block<E, Out>(job, block, ahead);
  else if (job.bags.mode == kMax)
    max_block<E, Out>(job, block, ahead, scratch);
  else if (job.bags.weights)
    pool_block<E, Out, true>(job, block, ahead, scratch);
  else
    pool_block<E, Out, false>(job, block, ahead, scratch);
}

bool fill_any(const BagForward& job, int64_t last, Cursor& cursor, BagBlock& block, int64_t& bad) {
  if (job.bags.mode == kNone)
    return job.bags.wide ? fill_plain<int64_t>(job.bags, job.table, last, cursor, block, bad)
                         : fill_plain<int32_t>(job.bags, job.table, last, cursor, block, bad);
  return job.bags.wide ? fill<int64_t>(job.bags, job.table, last, cursor, block, bad)
                       : fill<int32_t>(job.bags, job.table, last, cursor, block, bad);
}

}  // namespace

void embedding_bag_forward(const BagForward& job, int64_t first, int64_t last,
                           BagScratch& scratch) {
  const int64_t ahead = rows_ahead(row_bytes(job.table));
  Cursor cursor{first, job.bags.mode == kNone ? first : job.bags.bag_begin(first)};
  const auto more = [&] {
    return job.bags.mode == kNone ? cursor.position < last : cursor.bag < last;
  };
  int now = 0;
  if (!more() || !fill_any(job, last, cursor, scratch.block[0], scratch.bad)) return;
  for (int64_t i = 0; i < scratch.block[0].samples && i < ahead; ++i)
    fetch(scratch.block[0].row[i], row_bytes(job.table));
  for (bool going = true; going; now = 1 - now) {
    BagBlock &block = scratch.block[now], &next = scratch.block[1 - now];
    going = more();
    next.samples = 0;
    if (going && !fill_any(job, last, cursor, next, scratch.bad)) return;
    // Behind a block's rows stand the first of the next: what is asked for at its end.
    for (int64_t i = 0; i < kBagAhead; ++i)
      block.row[block.samples + i] = i < next.samples ? next.row[i]
                                     : block.samples  ? block.row[block.samples - 1]
                                                      : nullptr;
    switch (job.table.type) {
      case kFloat32:
        forward_block<Float32, Float32>(job, block, ahead, scratch);
        break;
      case kFloat16:
        forward_block<Float16, Float16>(job, block, ahead, scratch);
        break;
      case kBfloat16:
        forward_block<Bfloat16, Bfloat16>(job, block, ahead, scratch);
        break;
      default:
        forward_block<Quantized8, Float32>(job, block, ahead, scratch);
    }
  }
}

// --- the gradient of per_sample_weights
// -----------------------------------------------------------

namespace {

template <class G, class E>
VECSMITH_INLINE void dots(const Bags& bags, const Rows& grad, const Rows& table, int64_t first,
                          int64_t last, void* out, ElementType type) {
  const int64_t dim = table.dim, full = dim / kLanes * kLanes, bytes = row_bytes(table);
  for (int64_t bag = first; bag < last; ++bag) {
    const char* g = grad.data + bag * grad.stride;
    const int64_t end = bags.bag_begin(bag + 1);
    for (int64_t n = bags.bag_begin(bag); n < end; ++n) {
      const int64_t later = n + 8;
      if (later < bags.count) fetch(table.data + bags.index(later) * table.stride, bytes);
      const char* row = table.data + bags.index(n) * table.stride;
      vfloat sum{}, other{};  // two, so that an addition does not wait for the one before it
      if (bags.index(n) != bags.padding) {
        int64_t at = 0;
        for (; at + 2 * kLanes <= full; at += 2 * kLanes) {
          sum += G::get(g, at, kLanes) * E::get(row, at, kLanes);
          other += G::get(g, at + kLanes, kLanes) * E::get(row, at + kLanes, kLanes);
        }
        if (at < full) sum += G::get(g, at, kLanes) * E::get(row, at, kLanes);
        if (full < dim) {
          const int tail = static_cast<int>(dim - full);
          sum += G::get(g, full, tail) * E::get(row, full, tail);
        }
      }
      const vfloat value = splat(sum_of_lanes(sum + other));
      char* to = static_cast<char*>(out);
      if (type == kFloat32)
        Float32::put(to, n, value, 1);
      else if (type == kFloat16)
        Float16::put(to, n, value, 1);
      else
        Bfloat16::put(to, n, value, 1);
    }
  }
}

}  // namespace

void embedding_bag_dots(const Bags& bags, const Rows& grad, const Rows& table, int64_t first,
                        int64_t last, void* out, ElementType type) {
  // The gradient has the table's type, or is float32 beside another.
  if (table.type == kFloat32)
    return dots<Float32, Float32>(bags, grad, table, first, last, out, type);
  if (table.type == kFloat16)
    return grad.type == kFloat16
               ? dots<Float16, Float16>(bags, grad, table, first, last, out, type)
               : dots<Float32, Float16>(bags, grad, table, first, last, out, type);
  return grad.type == kBfloat16
             ? dots<Bfloat16, Bfloat16>(bags, grad, table, first, last, out, type)
             : dots<Float32, Bfloat16>(bags, grad, table, first, last, out, type);
}

// --- update
// ---------------------------------------------------------------------------------------

namespace {

constexpr int64_t kGradsAhead = 24;

VECSMITH_INLINE int64_t grad_row(const BagUpdate& job, uint32_t source) {
  return job.bag_of ? job.bag_of[source] : static_cast<int64_t>(source);
}

template <class G, int V, bool kScaled>
VECSMITH_INLINE void sum_columns(const BagUpdate& job, int64_t first, int64_t last, int64_t at,
                                 int n, float* sum) {
  const int64_t dim = job.grad.dim;
  vfloat total[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) total[v] = vfloat{};
  for (int64_t s = first; s < last; ++s) {
    const uint32_t position = job.sorted[s].source;
    const int64_t bag = grad_row(job, position);
    const char* row = job.grad.data + bag * job.grad.stride;
    float c = 1.0f;
    if (kScaled) {
      if (job.bag_scale) c = job.bag_scale[bag];
      if (job.bags.weights) c *= weight_at(job.bags.weights, job.bags.weight_type, position);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const vfloat g = G::get(row, column(at, v, dim, n), n);
      total[v] += kScaled ? g * c : g;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    Float32::put(reinterpret_cast<char*>(sum), column(at, v, dim, n), total[v], n);
}

template <class G>
VECSMITH_INLINE void sum_maxima(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  const int64_t dim = job.grad.dim;
  for (int64_t d = 0; d < dim; ++d) sum[d] = 0.0f;
  for (int64_t s = first; s < last; ++s) {
    const uint32_t position = job.sorted[s].source;
    const int64_t bag = grad_row(job, position);
    const int64_t* where = job.positions + bag * dim;
    const char* row = job.grad.data + bag * job.grad.stride;
    for (int64_t at = 0; at < dim; at += kLanes) {
      const int n = static_cast<int>(dim - at < kLanes ? dim - at : kLanes);
      const vfloat g = n == kLanes ? G::get(row, at, kLanes) : G::get(row, at, n);
      for (int lane = 0; lane < n; ++lane)
        sum[at + lane] += where[at + lane] == static_cast<int64_t>(position) ? g[lane] : 0.0f;
    }
  }
}

template <class G>
VECSMITH_INLINE void sum_of(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  if (job.bags.mode == kMax) return sum_maxima<G>(job, first, last, sum);
  const bool scaled = job.bag_scale || job.bags.weights;
  over_columns<8>(job.grad.dim, [&](auto v, int64_t at, int n) VECSMITH_LAMBDA {
    if (scaled)
      sum_columns<G, v.value, true>(job, first, last, at, n, sum);
    else
      sum_columns<G, v.value, false>(job, first, last, at, n, sum);
  });
}

__attribute__((noinline)) void sum_samples(const BagUpdate& job, int64_t first, int64_t last,
                                           float* sum) {
  if (job.grad.type == kFloat32)
    sum_of<Float32>(job, first, last, sum);
  else if (job.grad.type == kFloat16)
    sum_of<Float16>(job, first, last, sum);
  else
    sum_of<Bfloat16>(job, first, last, sum);
}

// body(at, n) over a row, with a masked tail.
template <class Body>
VECSMITH_INLINE void each_vector(int64_t dim, const Body& body) {
  int64_t at = 0;
  for (; at + kLanes <= dim; at += kLanes) body(at, kLanes);
  if (at < dim) body(at, static_cast<int>(dim - at));
}

// The rule on a row w with its state, given the sum g in `sum`.
template <class W, int kKind>
VECSMITH_INLINE void step(const BagUpdate& job, char* w, int64_t row, float* sum) {
  const Rule& rule = job.rule;
  const int64_t dim = job.table.dim;
  char* const g = reinterpret_cast<char*>(sum);
  if (kKind == kStore || kKind == kScatter)
    return each_vector(
        dim, [&](int64_t at, int n) VECSMITH_LAMBDA { W::put(w, at, Float32::get(g, at, n), n); });
  const auto gradient = [&](int64_t at, int n, vfloat x) VECSMITH_LAMBDA {
    const vfloat value = Float32::get(g, at, n);
    return (rule.maximize ? -value : value) + x * rule.decay;
  };
  constexpr bool rowwise = kKind == kRowwiseAdagrad || kKind == kRowwiseAdam;
  float scale = 0;  // of the whole row, where one number serves it
  if (rowwise) {
    vfloat squares{};
    each_vector(dim, [&](int64_t at, int n) VECSMITH_LAMBDA {
      const vfloat x = gradient(at, n, W::get(w, at, n));
      squares += x * x;
    });
    const float mean = sum_of_lanes(squares) / static_cast<float>(dim);
    float& v = job.state[kKind == kRowwiseAdam ? 1 : 0][row];
    v = kKind == kRowwiseAdam ? v + rule.blend2 * (mean - v) : v + mean;
    scale = rule.rate / (__builtin_sqrtf(v) + rule.eps);
  }
  char* const first = job.state[0] && kKind != kRowwiseAdagrad
                          ? reinterpret_cast<char*>(job.state[0] + row * dim)
                          : nullptr;
  char* const second = kKind == kAdam ? reinterpret_cast<char*>(job.state[1] + row * dim) : nullptr;
  each_vector(dim, [&](int64_t at, int n) VECSMITH_LAMBDA {
    const vfloat x = W::get(w, at, n);
    const vfloat y = gradient(at, n, x);
    vfloat change{};
    if constexpr (kKind == kSgd) change = y * rule.rate;
    if constexpr (kKind == kMomentum) {
      const vfloat b = Float32::get(first, at, n) * rule.momentum + y * rule.fresh;
      Float32::put(first, at, b, n);
      change = (rule.nesterov ? y + b * rule.momentum : b) * rule.rate;
    }
    if constexpr (kKind == kAdagrad) {
      const vfloat s = Float32::get(first, at, n) + y * y;
      Float32::put(first, at, s, n);
      change = y * rule.rate / (square_root(s) + rule.eps);
    }
    if constexpr (kKind == kRowwiseAdagrad) change = y * scale;
    if constexpr (kKind == kAdam || kKind == kRowwiseAdam) {
      const vfloat before = Float32::get(first, at, n);
      const vfloat m = before + (y - before) * rule.blend1;
      Float32::put(first, at, m, n);
      if constexpr (kKind == kAdam) {
        const vfloat old = Float32::get(second, at, n);
        const vfloat v = old + (y * y - old) * rule.blend2;
        Float32::put(second, at, v, n);
        change = m * rule.rate / (square_root(v) + rule.eps);
      } else {
        change = m * scale;
      }
    }
    W::put(w, at, x - change, n);
  });
}

constexpr int64_t kLinesAhead = 256;

template <class W, int kKind>
__attribute__((noinline)) void update_segments(const BagUpdate& job, int64_t first, int64_t last,
                                               float* sum) {
  const int64_t bytes = row_bytes(job.table), dim = job.table.dim;
  constexpr bool fetched = kKind != kStore;
  constexpr bool first_state =
      kKind == kMomentum || kKind == kAdagrad || kKind == kAdam || kKind == kRowwiseAdam;
  const int64_t lines =
      (bytes + 63) / 64 + (first_state ? dim / 16 + 1 : 0) + (kKind == kAdam ? dim / 16 + 1 : 0);
  const int64_t ahead = lines > kLinesAhead        ? 1
                        : kLinesAhead / lines < 64 ? kLinesAhead / lines
                                                   : 64;
  int64_t part = 0;  // the first long row from here on
  while (part < job.long_count && job.long_rows[part] < first) ++part;
  const auto fetch_segment = [&](int64_t u) VECSMITH_LAMBDA {
    const int64_t row = job.first_row + job.sorted[job.begins[u]].row;
    fetch(job.table.data + row * job.table.stride, bytes);
    if constexpr (first_state)
      fetch(reinterpret_cast<const char*>(job.state[0] + row * dim), dim * 4);
    if constexpr (kKind == kAdam)
      fetch(reinterpret_cast<const char*>(job.state[1] + row * dim), dim * 4);
    if constexpr (kKind == kRowwiseAdagrad) __builtin_prefetch(job.state[0] + row, 1, 3);
    if constexpr (kKind == kRowwiseAdam) __builtin_prefetch(job.state[1] + row, 1, 3);
  };
  if (fetched)
    for (int64_t u = first; u < last && u < first + ahead; ++u) fetch_segment(u);
  const int64_t samples = job.begins[job.segments];
  // Gradients stay in the second-level cache unless the rows between two uses push them out.
  const bool far = job.bags.bags * job.grad.stride > (int64_t{1} << 20) ||
                   (job.segments * 2 > samples && job.bags.bags * job.grad.stride > (1 << 17));
  for (int64_t u = first; u < last; ++u) {
    if (fetched && u + ahead < job.segments) fetch_segment(u + ahead);
    const int64_t begin = job.begins[u], end = job.begins[u + 1];
    const int64_t row = job.first_row + job.sorted[begin].row;
    if (far)
      for (int64_t s = begin + kGradsAhead; s < end + kGradsAhead && s < samples; ++s)
        fetch(job.grad.data + grad_row(job, job.sorted[s].source) * job.grad.stride,
              row_bytes(job.grad));
    float* g = sum;
    if (__builtin_expect(part < job.long_count && job.long_rows[part] == u, 0)) {
      const int64_t from = job.part_of[part], to = job.part_of[part + 1];
      g = job.parts + from * job.part_stride;
      for (int64_t p = from + 1; p < to; ++p)
        for (int64_t at = 0; at < job.part_stride; at += kLanes)
          store(g + at, load(g + at) + load(job.parts + p * job.part_stride + at));
      ++part;
    } else {
      sum_samples(job, begin, end, sum);
    }
    char* w = const_cast<char*>(job.table.data) + (kKind == kStore ? u : row) * job.table.stride;
    if (kKind == kStore) job.row_ids[u] = row;
    step<W, kKind>(job, w, row, g);
  }
}

template <class W>
VECSMITH_INLINE void update_with(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  switch (job.rule.kind) {
    case kStore:
      return update_segments<W, kStore>(job, first, last, sum);
    case kScatter:
      return update_segments<W, kScatter>(job, first, last, sum);
    case kSgd:
      return update_segments<W, kSgd>(job, first, last, sum);
    case kMomentum:
      return update_segments<W, kMomentum>(job, first, last, sum);
    case kAdagrad:
      return update_segments<W, kAdagrad>(job, first, last, sum);
    case kRowwiseAdagrad:
      return update_segments<W, kRowwiseAdagrad>(job, first, last, sum);
    case kAdam:
      return update_segments<W, kAdam>(job, first, last, sum);
    default:
      return update_segments<W, kRowwiseAdam>(job, first, last, sum);
  }
}

}  // namespace

void embedding_bag_update(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  if (job.table.type == kFloat32)
    update_with<Float32>(job, first, last, sum);
  else if (job.table.type == kFloat16)
    update_with<Float16>(job, first, last, sum);
  else
    update_with<Bfloat16>(job, first, last, sum);
}

void embedding_bag_part(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  // Lanes beyond the row are summed with the others.
  for (int64_t at = job.grad.dim / kLanes * kLanes; at < job.part_stride; ++at) sum[at] = 0.0f;
  sum_samples(job, first, last, sum);
}

int64_t embedding_bag_select(const Bags& bags, int64_t first, int64_t last, uint32_t low,
                             uint32_t span, uint32_t* positions, uint32_t* rows) {
  int64_t count = 0, i = first;
#if defined(__AVX512F__)
  const __m512i base = _mm512_set1_epi32(static_cast<int>(low));
  const __m512i width = _mm512_set1_epi32(static_cast<int>(span));
  const __m512i padding = _mm512_set1_epi32(static_cast<int>(bags.padding));
  __m512i position =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  for (; i + 16 <= last; i += 16, position = _mm512_add_epi32(position, _mm512_set1_epi32(16))) {
    __m512i row;
    if (bags.wide) {
      const int64_t* p = static_cast<const int64_t*>(bags.indices) + i;
      row = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(_mm512_loadu_si512(p))),
                               _mm512_cvtepi64_epi32(_mm512_loadu_si512(p + 8)), 1);
    } else {
      row = _mm512_loadu_si512(static_cast<const int32_t*>(bags.indices) + i);
    }
    const __mmask16 here = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(row, base), width) &
                           _mm512_cmpneq_epi32_mask(row, padding);
    if (positions) {  // (compressing into memory is slow on some processors)
      _mm512_storeu_si512(positions + count, _mm512_maskz_compress_epi32(here, position));
      _mm512_storeu_si512(rows + count, _mm512_maskz_compress_epi32(here, row));
    }
    count += __builtin_popcount(here);
  }
#endif
  for (; i < last; ++i) {
    const uint32_t row = static_cast<uint32_t>(bags.index(i));
    if (positions) {
      positions[count] = static_cast<uint32_t>(i);
      rows[count] = row;
    }
    count += (row - low < span) & (static_cast<int64_t>(row) != bags.padding);
  }
  return count;
}

int64_t embedding_bag_bad(const Bags& bags, int64_t first, int64_t last) {
  const auto rows = static_cast<uint64_t>(bags.rows);
  uint64_t bad = 0;
  if (bags.wide) {
    const int64_t* p = static_cast<const int64_t*>(bags.indices);
    for (int64_t i = first; i < last; ++i) bad |= static_cast<uint64_t>(p[i]) >= rows;
  } else {
    const int32_t* p = static_cast<const int32_t*>(bags.indices);
    for (int64_t i = first; i < last; ++i)
      bad |= static_cast<uint64_t>(static_cast<int64_t>(p[i])) >= rows;
  }
  for (int64_t i = first; bad && i < last; ++i)
    if (static_cast<uint64_t>(bags.index(i)) >= rows) return i;
  return -1;
}

bool all_finite(const void* values, ElementType type, int64_t count) {
  // x - x is zero for what is finite, and NaN for what is not.
  vfloat bad{};
  const char* p = static_cast<const char*>(values);
  const auto look = [&](auto element) VECSMITH_LAMBDA {
    using E = decltype(element);
    each_vector(count, [&](int64_t at, int n) VECSMITH_LAMBDA {
      const vfloat x = E::get(p, at, n);
      bad += x - x;
    });
  };
  if (type == kFloat32)
    look(Float32{});
  else if (type == kFloat16)
    look(Float16{});
  else
    look(Bfloat16{});
  return sum_of_lanes(bad) == 0.0f;
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
