// Recurrent layers on the CPU (formulas: python/vecsmith/reference/rnn.py).
//
// A step multiplies the states of all rows by the recurrent weight and makes gates and new states
// of the sums while these are in registers. The weight lies in panels of some vectors of units,
// with their gates side by side; a block of rows by a panel is one product. What bounds it:
// multiply-adds where there are several rows, and reading the weight where there are few.
#include "cpu/rnn.h"

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr bool kManyRegisters = kLanes == 16;

VECSMITH_INLINE vfloat get(const float* p, int n) {
  return n == kLanes ? load(p) : load_tail(p, n);
}
VECSMITH_INLINE void put(float* p, vfloat v, int n) {
  if (n == kLanes)
    store(p, v);
  else
    store_tail(p, v, n);
}

// 1 / (1 + exp(-x)); NaN stays.
VECSMITH_INLINE vfloat sigmoid(vfloat x) {
  const vfloat a = abs(x);
  const vfloat e = exp_negative(-(a > 87.0f ? splat(87.0f) : a));
  const vfloat s = reciprocal(1.0f + e);
  return x == x ? (x < 0.0f ? e * s : s) : x;
}

// Relative error a few units in the last place: an odd polynomial near zero (Cephes' tanhf).
VECSMITH_INLINE vfloat tanh(vfloat x) {
  const vfloat a = abs(x), q = x * x;
  vfloat p = splat(-5.70498872745e-3f);
  p = p * q + 2.06390887954e-2f;
  p = p * q - 5.37397155531e-2f;
  p = p * q + 1.33314422036e-1f;
  p = p * q - 3.33332819422e-1f;
  const vfloat near = p * q * x + x;
  const vfloat e = exp_negative(-2.0f * (a > 10.0f ? splat(10.0f) : a));
  const vfloat far = (1.0f - e) * reciprocal(1.0f + e);
  return a < 0.625f ? near : a == a ? (x < 0.0f ? -far : far) : x;
}

// sums[r V + v] += left(r, k) panel[k][v] over all k.
template <int R, int V, class Left>
VECSMITH_INLINE void product(const float* panel, int64_t k_count, const Left& left, vfloat* sums) {
  vfloat s[R * V];
#pragma GCC unroll 32
  for (int i = 0; i < R * V; ++i) s[i] = sums[i];
  for (int64_t k = 0; k < k_count; ++k, panel += V * kLanes) {
    vfloat w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vfloat y = splat(left(r, k));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) s[r * V + v] += y * w[v];
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < R * V; ++i) sums[i] = s[i];
}

// body(Number<R>, first row) over blocks of up to kMost rows of about one size.
template <int kMost, class Body>
VECSMITH_INLINE void over_rows(int64_t rows, const Body& body) {
  const int64_t blocks = (rows + kMost - 1) / kMost;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = rows * b / blocks, to = rows * (b + 1) / blocks;
    with_number<1, kMost>(to - from, [&](auto r) VECSMITH_LAMBDA { body(r, from); });
  }
}

// What a row multiplies.
VECSMITH_INLINE const float* factors(const RnnLinear& job, int64_t row) {
  return job.x + row * job.x_stride;
}
VECSMITH_INLINE const float* factors(const RnnStep& step, int64_t row) { return step.state[row]; }
VECSMITH_INLINE const float* factors(const RnnStepBack& step, int64_t row) {
  return step.state[row];
}

// The products of panels first .. last-1 with all rows; start(row, unit, n, g) is what a sum begins
// with, and finish(row, unit, n, sums of the gates) has it. G gates, U vectors of units.
template <int G, int U, class Step, class Start, class Finish>
VECSMITH_INLINE void each_product(const Step& step, int64_t k, int64_t hidden, const float* panels,
                                  int64_t first, int64_t last, const Start& start,
                                  const Finish& finish) {
  constexpr int V = G * U, kRows = (kManyRegisters ? 24 : 12) / V;
  for (int64_t p = first; p < last; ++p) {
    const float* panel = panels + p * k * V * kLanes;
    const int64_t unit = p * U * kLanes;
    over_rows<kRows>(step.rows, [&](auto count, int64_t from) VECSMITH_LAMBDA {
      constexpr int R = count.value;
      vfloat sums[R * V];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          const int64_t at = unit + u * kLanes;
          const int n = static_cast<int>(hidden - at < kLanes ? hidden - at : kLanes);
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g)
            sums[r * V + u * G + g] = n > 0 ? start(from + r, at, n, g) : vfloat{};
        }
      const float* x[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) x[r] = factors(step, from + r);
      product<R, V>(panel, k, [&](int r, int64_t n) VECSMITH_LAMBDA { return x[r][n]; }, sums);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          const int64_t at = unit + u * kLanes;
          const int n = static_cast<int>(hidden - at < kLanes ? hidden - at : kLanes);
          if (n > 0) finish(from + r, at, n, sums + r * V + u * G);
        }
    });
  }
}

__attribute__((noinline)) void lstm(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<4, 1>(
      step, hidden, hidden, step.panels, first, last,
      [&](int64_t row, int64_t unit, int n, int g) VECSMITH_LAMBDA {
        const int64_t at = g * hidden + unit;
        return get(rnn.x + step.at[row] * 4 * hidden + at, n);
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const int64_t here = step.at[row] * hidden + unit;
        const vfloat i = sigmoid(sums[0]), f = sigmoid(sums[1]);
        const vfloat g = tanh(sums[2]), o = sigmoid(sums[3]);
        float* const cell = step.c + row * hidden + unit;
        const vfloat c = f * get(cell, n) + i * g;
        const vfloat h = o * tanh(c);
        put(cell, c, n);
        put(step.next + row * step.next_stride + unit, h, n);
        put(rnn.out + here, h, n);
        if (!rnn.gates) return;
        put(rnn.c + here, c, n);
        float* const saved = rnn.gates + step.at[row] * 4 * hidden + unit;
        put(saved, i, n);
        put(saved + hidden, f, n);
        put(saved + 2 * hidden, g, n);
        put(saved + 3 * hidden, o, n);
      });
}

__attribute__((noinline)) void gru(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<3, 1>(
      step, hidden, hidden, step.panels, first, last,
      [&](int64_t row, int64_t unit, int n, int g) VECSMITH_LAMBDA {
        const int64_t at = g * hidden + unit;
        const vfloat b = rnn.bias ? get(rnn.bias + at, n) : vfloat{};
        return g < 2 ? get(rnn.x + step.at[row] * 3 * hidden + at, n) + b : b;
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const int64_t here = step.at[row];
        const vfloat r = sigmoid(sums[0]), z = sigmoid(sums[1]), q = sums[2];
        const vfloat c = tanh(get(rnn.x + here * 3 * hidden + 2 * hidden + unit, n) + r * q);
        const vfloat h = c + z * (get(step.state[row] + unit, n) - c);
        put(step.next + row * step.next_stride + unit, h, n);
        put(rnn.out + here * hidden + unit, h, n);
        if (!rnn.gates) return;
        float* const saved = rnn.gates + here * 4 * hidden + unit;
        put(saved, r, n);
        put(saved + hidden, z, n);
        put(saved + 2 * hidden, c, n);
        put(saved + 3 * hidden, q, n);
      });
}

template <bool kRelu>
__attribute__((noinline)) void plain(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<1, 4>(
      step, hidden, hidden, step.panels, first, last,
      [&](int64_t row, int64_t unit, int n, int)
          VECSMITH_LAMBDA { return get(rnn.x + step.at[row] * hidden + unit, n); },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const vfloat a = sums[0];
        const vfloat h = kRelu ? (a < 0.0f ? vfloat{} : a) : tanh(a);
        put(step.next + row * step.next_stride + unit, h, n);
        put(rnn.out + step.at[row] * hidden + unit, h, n);
      });
}

// Reset before: r and z, and what r leaves of the state; then the new state.
__attribute__((noinline)) void gru_reset(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<2, 2>(
      step, hidden, hidden, step.panels, first, last,
      [&](int64_t row, int64_t unit, int n, int g) VECSMITH_LAMBDA {
        const int64_t at = g * hidden + unit;
        return get(rnn.x + step.at[row] * 3 * hidden + at, n);
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const vfloat r = sigmoid(sums[0]), z = sigmoid(sums[1]);
        put(step.scratch + row * step.next_stride + unit, r * get(step.state[row] + unit, n), n);
        float* const saved = rnn.gates + step.at[row] * 3 * hidden + unit;
        put(saved, r, n);
        put(saved + hidden, z, n);
      });
}

__attribute__((noinline)) void gru_renew(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<1, 4>(
      step, hidden, hidden, step.panels, first, last,
      [&](int64_t row, int64_t unit, int n, int) VECSMITH_LAMBDA {
        const int64_t at = 2 * hidden + unit;
        return get(rnn.x + step.at[row] * 3 * hidden + at, n);
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        float* const saved = rnn.gates + step.at[row] * 3 * hidden + unit;
        const vfloat c = tanh(sums[0]);
        const vfloat h = c + get(saved + hidden, n) * (get(step.before[row] + unit, n) - c);
        put(saved + 2 * hidden, c, n);
        put(step.next + row * step.next_stride + unit, h, n);
        put(rnn.out + step.at[row] * hidden + unit, h, n);
      });
}

// --- backward

// body(at, n) for the vectors of units first .. last-1.
template <class Body>
VECSMITH_INLINE void over_units(int64_t first, int64_t last, const Body& body) {
  int64_t at = first;
  for (; at + kLanes <= last; at += kLanes) body(at, kLanes);
  if (at < last) body(at, static_cast<int>(last - at));
}

VECSMITH_INLINE const float* state_before(const RnnStepBack& step, int64_t row) {
  const Rnn& rnn = *step.rnn;
  return step.before[row] < 0 ? rnn.h0 + row * rnn.hidden : rnn.out + step.before[row] * rnn.hidden;
}

template <int kCell>
__attribute__((noinline)) void backward_gates(const RnnStepBack& step, int64_t first,
                                              int64_t last) {
  const Rnn& rnn = *step.rnn;
  const RnnGrad& grad = *step.grad;
  const int64_t hidden = rnn.hidden;
  for (int64_t row = 0; row < step.rows; ++row) {
    const int64_t here = step.at[row];
    float* const dh_row = step.h + row * step.stride;
    float* const dx = grad.x + here * rnn_gates(rnn.cell) * hidden;
    const float* const saved = rnn.gates + here * rnn_saved(rnn.cell) * hidden;
    over_units(first, last, [&](int64_t u, int n) VECSMITH_LAMBDA {
      vfloat dh = get(dh_row + u, n);
      if (grad.out) dh += get(grad.out + here * hidden + u, n);
      if constexpr (kCell == kLstm) {
        const vfloat i = get(saved + u, n), f = get(saved + hidden + u, n);
        const vfloat g = get(saved + 2 * hidden + u, n), o = get(saved + 3 * hidden + u, n);
        const vfloat t = tanh(get(rnn.c + here * hidden + u, n));
        const float* const old =
            step.before[row] < 0 ? rnn.c0 + row * hidden : rnn.c + step.before[row] * hidden;
        float* const dc_row = step.c + row * step.stride + u;
        const vfloat dc = get(dc_row, n) + dh * o * (1.0f - t * t);
        put(dx + u, dc * g * i * (1.0f - i), n);
        put(dx + hidden + u, dc * get(old + u, n) * f * (1.0f - f), n);
        put(dx + 2 * hidden + u, dc * i * (1.0f - g * g), n);
        put(dx + 3 * hidden + u, dh * t * o * (1.0f - o), n);
        put(dc_row, dc * f, n);
      } else if constexpr (kCell == kGru || kCell == kGruResetBefore) {
        const vfloat z = get(saved + hidden + u, n), c = get(saved + 2 * hidden + u, n);
        const vfloat dc = dh * (1.0f - z) * (1.0f - c * c);
        const vfloat dz = dh * (get(state_before(step, row) + u, n) - c) * z * (1.0f - z);
        put(dx + hidden + u, dz, n);
        put(dx + 2 * hidden + u, dc, n);
        put(dh_row + u, dh * z, n);
        if constexpr (kCell == kGru) {
          const vfloat r = get(saved + u, n);
          const vfloat dr = dc * get(saved + 3 * hidden + u, n) * r * (1.0f - r);
          float* const dp = grad.products + here * 3 * hidden + u;
          put(dx + u, dr, n);
          put(dp, dr, n);
          put(dp + hidden, dz, n);
          put(dp + 2 * hidden, dc * r, n);
        }
      } else {
        const vfloat h = get(rnn.out + here * hidden + u, n);
        put(dx + u, kCell == kRnnRelu ? (h > 0.0f ? dh : vfloat{}) : dh * (1.0f - h * h), n);
      }
    });
  }
}

// dh of the state before = what the gates left there (kAdded) + the products.
template <bool kAdded>
__attribute__((noinline)) void backward_state(const RnnStepBack& step, int64_t k, int64_t first,
                                              int64_t last) {
  each_product<1, 4>(
      step, k, step.rnn->hidden, step.panels, first, last,
      [&](int64_t row, int64_t unit, int n, int)
          VECSMITH_LAMBDA { return kAdded ? get(step.h + row * step.stride + unit, n) : vfloat{}; },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums)
          VECSMITH_LAMBDA { put(step.h + row * step.stride + unit, sums[0], n); });
}

// The products of the candidate's gradient give that of r h: of r, and a part of that of h.
__attribute__((noinline)) void backward_reset(const RnnStepBack& step, int64_t first,
                                              int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<1, 4>(
      step, hidden, hidden, step.panels, first, last,
      [&](int64_t, int64_t, int, int) VECSMITH_LAMBDA { return vfloat{}; },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const int64_t here = step.at[row];
        const vfloat r = get(rnn.gates + here * 3 * hidden + unit, n);
        float* const dh = step.h + row * step.stride + unit;
        put(step.grad->x + here * 3 * hidden + unit,
            sums[0] * get(state_before(step, row) + unit, n) * r * (1.0f - r), n);
        put(dh, get(dh, n) + sums[0] * r, n);
      });
}

}  // namespace

int rnn_lanes() { return kLanes; }

void rnn_outer(const RnnOuter& job, int64_t first, int64_t last) {
  // So many columns of `left` are copied side by side for so many k: they stay in the first-level
  // cache while all panels go by.
  constexpr int kRows = kManyRegisters ? 6 : 3, kGroups = 4, kVectors = 4;
  constexpr int64_t kDepth = 256, kWidth = kVectors * kLanes;
  alignas(64) float left[kGroups * kRows * kDepth];
  const int64_t panels = (job.columns + kWidth - 1) / kWidth;
  for (int64_t k = 0; k < job.count; k += kDepth) {
    const int64_t depth = job.count - k < kDepth ? job.count - k : kDepth;
    for (int64_t row = first; row < last; row += kGroups * kRows) {
      const int64_t rows = last - row < kGroups * kRows ? last - row : kGroups * kRows;
      for (int64_t from = 0; from < rows; from += kRows) {
        const int64_t count = rows - from < kRows ? rows - from : kRows;
        float* to = left + from * kDepth;
        const float* source = job.left + k * job.left_stride + row + from;
        for (int64_t n = 0; n < depth; ++n, to += count, source += job.left_stride)
          for (int64_t r = 0; r < count; ++r) to[r] = source[r];
      }
      for (int64_t p = 0; p < panels; ++p)
        for (int64_t from = 0; from < rows; from += kRows)
          with_number<1, kRows>(
              rows - from < kRows ? rows - from : kRows, [&](auto number) VECSMITH_LAMBDA {
                constexpr int R = number.value;
                vfloat sums[R * kVectors];
                const auto each = [&](const auto& body) VECSMITH_LAMBDA {
#pragma GCC unroll 8
                  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) {
                      const int64_t column = p * kWidth + v * kLanes,
                                    left_over = job.columns - column;
                      const int n = static_cast<int>(left_over < kLanes ? left_over : kLanes);
                      float* const out = job.out + (row + from + r) * job.columns + column;
                      if (n > 0) body(sums[r * kVectors + v], out, n);
                    }
                };
#pragma GCC unroll 32
                for (int i = 0; i < R * kVectors; ++i) sums[i] = vfloat{};
                if (k)
                  each([](vfloat& sum, float* out, int n) VECSMITH_LAMBDA { sum = get(out, n); });
                const float* const columns = left + from * kDepth;
                product<R, kVectors>(
                    job.panels + (p * job.count + k) * kWidth, depth,
                    [&](int r, int64_t n) VECSMITH_LAMBDA { return columns[n * R + r]; }, sums);
                each([](vfloat& sum, float* out, int n) VECSMITH_LAMBDA { put(out, sum, n); });
              });
    }
  }
}

void rnn_column_sums(const float* left, int64_t stride, int64_t count, int64_t first, int64_t last,
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
               VECSMITH_LAMBDA { sum += get(left + n * stride + column, lanes); });
    each([&](vfloat& sum, int64_t column, int lanes)
             VECSMITH_LAMBDA { put(out + column, sum, lanes); });
  }
}

void rnn_linear(const RnnLinear& job, int64_t first, int64_t last) {
  const int64_t hidden = job.hidden;
  const auto start = [&](int64_t, int64_t unit, int n, int g) VECSMITH_LAMBDA {
    return job.bias ? get(job.bias + g * hidden + unit, n) : vfloat{};
  };
  with_number<1, 4>(job.gates, [&](auto gates) VECSMITH_LAMBDA {
    constexpr int G = gates.value;
    const auto finish = [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) put(job.out + (row * G + g) * hidden + unit, sums[g], n);
    };
    each_product<G, G == 1   ? 4
                    : G == 2 ? 2
                             : 1>(job, job.k, hidden, job.panels, first, last, start, finish);
  });
}

int64_t rnn_panel_count(const RnnPanels& p) {
  const int64_t units = int64_t{p.units} * kLanes;
  return (p.hidden + units - 1) / units;
}

int64_t rnn_panel_floats(const RnnPanels& p) { return p.k * p.units * p.gates * kLanes; }

void rnn_pack(const RnnPanels& p, int64_t first, int64_t last, float* to) {
  constexpr int64_t kAtOnce = 64;  // columns: what is written lies in the first-level cache
  const int vectors = p.units * p.gates;
  to += first * rnn_panel_floats(p);
  for (int64_t panel = first; panel < last; ++panel, to += rnn_panel_floats(p))
    for (int64_t from = 0; from < p.k; from += kAtOnce) {
      const int64_t end = from + kAtOnce < p.k ? from + kAtOnce : p.k;
      for (int v = 0; v < vectors; ++v) {
        const int64_t unit = (panel * p.units + v / p.gates) * kLanes;
        const int64_t left = p.hidden - unit;
        const float* const row = p.weight + ((v % p.gates) * p.hidden + unit) * p.row_stride;
        float* const column = to + v * kLanes;
        if (left >= kLanes && p.row_stride == 1) {
          for (int64_t k = from; k < end; ++k)
            store(column + k * vectors * kLanes, load(row + k * p.k_stride));
          continue;
        }
        for (int lane = 0; lane < kLanes; ++lane)
          for (int64_t k = from; k < end; ++k)
            column[k * vectors * kLanes + lane] =
                lane < left ? row[lane * p.row_stride + k * p.k_stride] : 0.0f;
      }
    }
}

void rnn_forward(const RnnStep& step, int phase, int64_t first, int64_t last) {
  switch (step.rnn->cell) {
    case kLstm:
      return lstm(step, first, last);
    case kGru:
      return gru(step, first, last);
    case kGruResetBefore:
      return phase == 0 ? gru_reset(step, first, last) : gru_renew(step, first, last);
    case kRnnRelu:
      return plain<true>(step, first, last);
    default:
      return plain<false>(step, first, last);
  }
}

void rnn_backward_gates(const RnnStepBack& step, int64_t first, int64_t last) {
  switch (step.rnn->cell) {
    case kLstm:
      return backward_gates<kLstm>(step, first, last);
    case kGru:
      return backward_gates<kGru>(step, first, last);
    case kGruResetBefore:
      return backward_gates<kGruResetBefore>(step, first, last);
    case kRnnRelu:
      return backward_gates<kRnnRelu>(step, first, last);
    default:
      return backward_gates<kRnnTanh>(step, first, last);
  }
}

void rnn_backward_state(const RnnStepBack& step, int phase, int64_t first, int64_t last) {
  const int64_t hidden = step.rnn->hidden;
  switch (step.rnn->cell) {
    case kLstm:
      return backward_state<false>(step, 4 * hidden, first, last);
    case kGru:
      return backward_state<true>(step, 3 * hidden, first, last);
    case kGruResetBefore:
      return phase == 0 ? backward_reset(step, first, last)
                        : backward_state<true>(step, 2 * hidden, first, last);
    default:
      return backward_state<false>(step, hidden, first, last);
  }
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
