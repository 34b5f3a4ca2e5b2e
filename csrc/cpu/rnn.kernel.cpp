// Recurrent layers on the CPU (formulas: python/vecsmith/reference/rnn.py).
//
// A step multiplies the states of all rows by the recurrent weight and makes gates and new states
// of the sums while these are in registers. The weight lies in panels of some vectors of units,
// with their gates side by side (rnn_products.h). What bounds it: multiply-adds where there are
// several rows, and reading the weight where there are few.
#include "cpu/rnn_products.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

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

// A row's part of the gates from the input.
VECSMITH_INLINE float* x_of(const RnnStep& step, int64_t row) {
  return step.x + (step.at[row] - step.x_first) * step.rnn->x_stride;
}

VECSMITH_INLINE void put_state(const RnnStep& step, int64_t row, int64_t unit, vfloat h, int n) {
  put(step.next + row * step.next_stride + unit, h, n);
  put(step.rnn->out, step.at[row] * step.rnn->hidden + unit, h, n);
  if (step.factors) put_factors(step.factors, step.factors.row(row), unit, h, n);
}

__attribute__((noinline)) void lstm(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<4, 1>(
      step, first, last,
      [&](int64_t row, int64_t unit, int n, int g) VECSMITH_LAMBDA {
        const int64_t at = g * hidden + unit;
        return get(x_of(step, row) + at, n);
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const int64_t here = step.at[row] * hidden + unit;
        const vfloat i = sigmoid(sums[0]), f = sigmoid(sums[1]);
        const vfloat g = tanh(sums[2]), o = sigmoid(sums[3]);
        float* const cell = step.c + row * hidden + unit;
        const vfloat c = f * get(cell, n) + i * g;
        const vfloat h = o * tanh(c);
        put(cell, c, n);
        put_state(step, row, unit, h, n);
        if (!rnn.gates) return;
        put(rnn.c + here, c, n);
        const int64_t saved = step.at[row] * 4 * hidden + unit;
        put(rnn.gates, saved, i, n);
        put(rnn.gates, saved + hidden, f, n);
        put(rnn.gates, saved + 2 * hidden, g, n);
        put(rnn.gates, saved + 3 * hidden, o, n);
      },
      [&](int64_t row, int64_t unit) VECSMITH_LAMBDA {
        for (int g = 0; g < 4; ++g) fetch(x_of(step, row) + g * hidden + unit);
      });
}

__attribute__((noinline)) void gru(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<3, 1>(
      step, first, last,
      [&](int64_t row, int64_t unit, int n, int g) VECSMITH_LAMBDA {
        const int64_t at = g * hidden + unit;
        const vfloat b = step.bias ? get(step.bias + at, n) : vfloat{};
        return g < 2 ? get(x_of(step, row) + at, n) + b : b;
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const int64_t here = step.at[row];
        const vfloat r = sigmoid(sums[0]), z = sigmoid(sums[1]), q = sums[2];
        const vfloat c = tanh(get(x_of(step, row) + 2 * hidden + unit, n) + r * q);
        const vfloat h = c + z * (get(step.before[row] + unit, n) - c);
        put_state(step, row, unit, h, n);
        if (!rnn.gates) return;
        const int64_t saved = here * 4 * hidden + unit;
        put(rnn.gates, saved, r, n);
        put(rnn.gates, saved + hidden, z, n);
        put(rnn.gates, saved + 2 * hidden, c, n);
        put(rnn.gates, saved + 3 * hidden, q, n);
      },
      [&](int64_t row, int64_t unit) VECSMITH_LAMBDA {
        for (int g = 0; g < 3; ++g) fetch(x_of(step, row) + g * hidden + unit);
      });
}

template <bool kRelu>
__attribute__((noinline)) void plain(const RnnStep& step, int64_t first, int64_t last) {
  each_product<1, 4>(
      step, first, last,
      [&](int64_t row, int64_t unit, int n, int)
          VECSMITH_LAMBDA { return get(x_of(step, row) + unit, n); },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const vfloat a = sums[0];
        const vfloat h = kRelu ? (a < 0.0f ? vfloat{} : a) : tanh(a);
        put_state(step, row, unit, h, n);
      });
}

// Reset before: r and z, and what r leaves of the state; then the new state.
__attribute__((noinline)) void gru_reset(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<2, 2>(
      step, first, last,
      [&](int64_t row, int64_t unit, int n, int g) VECSMITH_LAMBDA {
        const int64_t at = g * hidden + unit;
        return get(x_of(step, row) + at, n);
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const vfloat r = sigmoid(sums[0]), z = sigmoid(sums[1]);
        put_factors(step.scratch, step.scratch.row(row), unit, r * get(step.before[row] + unit, n),
                    n);
        const int64_t saved = step.at[row] * 3 * hidden + unit;
        put(rnn.gates, saved, r, n);
        put(rnn.gates, saved + hidden, z, n);
        // For the second product, not rounded.
        put(x_of(step, row) + hidden + unit, z, n);
      });
}

__attribute__((noinline)) void gru_renew(const RnnStep& step, int64_t first, int64_t last) {
  const Rnn& rnn = *step.rnn;
  const int64_t hidden = rnn.hidden;
  each_product<1, 4>(
      step, first, last,
      [&](int64_t row, int64_t unit, int n, int) VECSMITH_LAMBDA {
        const int64_t at = 2 * hidden + unit;
        return get(x_of(step, row) + at, n);
      },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const int64_t saved = step.at[row] * 3 * hidden + unit;
        const vfloat c = tanh(sums[0]);
        const vfloat z = get(x_of(step, row) + hidden + unit, n);
        const vfloat h = c + z * (get(step.before[row] + unit, n) - c);
        put(rnn.gates, saved + 2 * hidden, c, n);
        put_state(step, row, unit, h, n);
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

VECSMITH_INLINE vfloat state_before(const RnnStepBack& step, int64_t row, int64_t unit, int n) {
  const Rnn& rnn = *step.rnn;
  return step.before[row] < 0 ? get(step.h0 + row * rnn.hidden + unit, n)
                              : get(rnn.out, step.before[row] * rnn.hidden + unit, n);
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
    char* const dx = grad.x.row(here);
    const int64_t saved = here * rnn_saved(rnn.cell) * hidden;
    over_units(first, last, [&](int64_t u, int n) VECSMITH_LAMBDA {
      const auto kept = [&](int gate) VECSMITH_LAMBDA {
        return get(rnn.gates, saved + gate * hidden + u, n);
      };
      const auto put_gate = [&](int gate, vfloat d) VECSMITH_LAMBDA {
        put_factors(grad.x, dx, gate * hidden + u, d, n);
      };
      vfloat dh = get(dh_row + u, n);
      if (grad.out) dh += get(grad.out, here * hidden + u, n);
      if constexpr (kCell == kLstm) {
        const vfloat i = kept(0), f = kept(1), g = kept(2), o = kept(3);
        const vfloat t = tanh(get(rnn.c + here * hidden + u, n));
        const float* const old =
            step.before[row] < 0 ? step.c0 + row * hidden : rnn.c + step.before[row] * hidden;
        float* const dc_row = step.c + row * step.stride + u;
        const vfloat dc = get(dc_row, n) + dh * o * (1.0f - t * t);
        put_gate(0, dc * g * i * (1.0f - i));
        put_gate(1, dc * get(old + u, n) * f * (1.0f - f));
        put_gate(2, dc * i * (1.0f - g * g));
        put_gate(3, dh * t * o * (1.0f - o));
        put(dc_row, dc * f, n);
      } else if constexpr (kCell == kGru || kCell == kGruResetBefore) {
        const vfloat z = kept(1), c = kept(2);
        const vfloat dc = dh * (1.0f - z) * (1.0f - c * c);
        const vfloat dz = dh * (state_before(step, row, u, n) - c) * z * (1.0f - z);
        if (kCell == kGruResetBefore) put_gate(0, vfloat{});  // read before it is known, times zero
        put_gate(1, dz);
        put_gate(2, dc);
        put(dh_row + u, dh * z, n);
        if constexpr (kCell == kGru) {
          const vfloat r = kept(0), dr = dc * kept(3) * r * (1.0f - r);
          put_gate(0, dr);
          put_factors(grad.products, grad.products.row(here), u, dc * r, n);
        }
      } else {
        const vfloat h = get(rnn.out, here * hidden + u, n);
        put_gate(0, kCell == kRnnRelu ? (h > 0.0f ? dh : vfloat{}) : dh * (1.0f - h * h));
      }
    });
  }
}

// dh of the state before = what the gates left there (kAdded) + the products.
template <bool kAdded>
__attribute__((noinline)) void backward_state(const RnnStepBack& step, int64_t first,
                                              int64_t last) {
  each_product<1, 4>(
      step, first, last,
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
      step, first, last, [&](int64_t, int64_t, int, int) VECSMITH_LAMBDA { return vfloat{}; },
      [&](int64_t row, int64_t unit, int n, const vfloat* sums) VECSMITH_LAMBDA {
        const int64_t here = step.at[row];
        const vfloat r = get(rnn.gates, here * 3 * hidden + unit, n);
        float* const dh = step.h + row * step.stride + unit;
        const RnnFactors& dx = step.grad->x;
        put_factors(dx, dx.row(here), unit,
                    sums[0] * state_before(step, row, unit, n) * r * (1.0f - r), n);
        put(dh, get(dh, n) + sums[0] * r, n);
      });
}

}  // namespace

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
  switch (step.rnn->cell) {
    case kGru:
      return backward_state<true>(step, first, last);
    case kGruResetBefore:
      return phase == 0 ? backward_reset(step, first, last)
                        : backward_state<true>(step, first, last);
    default:
      return backward_state<false>(step, first, last);
  }
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
