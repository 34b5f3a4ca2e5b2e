// What recurrent layers do for all steps at once: packing, the input's product, and the gradients
// of the weights, which are sums over the rows of all steps of outer products.
#include "cpu/rnn_products.h"
#include "cpu/tiles.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

// A square of words, kLanes by kLanes.
VECSMITH_INLINE void transpose(const vint* rows, vint* columns) {
#if defined(__AVX512F__)
  // Words, then pairs of them, within quarters; then the quarters.
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
    columns[i] = (vint)_mm512_shuffle_i32x4(low, low2, 0x88);
    columns[4 + i] = (vint)_mm512_shuffle_i32x4(high, high2, 0x88);
    columns[8 + i] = (vint)_mm512_shuffle_i32x4(low, low2, 0xdd);
    columns[12 + i] = (vint)_mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#else
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) columns[j][i] = rows[i][j];
#endif
}

// kLanes words of a row from number `at` on; `left` numbers are there. Tails are zero.
VECSMITH_INLINE vint words_of(Numbers row, int64_t at, int64_t left, RnnUnit unit, int part) {
  const auto some = [&](int64_t skip) VECSMITH_LAMBDA {
    const int64_t n = left - skip;
    return n <= 0 ? vfloat{} : get(row, at + skip, static_cast<int>(n < kLanes ? n : kLanes));
  };
  if (unit == kFloat) return (vint)some(0);
  const vfloat low = part_of(some(0), part), high = part_of(some(kLanes), part);
#if defined(__AVX512BF16__)
  return (vint)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
#else
  const vbits a = (vbits)rounded(low) >> 16, b = (vbits)rounded(high) >> 16;
  vint words;
  for (int i = 0; i < kLanes; ++i) {
    const vbits& from = 2 * i < kLanes ? a : b;
    const int lane = 2 * i % kLanes;
    words[i] = static_cast<int32_t>(from[lane] | from[lane + 1] << 16);
  }
  return words;
#endif
}

// The vectors of a panel whose rows are contiguous.
VECSMITH_INLINE void pack_rows_of(const RnnMatrix& m, int64_t row, int64_t there, int part,
                                  int64_t words, int vectors, float* to) {
  const int64_t step = m.unit == kFloat ? 1 : 2;
  for (int64_t w = 0; w < words; w += kLanes) {
    vint rows[kLanes], columns[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      rows[lane] = lane < there ? words_of(m.weight.at((row + lane) * m.row_stride), step * w,
                                           m.k - step * w, m.unit, part)
                                : vint{};
    transpose(rows, columns);
    const int64_t count = words - w < kLanes ? words - w : kLanes;
    for (int64_t i = 0; i < count; ++i) store(to + (w + i) * vectors * kLanes, (vfloat)columns[i]);
  }
}

// The same where columns are.
VECSMITH_INLINE void pack_columns_of(const RnnMatrix& m, int64_t row, int64_t there, int part,
                                     int64_t words, int vectors, float* to) {
  const int n = static_cast<int>(there < kLanes ? there : kLanes);
  const auto column = [&](int64_t k) VECSMITH_LAMBDA {
    return k < m.k && n > 0 ? part_of(get(m.weight, row + k * m.k_stride, n), part) : vfloat{};
  };
  for (int64_t w = 0; w < words; ++w, to += vectors * kLanes)
    store(to, m.unit == kFloat ? column(w) : (vfloat)pairs(column(2 * w), column(2 * w + 1)));
}

// Outer products go by blocks of so many numbers of the left side, so many words deep.
constexpr int kOuterRows = kTiles ? 16 : 12, kOuterVectors = 4;
constexpr int kOuterBlock = 2 * kOuterRows;
constexpr int64_t kOuterDepth = 256, kOuterWidth = kOuterVectors * kLanes;

// Copies numbers row .. row+rows-1 of the left factors of `depth` words: they stay in the
// first-level cache while all panels go by. [word][kOuterBlock], or [kOuterBlock][word] for tiles.
VECSMITH_INLINE void copy_left(const RnnOuter& job, int64_t count, int64_t word, int64_t depth,
                               int64_t row, int64_t rows, int part, bool tiles, float* to) {
  const RnnFactors& left = job.left;
  const auto numbers = [&](int64_t n, int64_t at, int lanes) VECSMITH_LAMBDA {
    if (n >= count) return vint{};
    const char* const from = left.row(n) + (part ? 4 * left.words : 0);
    if (left.unit == kFloat) return (vint)Float32::get(from, at, lanes);
    return (vint) __builtin_convertvector(load_shorts(from + 2 * at, lanes), vbits);
  };
  for (int64_t at = 0; at < rows; at += kLanes) {
    const int lanes = static_cast<int>(rows - at < kLanes ? rows - at : kLanes);
    const auto words = [&](int64_t n) VECSMITH_LAMBDA {
      if (left.unit == kFloat) return numbers(n, row + at, lanes);
      return numbers(2 * n, row + at, lanes) | numbers(2 * n + 1, row + at, lanes) << 16;
    };
    if (tiles) {
      for (int64_t n = 0; n < depth; n += kLanes) {
        vint some[kLanes], columns[kLanes];
        for (int i = 0; i < kLanes; ++i) some[i] = words(word + n + i);
        transpose(some, columns);
        for (int i = 0; i < kLanes; ++i) store(to + (at + i) * kOuterDepth + n, (vfloat)columns[i]);
      }
      continue;
    }
    for (int64_t n = 0; n < depth; ++n) {
      float* const line = to + n * kOuterBlock + at;
      put(line, (vfloat)words(word + n),
          kOuterBlock - at < kLanes ? static_cast<int>(kOuterBlock - at) : kLanes);
    }
  }
}

}  // namespace

int rnn_lanes() { return kLanes; }

int64_t rnn_panel_count(const RnnMatrix& m) {
  const int64_t units = int64_t{m.units} * kLanes;
  return (m.hidden + units - 1) / units;
}

int64_t rnn_panel_words(const RnnMatrix& m) {
  return (m.unit == kSplit ? 2 : 1) * rnn_words(m.unit, m.k) * m.units * m.gates * kLanes;
}

void rnn_pack(const RnnMatrix& m, int64_t first, int64_t last) {
  const int vectors = m.units * m.gates, parts = m.unit == kSplit ? 2 : 1;
  const int64_t words = rnn_words(m.unit, m.k);
  for (int64_t panel = first; panel < last; ++panel)
    for (int part = 0; part < parts; ++part)
      for (int v = 0; v < vectors; ++v) {
        const int64_t unit = (panel * m.units + v / m.gates) * kLanes;
        const int64_t row = v % m.gates * m.hidden + unit, there = m.hidden - unit;
        float* const to = m.panels + ((panel * parts + part) * words * vectors + v) * kLanes;
        if (m.row_stride == 1)
          pack_columns_of(m, row, there, part, words, vectors, to);
        else
          pack_rows_of(m, row, there, part, words, vectors, to);
      }
}

void rnn_factors(Numbers from, int64_t columns, int64_t first, int64_t last, const RnnFactors& to) {
  for (int64_t n = first; n < last; ++n) {
    char* const row = to.row(n);
    for (int64_t at = 0; at < columns; at += kLanes) {
      const int lanes = static_cast<int>(columns - at < kLanes ? columns - at : kLanes);
      put_factors(to, row, at, get(from, n * columns + at, lanes), lanes);
    }
    if (to.unit == kFloat) continue;
    for (int part = 0; part < (to.unit == kSplit ? 2 : 1); ++part)
      __builtin_memset(row + 4 * part * to.words + 2 * columns, 0,
                       static_cast<size_t>(4 * to.words - 2 * columns));
  }
}

int64_t rnn_rows_words(const RnnRows& rows) {
  return (rows.unit == kSplit ? 2 : 1) * rnn_words(rows.unit, rows.count) *
         ((rows.columns + kOuterWidth - 1) / kOuterWidth) * kOuterWidth;
}

void rnn_pack_rows(const RnnRows& job, int64_t first, int64_t last) {
  const int64_t words = rnn_words(job.unit, job.count);
  const int64_t vectors = (job.columns + kOuterWidth - 1) / kOuterWidth * kOuterVectors;
  const int parts = job.unit == kSplit ? 2 : 1;
  for (int64_t w = first; w < last; ++w)
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = v * kLanes;
      const int lanes = static_cast<int>(job.columns - at < kLanes ? job.columns - at : kLanes);
      const auto numbers = [&](int64_t n) VECSMITH_LAMBDA {
        if (n >= job.count || lanes <= 0) return vfloat{};
        const vfloat x = get(Numbers{const_cast<char*>(job.rows[n]), job.half}, at, lanes);
        if (!job.factors) return x;
        return x * get(Numbers{const_cast<char*>(job.factors[n]), job.half_factors}, at, lanes);
      };
      float* const to =
          job.panels +
          ((v / kOuterVectors * words + w) * kOuterVectors + v % kOuterVectors) * kLanes;
      if (job.unit == kFloat) {
        store(to, numbers(w));
        continue;
      }
      const vfloat even = numbers(2 * w), odd = numbers(2 * w + 1);
      for (int part = 0; part < parts; ++part)
        store(to + part * words * vectors * kLanes,
              (vfloat)pairs(part_of(even, part), part_of(odd, part)));
    }
}

void rnn_outer(const RnnOuter& job, int64_t first, int64_t last) {
  const RnnRows& right = *job.right;
  const RnnUnit unit = job.left.unit;
  const int64_t words = rnn_words(unit, right.count);
  const int64_t panels = (right.columns + kOuterWidth - 1) / kOuterWidth;
  const bool tiles = unit != kFloat && kTiles;
  constexpr int64_t kPart = kOuterBlock * kOuterDepth;
  alignas(64) float left[2 * kPart], sums[kBlockRows * kOuterWidth];
  for (int64_t k = 0; k < words; k += kOuterDepth) {
    const int64_t depth = words - k < kOuterDepth ? words - k : kOuterDepth;
    for (int64_t row = first; row < last; row += kOuterBlock) {
      const int64_t rows = last - row < kOuterBlock ? last - row : kOuterBlock;
      for (int part = 0; part < (unit == kSplit ? 2 : 1); ++part)
        copy_left(job, right.count, k, depth, row, rows, part, tiles, left + part * kPart);
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t from = 0; from < rows; from += kOuterRows) {
          const int count = static_cast<int>(rows - from < kOuterRows ? rows - from : kOuterRows);
          const char* x[kOuterRows];
          for (int r = 0; r < count; ++r)
            x[r] = reinterpret_cast<const char*>(left + (from + r) * (tiles ? kOuterDepth : 1));
          rnn_multiply({right.panels + (p * words + k) * kOuterWidth, depth, 4 * kPart,
                        panels * words * kOuterWidth, unit, tiles ? 4 : 4 * kOuterBlock},
                       kOuterVectors, x, count, sums);
          for (int r = 0; r < count; ++r)
            for (int v = 0; v < kOuterVectors; ++v) {
              const int64_t column = p * kOuterWidth + v * kLanes;
              if (column >= right.columns) break;
              const int64_t left_over = right.columns - column;
              const int n = static_cast<int>(left_over < kLanes ? left_over : kLanes);
              float* const out = job.out + (row + from + r) * right.columns + column;
              const vfloat sum = load(sums + (r * kOuterVectors + v) * kLanes);
              put(out, k ? sum + get(out, n) : sum, n);
            }
        }
    }
  }
}

void rnn_column_sums(const RnnFactors& left, int64_t count, int64_t first, int64_t last,
                     float* out) {
  // Four vectors at once: whole lines of a row.
  for (int64_t at = first; at < last; at += 4 * kLanes) {
    vfloat sums[4] = {};
    const auto each = [&](const auto& body) VECSMITH_LAMBDA {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const int64_t column = at + v * kLanes, left_over = last - column;
        if (left_over > 0)
          body(sums[v], column, static_cast<int>(left_over < kLanes ? left_over : kLanes));
      }
    };
    for (int64_t n = 0; n < count; ++n)
      each([&](vfloat& sum, int64_t column, int lanes)
               VECSMITH_LAMBDA { sum += get_factors(left, left.row(n), column, lanes); });
    each([&](vfloat& sum, int64_t column, int lanes)
             VECSMITH_LAMBDA { put(out + column, sum, lanes); });
  }
}

void rnn_convert(const float* from, int64_t first, int64_t last, Numbers to) {
  for (int64_t at = first; at < last; at += kLanes) {
    const int lanes = static_cast<int>(last - at < kLanes ? last - at : kLanes);
    put(to, at, get(from + at, lanes), lanes);
  }
}

void rnn_floats(Numbers from, int64_t first, int64_t last, float* to) {
  for (int64_t at = first; at < last; at += kLanes) {
    const int lanes = static_cast<int>(last - at < kLanes ? last - at : kLanes);
    put(to + at, get(from, at, lanes), lanes);
  }
}

void rnn_linear(const RnnLinear& job, int64_t first, int64_t last) {
  const RnnMatrix& matrix = *job.matrix;
  const int64_t hidden = matrix.hidden;
  const auto start = [&](int64_t, int64_t unit, int n, int g) VECSMITH_LAMBDA {
    return job.bias ? get(job.bias + g * hidden + unit, n) : vfloat{};
  };
  // 1, 3 or 4 gates.
  with_number<0, 2>(matrix.gates / 4 + (matrix.gates > 1), [&](auto kind) VECSMITH_LAMBDA {
    constexpr int G = kind.value == 0 ? 1 : kind.value + 2, U = G == 1 ? 4 : 1;
    const auto finish = [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g)
        put(job.out, row * job.out_stride + g * hidden + unit, sums[g], n);
    };
    each_product<G, U>(job, first, last, start, finish);
  });
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
