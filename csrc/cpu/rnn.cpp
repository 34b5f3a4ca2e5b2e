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
  // Rows of step t begin here.
  int64_t begin(int64_t t) const { return begin_[static_cast<size_t>(t)]; }
  // Whether the rows of a state, and of the next one, lie side by side.
  bool in_order() const { return !rnn_.reverse || begin_.back() == rnn_.batch * rnn_.steps; }
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

// A matrix that factors are multiplied with, and how workers share it.
struct Product {
  RnnMatrix matrix;
  int64_t count = 0;

  explicit Product(const RnnMatrix& given)
      : matrix(given), count(VECSMITH_PICK_KERNEL(rnn_panel_count)(given)) {}
  size_t words() const {
    return static_cast<size_t>(count * VECSMITH_PICK_KERNEL(rnn_panel_words)(matrix));
  }
  size_t bytes() const { return Arena::room<float>(words()); }
  void take(Arena& arena) { matrix.panels = arena.take<float>(words()); }
  int64_t first(int worker, int size) const { return share(count, worker, size); }
  void pack(int worker, int size) const {
    if (matrix.panels)
      VECSMITH_PICK_KERNEL(rnn_pack)(matrix, first(worker, size), first(worker + 1, size));
  }
  // The units of a worker.
  int64_t unit(int worker, int size) const {
    const int64_t units = int64_t{matrix.units} * VECSMITH_PICK_KERNEL(rnn_lanes)();
    return std::min(matrix.hidden, first(worker, size) * units);
  }
};

// Rows of factors in an arena. Rows are some lines longer than they need be: rows that lie a power
// of two apart share cache sets.
RnnFactors factors_of(RnnUnit unit, int64_t columns) {
  RnnFactors made;
  made.unit = unit;
  made.words = rnn_words(unit, columns);
  const int64_t bytes = made.words * (unit == kSplit ? 8 : 4);
  made.stride = (bytes + 63) / 64 * 64 + 64;
  return made;
}
size_t room_of(const RnnFactors& factors, int64_t rows) {
  return Arena::room<char>(static_cast<size_t>(rows * factors.stride));
}
void take(RnnFactors& factors, int64_t rows, Arena& arena) {
  factors.data = arena.take<char>(static_cast<size_t>(rows * factors.stride));
}
// Zeros behind the columns of rows first .. last-1, and behind the rows: a product of the last
// columns alone may read on for some words.
void finish_rows(const RnnFactors& factors, int64_t columns, int64_t first, int64_t last) {
  if (factors.unit == kFloat) return;
  for (int64_t row = first; row < last; ++row) {
    char* const begin = factors.row(row);
    char* const middle = begin + 4 * factors.words;
    if (factors.unit == kSplit) std::fill(begin + 2 * columns, middle, '\0');
    std::fill((factors.unit == kSplit ? middle : begin) + 2 * columns, begin + factors.stride,
              '\0');
  }
}

// An array of rows as factors: where it lies, if that will do.
struct Given {
  RnnFactors factors;
  Numbers from;
  int64_t columns, rows;
  bool copied;

  Given(Numbers given, int64_t columns_, int64_t rows_, RnnUnit unit)
      : from(given), columns(columns_), rows(rows_) {
    const bool tiles = VECSMITH_PICK_KERNEL(rnn_matrix_units)() == 2;
    copied =
        unit == kFloat ? given.half : unit == kSplit || !given.half || tiles || columns % 32 != 0;
    factors = factors_of(unit, columns);
    if (copied) return;
    factors.data = given.data;
    factors.stride = columns * (given.half ? 2 : 4);
  }
  size_t bytes() const { return copied ? room_of(factors, rows) : 0; }
  void take_room(Arena& arena) {
    if (copied) take(factors, rows, arena);
  }
  void convert(int worker, int size) const {
    if (copied) VECSMITH_PICK_KERNEL(rnn_factors)
    (from, columns, share(rows, worker, size), share(rows, worker + 1, size), factors);
  }
};

// What a weight is multiplied with in all steps, packed.
struct Right {
  std::vector<const char*> rows, factors;
  RnnRows packed{};

  Right(RnnUnit unit, int64_t columns, const Places& places) {
    packed.unit = unit;
    packed.columns = columns;
    packed.count = places.count();
    rows.resize(static_cast<size_t>(packed.count));
  }
  void of_input(Numbers input) {
    packed.half = input.half;
    for (int64_t n = 0; n < packed.count; ++n)
      rows[static_cast<size_t>(n)] = input.at(n * packed.columns).data;
  }
  // States before each step; scaled by r, if `reset`.
  void of_states(const Rnn& rnn, const Places& places, bool reset) {
    packed.half = rnn.out.half;
    packed.half_factors = rnn.gates.half;
    if (reset) factors.resize(rows.size());
    for (int64_t row = 0; row < rnn.batch; ++row)
      for (int64_t t = 0; t < places.length(row); ++t) {
        const int64_t here = places.at(row, t), before = places.at(row, t - 1);
        const size_t n = static_cast<size_t>(here);
        rows[n] =
            before < 0 ? rnn.h0.at(row * rnn.hidden).data : rnn.out.at(before * rnn.hidden).data;
        if (reset) factors[n] = rnn.gates.at(here * 3 * rnn.hidden).data;
      }
  }
  size_t words() const { return static_cast<size_t>(VECSMITH_PICK_KERNEL(rnn_rows_words)(packed)); }
  size_t bytes() const { return Arena::room<float>(words()); }
  void take(Arena& arena) {
    packed.panels = arena.take<float>(words());
    packed.rows = rows.data();
    packed.factors = factors.empty() ? nullptr : factors.data();
  }
  void pack(int worker, int size) const {
    const int64_t words = rnn_words(packed.unit, packed.count);
    VECSMITH_PICK_KERNEL(rnn_pack_rows)
    (packed, share(words, worker, size), share(words, worker + 1, size));
  }
};

// Rows some lines longer than they need be: rows that lie a power of two apart share cache sets.
int64_t padded(int64_t hidden) { return (hidden + 15) / 16 * 16 + 16; }

int workers_for(const Rnn& rnn, int threads) {
  const int64_t work = rnn.batch * rnn.hidden * rnn.hidden * rnn_gates(rnn.cell);
  return static_cast<int>(std::clamp<int64_t>(work / kProductsPerThread, 1, threads));
}

// Copies of small arrays: what comes as bfloat16 is computed in floats.
void copy(Numbers from, int64_t count, float* to) {
  VECSMITH_PICK_KERNEL(rnn_floats)(from, 0, count, to);
}
void copy(const float* from, int64_t count, Numbers to) {
  if (to) VECSMITH_PICK_KERNEL(rnn_convert)(from, 0, count, to);
}
Numbers numbers(float* floats) { return {reinterpret_cast<char*>(floats), false}; }

// So few rows of factors that packing a matrix takes longer than multiplying it.
constexpr int64_t kFewRows = 32;

// Floats of the input's part of the gates that are computed at once.
constexpr int64_t kAhead = 1 << 18;

}  // namespace

void rnn_forward(const Rnn& given, RnnUnit unit, int threads) {
  Rnn rnn = given;
  const Places places(rnn);
  const int64_t hidden = rnn.hidden, stride = padded(hidden), count = places.count();
  const bool reset_before = rnn.cell == kGruResetBefore, direct = count <= kFewRows;
  if (direct) unit = kFloat;
  const int gates = rnn_gates(rnn.cell), units = gates == 1 ? 4 : 1;
  std::vector<Product> products;
  if (reset_before) {
    products.emplace_back(RnnMatrix{rnn.weight, hidden, 1, hidden, hidden, 2, 2, unit, nullptr});
    products.emplace_back(RnnMatrix{rnn.weight.at(2 * hidden * hidden), hidden, 1, hidden, hidden,
                                    1, 4, unit, nullptr});
  } else {
    products.emplace_back(
        RnnMatrix{rnn.weight, hidden, 1, hidden, hidden, gates, units, unit, nullptr});
  }
  Product projection(
      RnnMatrix{rnn.w_ih, rnn.inputs, 1, hidden, rnn.inputs, gates, units, unit, nullptr});
  Given input(rnn.input, rnn.inputs, count, unit);
  threads = workers_for(rnn, threads);
  const size_t states = static_cast<size_t>(rnn.batch * stride);
  RnnFactors of_states = factors_of(unit, hidden);
  const bool apart = unit != kFloat;  // factors are not the states themselves
  size_t bytes = 2 * Arena::room<float>(states) + input.bytes() +
                 (2 * apart + reset_before) * room_of(of_states, rnn.batch);
  if (!direct) bytes += projection.bytes();
  // The input's part is computed some steps ahead, which stay in the caches; all at once where
  // these are not side by side.
  const int64_t row_floats = gates * hidden;
  const int64_t step_floats = std::max<int64_t>(1, rnn.batch * row_floats);
  const int64_t ahead =
      places.in_order() ? std::clamp<int64_t>(kAhead / step_floats, 1, rnn.steps) : rnn.steps;
  const bool keeps_x = rnn.x || (reset_before && !rnn.gates) || !places.in_order();
  const size_t of_x =
      static_cast<size_t>(keeps_x ? count * row_floats : ahead * rnn.batch * row_floats);
  if (!rnn.x) bytes += Arena::room<float>(of_x);
  for (const Product& p : products) bytes += direct ? 0 : p.bytes();
  const int64_t of_bias = gates * hidden, of_cells = rnn.c0 ? rnn.batch * hidden : 0;
  bytes += 2 * Arena::room<float>(static_cast<size_t>(of_bias)) +
           Arena::room<float>(static_cast<size_t>(of_cells));
  Arena arena(bytes);
  if (!direct) {
    for (Product& p : products) p.take(arena);
    projection.take(arena);
  }
  input.take_room(arena);
  if (!rnn.x) {
    rnn.x = arena.take<float>(of_x);
    rnn.x_stride = row_floats;
  }
  if (reset_before && !rnn.gates) rnn.gates = numbers(rnn.x);
  // Only a reset gate after the product keeps the recurrent bias apart from the input's.
  float* const b_ih = arena.take<float>(static_cast<size_t>(of_bias));
  float* const bias = arena.take<float>(static_cast<size_t>(of_bias));
  if (rnn.b_ih)
    copy(rnn.b_ih, of_bias, b_ih);
  else
    std::fill_n(b_ih, of_bias, 0.0f);
  if (rnn.bias) copy(rnn.bias, of_bias, bias);
  const bool apart_bias = rnn.cell == kGru && rnn.bias;
  if (rnn.bias && !apart_bias)
    for (int64_t i = 0; i < of_bias; ++i) b_ih[i] += bias[i];
  float* const cells = arena.take<float>(static_cast<size_t>(of_cells));
  float* const state[2] = {arena.take<float>(states), arena.take<float>(states)};
  RnnFactors factors[2], scratch;
  const auto take_states = [&](RnnFactors& made) {
    made = of_states;
    take(made, rnn.batch, arena);
    finish_rows(made, hidden, 0, rnn.batch);
  };
  if (apart) {
    take_states(factors[0]);
    take_states(factors[1]);
  } else {
    for (int i = 0; i < 2; ++i)
      factors[i] = {reinterpret_cast<char*>(state[i]), hidden, stride * 4, kFloat};
  }
  if (reset_before) take_states(scratch);
  for (int64_t row = 0; row < rnn.batch; ++row)
    copy(rnn.h0.at(row * hidden), hidden, state[0] + row * stride);
  if (apart) VECSMITH_PICK_KERNEL(rnn_factors)(rnn.h0, hidden, 0, rnn.batch, factors[0]);
  if (rnn.c0) copy(rnn.c0, of_cells, cells);
  // What each worker keeps: its rows' states and places.
  struct Rows {
    std::vector<const char*> state, scratch;
    std::vector<const float*> before;
    std::vector<int64_t> at;
  };
  std::vector<Rows> of_worker(static_cast<size_t>(threads));
  for (Rows& rows : of_worker) {
    const size_t batch = static_cast<size_t>(rnn.batch);
    rows.state.resize(batch);
    rows.before.resize(batch);
    rows.at.resize(batch);
    for (int64_t row = 0; reset_before && row < rnn.batch; ++row)
      rows.scratch.push_back(scratch.row(row));
  }
  const auto linear = VECSMITH_PICK_KERNEL(rnn_linear);
  const auto forward = VECSMITH_PICK_KERNEL(rnn_forward);
  Barrier barrier;
  parallel(threads, [&](int worker, int size) {
    VECSMITH_PICK_KERNEL(rnn_begin)();
    Rows& mine = of_worker[static_cast<size_t>(worker)];
    projection.pack(worker, size);
    input.convert(worker, size);
    if (input.copied) barrier.wait(size);
    for (const Product& p : products) p.pack(worker, size);
    int64_t x_first = 0;
    for (int64_t t = 0; t < rnn.steps; ++t) {
      if (t % ahead == 0) {
        const int64_t next = std::min(rnn.steps, t + ahead);
        // Out of order next is the end, and either way it is all steps.
        const int64_t from = rnn.reverse ? rnn.steps - next : t;
        const int64_t to = rnn.reverse ? rnn.steps - t : next;
        const int64_t first = places.begin(from);
        x_first = keeps_x ? 0 : first;
        RnnLinear inputs{input.factors,
                         places.begin(to) - first,
                         &projection.matrix,
                         b_ih,
                         numbers(rnn.x + (first - x_first) * rnn.x_stride),
                         rnn.x_stride};
        inputs.x.data = input.factors.row(first);
        linear(inputs, projection.first(worker, size), projection.first(worker + 1, size));
        if (reset_before) barrier.wait(size);  // its products have other units than the input's
      }
      RnnStep step{};
      step.x = rnn.x;
      step.x_first = x_first;
      step.rnn = &rnn;
      step.rows = rnn.batch_sizes[t];
      for (int64_t row = 0; row < step.rows; ++row) {
        const size_t r = static_cast<size_t>(row);
        mine.before[r] = state[t % 2] + row * stride;
        mine.state[r] = factors[t % 2].row(row);
        mine.at[r] = places.at(row, t);
      }
      step.state = mine.state.data();
      step.state_words = of_states.words;
      step.before = mine.before.data();
      step.at = mine.at.data();
      step.next = state[1 - t % 2];
      step.next_stride = stride;
      if (apart) step.factors = factors[1 - t % 2];
      step.c = cells;
      step.bias = apart_bias ? bias : nullptr;
      step.scratch = scratch;
      for (size_t phase = 0; phase < products.size(); ++phase) {
        const Product& p = products[phase];
        if (phase == 1) step.state = mine.scratch.data();
        step.matrix = &p.matrix;
        forward(step, static_cast<int>(phase), p.first(worker, size), p.first(worker + 1, size));
        barrier.wait(size);
      }
    }
    VECSMITH_PICK_KERNEL(rnn_end)();
  });
  for (int64_t row = 0; rnn.last_h && row < rnn.batch; ++row)
    copy(state[places.length(row) % 2] + row * stride, hidden, rnn.last_h.at(row * hidden));
  copy(cells, of_cells, rnn.last_c);
}

void rnn_backward(const Rnn& rnn, const RnnGrad& given, RnnUnit unit, int threads) {
  RnnGrad grad = given;
  const Places places(rnn);
  const int64_t hidden = rnn.hidden, stride = padded(hidden), gates = rnn_gates(rnn.cell);
  const int64_t count = places.count(), wide = gates * hidden;
  const bool reset_before = rnn.cell == kGruResetBefore, direct = count <= kFewRows;
  if (direct) unit = kFloat;
  const bool gru = rnn.cell == kGru || reset_before;
  // The transposed weight: of a GRU's candidate first, whose gradient is apart (or comes first).
  std::vector<Product> products;
  if (gru)
    products.emplace_back(RnnMatrix{rnn.weight.at(2 * hidden * hidden), 1, hidden, hidden, hidden,
                                    1, 4, unit, nullptr});
  products.emplace_back(
      RnnMatrix{rnn.weight, 1, hidden, hidden, wide - gru * hidden, 1, 4, unit, nullptr});
  // Of the input's gradient.
  Product to_input(RnnMatrix{rnn.w_ih, 1, rnn.inputs, rnn.inputs, wide, 1, 4, unit, nullptr});
  threads = workers_for(rnn, threads);
  const size_t states = static_cast<size_t>(rnn.batch * stride);
  // Gradients of the weights: sums of floats, and then of their type.
  const bool rounded_weights = grad.w_ih.half || grad.weight.half;
  const size_t w_ih_count = grad.w_ih ? static_cast<size_t>(wide * rnn.inputs) : 0;
  const size_t weight_count = grad.weight ? static_cast<size_t>(wide * hidden) : 0;
  const int64_t of_states = rnn.batch * hidden, of_cells = rnn.c0 ? of_states : 0;
  Right inputs(unit, rnn.inputs, places), before(unit, hidden, places), reset(unit, hidden, places);
  grad.x = factors_of(unit, wide);
  grad.products = factors_of(unit, hidden);
  size_t bytes = 2 * Arena::room<float>(states) + room_of(grad.x, count);
  if (rnn.cell == kGru) bytes += room_of(grad.products, count);
  if (grad.w_ih) bytes += inputs.bytes();
  if (grad.weight) bytes += (1 + reset_before) * before.bytes();
  bytes += Arena::room<float>(static_cast<size_t>(of_states)) +
           Arena::room<float>(static_cast<size_t>(of_cells)) +
           2 * Arena::room<float>(static_cast<size_t>(wide));
  if (rounded_weights) bytes += Arena::room<float>(w_ih_count) + Arena::room<float>(weight_count);
  if (!direct) {
    if (grad.input) bytes += to_input.bytes();
    for (const Product& p : products) bytes += p.bytes();
  }
  Arena arena(bytes);
  take(grad.x, count, arena);
  if (rnn.cell == kGru) take(grad.products, count, arena);
  float* const h0 = arena.take<float>(static_cast<size_t>(of_states));
  copy(rnn.h0, of_states, h0);
  float* const c0 = arena.take<float>(static_cast<size_t>(of_cells));
  if (rnn.c0) copy(rnn.c0, of_cells, c0);
  float* const b_ih = arena.take<float>(static_cast<size_t>(wide));
  float* const bias = arena.take<float>(static_cast<size_t>(wide));
  if (grad.w_ih) {
    inputs.of_input(rnn.input);
    inputs.take(arena);
  }
  if (grad.weight) {
    before.of_states(rnn, places, false);
    before.take(arena);
    if (reset_before) {
      reset.of_states(rnn, places, true);
      reset.take(arena);
    }
  }
  float *w_ih_sums = reinterpret_cast<float*>(grad.w_ih.data),
        *weight_sums = reinterpret_cast<float*>(grad.weight.data);
  if (rounded_weights) {
    w_ih_sums = arena.take<float>(w_ih_count);
    weight_sums = arena.take<float>(weight_count);
  }
  if (!direct) {
    if (grad.input) to_input.take(arena);
    for (Product& p : products) p.take(arena);
  }
  float *const dh = arena.take<float>(states), *const dc = arena.take<float>(states);
  const auto begin = [&](Numbers from, float* to) {
    for (int64_t row = 0; row < rnn.batch; ++row)
      if (from)
        copy(from.at(row * hidden), hidden, to + row * stride);
      else
        std::fill_n(to + row * stride, hidden, 0.0f);
  };
  begin(grad.last_h, dh);
  begin(grad.last_c, dc);
  struct Rows {
    std::vector<const char*> state;
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
  const auto convert = VECSMITH_PICK_KERNEL(rnn_convert);
  // What the candidate's part of the weight is multiplied with, and the same as if it stood behind
  // the other gates.
  const int64_t skip = 2 * hidden * (unit == kFloat ? 4 : 2);
  RnnFactors candidate = grad.x, of_candidate = grad.x;
  if (rnn.cell == kGru) {
    candidate = of_candidate = grad.products;
    of_candidate.data -= skip;
  } else if (reset_before) {
    candidate.data += skip;
  }
  Barrier barrier;
  parallel(threads, [&](int worker, int size) {
    VECSMITH_PICK_KERNEL(rnn_begin)();
    Rows& mine = of_worker[static_cast<size_t>(worker)];
    for (const Product& p : products) p.pack(worker, size);
    const int64_t n_first = share(count, worker, size), n_last = share(count, worker + 1, size);
    finish_rows(grad.x, wide, n_first, n_last);
    if (rnn.cell == kGru) finish_rows(grad.products, hidden, n_first, n_last);
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
      step.h0 = h0;
      step.c0 = c0;
      step.h = dh;
      step.c = dc;
      step.stride = stride;
      step.state = mine.state.data();
      to_gates(step, products[0].unit(worker, size), products[0].unit(worker + 1, size));
      for (size_t phase = 0; phase < products.size(); ++phase) {
        const Product& p = products[phase];
        const RnnFactors& left = gru && phase == 0 ? candidate : grad.x;
        for (int64_t row = 0; row < step.rows; ++row) {
          const size_t r = static_cast<size_t>(row);
          mine.state[r] = left.row(mine.at[r]);
        }
        step.state_words = left.words;
        step.matrix = &p.matrix;
        if (phase == 0 || reset_before) barrier.wait(size);
        to_state(step, static_cast<int>(phase), p.first(worker, size), p.first(worker + 1, size));
      }
    }
    // What concerns all steps at once.
    if (grad.w_ih) inputs.pack(worker, size);
    if (grad.weight) before.pack(worker, size);
    if (grad.weight && reset_before) reset.pack(worker, size);
    if (grad.input) to_input.pack(worker, size);
    barrier.wait(size);
    if (grad.input)
      linear({grad.x, count, &to_input.matrix, nullptr, grad.input, rnn.inputs},
             to_input.first(worker, size), to_input.first(worker + 1, size));
    // Rows of the weights, and of the biases.
    const int64_t first = share(wide, worker, size), last = share(wide, worker + 1, size);
    if (grad.w_ih) {
      outer({grad.x, &inputs.packed, w_ih_sums}, first, last);
      if (grad.w_ih.half) convert(w_ih_sums, first * rnn.inputs, last * rnn.inputs, grad.w_ih);
    }
    const int64_t split = gru ? std::clamp<int64_t>(2 * hidden, first, last) : last;
    if (grad.weight) {
      outer({grad.x, &before.packed, weight_sums}, first, split);
      outer({of_candidate, reset_before ? &reset.packed : &before.packed, weight_sums}, split,
            last);
      if (grad.weight.half) convert(weight_sums, first * hidden, last * hidden, grad.weight);
    }
    if (grad.b_ih) column_sums(grad.x, count, first, last, b_ih);
    if (grad.bias) {
      column_sums(grad.x, count, first, split, bias);
      column_sums(of_candidate, count, split, last, bias);
    }
    VECSMITH_PICK_KERNEL(rnn_end)();
  });
  for (int64_t row = 0; row < rnn.batch; ++row) {
    copy(dh + row * stride, hidden, grad.h0.at(row * hidden));
    if (grad.c0) copy(dc + row * stride, hidden, grad.c0.at(row * hidden));
  }
  copy(b_ih, wide, grad.b_ih);
  copy(bias, wide, grad.bias);
}

}  // namespace vecsmith
