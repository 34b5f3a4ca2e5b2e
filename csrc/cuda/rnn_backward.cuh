// The backward kernel of `rnn`. Included by rnn.cu, whose head says how the work is split.
#pragma once

#include "cuda/rnn_device.cuh"

namespace vecsmith::cuda {
namespace {

// Where a step's values are in a slot's part of the stage, in bytes: the kept gates (or the
// output), the output's gradient, the state before the step (GRU), c and the c before the step
// (LSTM).
struct BackwardStage {
  int grad, state, c, old_c, bytes;

  __host__ __device__ BackwardStage(Cell cell, int units) {
    const int saved = saved_of(cell), half = units * 2;
    const bool gru = cell == Cell::kGru || cell == Cell::kGruResetBefore;
    grad = (saved ? saved : 1) * half;
    state = grad + half;
    c = state + (gru ? half : 0);
    old_c = c + 2 * half;
    bytes = cell == Cell::kLstm ? old_c + 2 * half : c;
  }
};

template <class T, int kM, int kN, int kAhead>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(RnnBackward a, RnnLayout l) {
  const RnnPlace p(l);
  const Cell cell = a.geometry.cell;
  const int saved = saved_of(cell), derived = derived_of(cell);
  const bool gru = cell == Cell::kGru || cell == Cell::kGruResetBefore;
  const BackwardStage where(cell, l.units);
  const std::int64_t hidden = l.hidden, batch = a.geometry.batch, count = a.steps.count;
  const auto* h0 = static_cast<const std::uint16_t*>(a.h0);
  const auto* output = static_cast<const std::uint16_t*>(a.output);
  const auto* kept = static_cast<const std::uint16_t*>(a.gates);
  const auto* grad = static_cast<const std::uint16_t*>(a.grad);
  const auto* grad_h = static_cast<const std::uint16_t*>(a.grad_h);
  auto* made = static_cast<std::uint16_t*>(a.derived);
  float2* state = shared_at<float2>(l.state);  // an LSTM's dc; of a GRU's dh what needs no product

  load_weights(l, p, static_cast<const std::uint16_t*>(a.weight));
  __syncthreads();

  RnnBarrier barrier(l, p, a.counters);
  int turn = 0;
#pragma unroll 1
  for (int pass = 0; pass < l.passes; ++pass) {
    // Step i multiplies what step i - 1 gave; the last one gives nothing.
#pragma unroll 1
    for (std::int64_t i = 0; i <= count; ++i) {
      const std::int64_t t = a.steps.reverse ? i : count - 1 - i;
      const RnnRows now(a.steps, batch, t);
      const RnnRows later(a.steps, batch, a.steps.reverse ? t - 1 : t + 1);
      const RnnRows before(a.steps, batch, a.steps.reverse ? t + 1 : t - 1);
      const int live = p.active(l, pass, now.size), had = p.active(l, pass, later.size);
      const int most = live > had ? live : had, tiles = (most + kTile - 1) / kTile;
      if (most == 0) continue;

      const auto at = [&](int slot) { return now.start + p.row(l, pass, slot); };
      const int half = p.own * 2;
      for (int g = 0; g < saved; ++g) {
        stage(l, g * l.units * 2, half, live,
              [&](int slot) { return kept + (at(slot) * saved + g) * hidden + p.first_unit; });
      }
      if (saved == 0) {
        stage(l, 0, half, live,
              [&](int slot) { return output + at(slot) * hidden + p.first_unit; });
      }
      if (grad) {
        stage(l, where.grad, half, live,
              [&](int slot) { return grad + at(slot) * hidden + p.first_unit; });
      }
      if (gru) {
        stage(l, where.state, half, live, [&](int slot) {
          const std::int64_t row = p.row(l, pass, slot);
          return (row < before.size ? output + (before.start + row) * hidden : h0 + row * hidden) +
                 p.first_unit;
        });
      }
      if (cell == Cell::kLstm) {
        stage(l, where.c, 2 * half, live,
              [&](int slot) { return a.c + at(slot) * hidden + p.first_unit; });
        stage(l, where.old_c, 2 * half, live, [&](int slot) {
          const std::int64_t row = p.row(l, pass, slot);
          return (row < before.size ? a.c + (before.start + row) * hidden : a.c0 + row * hidden) +
                 p.first_unit;
        });
      }
      if (had) barrier.wait();

      const auto half_of = [&](int slot, int offset, int own) {
        return T::load(shared_at<std::uint16_t>(l.stage + slot * l.stage_row + offset)[own]);
      };
      const auto put = [&](std::int64_t row, int unit, int n, float value) {
        made[((now.start + row) * derived + n) * hidden + unit] = T::store(value);
      };

      product<T, kM, kN, kAhead>(
          l, l.matrix[0], p, tiles, (had + kTile - 1) / kTile, turn,
          [&](int slot) -> const std::uint16_t* {
            if (slot >= had) return nullptr;
            return made + (later.start + p.row(l, pass, slot)) * derived * hidden +
                   l.matrix[0].column;
          },
          [&](int of, int tile, const float2* totals) {
            const int own = of * kTile + p.column, unit = p.first_unit + own;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const int slot = tile * kTile + 2 * p.pair + r;
              if (slot >= most) continue;
              const std::int64_t row = p.row(l, pass, slot), place = row * hidden + unit;
              float2& pair = state[(of * l.tiles + tile) * kWarp + p.lane];
              float& s = r ? pair.y : pair.x;
              float dh = 0.f;
              if (slot < had) {
                dh = (r ? totals[0].y : totals[0].x) + (gru ? s : 0.f);
              } else {  // the row's last step
                if (grad_h) dh = T::load(grad_h[place]);
                if (cell == Cell::kLstm) s = a.grad_c ? a.grad_c[place] : 0.f;
              }
              if (slot >= live) {  // its first step was the one before
                a.dh0[place] = dh;
                if (cell == Cell::kLstm) a.dc0[place] = s;
                continue;
              }
              const auto value = [&](int n) { return half_of(slot, n * l.units * 2, own); };
              const auto wide = [&](int offset) {
                return shared_at<float>(l.stage + slot * l.stage_row + offset)[own];
              };
              if (grad) dh += half_of(slot, where.grad, own);
              if (cell == Cell::kLstm) {
                const float in = value(0), forget = value(1), new_c = value(2), out = value(3);
                const float seen = tanhf(wide(where.c));
                const float dc = s + dh * out * (1.f - seen * seen);
                put(row, unit, 0, dc * new_c * in * (1.f - in));
                put(row, unit, 1, dc * wide(where.old_c) * forget * (1.f - forget));
                put(row, unit, 2, dc * in * (1.f - new_c * new_c));
                put(row, unit, 3, dh * seen * out * (1.f - out));
                s = dc * forget;
              } else if (gru) {
                const float z = value(1), n = value(2), old = half_of(slot, where.state, own);
                const float dn = dh * (1.f - z) * (1.f - n * n);
                put(row, unit, 1, dh * (old - n) * z * (1.f - z));
                put(row, unit, 2, dn);
                if (cell == Cell::kGru) {
                  const float reset = value(0);
                  put(row, unit, 0, dn * value(3) * reset * (1.f - reset));
                  put(row, unit, 3, dn * reset);
                }
                s = dh * z;
              } else {
                const float y = value(0);
                put(row, unit, 0, cell == Cell::kTanh ? dh * (1.f - y * y) : y <= 0.f ? 0.f : dh);
              }
            }
          });
      barrier.arrive();
      if (cell != Cell::kGruResetBefore || live == 0) continue;

      barrier.wait();
      const int products = (live + kTile - 1) / kTile;
      product<T, kM, kN, kAhead>(
          l, l.matrix[1], p, products, products, turn,
          [&](int slot) -> const std::uint16_t* {
            return slot < live ? made + at(slot) * derived * hidden + l.matrix[1].column : nullptr;
          },
          [&](int of, int tile, const float2* totals) {
            const int own = of * kTile + p.column, unit = p.first_unit + own;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const int slot = tile * kTile + 2 * p.pair + r;
              if (slot >= live) continue;
              float2& pair = state[(of * l.tiles + tile) * kWarp + p.lane];
              const float sum = r ? totals[0].y : totals[0].x;  // gradient of r * h
              const float reset = half_of(slot, 0, own), old = half_of(slot, where.state, own);
              put(p.row(l, pass, slot), unit, 0, sum * old * reset * (1.f - reset));
              (r ? pair.y : pair.x) += sum * reset;
            }
          });
      barrier.arrive();
    }
  }
  barrier.wait();
}

}  // namespace
}  // namespace vecsmith::cuda
