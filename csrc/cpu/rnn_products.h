// Numbers, factors, and products of rows of factors and a matrix, for the kernels of the recurrent
// layers alone.
#pragma once

#include "cpu/elements.h"
#include "cpu/rnn.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int kBlockRows = 16;  // of a product

VECSMITH_INLINE vfloat get(const float* p, int n) {
  return n == kLanes ? load(p) : load_tail(p, n);
}
VECSMITH_INLINE void put(float* p, vfloat v, int n) {
  if (n == kLanes)
    store(p, v);
  else
    store_tail(p, v, n);
}
VECSMITH_INLINE vfloat get(Numbers numbers, int64_t at, int n) {
  return numbers.half ? Bfloat16::get(numbers.data, at, n) : Float32::get(numbers.data, at, n);
}
VECSMITH_INLINE void put(Numbers numbers, int64_t at, vfloat v, int n) {
  if (numbers.half)
    Bfloat16::put(numbers.data, at, v, n);
  else
    Float32::put(numbers.data, at, v, n);
}

// --- factors

// To the nearest bfloat16.
VECSMITH_INLINE vfloat rounded(vfloat v) {
  const vbits bits = (vbits)v;
  const vbits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
  return (vfloat)(v == v ? nearest : (bits | 0x400000) & 0xffff0000);
}
// What rounding leaves; nothing of what has no such difference.
VECSMITH_INLINE vfloat rest(vfloat v) {
  const vfloat r = v - rounded(v);
  return abs(r) <= abs(v) ? r : vfloat{};
}
VECSMITH_INLINE vfloat part_of(vfloat v, int part) { return part ? rest(v) : v; }
// Words of two numbers each.
VECSMITH_INLINE vint pairs(vfloat even, vfloat odd) {
  return (vint)(((vbits)rounded(even) >> 16) | (vbits)rounded(odd));
}

VECSMITH_INLINE void put_halves(char* row, int64_t at, vfloat v, int n) {
#if defined(__AVX512BF16__)
  store_shorts(row + 2 * at, (vshort)_mm512_cvtneps_pbh((__m512)v), n);
#else
  Bfloat16::put(row, at, v, n);
#endif
}
VECSMITH_INLINE void put_factors(const RnnFactors& to, char* row, int64_t at, vfloat v, int n) {
  if (to.unit == kFloat) return Float32::put(row, at, v, n);
  put_halves(row, at, v, n);
  if (to.unit == kSplit) put_halves(row + 4 * to.words, at, rest(v), n);
}
VECSMITH_INLINE vfloat get_factors(const RnnFactors& from, const char* row, int64_t at, int n) {
  if (from.unit == kFloat) return Float32::get(row, at, n);
  const vfloat v = Bfloat16::get(row, at, n);
  return from.unit == kSplit ? v + Bfloat16::get(row + 4 * from.words, at, n) : v;
}

}  // namespace

// What rows of factors are multiplied with: `words` words of V vectors. With kSplit what rounding
// leaves lies left_rest bytes behind a row's begin, and right_rest floats behind the panel's.
struct RnnBlock {
  const float* panel;
  int64_t words, left_rest, right_rest;
  RnnUnit unit;
  int64_t step;  // bytes from one word of a row to the next
};

// sums[r][v] = the sum over k of word k of row x[r] times panel[k][v], `vectors` vectors (3 or 4),
// of up to kBlockRows rows. rnn_products.kernel.cpp has these.
void rnn_multiply(const RnnBlock& block, int vectors, const char* const* x, int rows, float* sums);
// The same of the panel p of a matrix, packed or not.
void rnn_multiply(const RnnMatrix& matrix, int64_t p, const char* const* x, int rows,
                  int64_t left_rest, float* sums);

namespace {

VECSMITH_INLINE const char* factors(const RnnLinear& job, int64_t row) { return job.x.row(row); }
VECSMITH_INLINE int64_t rest_at(const RnnLinear& job) { return 4 * job.x.words; }
template <class Step>
VECSMITH_INLINE const char* factors(const Step& step, int64_t row) {
  return step.state[row];
}
template <class Step>
VECSMITH_INLINE int64_t rest_at(const Step& step) {
  return 4 * step.state_words;
}

// Asks for the line that p points to, while there is other work.
VECSMITH_INLINE void fetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// The products of panels first .. last-1 with all rows; start(row, unit, n, g) is what is added,
// and finish(row, unit, n, sums of the gates) has the sums. G gates, U vectors of units. ask(row,
// unit) is called before the product.
template <int G, int U, class Step, class Start, class Finish, class Ask>
VECSMITH_INLINE void each_product(const Step& step, int64_t first, int64_t last, const Start& start,
                                  const Finish& finish, const Ask& ask) {
  const RnnMatrix& matrix = *step.matrix;
  const int64_t blocks = (step.rows + kBlockRows - 1) / kBlockRows;
  alignas(64) float sums[kBlockRows * G * U * kLanes];
  for (int64_t p = first; p < last; ++p)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t from = b * kBlockRows, left = step.rows - from;
      const int rows = static_cast<int>(left < kBlockRows ? left : kBlockRows);
      const char* x[kBlockRows];
      for (int r = 0; r < rows; ++r) {
        x[r] = factors(step, from + r);
        for (int u = 0; u < U; ++u) ask(from + r, (p * U + u) * kLanes);
      }
      rnn_multiply(matrix, p, x, rows, rest_at(step), sums);
      for (int r = 0; r < rows; ++r)
        for (int u = 0; u < U; ++u) {
          const int64_t at = (p * U + u) * kLanes;
          if (at >= matrix.hidden) break;
          const int n = static_cast<int>(matrix.hidden - at < kLanes ? matrix.hidden - at : kLanes);
          vfloat s[G];
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g)
            s[g] = start(from + r, at, n, g) + load(sums + ((r * U + u) * G + g) * kLanes);
          finish(from + r, at, n, s);
        }
    }
}
template <int G, int U, class Step, class Start, class Finish>
VECSMITH_INLINE void each_product(const Step& step, int64_t first, int64_t last, const Start& start,
                                  const Finish& finish) {
  each_product<G, U>(step, first, last, start, finish, [](int64_t, int64_t) VECSMITH_LAMBDA {});
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
