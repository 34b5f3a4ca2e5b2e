// Update: the samples come sorted by row. The gradient of a row is summed into the first-level
// cache, and then the row of the table and of the optimizer's state is read and written once, the
// rows to come being asked for meanwhile. What bounds it: (1 + states) rows read and written per
// distinct row. Included by embedding_bag.kernel.cpp alone.
#pragma once

#include "cpu/embedding_bag_columns.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int64_t kGradsAhead = 24;

VECSMITH_INLINE int64_t grad_row(const BagUpdate& job, uint32_t source) {
  return job.bag_of ? job.bag_of[source] : static_cast<int64_t>(source);
}

template <class G, int V, bool kScaled>
VECSMITH_INLINE void sum_columns(const BagUpdate& job, int64_t first, int64_t last, int64_t at,
                                 int n, float* sum) {
  const int64_t dim = job.grad.dim;
  vfloat total[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) total[v] = vfloat{};
  for (int64_t s = first; s < last; ++s) {
    const uint32_t position = job.sorted[s].source;
    const int64_t bag = grad_row(job, position);
    const char* row = job.grad.data + bag * job.grad.stride;
    float c = 1.0f;
    if (kScaled) {
      if (job.bag_scale) c = job.bag_scale[bag];
      if (job.bags.weights) c *= weight_at(job.bags.weights, job.bags.weight_type, position);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const vfloat g = G::get(row, column(at, v, dim, n), n);
      total[v] += kScaled ? g * c : g;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    Float32::put(reinterpret_cast<char*>(sum), column(at, v, dim, n), total[v], n);
}

template <class G>
VECSMITH_INLINE void sum_maxima(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  const int64_t dim = job.grad.dim;
  for (int64_t d = 0; d < dim; ++d) sum[d] = 0.0f;
  for (int64_t s = first; s < last; ++s) {
    const uint32_t position = job.sorted[s].source;
    const int64_t bag = grad_row(job, position);
    const int64_t* where = job.positions + bag * dim;
    const char* row = job.grad.data + bag * job.grad.stride;
    for (int64_t at = 0; at < dim; at += kLanes) {
      const int n = static_cast<int>(dim - at < kLanes ? dim - at : kLanes);
      const vfloat g = n == kLanes ? G::get(row, at, kLanes) : G::get(row, at, n);
      for (int lane = 0; lane < n; ++lane)
        sum[at + lane] += where[at + lane] == static_cast<int64_t>(position) ? g[lane] : 0.0f;
    }
  }
}

template <class G>
VECSMITH_INLINE void sum_of(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  if (job.bags.mode == kMax) return sum_maxima<G>(job, first, last, sum);
  const bool scaled = job.bag_scale || job.bags.weights;
  over_columns<8>(job.grad.dim, [&](auto v, int64_t at, int n) VECSMITH_LAMBDA {
    if (scaled)
      sum_columns<G, v.value, true>(job, first, last, at, n, sum);
    else
      sum_columns<G, v.value, false>(job, first, last, at, n, sum);
  });
}

__attribute__((noinline)) void sum_samples(const BagUpdate& job, int64_t first, int64_t last,
                                           float* sum) {
  if (job.grad.type == kFloat32)
    sum_of<Float32>(job, first, last, sum);
  else if (job.grad.type == kFloat16)
    sum_of<Float16>(job, first, last, sum);
  else
    sum_of<Bfloat16>(job, first, last, sum);
}

// The rule on a row w with its state, given the sum g in `sum`.
template <class W, int kKind>
VECSMITH_INLINE void step(const BagUpdate& job, char* w, int64_t row, float* sum) {
  const Rule& rule = job.rule;
  const int64_t dim = job.table.dim;
  char* const g = reinterpret_cast<char*>(sum);
  if (kKind == kStore || kKind == kScatter)
    return each_vector(
        dim, [&](int64_t at, int n) VECSMITH_LAMBDA { W::put(w, at, Float32::get(g, at, n), n); });
  const auto gradient = [&](int64_t at, int n, vfloat x) VECSMITH_LAMBDA {
    const vfloat value = Float32::get(g, at, n);
    return (rule.maximize ? -value : value) + x * rule.decay;
  };
  constexpr bool rowwise = kKind == kRowwiseAdagrad || kKind == kRowwiseAdam;
  float scale = 0;  // of the whole row, where one number serves it
  if (rowwise) {
    vfloat squares{};
    each_vector(dim, [&](int64_t at, int n) VECSMITH_LAMBDA {
      const vfloat x = gradient(at, n, W::get(w, at, n));
      squares += x * x;
    });
    const float mean = sum_of_lanes(squares) / static_cast<float>(dim);
    float& v = job.state[kKind == kRowwiseAdam ? 1 : 0][row];
    v = kKind == kRowwiseAdam ? v + rule.blend2 * (mean - v) : v + mean;
    scale = rule.rate / (__builtin_sqrtf(v) + rule.eps);
  }
  char* const first = job.state[0] && kKind != kRowwiseAdagrad
                          ? reinterpret_cast<char*>(job.state[0] + row * dim)
                          : nullptr;
  char* const second = kKind == kAdam ? reinterpret_cast<char*>(job.state[1] + row * dim) : nullptr;
  each_vector(dim, [&](int64_t at, int n) VECSMITH_LAMBDA {
    const vfloat x = W::get(w, at, n);
    const vfloat y = gradient(at, n, x);
    vfloat change{};
    if constexpr (kKind == kSgd) change = y * rule.rate;
    if constexpr (kKind == kMomentum) {
      const vfloat b = Float32::get(first, at, n) * rule.momentum + y * rule.fresh;
      Float32::put(first, at, b, n);
      change = (rule.nesterov ? y + b * rule.momentum : b) * rule.rate;
    }
    if constexpr (kKind == kAdagrad) {
      const vfloat s = Float32::get(first, at, n) + y * y;
      Float32::put(first, at, s, n);
      change = y * rule.rate / (square_root(s) + rule.eps);
    }
    if constexpr (kKind == kRowwiseAdagrad) change = y * scale;
    if constexpr (kKind == kAdam || kKind == kRowwiseAdam) {
      const vfloat before = Float32::get(first, at, n);
      const vfloat m = before + (y - before) * rule.blend1;
      Float32::put(first, at, m, n);
      if constexpr (kKind == kAdam) {
        const vfloat old = Float32::get(second, at, n);
        const vfloat v = old + (y * y - old) * rule.blend2;
        Float32::put(second, at, v, n);
        change = m * rule.rate / (square_root(v) + rule.eps);
      } else {
        change = m * scale;
      }
    }
    W::put(w, at, x - change, n);
  });
}

constexpr int64_t kLinesAhead = 256;

template <class W, int kKind>
__attribute__((noinline)) void update_segments(const BagUpdate& job, int64_t first, int64_t last,
                                               float* sum) {
  const int64_t bytes = row_bytes(job.table), dim = job.table.dim;
  constexpr bool fetched = kKind != kStore;
  constexpr bool first_state =
      kKind == kMomentum || kKind == kAdagrad || kKind == kAdam || kKind == kRowwiseAdam;
  const int64_t lines =
      (bytes + 63) / 64 + (first_state ? dim / 16 + 1 : 0) + (kKind == kAdam ? dim / 16 + 1 : 0);
  const int64_t ahead = lines > kLinesAhead        ? 1
                        : kLinesAhead / lines < 64 ? kLinesAhead / lines
                                                   : 64;
  int64_t part = 0;  // the first long row from here on
  while (part < job.long_count && job.long_rows[part] < first) ++part;
  const auto fetch_segment = [&](int64_t u) VECSMITH_LAMBDA {
    const int64_t row = job.first_row + job.sorted[job.begins[u]].row;
    fetch(job.table.data + row * job.table.stride, bytes);
    if constexpr (first_state)
      fetch(reinterpret_cast<const char*>(job.state[0] + row * dim), dim * 4);
    if constexpr (kKind == kAdam)
      fetch(reinterpret_cast<const char*>(job.state[1] + row * dim), dim * 4);
    if constexpr (kKind == kRowwiseAdagrad) __builtin_prefetch(job.state[0] + row, 1, 3);
    if constexpr (kKind == kRowwiseAdam) __builtin_prefetch(job.state[1] + row, 1, 3);
  };
  if (fetched)
    for (int64_t u = first; u < last && u < first + ahead; ++u) fetch_segment(u);
  const int64_t samples = job.begins[job.segments];
  // Gradients stay in the second-level cache unless the rows between two uses push them out.
  const bool far = job.bags.bags * job.grad.stride > (int64_t{1} << 20) ||
                   (job.segments * 2 > samples && job.bags.bags * job.grad.stride > (1 << 17));
  for (int64_t u = first; u < last; ++u) {
    if (fetched && u + ahead < job.segments) fetch_segment(u + ahead);
    const int64_t begin = job.begins[u], end = job.begins[u + 1];
    const int64_t row = job.first_row + job.sorted[begin].row;
    if (far)
      for (int64_t s = begin + kGradsAhead; s < end + kGradsAhead && s < samples; ++s)
        fetch(job.grad.data + grad_row(job, job.sorted[s].source) * job.grad.stride,
              row_bytes(job.grad));
    float* g = sum;
    if (__builtin_expect(part < job.long_count && job.long_rows[part] == u, 0)) {
      const int64_t from = job.part_of[part], to = job.part_of[part + 1];
      g = job.parts + from * job.part_stride;
      for (int64_t p = from + 1; p < to; ++p)
        for (int64_t at = 0; at < job.part_stride; at += kLanes)
          store(g + at, load(g + at) + load(job.parts + p * job.part_stride + at));
      ++part;
    } else {
      sum_samples(job, begin, end, sum);
    }
    char* w = const_cast<char*>(job.table.data) + (kKind == kStore ? u : row) * job.table.stride;
    if (kKind == kStore) job.row_ids[u] = row;
    step<W, kKind>(job, w, row, g);
  }
}

template <class W>
VECSMITH_INLINE void update_with(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  switch (job.rule.kind) {
    case kStore:
      return update_segments<W, kStore>(job, first, last, sum);
    case kScatter:
      return update_segments<W, kScatter>(job, first, last, sum);
    case kSgd:
      return update_segments<W, kSgd>(job, first, last, sum);
    case kMomentum:
      return update_segments<W, kMomentum>(job, first, last, sum);
    case kAdagrad:
      return update_segments<W, kAdagrad>(job, first, last, sum);
    case kRowwiseAdagrad:
      return update_segments<W, kRowwiseAdagrad>(job, first, last, sum);
    case kAdam:
      return update_segments<W, kAdam>(job, first, last, sum);
    default:
      return update_segments<W, kRowwiseAdam>(job, first, last, sum);
  }
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
