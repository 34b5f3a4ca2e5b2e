// Nearest rows: packing, the first pass, scores in double precision. What bounds it: products, 24
// sums at a time in registers; their comparison with what is known comes once for all dimensions.
#include "cpu/cosine_topk.h"

#include "cpu/elements.h"
#include "cpu/tiles.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int kVectors = 3;  // of a panel's rows
constexpr int kRows = kVectors * kLanes;
constexpr float kNever = -__builtin_huge_valf();
constexpr float kLeast = -3.402823466e38f;

// Bytes: those of rows are unsigned, with this added, and those of queries signed. Without VNNI
// sums of two products are of 16 bits, for which the rows' have 7 bits.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr int kOffset = 64, kMostByte = 63;
#else
constexpr int kOffset = 128, kMostByte = 127;
#endif
#if defined(__AVX2__)
constexpr bool kHasBytes = true;
#else
constexpr bool kHasBytes = false;
#endif
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = kTiles;
#endif

// --- rows in double precision

VECSMITH_INLINE vdouble get_double(const char* row, ElementType type, int64_t at, int n) {
  switch (type) {
    case kFloat64: {
      vdouble v{};
      if (n == kLanes)
        __builtin_memcpy(&v, row + 8 * at, sizeof v);
      else
        __builtin_memcpy(&v, row + 8 * at, 8 * static_cast<size_t>(n));
      return v;
    }
    case kFloat16:
      return __builtin_convertvector(Float16::get(row, at, n), vdouble);
    case kBfloat16:
      return __builtin_convertvector(Bfloat16::get(row, at, n), vdouble);
    default:
      return __builtin_convertvector(Float32::get(row, at, n), vdouble);
  }
}

VECSMITH_INLINE double sum_of_lanes(vdouble v) {
  double x[kLanes];
  __builtin_memcpy(x, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// body(vector, at, n) over a row.
template <ElementType kType, class Body>
VECSMITH_INLINE void each_vector(const char* row, int64_t dim, const Body& body) {
  int64_t at = 0;
  for (; at + kLanes <= dim; at += kLanes) body(get_double(row, kType, at, kLanes), at, kLanes);
  if (at < dim) {
    const int n = static_cast<int>(dim - at);
    body(get_double(row, kType, at, n), at, n);
  }
}
template <class Body>
VECSMITH_INLINE void each_vector(const Rows& rows, int64_t row, const Body& body) {
  const char* const p = rows.data + row * rows.stride;
  switch (rows.type) {
    case kFloat64:
      return each_vector<kFloat64>(p, rows.dim, body);
    case kFloat16:
      return each_vector<kFloat16>(p, rows.dim, body);
    case kBfloat16:
      return each_vector<kBfloat16>(p, rows.dim, body);
    default:
      return each_vector<kFloat32>(p, rows.dim, body);
  }
}

VECSMITH_INLINE vdouble get_double(const double* p, int n) {
  vdouble v{};
  if (n == kLanes)
    __builtin_memcpy(&v, p, sizeof v);
  else
    __builtin_memcpy(&v, p, 8 * static_cast<size_t>(n));
  return v;
}
VECSMITH_INLINE vfloat get_floats(const float* p, int n) {
  return n == kLanes ? load(p) : load_tail(p, n);
}
VECSMITH_INLINE vdouble splat_double(double x) { return x - vdouble{}; }

VECSMITH_INLINE double squared_norm(const Rows& rows, int64_t row) {
  vdouble sum{};
  each_vector(rows, row, [&](vdouble v, int64_t, int) VECSMITH_LAMBDA { sum += v * v; });
  return sum_of_lanes(sum);
}

// --- factors

// A row's factors, floats in `out` with zeros behind them to a multiple of 64 (bytes of whole
// vectors of words), their greatest magnitude, and their squared norm.
struct Factors {
  double norm;     // of the row itself
  double squares;  // of the factors
  float greatest;
};

VECSMITH_INLINE bool is_finite(double x) { return x - x == 0; }

VECSMITH_INLINE Factors factors_of(const Rows& rows, int64_t row, double factor, double norm,
                                   const float* center, float* out) {
  vdouble squares{};
  vfloat greatest{};
  const vdouble by = splat_double(factor);
  each_vector(rows, row, [&](vdouble v, int64_t at, int n) VECSMITH_LAMBDA {
    v *= by;
    if (center) v -= __builtin_convertvector(get_floats(center + at, n), vdouble);
    squares += v * v;
    const vfloat f = __builtin_convertvector(v, vfloat);
    greatest = max(greatest, abs(f));
    store(out + at, f);
  });
  float most[kLanes], greatest_of_all = 0;
  store(most, greatest);
  for (int i = 0; i < kLanes; ++i)
    greatest_of_all = most[i] > greatest_of_all ? most[i] : greatest_of_all;
  for (int64_t at = (rows.dim + kLanes - 1) / kLanes * kLanes; at < (rows.dim + 127) / 64 * 64;
       ++at)
    out[at] = 0;
  return {norm, sum_of_lanes(squares), greatest_of_all};
}

VECSMITH_INLINE vint rounded_to_integers(vfloat v) {
  const vfloat shift = splat(12582912.0f);  // 1.5 * 2^23
  return (vint)(v + shift) - (vint)shift;
}

// Puts word k of the factors at to(k), and returns the squared error. kMost: of bytes.
template <class Put>
VECSMITH_INLINE double put_words(const TopkLayout& layout, const float* factors, float scale,
                                 int most, int offset, const Put& put) {
  vdouble errors{};
  const auto add_error = [&](vfloat left) VECSMITH_LAMBDA {
    const vdouble e = __builtin_convertvector(left, vdouble);
    errors += e * e;
  };
  if (layout.unit == kFloats) {
    for (int64_t k = 0; k < layout.words; ++k) {
      int32_t word;
      __builtin_memcpy(&word, factors + k, 4);
      put(k, word);
    }
    return 0;
  }
  int32_t words[kLanes];
  if (layout.unit == kPairs) {
    typedef int32_t Words __attribute__((vector_size(kLanes * 4)));
    for (int64_t at = 0; at < 2 * layout.words; at += kLanes) {
      const vfloat v = load(factors + at);
      const vbits bits = (vbits)v;
      const vbits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
      add_error(v - (vfloat)nearest);
      store(words, (Words)(nearest >> 16));
      for (int i = 0; i < kLanes / 2 && at / 2 + i < layout.words; ++i)
        put(at / 2 + i, static_cast<int32_t>(static_cast<uint32_t>(words[2 * i]) |
                                             static_cast<uint32_t>(words[2 * i + 1]) << 16));
    }
    return sum_of_lanes(errors);
  }
  const vfloat by = splat(scale > 0 ? static_cast<float>(1 / scale) : 0.0f), back = splat(scale);
  const vint least = -most - vint{}, greatest = most - vint{};
  for (int64_t at = 0; at < 4 * layout.words; at += kLanes) {
    const vfloat v = load(factors + at);
    vint q = rounded_to_integers(v * by);
    q = q < least ? least : q > greatest ? greatest : q;
    add_error(v - __builtin_convertvector(q, vfloat) * back);
    store(words, (q + offset) & 255);
    for (int i = 0; i < kLanes / 4 && at / 4 + i < layout.words; ++i)
      put(at / 4 + i, words[4 * i] | words[4 * i + 1] << 8 | words[4 * i + 2] << 16 |
                          static_cast<int32_t>(static_cast<uint32_t>(words[4 * i + 3]) << 24));
  }
  return sum_of_lanes(errors);
}

VECSMITH_INLINE float up(double x) { return static_cast<float>(x * (1 + 0x1p-12)); }

// |b - b~| from the squared error of what was rounded last; factors themselves are rounded floats.
VECSMITH_INLINE float error_bound(double squares, double norm, double added) {
  return up(__builtin_sqrt(squares) + 0x1p-22 * (norm + added));
}

VECSMITH_INLINE float* scales(const TopkLayout& layout, char* panel) {
  return reinterpret_cast<float*>(panel) + layout.words * kRows;
}
VECSMITH_INLINE const float* scales(const TopkLayout& layout, const char* panel) {
  return reinterpret_cast<const float*>(panel) + layout.words * kRows;
}

// What is longer could leave the range of floats where it is squared.
constexpr double kLongest = 1e18;

// How a row is scaled, or a negative number where it cannot be.
VECSMITH_INLINE double factor_of(TopkMetric metric, double squares, bool is_query) {
  if (!is_finite(squares)) return -1;
  const double norm = __builtin_sqrt(squares);
  if (metric == kCosine || (metric == kDot && is_query)) return norm > 0 ? 1 / norm : 0;
  return norm <= kLongest ? 1 : -1;
}

}  // namespace

bool topk_has_unit(TopkUnit unit) {
  return unit == kFloats || (unit == kPairs ? kHasPairs : kHasBytes);
}

TopkLayout topk_layout(TopkUnit unit, int64_t dim) {
  const int64_t words = unit == kFloats ? dim : unit == kPairs ? (dim + 1) / 2 : (dim + 3) / 4;
  return {unit, kRows, dim, kTiles && unit == kPairs ? (words + 15) / 16 * 16 : words};
}

void topk_clear(const TopkLayout& layout, char* panels, int64_t count) {
  for (int64_t p = 0; p < count; ++p) {
    char* const panel = panels + p * layout.panel_bytes();
    __builtin_memset(panel, 0, layout.panel_bytes());
    for (int i = 0; i < kRows; ++i) scales(layout, panel)[kRows + i] = kNever;
  }
}

int64_t topk_pack(const TopkPack& pack, float* scratch) {
  const TopkLayout& layout = pack.layout;
  for (int64_t i = 0; i < pack.count; ++i) {
    const int64_t row = pack.ids ? pack.ids[i] : pack.first + i, at = row - pack.first_row;
    char* const panel = pack.panels + at / kRows * layout.panel_bytes();
    const int64_t lane = at % kRows;
    float* const own = scales(layout, panel) + lane;
    if (pack.banned && pack.banned[row]) {
      own[kRows] = kNever;
      own[0] = own[2 * kRows] = own[3 * kRows] = 0;
      continue;
    }
    const double squares = squared_norm(pack.rows, row);
    const double factor = factor_of(pack.metric, squares, false);
    if (factor < 0) return row;
    const Factors f =
        factors_of(pack.rows, row, factor, __builtin_sqrt(squares), pack.center, scratch);
    const double norm = __builtin_sqrt(f.squares);
    const float scale = layout.unit == kBytes ? f.greatest / kMostByte : 1;
    int32_t* const words = reinterpret_cast<int32_t*>(panel) + lane;
    const double errors =
        put_words(layout, scratch, scale, kMostByte, kOffset,
                  [&](int64_t k, int32_t word) VECSMITH_LAMBDA { words[k * kRows] = word; });
    own[0] = scale;
    own[kRows] = pack.metric == kL2 ? static_cast<float>(-f.squares / 2) : 0.0f;
    own[2 * kRows] = up(norm);
    own[3 * kRows] = error_bound(errors, norm, pack.metric == kCosine ? 1 : 0);
  }
  return -1;
}

void topk_bounds(const TopkLayout& layout, char* panels, int64_t count) {
  for (int64_t p = 0; p < count; ++p) {
    float* const own = scales(layout, panels + p * layout.panel_bytes());
    float norm = 0, error = 0, bias = 0;
    for (int i = 0; i < kRows; ++i) {
      norm = own[2 * kRows + i] > norm ? own[2 * kRows + i] : norm;
      error = own[3 * kRows + i] > error ? own[3 * kRows + i] : error;
      const float b = own[kRows + i];
      bias = b != kNever && -b > bias ? -b : bias;
    }
    own[4 * kRows] = norm;
    own[4 * kRows + 1] = error;
    own[4 * kRows + 2] = bias;
  }
}

bool topk_query(const TopkPack& pack, int64_t row, float* scratch, char* words, TopkQuery* query) {
  const TopkLayout& layout = pack.layout;
  const double squares = squared_norm(pack.rows, row);
  const double factor = factor_of(pack.metric, squares, true);
  if (factor < 0) return false;
  const Factors f = factors_of(pack.rows, row, factor, __builtin_sqrt(squares),
                               pack.metric == kL2 ? pack.center : nullptr, scratch);
  const float scale = layout.unit == kBytes ? f.greatest / 127 : 1;
  int32_t sum = 0;
  const double errors =
      put_words(layout, scratch, scale, 127, 0, [&](int64_t k, int32_t word) VECSMITH_LAMBDA {
        __builtin_memcpy(words + 4 * k, &word, 4);
        for (int byte = 0; byte < 4; ++byte)
          sum += static_cast<int8_t>(static_cast<uint32_t>(word) >> (8 * byte));
      });
  const float error = error_bound(errors, __builtin_sqrt(f.squares), 0);
  query->scale = scale;
  query->start = layout.unit == kBytes ? -kOffset * sum : 0;
  query->norm = up(__builtin_sqrt(f.squares)) + error;
  query->error = error;
  query->tau = kLeast;
  query->count = 0;
  query->full = false;
  return true;
}

double topk_center(const Rows& rows, int64_t count, TopkMetric metric, const uint8_t* banned,
                   int64_t most, float* center, float* scratch) {
  for (int64_t d = 0; d < (rows.dim + 127) / 64 * 64; ++d) center[d] = 0;
  const int64_t taken = count < most ? count : most;
  double ratios = 0;
  int64_t used = 0;
  for (int64_t i = 0; i < taken; ++i) {
    const int64_t row = count * i / taken;
    if (banned && banned[row]) continue;
    const double squares = squared_norm(rows, row);
    const double factor = factor_of(metric, squares, false);
    if (factor <= 0) continue;
    const Factors f = factors_of(rows, row, factor, __builtin_sqrt(squares), nullptr, scratch);
    for (int64_t d = 0; d < rows.dim; ++d) center[d] += scratch[d] / static_cast<float>(taken);
    if (f.squares > 0) ratios += f.greatest / __builtin_sqrt(f.squares);
    ++used;
  }
  // Rounding to a multiple of 1/127 of the greatest: uniform in a step.
  return used ? ratios / used * __builtin_sqrt(static_cast<double>(rows.dim) / 12) / kMostByte : 0;
}

namespace {

// --- the first pass

template <TopkUnit kUnit>
struct Sums {
  typedef vfloat Type;
  static VECSMITH_METHOD vfloat begin(int32_t) { return vfloat{}; }
  static VECSMITH_METHOD vfloat number(vfloat v) { return v; }
};
template <>
struct Sums<kBytes> {
  typedef vint Type;
  static VECSMITH_METHOD vint begin(int32_t start) { return start - vint{}; }
  static VECSMITH_METHOD vfloat number(vint v) { return __builtin_convertvector(v, vfloat); }
};

// sum + the products of a query's word and words of rows.
template <TopkUnit kUnit>
VECSMITH_INLINE typename Sums<kUnit>::Type multiply_add(typename Sums<kUnit>::Type sum,
                                                        const char* word, vfloat w) {
  int32_t bits;
  __builtin_memcpy(&bits, word, 4);
  if constexpr (kUnit == kFloats) {
    float x;
    __builtin_memcpy(&x, word, 4);
    return sum + splat(x) * w;
  } else if constexpr (kUnit == kPairs) {
    return add_products_of_pairs(sum, bits - vint{}, w);
  } else {
    const vint y = bits - vint{};
#if defined(__AVX512VNNI__)
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)y);
#elif defined(__AVX512BW__)
    const __m512i two = _mm512_maddubs_epi16((__m512i)w, (__m512i)y);
    return sum + (vint)_mm512_madd_epi16(two, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    const __m256i two = _mm256_maddubs_epi16((__m256i)w, (__m256i)y);
    return sum + (vint)_mm256_madd_epi16(two, _mm256_set1_epi16(1));
#else
    for (int byte = 0; byte < 32; byte += 8) {
      const vint a = (vint)((vbits)w >> byte) & 255, b = (vint)((vbits)y << (24 - byte)) >> 24;
      sum += a * b;
    }
    return sum;
#endif
  }
}

// A bit for each lane of v that is at least the other's.
VECSMITH_INLINE uint32_t at_least(vfloat v, vfloat least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, (__m512)least, _CMP_GE_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)least, _CMP_GE_OQ)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpge_ps((__m128)v, (__m128)least)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(v[i] >= least[i]) << i;
  return bits;
#endif
}

// Makes room among the entries: those go that cannot win any more.
void drop_losers(const TopkScreen& job, TopkQuery& query, TopkEntry* entries) {
  int32_t kept = 0;
  for (int32_t i = 0; i < query.count; ++i)
    if (entries[i].upper >= query.tau) entries[kept++] = entries[i];
  query.count = kept;
  if (kept > job.capacity * 3 / 4) {
    query.full = true;
    query.tau = __builtin_huge_valf();
  }
}

// `value` in place of the least of a heap.
void replace_least(float* heap, int64_t count, float value) {
  int64_t at = 0;
  for (;;) {
    int64_t child = 2 * at + 1;
    if (child >= count) break;
    if (child + 1 < count && heap[child + 1] < heap[child]) ++child;
    if (heap[child] >= value) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = value;
}

// The rows whose bits are set, with their scores, are entries of query i.
__attribute__((noinline)) void take(const TopkScreen& job, int64_t i, int64_t row, uint64_t bits,
                                    const float* scores, float slack) {
  TopkQuery& query = job.queries[i];
  TopkEntry* const entries = job.entries + i * job.capacity;
  float* const lower = job.lower + i * job.k;
  for (; bits; bits &= bits - 1) {
    const int lane = __builtin_ctzll(bits);
    const float score = scores[lane], upper = score + slack;
    if (!(upper >= query.tau)) continue;
    if (!topk_allows(job.banned, job.exclude_offsets, job.excluded, i, row + lane)) continue;
    if (query.count == job.capacity) {
      drop_losers(job, query, entries);
      if (query.full) return;
    }
    entries[query.count++] = {upper, static_cast<int32_t>(row + lane)};
    if (score - slack > lower[0]) {
      replace_least(lower, job.k, score - slack);
      if (lower[0] > query.tau) query.tau = lower[0];
    }
  }
}

// What holds for a panel.
struct Panel {
  const float *scale, *bias;
  float norm, error, added;  // added: whatever the query is
  int64_t row;
};

// Most that the first pass is off for this query in this panel.
VECSMITH_INLINE float slack_of(const Panel& panel, const TopkQuery& query, float rounding) {
  return (query.error * panel.norm + query.norm * (panel.error + rounding * panel.norm) +
          panel.added) *
         (1 + 0x1p-16f);
}

// Sums of one query are compared, and taken.
template <TopkUnit kUnit>
VECSMITH_INLINE void finish(const TopkScreen& job, const Panel& panel, int64_t i, float rounding,
                            const typename Sums<kUnit>::Type* sums) {
  const TopkQuery& query = job.queries[i];
  const float slack = slack_of(panel, query, rounding);
  const float tau = query.tau;
  const vfloat least = splat(tau - slack - (tau < 0 ? -tau : tau) * 0x1p-22f);
  vfloat scores[kVectors];
  uint64_t bits = 0;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    scores[v] = Sums<kUnit>::number(sums[v]);
    if (kUnit == kBytes)
      scores[v] = scores[v] * load(panel.scale + v * kLanes) * splat(query.scale) +
                  load(panel.bias + v * kLanes);
    else
      scores[v] += load(panel.bias + v * kLanes);
    bits |= static_cast<uint64_t>(at_least(scores[v], least)) << (v * kLanes);
  }
  if (__builtin_expect(bits != 0, 0)) {
    float out[kRows];
    for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, scores[v]);
    take(job, i, panel.row, bits, out, slack);
  }
}

template <TopkUnit kUnit, int R>
__attribute__((noinline)) void screen_block(const TopkScreen& job, const Panel& panel,
                                            const char* words, int64_t first, float rounding) {
  typedef typename Sums<kUnit>::Type Sum;
  const int64_t stride = job.layout.query_bytes();
  const char* x[R];
  Sum sums[R * kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    x[r] = job.words + (first + r) * stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sums[r * kVectors + v] = Sums<kUnit>::begin(job.queries[first + r].start);
  }
  const float* w = reinterpret_cast<const float*>(words);
  const int64_t end = job.layout.words * 4;
  for (int64_t k = 0; k < end; k += 4, w += kRows) {
    vfloat column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = load(w + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sums[r * kVectors + v] = multiply_add<kUnit>(sums[r * kVectors + v], x[r] + k, column[v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) finish<kUnit>(job, panel, first + r, rounding, sums + r * kVectors);
}

// Rows at once that registers have room for.
template <TopkUnit kUnit>
constexpr int block_rows() {
  return kLanes == 16 ? 8 : kUnit == kBytes ? 3 : 4;
}

template <TopkUnit kUnit>
VECSMITH_INLINE void screen_panel(const TopkScreen& job, const Panel& panel, const char* words,
                                  float rounding) {
  constexpr int kMost = block_rows<kUnit>();
  int64_t i = 0;
  for (; i + kMost <= job.query_count; i += kMost)
    screen_block<kUnit, kMost>(job, panel, words, i, rounding);
  if (i < job.query_count)
    with_number<1, kMost>(job.query_count - i, [&](auto r) VECSMITH_LAMBDA {
      screen_block<kUnit, r.value>(job, panel, words, i, rounding);
    });
}

constexpr int kTileRows = 16;

// The same by the matrix units, 16 queries at a time.
VECSMITH_INLINE void screen_panel_by_tiles(const TopkScreen& job, const Panel& panel,
                                           const char* words, float rounding) {
  alignas(64) float sums[kTileRows * kRows];
  const int64_t stride = job.layout.query_bytes();
  constexpr int64_t kRow = kRows * 4;
  for (int64_t i = 0; i < job.query_count; i += kTileRows) {
    const int64_t left = job.query_count - i;
    const int rows = static_cast<int>(left < kTileRows ? left : kTileRows);
    if (rows < kTileRows) tile_configure(rows);
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    const char *x = job.words + i * stride, *w = words;
    for (int64_t k = 0; k < job.layout.words; k += 16, x += 64, w += 16 * kRow) {
      tile_load<4>(x, stride);
      tile_load<5>(w, kRow);
      tile_multiply_add<0>();
      tile_load<6>(w + 64, kRow);
      tile_multiply_add<1>();
      tile_load<7>(w + 128, kRow);
      tile_multiply_add<2>();
    }
    tile_store<0>(sums, kRow);
    tile_store<1>(sums + 16, kRow);
    tile_store<2>(sums + 32, kRow);
    if (rows < kTileRows) tile_configure(kTileRows);
    for (int r = 0; r < rows; ++r) {
      vfloat row[kVectors];
      for (int v = 0; v < kVectors; ++v) row[v] = load(sums + r * kRows + v * kLanes);
      finish<kPairs>(job, panel, i + r, rounding, row);
    }
  }
}

}  // namespace

void topk_screen(const TopkScreen& job) {
  const TopkLayout& layout = job.layout;
  // Sums of n terms in floats are within n 2^-24 of the sum of the terms' magnitudes, in any order;
  // twice that, and products of pairs may be rounded as well. Sums of bytes are exact.
  const double terms = layout.unit == kBytes   ? 4.0
                       : layout.unit == kPairs ? 2.0 * layout.words
                                               : 1.0 * layout.words;
  const float rounding = static_cast<float>((terms + 16) * 0x1p-23);
  const bool tiles = kTiles && layout.unit == kPairs;
  if (tiles) tile_configure(kTileRows);
  for (int64_t p = 0; p < job.panel_count; ++p) {
    const char* const words = job.panels + p * layout.panel_bytes();
    const float* const own = scales(layout, words);
    const Panel panel = {own, own + kRows, own[4 * kRows], own[4 * kRows + 1],
                         // what the bias rounds, and numbers that are too small to be multiplied
                         own[4 * kRows + 2] * 0x1p-22f + static_cast<float>(terms + 1) * 0x1p-120f,
                         job.first_row + p * kRows};
    if (tiles)
      screen_panel_by_tiles(job, panel, words, rounding);
    else if (layout.unit == kFloats)
      screen_panel<kFloats>(job, panel, words, rounding);
    else if (layout.unit == kPairs)
      screen_panel<kPairs>(job, panel, words, rounding);
    else
      screen_panel<kBytes>(job, panel, words, rounding);
  }
  if (tiles) tile_release();
}

// --- in double precision

double topk_double(const Rows& rows, int64_t row, TopkMetric metric, const float* center,
                   double* out, double* to_center) {
  vdouble sum{}, other{};
  each_vector(rows, row, [&](vdouble v, int64_t at, int n) VECSMITH_LAMBDA {
    sum += v * v;
    __builtin_memcpy(out + at, &v, 8 * static_cast<size_t>(n));
    if (!center) return;
    const vdouble m = __builtin_convertvector(get_floats(center + at, n), vdouble);
    other += metric == kL2 ? (v - m) * (v - m) : v * m;
  });
  if (center) *to_center = sum_of_lanes(other);
  return sum_of_lanes(sum);
}

namespace {

// Doubles of one register: two of these are a vdouble, which would be kept in memory here.
constexpr int kDoubles = kLanes / 2;
typedef double vhalf __attribute__((vector_size(kDoubles * 8)));

template <ElementType kType>
VECSMITH_INLINE vhalf get_half(const char* row, int64_t at) {
  vhalf v;
  if constexpr (kType == kFloat64) {
    __builtin_memcpy(&v, row + 8 * at, sizeof v);
  } else if constexpr (kType == kFloat32) {
    typedef float vfloats __attribute__((vector_size(kDoubles * 4)));
    vfloats f;
    __builtin_memcpy(&f, row + 4 * at, sizeof f);
    v = __builtin_convertvector(f, vhalf);
  } else {
    const vdouble both = get_double(row, kType, at, kDoubles);
    __builtin_memcpy(&v, &both, sizeof v);
  }
  return v;
}

// The sums over a row: of products with the query and of squares, or of squared differences.
struct RowSums {
  double products, squares;
};

template <ElementType kType, bool kDifferences>
VECSMITH_INLINE RowSums sums_of(const double* query, const char* row, int64_t dim) {
  vhalf products[2] = {}, squares[2] = {};
  const auto add = [&](int i, vhalf q, vhalf v) VECSMITH_LAMBDA {
    if (kDifferences) {
      products[i] += (q - v) * (q - v);
    } else {
      products[i] += q * v;
      squares[i] += v * v;
    }
  };
  int64_t at = 0;
  vhalf q;
  for (; at + kLanes <= dim; at += kLanes)
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      __builtin_memcpy(&q, query + at + i * kDoubles, sizeof q);
      add(i, q, get_half<kType>(row, at + i * kDoubles));
    }
  if (at < dim) {
    const int n = static_cast<int>(dim - at);
    const vdouble rest = get_double(row, kType, at, n), own = get_double(query + at, n);
    vhalf v[2], w[2];
    __builtin_memcpy(v, &rest, sizeof v);
    __builtin_memcpy(w, &own, sizeof w);
    for (int i = 0; i < 2; ++i) add(i, w[i], v[i]);
  }
  const auto fold = [](vhalf v) VECSMITH_LAMBDA {
    double x[kDoubles];
    __builtin_memcpy(x, &v, sizeof v);
    for (int half = kDoubles / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
  };
  return {fold(products[0] + products[1]), fold(squares[0] + squares[1])};
}

template <bool kDifferences>
VECSMITH_INLINE RowSums sums_of(const double* query, const Rows& rows, int64_t row) {
  const char* const p = rows.data + row * rows.stride;
  switch (rows.type) {
    case kFloat64:
      return sums_of<kFloat64, kDifferences>(query, p, rows.dim);
    case kFloat16:
      return sums_of<kFloat16, kDifferences>(query, p, rows.dim);
    case kBfloat16:
      return sums_of<kBfloat16, kDifferences>(query, p, rows.dim);
    default:
      return sums_of<kFloat32, kDifferences>(query, p, rows.dim);
  }
}

}  // namespace

double topk_score(TopkMetric metric, const double* query, double query_norm, const Rows& rows,
                  int64_t row) {
  if (metric == kL2) return -sums_of<true>(query, rows, row).products;
  const RowSums sums = sums_of<false>(query, rows, row);
  if (metric == kDot) return sums.products;
  const double norms = query_norm * __builtin_sqrt(sums.squares);
  return norms > 0 ? sums.products / norms : 0;
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
