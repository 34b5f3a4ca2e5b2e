// Bayesian personalized ranking: a user, a column that the user has and one that is drawn.
//
//   d = b_i - b_j + <p, q_i - q_j>,  z = 1 / (1 + exp(d))
//   p   <- (1 - a l) p + a z (q_i - q_j)
//   q_i <- (1 - a l) q_i + a z p          b_i <- (1 - a l) b_i + a z
//   q_j <- (1 - a l) q_j - a z p          b_j <- (1 - a l) b_j - a z
//
// The pairs of sixty-four cells are drawn, looked up and laid out first, by branch-free searches
// that the processor overlaps; then their rows are trained one pair after the other, while the next
// ones are fetched. Rows p and q_i are of one block of the matrix and stay in the second-level
// cache, so that what bounds the speed is the one row q_j that comes from afar. No STL here: see
// simd.h.
#include "cpu/factor_sgd.h"
#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int kGroup = 64;
constexpr int kAhead = 4;  // pairs whose rows are fetched before their turn
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

struct Pair {
  int32_t user, item, other;
};

VECSMITH_INLINE uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Whether the sorted columns [low, high) have this one.
VECSMITH_INLINE bool has(const int32_t* low, const int32_t* high, int32_t wanted) {
  int64_t count = high - low;
  if (count == 0) return false;
  while (count > 1) {
    const int64_t half = count / 2;
    low = low[half] <= wanted ? low + half : low;
    count -= half;
  }
  return *low == wanted;
}

// The pairs of cells first .. last - 1: those whose drawn column the user does not have.
VECSMITH_INLINE int draw_pairs(const FactorJob& job, int64_t first, int64_t last, Pair* pairs) {
  int32_t drawn[kGroup];
  const int count = static_cast<int>(last - first);
  for (int k = 0; k < count; ++k) {
    const uint64_t bits = mix(job.key + (static_cast<uint64_t>(first + k) + 1) * kGolden);
    const auto wide = static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(job.cells);
    drawn[k] = job.items[static_cast<int64_t>(wide >> 64)];
  }
  int found = 0;
  for (int k = 0; k < count; ++k) {
    const int32_t user = job.users[first + k];
    pairs[found] = {user, job.items[first + k], drawn[k]};
    const bool liked =
        job.begins && has(job.liked + job.begins[user], job.liked + job.begins[user + 1], drawn[k]);
    found += !liked;
  }
  return found;
}

VECSMITH_INLINE void fetch_row(const float* row, int64_t dim) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(row + dim);
  for (uintptr_t p = reinterpret_cast<uintptr_t>(row) & ~uintptr_t{63}; p < end; p += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(p), 1, 3);
}

VECSMITH_INLINE void fetch(const FactorJob& job, const Pair& pair) {
  const FactorSide& item = job.item;
  fetch_row(job.user.factors + pair.user * job.user.stride, job.dim);
  fetch_row(item.factors + pair.item * item.stride, job.dim);
  fetch_row(item.factors + pair.other * item.stride, job.dim);
  if (!item.bias) return;
  __builtin_prefetch(item.bias + pair.item * item.bias_stride, 1, 3);
  __builtin_prefetch(item.bias + pair.other * item.bias_stride, 1, 3);
}

VECSMITH_INLINE float sum_of(vfloat v) {
  alignas(16) float sums[4];
  fold4(v, vfloat{}, vfloat{}, vfloat{}, sums);
  return sums[0];
}

// Trains a pair; returns d.
VECSMITH_INLINE float step(const FactorJob& job, const Pair& pair) {
  float* const p = job.user.factors + pair.user * job.user.stride;
  float* const qi = job.item.factors + pair.item * job.item.stride;
  float* const qj = job.item.factors + pair.other * job.item.stride;
  const int64_t full = job.dim / kLanes * kLanes;
  const int tail = static_cast<int>(job.dim - full);
  vfloat sum[2] = {};
  int64_t k = 0;
  for (; k + 2 * kLanes <= full; k += 2 * kLanes)
    for (int h = 0; h < 2; ++h)
      sum[h] += load(p + k + h * kLanes) * (load(qi + k + h * kLanes) - load(qj + k + h * kLanes));
  if (k < full) sum[0] += load(p + k) * (load(qi + k) - load(qj + k));
  if (tail)
    sum[1] += load_tail(p + full, tail) * (load_tail(qi + full, tail) - load_tail(qj + full, tail));
  float d = sum_of(sum[0] + sum[1]);
  float none[2] = {};
  float* const bias_i = job.item.bias ? job.item.bias + pair.item * job.item.bias_stride : none;
  float* const bias_j =
      job.item.bias ? job.item.bias + pair.other * job.item.bias_stride : none + 1;
  const float bi = *bias_i, bj = *bias_j;
  d += bi - bj;
  // z = 1 / (1 + exp(d)), by an exponential of what is not positive.
  const vfloat small = exp_negative(max(splat(d < 0 ? d : -d), splat(-87.0f)));
  const float t = small[0], z = (d < 0 ? 1 : t) / (1 + t);
  const float give = job.rate * z, keep = 1 - job.rate * job.ridge;
  const auto update = [&](vfloat& a, vfloat& b, vfloat& c) VECSMITH_LAMBDA {
    const vfloat user = a, difference = b - c;
    a = user * keep + difference * give;
    b = b * keep + user * give;
    c = c * keep - user * give;
  };
  for (k = 0; k < full; k += kLanes) {
    vfloat a = load(p + k), b = load(qi + k), c = load(qj + k);
    update(a, b, c);
    store(p + k, a);
    store(qi + k, b);
    store(qj + k, c);
  }
  if (tail) {
    vfloat a = load_tail(p + full, tail), b = load_tail(qi + full, tail),
           c = load_tail(qj + full, tail);
    update(a, b, c);
    store_tail(p + full, a, tail);
    store_tail(qi + full, b, tail);
    store_tail(qj + full, c, tail);
  }
  *bias_i = bi * keep + give;
  *bias_j = bj * keep - give;
  return d;
}

// The sum of log(1 + exp(-d)), and how many d are positive.
VECSMITH_INLINE void measure(const float* d, int count, FactorPairsResult& result) {
  vfloat sum{};
  for (int k = 0; k < count; k += kLanes) {
    const int rest = count - k;
    const vfloat x = rest < kLanes ? load_tail(d + k, rest) : load(d + k);
    const vfloat away = max(-abs(x), splat(-87.0f));
    vfloat loss = max(-x, splat(0.0f)) + log_above_one(exp_negative(away) + 1.0f);
    if (rest < kLanes) {
      alignas(64) float kept[kLanes] = {};
      store_tail(kept, loss, rest);
      loss = load(kept);
    }
    sum += loss;
    for (int lane = 0; lane < kLanes && lane < rest; ++lane) result.correct += d[k + lane] > 0;
  }
  result.loss += static_cast<double>(sum_of(sum));
}

}  // namespace

void factor_sgd_bpr_cells(const FactorJob& job, int64_t first, int64_t last,
                          FactorPairsResult& result) {
  Pair pairs[kGroup];
  float d[kGroup];
  for (int64_t begin = first; begin < last; begin += kGroup) {
    const int64_t end = begin + kGroup < last ? begin + kGroup : last;
    const int count = draw_pairs(job, begin, end, pairs);
    for (int k = 0; k < count && k < kAhead; ++k) fetch(job, pairs[k]);
    for (int k = 0; k < count; ++k) {
      if (k + kAhead < count) fetch(job, pairs[k + kAhead]);
      d[k] = step(job, pairs[k]);
    }
    measure(d, count, result);
    result.trained += count;
  }
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
