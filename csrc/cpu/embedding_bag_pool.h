// Forward: samples are taken in blocks of 512. For each block the addresses of its rows are made
// (and the indices checked) at once; then bag after bag is summed with the sums in registers, up to
// eight vectors wide, while rows some way ahead are asked for. What bounds it: one row read per
// sample, from memory where the table is large. Included by embedding_bag.kernel.cpp alone.
#pragma once

#include "cpu/embedding_bag_columns.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

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
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
