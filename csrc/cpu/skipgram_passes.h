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

// Where the inputs' updates begin, before g o is added to them.
enum Update {
  kInPlace,  // at the inputs themselves: from = to = x
  kFrom,     // at rows of their own
  kNothing   // at zero
};

// Pointers to the m inputs of a step, to what their updates are added to and where the sums go.
struct Inputs {
  const float* const* x;
  const float* const* from;
  float* const* to;
  int m;
};

// V vectors of a row that begin at column `at`, or (T) the row's tail.
template <class Vector, int V, bool T>
struct Block {
  using Vec = Vector;
  static constexpr int count = V;
  int64_t at;
  int tail;

  VECSMITH_METHOD Vec get(const float* row, int v) const {
    if constexpr (T)
      return load_tail(row + at, tail);
    else
      return load_as<Vec>(row + at + v * static_cast<int>(sizeof(Vec) / sizeof(float)));
  }
  VECSMITH_METHOD void put(float* row, int v, Vec value) const {
    if constexpr (T)
      store_tail(row + at, value, tail);
    else
      store_as<Vec>(row + at + v * static_cast<int>(sizeof(Vec) / sizeof(float)), value);
  }
};

// body(Block) over a row, a block at a time.
template <class Body>
VECSMITH_INLINE void over_columns(int64_t full, int tail, const Body& body) {
  int64_t at = 0;
  for (; at + kBlockVectors * kLanes <= full; at += kBlockVectors * kLanes)
    body(Block<vfloat, kBlockVectors, false>{at, tail});
  for (; at < full; at += kLanes) body(Block<vfloat, 1, false>{at, tail});
  if (tail == 4)
    body(Block<vquarter, 1, false>{at, tail});
  else if (tail)
    body(Block<vfloat, 1, true>{at, tail});
}

template <int J, Update U, class Access>
VECSMITH_INLINE void update_block(const Inputs& in, float* const* o, const float* g,
                                  const Access& access) {
  using Vec = typename Access::Vec;
  constexpr int V = Access::count;
  Vec ov[J][V], dv[J][V];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) dv[j][v] = ov[j][v] = access.get(o[j], v);
  for (int i = 0; i < in.m; ++i) {
    Vec xv[V], nv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      xv[v] = access.get(in.x[i], v);
      nv[v] = U == kInPlace ? xv[v] : U == kFrom ? access.get(in.from[i], v) : Vec{};
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
    for (int v = 0; v < V; ++v) access.put(in.to[i], v, nv[v]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) access.put(o[j], v, dv[j][v]);
}

// o[j] += sum_i g[i * J + j] x[i];  to[i] = from[i] + sum_j g[i * J + j] o[j], from the values
// before.
template <int J, Update U>
__attribute__((noinline)) void update_tile(const Inputs& in, float* const* o, int64_t full,
                                           int tail, const float* g) {
  over_columns(full, tail,
               [&](const auto& access) VECSMITH_LAMBDA { update_block<J, U>(in, o, g, access); });
}

// Pairs: input i has the outputs o[0] (the positive, common to all) and o[1 + i K .. 1 + i K + K).

template <int I, int K>
VECSMITH_INLINE void score_pair_block(const float* const* x, float* const* o, float* const* own,
                                      int64_t full, int tail, float* out) {
  constexpr int J = K + 1;
  vfloat sum[I * J];
#pragma GCC unroll 12
  for (int a = 0; a < I * J; ++a) sum[a] = vfloat{};
  const auto add = [&](const auto& get) VECSMITH_LAMBDA {
    const vfloat center = get(o[0]);
#pragma GCC unroll 2
    for (int i = 0; i < I; ++i) {
      const vfloat xv = in_register(get(x[i]));
      sum[i * J] += xv * center;
#pragma GCC unroll 5
      for (int k = 0; k < K; ++k) sum[i * J + 1 + k] += xv * get(own[i * K + k]);
    }
  };
  if (tail == 4)
    add([&](const float* row) VECSMITH_LAMBDA { return widen(load_as<vquarter>(row + full)); });
  else if (tail)
    add([&](const float* row) VECSMITH_LAMBDA { return load_tail(row + full, tail); });
  for (int64_t at = 0; at < full; at += kLanes)
    add([&](const float* row) VECSMITH_LAMBDA { return load(row + at); });
  const vfloat zero{};
#pragma GCC unroll 3
  for (int a = 0; a < I * J; a += 4)
    fold4(sum[a], a + 1 < I * J ? sum[a + 1] : zero, a + 2 < I * J ? sum[a + 2] : zero,
          a + 3 < I * J ? sum[a + 3] : zero, out + a);
}

// scores[i * (K + 1) + j] of the pairs; writes up to three floats beyond the last.
template <int K>
__attribute__((noinline)) void score_pairs(const float* const* x, float* const* o, int64_t full,
                                           int tail, int m, float* scores) {
  int i = 0;
  for (; i + 2 <= m; i += 2)
    score_pair_block<2, K>(x + i, o, o + 1 + i * K, full, tail, scores + i * (K + 1));
  if (i < m) score_pair_block<1, K>(x + i, o, o + 1 + i * K, full, tail, scores + i * (K + 1));
}

template <int K, class Access>
VECSMITH_INLINE void update_pair_block(float* const* x, float* const* o, int m, const float* g,
                                       const Access& access) {
  using Vec = typename Access::Vec;
  constexpr int V = Access::count;
  Vec center[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) center[v] = access.get(o[0], v);
  float* const* own = o + 1;
  for (int i = 0; i < m; ++i, own += K, g += K + 1) {
    const Vec g0 = g[0] - Vec{};
    Vec xv[V], nv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      xv[v] = access.get(x[i], v);
      nv[v] = xv[v] + g0 * center[v];
      center[v] += g0 * xv[v];
    }
#pragma GCC unroll 5
    for (int k = 0; k < K; ++k) {
      const Vec gk = g[1 + k] - Vec{};
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vec ov = access.get(own[k], v);
        nv[v] += gk * ov;
        access.put(own[k], v, ov + gk * xv[v]);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) access.put(x[i], v, nv[v]);
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) access.put(o[0], v, center[v]);
}

// The updates of the pairs, one after another, over a block of columns at a time. (Columns do not
// depend on each other.)
template <int K>
__attribute__((noinline)) void update_pairs(float* const* x, float* const* o, int64_t full,
                                            int tail, int m, const float* g) {
  over_columns(full, tail, [&](const auto& access) VECSMITH_LAMBDA {
    update_pair_block<K>(x, o, m, g, access);
  });
}

// Sums over rows and to rows (CBOW), up to eight vectors of each row at a time.

template <int V>
VECSMITH_INLINE void sum_block(const float* const* x, int m, int64_t at, float scale, float* out) {
  vfloat sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = load(x[0] + at + v * kLanes);
  for (int i = 1; i < m; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] += load(x[i] + at + v * kLanes);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(out + at + v * kLanes, sum[v] * scale);
}

template <int V>
VECSMITH_INLINE void add_block(float* const* x, int m, int64_t at, float scale,
                               const float* update) {
  vfloat more[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) more[v] = load(update + at + v * kLanes) * scale;
  for (int i = 0; i < m; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      store(x[i] + at + v * kLanes, load(x[i] + at + v * kLanes) + more[v]);
}

// body(at, Number<V>) over `full` columns, up to eight vectors at a time.
template <class Body>
VECSMITH_INLINE void in_blocks(int64_t full, const Body& body) {
  int64_t at = 0;
  for (; at + 8 * kLanes <= full; at += 8 * kLanes) body(at, Number<8>{});
  with_number<0, 7>((full - at) / kLanes, [&](auto width) VECSMITH_LAMBDA { body(at, width); });
}

// out = scale * sum_i x[i]
__attribute__((noinline)) void sum_rows(const float* const* x, int m, int64_t full, int tail,
                                        float scale, float* out) {
  in_blocks(full, [&](int64_t at, auto width) VECSMITH_LAMBDA {
    if constexpr (width.value > 0) sum_block<width.value>(x, m, at, scale, out);
  });
  if (tail == 0) return;
  vfloat sum = load_tail(x[0] + full, tail);
  for (int i = 1; i < m; ++i) sum += load_tail(x[i] + full, tail);
  store_tail(out + full, sum * scale, tail);
}

// x[i] += scale * update, one after another (a row may come twice)
__attribute__((noinline)) void add_to_rows(float* const* x, int m, int64_t full, int tail,
                                           float scale, const float* update) {
  in_blocks(full, [&](int64_t at, auto width) VECSMITH_LAMBDA {
    if constexpr (width.value > 0) add_block<width.value>(x, m, at, scale, update);
  });
  if (tail == 0) return;
  const vfloat more = load_tail(update + full, tail) * scale;
  for (int i = 0; i < m; ++i) store_tail(x[i] + full, load_tail(x[i] + full, tail) + more, tail);
}

// The passes over n outputs (of each pair: n = K + 1), 1 <= n <= 6, 2 <= n with pairs.

void score_any(int n, const float* const* x, float* const* o, int64_t full, int tail, int m,
               float* s) {
  with_number<1, 6>(n,
                    [&](auto j) VECSMITH_LAMBDA { score_tile<j.value>(x, o, full, tail, m, s); });
}

template <Update U>
void update_any(int n, const Inputs& in, float* const* o, int64_t full, int tail, const float* g) {
  with_number<1, 6>(n,
                    [&](auto j) VECSMITH_LAMBDA { update_tile<j.value, U>(in, o, full, tail, g); });
}

void score_any_pairs(int n, const float* const* x, float* const* o, int64_t full, int tail, int m,
                     float* s) {
  with_number<1, 5>(n - 1,
                    [&](auto k) VECSMITH_LAMBDA { score_pairs<k.value>(x, o, full, tail, m, s); });
}

void update_any_pairs(int n, float* const* x, float* const* o, int64_t full, int tail, int m,
                      const float* g) {
  with_number<1, 5>(n - 1,
                    [&](auto k) VECSMITH_LAMBDA { update_pairs<k.value>(x, o, full, tail, m, g); });
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
