// Products of the recurrent layers: blocks of rows of factors by panels of a matrix, whose sums
// stay in registers, or in tiles. What bounds them: multiply-adds, 24 sums for ten loads.
#include "cpu/rnn_products.h"

#include "cpu/tiles.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int kSums = kLanes == 16 ? 24 : 12;  // that registers have room for

// With kSplit, which parts of both factors are multiplied: 1 is what rounding leaves.
VECSMITH_INLINE int pass_count(RnnUnit unit) { return unit == kSplit ? 3 : 1; }
VECSMITH_INLINE const char* left_of(const RnnBlock& block, const char* row, int pass) {
  return block.unit == kSplit && pass == 0 ? row + block.left_rest : row;
}
VECSMITH_INLINE const float* right_of(const RnnBlock& block, int pass) {
  return pass == 1 ? block.panel + block.right_rest : block.panel;
}

// sum + word times the words of w; a word of pairs has two products.
template <bool kPairs>
VECSMITH_INLINE vfloat multiply_add(vfloat sum, const char* word, vfloat w) {
  if constexpr (kPairs) {
    int32_t two;
    __builtin_memcpy(&two, word, 4);
    return add_products_of_pairs(sum, two - vint{}, w);
  } else {
    float one;
    __builtin_memcpy(&one, word, 4);
    return sum + splat(one) * w;
  }
}

// sums[r][v] = the sum over all words k of word k of x[r] times panel[k][v].
template <bool kPairs, int R, int V>
__attribute__((noinline)) void product(const RnnBlock& block, const char* const* given,
                                       float* sums) {
  vfloat s[R * V];
#pragma GCC unroll 32
  for (int i = 0; i < R * V; ++i) s[i] = vfloat{};
  for (int pass = 0; pass < (kPairs ? pass_count(block.unit) : 1); ++pass) {
    const float* panel = right_of(block, pass);
    const char* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = left_of(block, given[r], pass);
    const int64_t end = block.words * block.step;
    for (int64_t k = 0; k < end; k += block.step, panel += V * kLanes) {
      vfloat w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          s[r * V + v] = multiply_add<kPairs>(s[r * V + v], x[r] + k, w[v]);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < R * V; ++i) store(sums + i * kLanes, s[i]);
}

// body(Number<R>, first row) over blocks of up to kMost rows of about one size.
template <int kMost, class Body>
VECSMITH_INLINE void over_rows(int rows, const Body& body) {
  const int blocks = (rows + kMost - 1) / kMost;
  for (int b = 0; b < blocks; ++b) {
    const int from = rows * b / blocks, to = rows * (b + 1) / blocks;
    with_number<1, kMost>(to - from, [&](auto r) VECSMITH_LAMBDA { body(r, from); });
  }
}

// The same of up to 16 rows that lie `stride` bytes apart, in tiles, with 3 or 4 vectors.
template <int V>
VECSMITH_INLINE void tile_product(const RnnBlock& block, const char* row, int64_t stride,
                                  float* out) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  if constexpr (V > 3) tile_zero<3>();
  constexpr int64_t kRow = V * 64;
  for (int pass = 0; pass < pass_count(block.unit); ++pass) {
    const char* x = left_of(block, row, pass);
    const char* w = reinterpret_cast<const char*>(right_of(block, pass));
    for (int64_t k = 0; k < block.words; k += 16, x += 64, w += 16 * kRow) {
      tile_load<4>(x, stride);
      tile_load<5>(w, kRow);
      tile_multiply_add<0>();
      tile_load<6>(w + 64, kRow);
      tile_multiply_add<1>();
      tile_load<7>(w + 128, kRow);
      tile_multiply_add<2>();
      if constexpr (V > 3) {
        tile_load<5>(w + 192, kRow);
        tile_multiply_add<3>();
      }
    }
  }
  tile_store<0>(out, kRow);
  tile_store<1>(out + 16, kRow);
  tile_store<2>(out + 32, kRow);
  if constexpr (V > 3) tile_store<3>(out + 48, kRow);
}

template <bool kPairs, int V>
VECSMITH_INLINE void multiply(const RnnBlock& block, const char* const* x, int rows, float* sums) {
  if constexpr (kPairs && kTiles) {
    const int64_t stride = rows > 1 ? x[1] - x[0] : 64;
    bool even = block.step == 4;  // rows of several steps may lie anywhere
    for (int r = 2; r < rows; ++r) even &= x[r] == x[0] + r * stride;
    if (even) {
      if (rows < kBlockRows) tile_configure(rows);
      tile_product<V>(block, x[0], stride, sums);
      if (rows < kBlockRows) tile_configure(kBlockRows);
      return;
    }
  }
  over_rows<kSums / V>(rows, [&](auto count, int from) VECSMITH_LAMBDA {
    product<kPairs, count.value, V>(block, x + from, sums + from * V * kLanes);
  });
}

// Of a matrix that is not packed, in floats; its columns are contiguous.
template <int R>
__attribute__((noinline)) void product_of_columns(const RnnMatrix& m, int64_t begin,
                                                  const char* const* x, float* sums) {
  constexpr int V = 4;
  vfloat s[R * V];
#pragma GCC unroll 32
  for (int i = 0; i < R * V; ++i) s[i] = vfloat{};
  for (int64_t k = 0; k < m.k; ++k) {
    vfloat w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t at = begin + v * kLanes, left = m.hidden - at;
      const int n = static_cast<int>(left < kLanes ? left : kLanes);
      w[v] = n > 0 ? get(m.weight, k * m.k_stride + at, n) : vfloat{};
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        s[r * V + v] = multiply_add<false>(s[r * V + v], x[r] + 4 * k, w[v]);
  }
#pragma GCC unroll 32
  for (int i = 0; i < R * V; ++i) store(sums + i * kLanes, s[i]);
}

// Its rows are: n rows from `first` on, for the lanes of one vector of each of R rows of factors.
template <int R>
__attribute__((noinline)) void product_of_rows(const RnnMatrix& m, int64_t first, int n,
                                               const char* const* x, float* sums,
                                               int64_t sums_stride) {
  constexpr int kAtOnce = 4;
  for (int lane = 0; lane < n; lane += kAtOnce) {
    Numbers rows[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i)
      rows[i] = m.weight.at((first + (lane + i < n ? lane + i : n - 1)) * m.row_stride);
    vfloat s[R * kAtOnce];
#pragma GCC unroll 32
    for (int i = 0; i < R * kAtOnce; ++i) s[i] = vfloat{};
    const auto step = [&](int64_t k, int count) VECSMITH_LAMBDA {
      vfloat w[kAtOnce];
#pragma GCC unroll 4
      for (int i = 0; i < kAtOnce; ++i) w[i] = get(rows[i], k, count);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const vfloat y = Float32::get(x[r], k, count);
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; ++i) s[r * kAtOnce + i] += y * w[i];
      }
    };
    int64_t k = 0;
    for (; k + kLanes <= m.k; k += kLanes) step(k, kLanes);
    if (k < m.k) step(k, static_cast<int>(m.k - k));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vfloat* const t = s + r * kAtOnce;
      fold4(t[0], t[1], t[2], t[3], sums + r * sums_stride + lane);
    }
  }
}

}  // namespace

void rnn_multiply(const RnnBlock& block, int vectors, const char* const* x, int rows, float* sums) {
  if (block.unit == kFloat)
    vectors == 3 ? multiply<false, 3>(block, x, rows, sums)
                 : multiply<false, 4>(block, x, rows, sums);
  else
    vectors == 3 ? multiply<true, 3>(block, x, rows, sums)
                 : multiply<true, 4>(block, x, rows, sums);
}

void rnn_multiply(const RnnMatrix& m, int64_t p, const char* const* x, int rows, int64_t left_rest,
                  float* sums) {
  const int vectors = m.gates * m.units;
  if (m.panels) {
    const int64_t words = rnn_words(m.unit, m.k), part = words * vectors * kLanes;
    const float* const panel = m.panels + p * (m.unit == kSplit ? 2 : 1) * part;
    return rnn_multiply({panel, words, left_rest, part, m.unit, 4}, vectors, x, rows, sums);
  }
  over_rows<4>(rows, [&](auto count, int from) VECSMITH_LAMBDA {
    constexpr int R = count.value;
    float* const to = sums + from * vectors * kLanes;
    if (m.k_stride != 1) return product_of_columns<R>(m, p * vectors * kLanes, x + from, to);
    for (int v = 0; v < vectors; ++v) {
      const int64_t unit = (p * m.units + v / m.gates) * kLanes, left = m.hidden - unit;
      if (left > 0)
        product_of_rows<R>(m, v % m.gates * m.hidden + unit,
                           static_cast<int>(left < kLanes ? left : kLanes), x + from,
                           to + v * kLanes, vectors * kLanes);
    }
  });
}

void rnn_begin() { tile_configure(kBlockRows); }
void rnn_end() { tile_release(); }

int rnn_matrix_units() {
#if defined(__AVX512BF16__)
  return kTiles ? 2 : 1;
#else
  return kTiles ? 2 : 0;
#endif
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
