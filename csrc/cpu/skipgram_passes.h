// The three passes of a step over raw rows: scores, sigmoids (gradients and loss), update.
// Included by skipgram.kernel.cpp alone.
#pragma once

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int kBlockVectors = kLanes == 16 ? 2 : 1;  // vectors of each row per update block

template <int I, int J>
VECSMITH_INLINE void score_block(const float* const* x, float* const* o, int64_t full, int tail,
                                 float* out) {
  vfloat sum[I * J];
  // The tail first: a tail of four costs half a vector's time, and starts the sums for nothing.
  if (tail == 4) {
    vquarter xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load_as<vquarter>(x[i] + full);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vquarter ov = load_as<vquarter>(o[j] + full);
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] = widen(xv[i] * ov);
    }
  } else if (tail) {
    vfloat xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load_tail(x[i] + full, tail);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vfloat ov = load_tail(o[j] + full, tail);
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] = xv[i] * ov;
    }
  } else {
#pragma GCC unroll 24
    for (int a = 0; a < I * J; ++a) sum[a] = vfloat{};
  }
  for (int64_t at = 0; at < full; at += kLanes) {
    vfloat xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load(x[i] + at);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vfloat ov = in_register(load(o[j] + at));
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] += xv[i] * ov;
    }
  }
#pragma GCC unroll 6
  for (int a = 0; a < I * J; a += 4) {
    const vfloat zero{};
    fold4(sum[a], a + 1 < I * J ? sum[a + 1] : zero, a + 2 < I * J ? sum[a + 2] : zero,
          a + 3 < I * J ? sum[a + 3] : zero, out + a);
  }
}

// scores[i * J + j] = x[i] . o[j]; writes up to three floats beyond the last.
template <int J>
__attribute__((noinline)) void score_tile(const float* const* x, float* const* o, int64_t full,
                                          int tail, int m, float* scores) {
  int i = 0;
  if (kLanes == 16)  // thirty-two registers
    for (; i + 4 <= m; i += 4) score_block<4, J>(x + i, o, full, tail, scores + i * J);
  for (; i + 2 <= m; i += 2) score_block<2, J>(x + i, o, full, tail, scores + i * J);
  if (i < m) score_block<1, J>(x + i, o, full, tail, scores + i * J);
}

//
// With z = -s for a positive and z = s for a negative output, the loss of a score s is log(1 + e^z)
// and its gradient (label - sigmoid(s)) is sigmoid(z), negative for a negative output. A label is
// the sign bit that turns s into z.

constexpr int32_t kPositive = INT32_MIN, kNegative = 0;

// The losses are log(1 + e^z) = max(z, 0) + log(1 + e^-|z|): the first parts are summed, and of the
// second the arguments (in [1, 2]) are multiplied, so that a logarithm is taken only once in a
// while.
struct Loss {
  vfloat sum = vfloat{}, product = vfloat{} + 1.0f;
  int pending = 0;

  VECSMITH_METHOD void add(vfloat z, vfloat t) {
    sum += max(z, splat(0.0f));
    product *= t + 1.0f;
  }

  // Before `count` more vectors: a product of at most 2^96, and sums of few terms.
  VECSMITH_METHOD void settle(double& loss, int count) {
    if (pending + count > 96) flush(loss);
    pending += count;
  }

  __attribute__((noinline)) void flush(double& loss) {
    const vdouble all = __builtin_convertvector(sum, vdouble) +
                        __builtin_convertvector(log_above_one(product), vdouble);
    for (int lane = 0; lane < kLanes; ++lane) loss += all[lane];
    sum = splat(0.0f);
    product = splat(1.0f);
    pending = 0;
  }
};

// Turns scores into alpha * (label - sigmoid(score)), times `weight` if that is not null. `count`
// is padded to whole vectors by scores and labels that contribute nothing.
template <bool kLoss, bool kWeighted>
VECSMITH_INLINE void gradients(float* score, const int32_t* label, const float* weight,
                               int64_t count, float alpha, Loss& loss, double& total) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const vint sign = load(label + at);
    const vfloat z = (vfloat)((vint)load_fours(score + at) ^ sign);
    const vfloat t = exp_negative(max(-abs(z), splat(-87.0f)));
    const vfloat p = (z >= 0.0f ? splat(1.0f) : t) * reciprocal(t + 1.0f);
    vfloat scaled = p * -alpha;
    if (kWeighted) scaled *= load(weight + at);
    store(score + at, (vfloat)((vint)scaled ^ sign));
    if (kLoss && !kWeighted) {
      loss.settle(total, 1);
      loss.add(z, t);
    }
    if (kLoss && kWeighted) {
      const vdouble terms = __builtin_convertvector(
          load(weight + at) * (max(z, splat(0.0f)) + log_above_one(t + 1.0f)), vdouble);
      for (int lane = 0; lane < kLanes; ++lane) total += terms[lane];
    }
  }
}

enum Update {
  kInPlace,    // inputs and outputs are changed where they are
  kAccumulate  // outputs in place; the inputs' updates are added to rows of their own
};

template <class Vec, int J, int V, Update U, bool T>
VECSMITH_INLINE void update_block(const float* const* x, float* const* dx, float* const* o,
                                  int64_t at, int tail, int m, const float* g) {
  constexpr int kStep = sizeof(Vec) / sizeof(float);
  const auto get = [&](const float* row, int v) {
    if constexpr (T)
      return load_tail(row + at, tail);
    else
      return load_as<Vec>(row + at + v * kStep);
  };
  const auto put = [&](float* row, int v, Vec value) {
    if constexpr (T)
      store_tail(row + at, value, tail);
    else
      store_as<Vec>(row + at + v * kStep, value);
  };
  Vec ov[J][V], dv[J][V];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) dv[j][v] = ov[j][v] = get(o[j], v);
  for (int i = 0; i < m; ++i) {
    Vec xv[V], nv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      xv[v] = get(x[i], v);
      nv[v] = U == kInPlace ? xv[v] : get(dx[i], v);
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const Vec gv = g[i * J + j] - Vec{};
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        dv[j][v] += gv * xv[v];
        nv[v] += gv * ov[j][v];
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) put(dx[i], v, nv[v]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) put(o[j], v, dv[j][v]);
}

// o[j] += sum_i g[i * J + j] x[i];  dx[i] += sum_j g[i * J + j] o[j], from the values before.
template <int J, Update U>
__attribute__((noinline)) void update_tile(const float* const* x, float* const* dx, float* const* o,
                                           int64_t full, int tail, int m, const float* g) {
  int64_t at = 0;
  for (; at + kBlockVectors * kLanes <= full; at += kBlockVectors * kLanes)
    update_block<vfloat, J, kBlockVectors, U, false>(x, dx, o, at, tail, m, g);
  for (; at < full; at += kLanes) update_block<vfloat, J, 1, U, false>(x, dx, o, at, tail, m, g);
  if (tail == 4)
    update_block<vquarter, J, 1, U, false>(x, dx, o, at, tail, m, g);
  else if (tail)
    update_block<vfloat, J, 1, U, true>(x, dx, o, at, tail, m, g);
}

void score_any(int n, const float* const* x, float* const* o, int64_t full, int tail, int m,
               float* s) {
  switch (n) {
    case 1:
      return score_tile<1>(x, o, full, tail, m, s);
    case 2:
      return score_tile<2>(x, o, full, tail, m, s);
    case 3:
      return score_tile<3>(x, o, full, tail, m, s);
    case 4:
      return score_tile<4>(x, o, full, tail, m, s);
    case 5:
      return score_tile<5>(x, o, full, tail, m, s);
    default:
      return score_tile<6>(x, o, full, tail, m, s);
  }
}

template <Update U>
void update_any(int n, const float* const* x, float* const* dx, float* const* o, int64_t full,
                int tail, int m, const float* g) {
  switch (n) {
    case 1:
      return update_tile<1, U>(x, dx, o, full, tail, m, g);
    case 2:
      return update_tile<2, U>(x, dx, o, full, tail, m, g);
    case 3:
      return update_tile<3, U>(x, dx, o, full, tail, m, g);
    case 4:
      return update_tile<4, U>(x, dx, o, full, tail, m, g);
    case 5:
      return update_tile<5, U>(x, dx, o, full, tail, m, g);
    default:
      return update_tile<6, U>(x, dx, o, full, tail, m, g);
  }
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
