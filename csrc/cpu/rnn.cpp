// Driver of the recurrent layers. Every worker has a range of units, packs their part of the
// weight, and computes them for all rows; once a step (twice with a reset before) all wait for each
// other. The sums do not depend on how the units are shared out, so the bits do not depend on the
// number of threads.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/arena.h"
#include "cpu/parallel.h"
#include "cpu/rnn_driver.h"

namespace vecsmith {
namespace {

// Less work than this in a step is done by the caller alone: waiting for another takes longer.
constexpr int64_t kProductsPerThread = 100'000;

// Where each step's rows are packed.
class Places {
 public:
  explicit Places(const Rnn& rnn) : rnn_(rnn), begin_(static_cast<size_t>(rnn.steps) + 1) {
    int64_t before = rnn.batch;
    for (int64_t t = 0; t < rnn.steps; ++t) {
      const int64_t rows = rnn.batch_sizes[t];
      if (rows < 1 || rows > before || (t == 0 && rows != rnn.batch))
        throw std::invalid_argument(
            "rnn: expected batch_sizes of at least 1 that begin with the batch and do not "
            "increase; got " +
            std::to_string(rows) + " at step " + std::to_string(t));
      begin_[static_cast<size_t>(t) + 1] = begin_[static_cast<size_t>(t)] + rows;
      before = rows;
    }
    length_.resize(static_cast<size_t>(rnn.batch));
    for (int64_t t = 0; t < rnn.steps; ++t)
      for (int64_t row = t + 1 < rnn.steps ? rnn.batch_sizes[t + 1] : 0; row < rnn.batch_sizes[t];
           ++row)
        length_[static_cast<size_t>(row)] = t + 1;
  }

  // The packed row of the step-th state that a row comes to; -1 for what it begins with.
  int64_t at(int64_t row, int64_t step) const {
    if (step < 0) return -1;
    const int64_t t = rnn_.reverse ? length_[static_cast<size_t>(row)] - 1 - step : step;
    return begin_[static_cast<size_t>(t)] + row;
  }

 private:
  const Rnn& rnn_;
  std::vector<int64_t> begin_, length_;
};

// The panels of one product.
struct Product {
  RnnPanels shape;
  int64_t count = 0;
  float* panels = nullptr;

  explicit Product(const RnnPanels& given)
      : shape(given), count(VECSMITH_PICK_KERNEL(rnn_panel_count)(given)) {}
  size_t floats() const {
    return static_cast<size_t>(count * VECSMITH_PICK_KERNEL(rnn_panel_floats)(shape));
  }
  int64_t first(int worker, int size) const { return share(count, worker, size); }
  void pack(int worker, int size) const {
    VECSMITH_PICK_KERNEL(rnn_pack)(shape, first(worker, size), first(worker + 1, size), panels);
  }
  // The units of a worker.
  int64_t unit(int worker, int size) const {
    const int64_t units = int64_t{shape.units} * VECSMITH_PICK_KERNEL(rnn_lanes)();
    return std::min(shape.hidden, first(worker, size) * units);
  }
};

// Rows some lines longer than they need be: rows that lie a power of two apart share cache sets.
int64_t padded(int64_t hidden) { return (hidden + 15) / 16 * 16 + 16; }

int workers_for(const Rnn& rnn, int threads) {
  const int64_t work = rnn.batch * rnn.hidden * rnn.hidden * rnn_gates(rnn.cell);
  return static_cast<int>(std::clamp<int64_t>(work / kProductsPerThread, 1, threads));
}

}  // namespace

void rnn_forward(const Rnn& rnn, int threads) {
  const Places places(rnn);
  const int64_t hidden = rnn.hidden, stride = padded(hidden);
  const bool reset_before = rnn.cell == kGruResetBefore;
  std::vector<Product> products;
  if (reset_before) {
    products.emplace_back(RnnPanels{rnn.weight, hidden, 1, hidden, hidden, 2, 2});
    products.emplace_back(
        RnnPanels{rnn.weight + 2 * hidden * hidden, hidden, 1, hidden, hidden, 1, 4});
  } else {
    const int count = rnn_gates(rnn.cell);
    products.emplace_back(
        RnnPanels{rnn.weight, hidden, 1, hidden, hidden, count, count == 1 ? 4 : 1});
  }
  const int gates = rnn_gates(rnn.cell);
  Product projection(
      RnnPanels{rnn.w_ih, rnn.inputs, 1, hidden, rnn.inputs, gates, gates == 1 ? 4 : 1});
  threads = workers_for(rnn, threads);
  const size_t states = static_cast<size_t>(rnn.batch * stride);
  size_t bytes =
      (2 + reset_before) * Arena::room<float>(states) + Arena::room<float>(projection.floats());
  for (const Product& p : products) bytes += Arena::room<float>(p.floats());
  Arena arena(bytes);
  for (Product& p : products) p.panels = arena.take<float>(p.floats());
  projection.panels = arena.take<float>(projection.floats());
  RnnLinear inputs{};
  inputs.x = rnn.input;
  inputs.x_stride = inputs.k = rnn.inputs;
  for (int64_t t = 0; t < rnn.steps; ++t) inputs.rows += rnn.batch_sizes[t];
  inputs.gates = gates;
  inputs.hidden = hidden;
  inputs.panels = projection.panels;
  inputs.bias = rnn.b_ih;
  inputs.out = rnn.x;
  float* const state[2] = {arena.take<float>(states), arena.take<float>(states)};
  float* const scratch = reset_before ? arena.take<float>(states) : nullptr;
  for (int64_t row = 0; row < rnn.batch; ++row)
    std::copy_n(rnn.h0 + row * hidden, hidden, state[0] + row * stride);
  if (rnn.last_c) std::copy_n(rnn.c0, rnn.batch * hidden, rnn.last_c);
  // What each worker keeps: its rows' states and places.
  struct Rows {
    std::vector<const float*> state, scratch;
    std::vector<int64_t> at;
  };
  std::vector<Rows> of_worker(static_cast<size_t>(threads));
  for (Rows& rows : of_worker) {
    rows.state.resize(static_cast<size_t>(rnn.batch));
    rows.at.resize(rows.state.size());
    for (int64_t row = 0; reset_before && row < rnn.batch; ++row)
      rows.scratch.push_back(scratch + row * stride);
  }
  const auto linear = VECSMITH_PICK_KERNEL(rnn_linear);
  const auto forward = VECSMITH_PICK_KERNEL(rnn_forward);
  Barrier barrier;
  parallel(threads, [&](int worker, int size) {
    Rows& mine = of_worker[static_cast<size_t>(worker)];
    projection.pack(worker, size);
    linear(inputs, projection.first(worker, size), projection.first(worker + 1, size));
    for (const Product& p : products) p.pack(worker, size);
    barrier.wait(size);
    for (int64_t t = 0; t < rnn.steps; ++t) {
      RnnStep step{};
      step.rnn = &rnn;
      step.rows = rnn.batch_sizes[t];
      for (int64_t row = 0; row < step.rows; ++row) {
        mine.state[static_cast<size_t>(row)] = state[t % 2] + row * stride;
        mine.at[static_cast<size_t>(row)] = places.at(row, t);
      }
      step.before = step.state = mine.state.data();
      step.at = mine.at.data();
      step.next = state[1 - t % 2];
      step.next_stride = stride;
      step.c = rnn.last_c;
      step.scratch = scratch;
      for (size_t phase = 0; phase < products.size(); ++phase) {
        const Product& p = products[phase];
        if (phase == 1) step.state = mine.scratch.data();
        step.panels = p.panels;
        forward(step, static_cast<int>(phase), p.first(worker, size), p.first(worker + 1, size));
        barrier.wait(size);
      }
    }
  });
}

void rnn_backward(const Rnn& rnn, const RnnGrad& grad, int threads) {
  const Places places(rnn);
  const int64_t hidden = rnn.hidden, stride = padded(hidden), gates = rnn_gates(rnn.cell);
  const bool reset_before = rnn.cell == kGruResetBefore;
  // The transposed weight: of r's candidate first, where r comes before.
  std::vector<Product> products;
  if (reset_before)
    products.emplace_back(
        RnnPanels{rnn.weight + 2 * hidden * hidden, 1, hidden, hidden, hidden, 1, 4});
  products.emplace_back(
      RnnPanels{rnn.weight, 1, hidden, hidden, (gates - reset_before) * hidden, 1, 4});
  threads = workers_for(rnn, threads);
  const size_t states = static_cast<size_t>(rnn.batch * stride);
  size_t bytes = 2 * Arena::room<float>(states);
  for (const Product& p : products) bytes += Arena::room<float>(p.floats());
  Arena arena(bytes);
  for (Product& p : products) p.panels = arena.take<float>(p.floats());
  float *const dh = arena.take<float>(states), *const dc = arena.take<float>(states);
  const auto begin = [&](const float* given, float* to) {
    for (int64_t row = 0; row < rnn.batch; ++row)
      if (given)
        std::copy_n(given + row * hidden, hidden, to + row * stride);
      else
        std::fill_n(to + row * stride, hidden, 0.0f);
  };
  begin(grad.last_h, dh);
  begin(grad.last_c, dc);
  struct Rows {
    std::vector<const float*> state;
    std::vector<int64_t> at, before;
  };
  std::vector<Rows> of_worker(static_cast<size_t>(threads));
  for (Rows& rows : of_worker) {
    rows.state.resize(static_cast<size_t>(rnn.batch));
    rows.at.resize(rows.state.size());
    rows.before.resize(rows.state.size());
  }
  const auto to_gates = VECSMITH_PICK_KERNEL(rnn_backward_gates);
  const auto to_state = VECSMITH_PICK_KERNEL(rnn_backward_state);
  const float* const factors = rnn.cell == kGru ? grad.products : grad.x;
  Barrier barrier;
  parallel(threads, [&](int worker, int size) {
    Rows& mine = of_worker[static_cast<size_t>(worker)];
    for (const Product& p : products) p.pack(worker, size);
    for (int64_t t = rnn.steps - 1; t >= 0; --t) {
      RnnStepBack step{};
      step.rnn = &rnn;
      step.grad = &grad;
      step.rows = rnn.batch_sizes[t];
      for (int64_t row = 0; row < step.rows; ++row) {
        mine.at[static_cast<size_t>(row)] = places.at(row, t);
        mine.before[static_cast<size_t>(row)] = places.at(row, t - 1);
      }
      step.at = mine.at.data();
      step.before = mine.before.data();
      step.h = dh;
      step.c = dc;
      step.stride = stride;
      step.state = mine.state.data();
      to_gates(step, products[0].unit(worker, size), products[0].unit(worker + 1, size));
      for (size_t phase = 0; phase < products.size(); ++phase) {
        const Product& p = products[phase];
        const int64_t skip = reset_before && phase == 0 ? 2 * hidden : 0;
        for (int64_t row = 0; row < step.rows; ++row) {
          const size_t r = static_cast<size_t>(row);
          mine.state[r] = factors + mine.at[r] * gates * hidden + skip;
        }
        step.panels = p.panels;
        barrier.wait(size);
        to_state(step, static_cast<int>(phase), p.first(worker, size), p.first(worker + 1, size));
      }
    }
    barrier.wait(size);
  });
  for (int64_t row = 0; row < rnn.batch; ++row) {
    std::copy_n(dh + row * stride, hidden, grad.h0 + row * hidden);
    if (grad.c0) std::copy_n(dc + row * stride, hidden, grad.c0 + row * hidden);
  }
}

}  // namespace vecsmith
