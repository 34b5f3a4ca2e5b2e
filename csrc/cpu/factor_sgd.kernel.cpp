// One cell after the other: both rows are read, the error found, both rows written.
//
//   e = r - (mean + b_u + b_i + <p, q>)
//   p <- (1 - a_p l) p + a_p e q     q <- (1 - a_q l) q + a_q e p     b <- (1 - a_b l_b) b + a_b e
//
// a is the rate, or rate / sqrt(G) with G the row's sum of squared gradients before the cell. Their
// squared norms are known before the gradients are, from <p, q>, <p, p> and <q, q>, which one
// reduction gives: |e q - l p|^2 = e^2 <q, q> - 2 e l <p, q> + l^2 <p, p>.
//
// Rows of up to eight vectors stay in registers between error and update. Cells that follow one
// another rarely have a row in common (the blocks are shuffled), so the processor has several in
// flight, and what bounds the speed is their count of instructions, 7 for each pair of vectors and
// about 60, as long as the rows of a block stay in the second-level cache. No STL here: see simd.h.
#include "cpu/factor_sgd.h"

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int64_t kAhead = 6;  // cells whose rows are fetched before their turn
constexpr int kMostKept = 8;   // vectors of a row in registers

VECSMITH_INLINE void fetch_row(const float* row, int64_t dim) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(row + dim);
  for (uintptr_t p = reinterpret_cast<uintptr_t>(row) & ~uintptr_t{63}; p < end; p += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(p), 1, 3);
}

VECSMITH_INLINE void fetch_side(const FactorSide& side, int64_t row, int64_t dim) {
  fetch_row(side.factors + row * side.stride, dim);
  if (side.squares) __builtin_prefetch(side.squares + row * side.squares_stride, 1, 3);
  if (side.bias) __builtin_prefetch(side.bias + row * side.bias_stride, 1, 3);
}

VECSMITH_INLINE vquarter root(vquarter v) {
#if defined(__x86_64__)
  return (vquarter)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < 4; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

VECSMITH_INLINE float positive(float x) { return x > 0 ? x : 0; }

// What is done to the two rows of a cell: p <- keep[0] p + give[0] q, q <- keep[1] q + give[1] p.
struct Update {
  float keep[2], give[2];
};

// The error's part: from the three products of the rows to their update.
template <bool kAdaptive>
VECSMITH_INLINE Update settle(const FactorJob& job, int64_t u, int64_t i, float value, float pq,
                              float pp, float qq, double& loss) {
  const FactorSide &user = job.user, &item = job.item;
  float* const user_bias = user.bias ? user.bias + u * user.bias_stride : nullptr;
  float* const item_bias = item.bias ? item.bias + i * item.bias_stride : nullptr;
  const float b_u = user_bias ? *user_bias : 0, b_i = item_bias ? *item_bias : 0;
  const float e = value - (job.mean + b_u + b_i + pq);
  loss += static_cast<double>(e) * e;
  vquarter rate = {job.rate, job.rate, job.bias_rate, job.bias_rate};
  const float g_u = job.bias_ridge * b_u - e, g_i = job.bias_ridge * b_i - e;
  if constexpr (kAdaptive) {
    float* const G_u = user.squares + u * user.squares_stride;
    float* const G_i = item.squares + i * item.squares_stride;
    rate /= root(vquarter{G_u[0], G_i[0], G_u[1], G_i[1]});
    const float share = 1.0f / static_cast<float>(job.dim);
    const float cross = -2 * e * job.ridge * pq, ee = e * e, ll = job.ridge * job.ridge;
    G_u[0] += share * positive(ee * qq + cross + ll * pp);
    G_i[0] += share * positive(ee * pp + cross + ll * qq);
    if (user_bias) G_u[1] += g_u * g_u;
    if (item_bias) G_i[1] += g_i * g_i;
  }
  if (user_bias) *user_bias = b_u - rate[2] * g_u;
  if (item_bias) *item_bias = b_i - rate[3] * g_i;
  return {{1 - rate[0] * job.ridge, 1 - rate[1] * job.ridge}, {rate[0] * e, rate[1] * e}};
}

// Rows of kFull whole vectors and a tail, in registers.
template <int kFull, bool kTail, bool kAdaptive>
VECSMITH_INLINE void step(const FactorJob& job, int64_t u, int64_t i, float value, int tail,
                          double& loss) {
  float* const p = job.user.factors + u * job.user.stride;
  float* const q = job.item.factors + i * job.item.stride;
  constexpr int kAll = kFull + (kTail ? 1 : 0);
  vfloat a[kAll], b[kAll];
  vfloat pq{}, pp{}, qq{};
  for (int k = 0; k < kAll; ++k) {
    a[k] = k < kFull ? load(p + k * kLanes) : load_tail(p + k * kLanes, tail);
    b[k] = k < kFull ? load(q + k * kLanes) : load_tail(q + k * kLanes, tail);
    pq += a[k] * b[k];
    if constexpr (kAdaptive) {
      pp += a[k] * a[k];
      qq += b[k] * b[k];
    }
  }
  alignas(16) float sums[4];
  fold4(pq, pp, qq, vfloat{}, sums);
  const Update x = settle<kAdaptive>(job, u, i, value, sums[0], sums[1], sums[2], loss);
  for (int k = 0; k < kAll; ++k) {
    const vfloat new_p = a[k] * x.keep[0] + b[k] * x.give[0];
    const vfloat new_q = b[k] * x.keep[1] + a[k] * x.give[1];
    if (k < kFull) {
      store(p + k * kLanes, new_p);
      store(q + k * kLanes, new_q);
    } else {
      store_tail(p + k * kLanes, new_p, tail);
      store_tail(q + k * kLanes, new_q, tail);
    }
  }
}

// Rows of any length.
template <bool kAdaptive>
VECSMITH_INLINE void long_step(const FactorJob& job, int64_t u, int64_t i, float value,
                               double& loss) {
  float* const p = job.user.factors + u * job.user.stride;
  float* const q = job.item.factors + i * job.item.stride;
  const int64_t full = job.dim / kLanes * kLanes;
  const int tail = static_cast<int>(job.dim - full);
  vfloat pq[2] = {}, pp[2] = {}, qq[2] = {};
  const auto add = [&](int at, vfloat a, vfloat b) VECSMITH_LAMBDA {
    pq[at] += a * b;
    if constexpr (kAdaptive) {
      pp[at] += a * a;
      qq[at] += b * b;
    }
  };
  int64_t k = 0;
  for (; k + 2 * kLanes <= full; k += 2 * kLanes) {
    add(0, load(p + k), load(q + k));
    add(1, load(p + k + kLanes), load(q + k + kLanes));
  }
  if (k < full) add(0, load(p + k), load(q + k));
  if (tail) add(1, load_tail(p + full, tail), load_tail(q + full, tail));
  alignas(16) float sums[4];
  fold4(pq[0] + pq[1], pp[0] + pp[1], qq[0] + qq[1], vfloat{}, sums);
  const Update x = settle<kAdaptive>(job, u, i, value, sums[0], sums[1], sums[2], loss);
  for (k = 0; k < full; k += kLanes) {
    const vfloat a = load(p + k), b = load(q + k);
    store(p + k, a * x.keep[0] + b * x.give[0]);
    store(q + k, b * x.keep[1] + a * x.give[1]);
  }
  if (tail) {
    const vfloat a = load_tail(p + full, tail), b = load_tail(q + full, tail);
    store_tail(p + full, a * x.keep[0] + b * x.give[0], tail);
    store_tail(q + full, b * x.keep[1] + a * x.give[1], tail);
  }
}

template <class Step>
VECSMITH_INLINE double train(const FactorJob& job, int64_t first, int64_t last, const Step& step) {
  double loss = 0;
  for (int64_t at = first; at < last; ++at) {
    const int64_t ahead = at + kAhead < last ? at + kAhead : last - 1;
    fetch_side(job.user, job.users[ahead], job.dim);
    fetch_side(job.item, job.items[ahead], job.dim);
    step(job.users[at], job.items[at], job.values[at], loss);
  }
  return loss;
}

template <int kFull, bool kTail, bool kAdaptive>
double train_short(const FactorJob& job, int64_t first, int64_t last) {
  const int tail = static_cast<int>(job.dim % kLanes);
  return train(job, first, last,
               [&](int64_t u, int64_t i, float value, double& loss) VECSMITH_LAMBDA {
                 step<kFull, kTail, kAdaptive>(job, u, i, value, tail, loss);
               });
}

template <bool kAdaptive>
double train_long(const FactorJob& job, int64_t first, int64_t last) {
  return train(job, first, last,
               [&](int64_t u, int64_t i, float value, double& loss)
                   VECSMITH_LAMBDA { long_step<kAdaptive>(job, u, i, value, loss); });
}

template <bool kAdaptive>
double train_any(const FactorJob& job, int64_t first, int64_t last) {
  const int64_t full = job.dim / kLanes;
  const bool tail = job.dim % kLanes != 0;
  if (full + tail > kMostKept) return train_long<kAdaptive>(job, first, last);
  double loss = 0;
  with_number<0, kMostKept>(full, [&](auto number) VECSMITH_LAMBDA {
    constexpr int kFull = decltype(number)::value;
    if constexpr (kFull == 0)
      loss = train_short<0, true, kAdaptive>(job, first, last);
    else if constexpr (kFull == kMostKept)
      loss = train_short<kFull, false, kAdaptive>(job, first, last);
    else
      loss = tail ? train_short<kFull, true, kAdaptive>(job, first, last)
                  : train_short<kFull, false, kAdaptive>(job, first, last);
  });
  return loss;
}

}  // namespace

double factor_sgd_cells(const FactorJob& job, int64_t first, int64_t last) {
  return job.user.squares ? train_any<true>(job, first, last) : train_any<false>(job, first, last);
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
