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

  int64_t count() const { return begin_.back(); }
  int64_t length(int64_t row) const { return length_[static_cast<size_t>(row)]; }

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

// What a weight is multiplied with in all steps, in panels of four vectors for rnn_outer: rows of
// the input, and states before each step.
class Right {
 public:
  Right(const Rnn& rnn, const Places& places)
      : rnn_(rnn), places_(places), width_(4 * VECSMITH_PICK_KERNEL(rnn_lanes)()) {}

  size_t floats(int64_t columns) const {
    return static_cast<size_t>(panels(columns) * width_ * places_.count());
  }
  // A worker's share of the rows.
  void pack(const float* rows, int64_t columns, int worker, int size, float* to) const {
    const int64_t last = share(places_.count(), worker + 1, size);
    for (int64_t n = share(places_.count(), worker, size); n < last; ++n)
      put(rows + n * columns, nullptr, columns, n, to);
  }
  // reset: the states times r, with kGruResetBefore.
  void pack_states(int worker, int size, float* to, float* reset) const {
    const int64_t last = share(rnn_.batch, worker + 1, size), hidden = rnn_.hidden;
    for (int64_t row = share(rnn_.batch, worker, size); row < last; ++row)
      for (int64_t t = 0; t < places_.length(row); ++t) {
        const int64_t here = places_.at(row, t), before = places_.at(row, t - 1);
        const float* state = before < 0 ? rnn_.h0 + row * hidden : rnn_.out + before * hidden;
        put(state, nullptr, hidden, here, to);
        if (reset) put(state, rnn_.gates + here * 3 * hidden, hidden, here, reset);
      }
  }

 private:
  int64_t panels(int64_t columns) const { return (columns + width_ - 1) / width_; }
  void put(const float* from, const float* factor, int64_t columns, int64_t n, float* to) const {
    for (int64_t p = 0; p < panels(columns); ++p) {
      float* const line = to + (p * places_.count() + n) * width_;
      const int64_t at = p * width_, here = std::min(width_, columns - at);
      std::copy_n(from + at, here, line);
      for (int64_t i = 0; factor && i < here; ++i) line[i] *= factor[at + i];
      std::fill(line + here, line + width_, 0.0f);
    }
  }

  const Rnn& rnn_;
  const Places& places_;
  int64_t width_;
};

// Rows some lines longer than they need be: rows that lie a power of two apart share cache sets.
int64_t padded(int64_t hidden) { return (hidden + 15) / 16 * 16 + 16; }

int workers_for(const Rnn& rnn, int threads) {
  const int64_t work = rnn.batch * rnn.hidden * rnn.hidden * rnn_gates(rnn.cell);
  return static_cast<int>(std::clamp<int64_t>(work / kProductsPerThread, 1, threads));
}

}  // namespace

void rnn_forward(const Rnn& given, int threads) {
  Rnn rnn = given;
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
  const size_t of_gates = static_cast<size_t>(places.count() * gates * hidden);
  if (!rnn.x) bytes += Arena::room<float>(of_gates);
  for (const Product& p : products) bytes += Arena::room<float>(p.floats());
  Arena arena(bytes);
  for (Product& p : products) p.panels = arena.take<float>(p.floats());
  projection.panels = arena.take<float>(projection.floats());
  if (!rnn.x) rnn.x = arena.take<float>(of_gates);
  if (reset_before && !rnn.gates) rnn.gates = rnn.x;
  RnnLinear inputs{};
  inputs.x = rnn.input;
  inputs.x_stride = inputs.k = rnn.inputs;
  inputs.rows = places.count();
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

void rnn_backward(const Rnn& rnn, const RnnGrad& given, int threads) {
  RnnGrad grad = given;
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
  // Of the input's gradient.
  Product to_input(RnnPanels{rnn.w_ih, 1, rnn.inputs, rnn.inputs, gates * hidden, 1, 4});
  threads = workers_for(rnn, threads);
  const size_t states = static_cast<size_t>(rnn.batch * stride);
  const int64_t count = places.count();
  const Right right(rnn, places);
  size_t bytes = 2 * Arena::room<float>(states) + Arena::room<float>(right.floats(rnn.inputs)) +
                 (1 + reset_before) * Arena::room<float>(right.floats(hidden));
  if (grad.input) bytes += Arena::room<float>(to_input.floats());
  const size_t of_gates = static_cast<size_t>(count * gates * hidden);
  bytes += (1 + (rnn.cell == kGru)) * Arena::room<float>(of_gates);
  for (const Product& p : products) bytes += Arena::room<float>(p.floats());
  Arena arena(bytes);
  grad.x = arena.take<float>(of_gates);
  if (rnn.cell == kGru) grad.products = arena.take<float>(of_gates);
  float* const inputs = arena.take<float>(right.floats(rnn.inputs));
  float* const before = arena.take<float>(right.floats(hidden));
  float* const reset = reset_before ? arena.take<float>(right.floats(hidden)) : nullptr;
  if (grad.input) to_input.panels = arena.take<float>(to_input.floats());
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
  const auto linear = VECSMITH_PICK_KERNEL(rnn_linear);
  const auto outer = VECSMITH_PICK_KERNEL(rnn_outer);
  const auto column_sums = VECSMITH_PICK_KERNEL(rnn_column_sums);
  const float* const factors = rnn.cell == kGru ? grad.products : grad.x;
  const int64_t wide = gates * hidden;
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
    // What concerns all steps at once.
    right.pack(rnn.input, rnn.inputs, worker, size, inputs);
    right.pack_states(worker, size, before, reset);
    if (grad.input) to_input.pack(worker, size);
    barrier.wait(size);
    if (grad.input)
      linear({grad.x, wide, count, wide, 1, rnn.inputs, to_input.panels, nullptr, grad.input},
             to_input.first(worker, size), to_input.first(worker + 1, size));
    // Rows of the weights, and of the biases.
    const int64_t first = share(wide, worker, size), last = share(wide, worker + 1, size);
    outer({grad.x, wide, count, inputs, rnn.inputs, grad.w_ih}, first, last);
    const int64_t split = reset_before ? std::clamp<int64_t>(2 * hidden, first, last) : last;
    outer({factors, wide, count, before, hidden, grad.weight}, first, split);
    outer({factors, wide, count, reset, hidden, grad.weight}, split, last);
    if (grad.b_ih) column_sums(grad.x, wide, count, first, last, grad.b_ih);
    if (grad.bias) column_sums(factors, wide, count, first, last, grad.bias);
    barrier.wait(size);
  });
  for (int64_t row = 0; row < rnn.batch; ++row) {
    std::copy_n(dh + row * stride, hidden, grad.h0 + row * hidden);
    if (grad.c0) std::copy_n(dc + row * stride, hidden, grad.c0 + row * hidden);
  }
}

}  // namespace vecsmith
