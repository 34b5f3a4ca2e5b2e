// The forward kernel of `rnn`. Included by rnn.cu, whose head says how the work is split.
#pragma once

#include "cuda/rnn_device.cuh"

namespace vecsmith::cuda {
namespace {

template <class T, int kM, int kN, int kAhead>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(RnnForward a, RnnLayout l) {
  const RnnPlace p(l);
  const Cell cell = a.geometry.cell;
  const int gates = gates_of(cell), saved = saved_of(cell);
  const std::int64_t hidden = l.hidden, batch = a.geometry.batch, count = a.steps.count;
  const auto* x = static_cast<const std::uint16_t*>(a.x);
  const auto* h0 = static_cast<const std::uint16_t*>(a.h0);
  auto* output = static_cast<std::uint16_t*>(a.output);
  auto* kept = static_cast<std::uint16_t*>(a.gates);
  auto* last_h = static_cast<std::uint16_t*>(a.last_h);
  auto* scaled = static_cast<std::uint16_t*>(a.scaled);
  float* bias = shared_at<float>(l.bias);
  float2* state = shared_at<float2>(l.state);                  // an LSTM's c, a GRU's h
  float2* update = state + l.units / kTile * l.tiles * kWarp;  // z, GRU reset before

  load_weights(l, p, static_cast<const std::uint16_t*>(a.weight));
  for (int i = static_cast<int>(threadIdx.x); i < gates * p.own; i += kThreads) {
    const int gate = i / p.own, unit = i % p.own;
    const auto* from = static_cast<const std::uint16_t*>(a.bias);
    bias[gate * l.units + unit] = from ? T::load(from[gate * hidden + p.first_unit + unit]) : 0.f;
  }
  __syncthreads();

  RnnBarrier barrier(l, p, a.counters);
  int turn = 0;
#pragma unroll 1
  for (int pass = 0; pass < l.passes; ++pass) {
#pragma unroll 1
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t t = a.steps.reverse ? count - 1 - i : i;
      const RnnRows now(a.steps, batch, t);
      const RnnRows before(a.steps, batch, a.steps.reverse ? t + 1 : t - 1);
      const RnnRows after(a.steps, batch, a.steps.reverse ? t - 1 : t + 1);
      const int active = p.active(l, pass, now.size);
      if (active == 0) continue;
      const int tiles = (active + kTile - 1) / kTile;
      for (int g = 0; g < gates; ++g) {
        stage(l, g * l.units * 2, p.own * 2, active, [&](int slot) {
          return x + (now.start + p.row(l, pass, slot)) * gates * hidden + g * hidden +
                 p.first_unit;
        });
      }
      if (i > 0) barrier.wait();

      // Of both rows of a finished sum: one(slot, row, index of the state, sums, place of x).
      const auto each = [&](int unit, int tile, const float2* totals, const auto& one) {
        const int own = unit * kTile + p.column;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int slot = tile * kTile + 2 * p.pair + r;
          if (slot >= active) continue;
          const std::int64_t row = p.row(l, pass, slot);
          float2& s = state[(unit * l.tiles + tile) * kWarp + p.lane];
          float2& u = update[(unit * l.tiles + tile) * kWarp + p.lane];
          const auto* staged = shared_at<std::uint16_t>(l.stage + slot * l.stage_row) + own;
          // The input's part of a gate with both biases' sum but for a reset gate's product.
          const auto sum = [&](int g) { return (r ? totals[g].y : totals[g].x); };
          const auto given = [&](int g) { return T::load(staged[g * l.units]); };
          const auto constant = [&](int g) { return bias[g * l.units + own]; };
          one(row, now.start + row, p.first_unit + own, row < before.size, row >= after.size,
              r ? s.y : s.x, r ? u.y : u.x, sum, given, constant);
        }
      };
      const auto put = [&](std::int64_t row, std::int64_t at, int unit, bool last, float h) {
        const std::uint16_t bits = T::store(h);
        output[at * hidden + unit] = bits;
        if (last) last_h[row * hidden + unit] = bits;
      };
      const auto keep = [&](std::int64_t at, int unit, int n, float value) {
        if (kept) kept[(at * saved + n) * hidden + unit] = T::store(value);
      };
      const auto state_row = [&](int slot) -> const std::uint16_t* {
        if (slot >= active) return nullptr;
        const std::int64_t row = p.row(l, pass, slot);
        return row < before.size ? output + (before.start + row) * hidden : h0 + row * hidden;
      };

      product<T, kM, kN, kAhead>(
          l, l.matrix[0], p, tiles, tiles, turn, state_row,
          [&](int of, int tile, const float2* totals) {
            each(of, tile, totals,
                 [&](std::int64_t row, std::int64_t at, int unit, bool goes_on, bool last, float& s,
                     float& u, const auto& sum, const auto& given, const auto& constant) {
                   const auto gate = [&](int g) { return given(g) + sum(g) + constant(g); };
                   if (cell == Cell::kLstm) {
                     const float in = sigmoid(gate(0)), forget = sigmoid(gate(1));
                     const float new_c = tanhf(gate(2)), out = sigmoid(gate(3));
                     const float c =
                         forget * (goes_on ? s : a.c0[row * hidden + unit]) + in * new_c;
                     put(row, at, unit, last, out * tanhf(c));
                     s = c;
                     keep(at, unit, 0, in);
                     keep(at, unit, 1, forget);
                     keep(at, unit, 2, new_c);
                     keep(at, unit, 3, out);
                     if (a.c) a.c[at * hidden + unit] = c;
                     if (last) a.last_c[row * hidden + unit] = c;
                   } else if (cell == Cell::kGru) {
                     const float old = goes_on ? s : T::load(h0[row * hidden + unit]);
                     const float r = sigmoid(gate(0)), z = sigmoid(gate(1));
                     const float j = sum(2) + constant(2), n = tanhf(given(2) + r * j);
                     s = (1.f - z) * n + z * old;
                     put(row, at, unit, last, s);
                     keep(at, unit, 0, r);
                     keep(at, unit, 1, z);
                     keep(at, unit, 2, n);
                     keep(at, unit, 3, j);
                   } else if (cell == Cell::kGruResetBefore) {
                     const float old = goes_on ? s : T::load(h0[row * hidden + unit]);
                     const float r = sigmoid(gate(0));
                     s = old;
                     u = sigmoid(gate(1));
                     scaled[row * hidden + unit] = T::store(r * old);
                     keep(at, unit, 0, r);
                     keep(at, unit, 1, u);
                   } else {
                     const float v = gate(0);
                     // NaN stays.
                     put(row, at, unit, last, cell == Cell::kTanh ? tanhf(v) : v < 0.f ? 0.f : v);
                   }
                 });
          });
      barrier.arrive();
      if (cell != Cell::kGruResetBefore) continue;

      barrier.wait();
      product<T, kM, kN, kAhead>(
          l, l.matrix[1], p, tiles, tiles, turn,
          [&](int slot) -> const std::uint16_t* {
            return slot < active ? scaled + p.row(l, pass, slot) * hidden : nullptr;
          },
          [&](int of, int tile, const float2* totals) {
            each(of, tile, totals,
                 [&](std::int64_t row, std::int64_t at, int unit, bool, bool last, float& s,
                     float& u, const auto& sum, const auto& given, const auto& constant) {
                   const float n = tanhf(given(2) + sum(0) + constant(2));
                   s = (1.f - u) * n + u * s;
                   put(row, at, unit, last, s);
                   keep(at, unit, 2, n);
                 });
          });
      barrier.arrive();
    }
  }
  barrier.wait();
}

}  // namespace
}  // namespace vecsmith::cuda
