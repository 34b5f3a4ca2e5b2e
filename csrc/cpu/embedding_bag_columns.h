// A row of a table taken vector by vector: what the kernels of embedding_bag have in common.
//
// A last vector that would pass the end of a row begins earlier instead and overlaps its neighbor
// where things are only read or stored alike; where rows are changed in place, tails are masked.
#pragma once

#include "cpu/elements.h"
#include "cpu/embedding_bag.h"

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

// Every line of a row into the second-level cache: requests for the first level queue behind its
// few line buffers, and the processor waits for them.
VECSMITH_INLINE void fetch(const char* p, int64_t bytes) {
  const char* const end = p + bytes;
  for (p -= reinterpret_cast<uintptr_t>(p) & 63; p < end; p += 64) __builtin_prefetch(p, 0, 2);
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

// body(at, n) over a row, with a masked tail.
template <class Body>
VECSMITH_INLINE void each_vector(int64_t dim, const Body& body) {
  int64_t at = 0;
  for (; at + kLanes <= dim; at += kLanes) body(at, kLanes);
  if (at < dim) body(at, static_cast<int>(dim - at));
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
