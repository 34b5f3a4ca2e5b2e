// word2vec's training step on the CPU (formulas: python/vecsmith/reference/skipgram.py).
//
// A *step* has m input rows and n output rows: a window's contexts against its center and negatives
// (6 x 6 on average), one context against its own, CBOW's mean against them, or the contexts
// against a path of the Huffman tree. All of them run through the same three passes
// (skipgram_passes.h):
//
//   1. scores   all m x n inner products, four inputs x up to six outputs at a time in registers,
//               folded together four at a time;
//   2. sigmoid  over the m x n scores at once, exact (no table), with the loss beside it;
//   3. update   blocked over the dimension: the output rows and their updates stay in registers
//               while each input row is read, updated and written once.
//
// Steps are *planned* (skipgram_plan.h) in blocks of centers one block ahead of training, so that
// the rows of the steps to come are fetched while a step runs.
//
// What bounds it: 3 m n D multiply-adds a step (10,800 at D = 100) and, once D is a few hundred or
// the tables outgrow the cache, m/6 + n rows read and written. No STL here: see simd.h.
#include "cpu/skipgram.h"

#include "cpu/simd.h"
#include "cpu/skipgram_passes.h"
#include "cpu/skipgram_plan.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

// A row's columns: whole vectors and a tail.
struct Columns {
  int64_t full;
  int tail;

  explicit VECSMITH_METHOD Columns(int64_t dim)
      : full(dim / kLanes * kLanes), tail(static_cast<int>(dim - full)) {}
};

// Tiles of outputs, of almost equal width.
VECSMITH_INLINE int tile_count(int n) { return (n + kTile - 1) / kTile; }
VECSMITH_INLINE int tile_start(int n, int tiles, int tile) { return tile * n / tiles; }

// The rows of a step.
VECSMITH_INLINE void gather(const SkipgramJob& job, const SkipgramStep& step,
                            SkipgramScratch& scratch) {
  const int table = step.codes ? kTree : kOutput;
  rows_of(job, scratch.hot[table], table, step.outputs, output_rows(step), scratch.output_rows);
  rows_of(job, scratch.hot[kInput], kInput, step.inputs, step.input_count, scratch.input_rows);
}

// h = the mean or sum of the step's input rows.
VECSMITH_INLINE void gather_hidden(const SkipgramJob& job, const SkipgramStep& step,
                                   Columns columns, const SkipgramScratch& scratch) {
  const float scale = job.cbow_mean ? 1.0f / static_cast<float>(step.input_count) : 1.0f;
  sum_rows(scratch.input_rows, step.input_count, columns.full, columns.tail, scale, scratch.row);
}

// Pass 1. The scores of a tile are laid out together.
VECSMITH_INLINE void step_scores(const SkipgramJob& job, const SkipgramStep& step, Columns columns,
                                 SkipgramScratch& scratch, float* scores) {
  gather(job, step, scratch);
  const int n = step.output_count;
  if (step.pairs)
    return score_any_pairs(n, scratch.input_rows, scratch.output_rows, columns.full, columns.tail,
                           step.input_count, scores);
  const float* const* x = scratch.input_rows;
  const float* hidden = scratch.row;
  int m = step.input_count;
  if (job.cbow) {
    gather_hidden(job, step, columns, scratch);
    x = &hidden;
    m = 1;
  }
  const int tiles = tile_count(n);
  for (int tile = 0; tile < tiles; ++tile) {
    const int start = tile_start(n, tiles, tile), wide = tile_start(n, tiles, tile + 1) - start;
    score_any(wide, x, scratch.output_rows + start, columns.full, columns.tail, m, scores);
    scores += m * wide;
  }
}

VECSMITH_INLINE int64_t score_count(const SkipgramJob& job, const SkipgramStep* group) {
  const SkipgramStep& last = group[group->group - 1];
  return last.score_at + static_cast<int64_t>(job.cbow ? 1 : last.input_count) * last.output_count;
}

// Pass 2 over a group: scores become gradients; kSkipgramPadding floats behind them are
// overwritten.
template <bool kLoss>
VECSMITH_INLINE void group_gradients(const SkipgramJob& job, const SkipgramStep* group,
                                     SkipgramScratch& scratch, float* scores, Loss& loss) {
  const SkipgramStep& last = group[group->group - 1];
  const int64_t count = score_count(job, group);
  if (__builtin_expect(group->plain, 1)) {
    // The padding's sigmoid is nothing, whatever its label.
    for (int lane = 0; lane < kLanes; ++lane)
      scores[count + lane] = scratch.common_label[count + lane] ? 200.0f : -200.0f;
    return gradients<kLoss, false>(scores, scratch.common_label, nullptr, count, group->alpha, loss,
                                   scratch.loss);
  }
  const bool weighted = group->group > 1 || group->input_weight || group->output_weight;
  int32_t* label = scratch.label;
  float* w = scratch.weight;
  for (const SkipgramStep* step = group; step <= &last; ++step) {
    const int m = job.cbow ? 1 : step->input_count, n = step->output_count, tiles = tile_count(n);
    for (int tile = 0; tile < tiles; ++tile) {
      const int start = tile_start(n, tiles, tile), wide = tile_start(n, tiles, tile + 1) - start;
      // The labels are the same for every input: written by whole vectors, each over the surplus
      // of the one before.
      alignas(64) int32_t pattern[16] = {};
      for (int j = 0; j < wide; ++j)
        pattern[j] =
            (step->codes ? step->codes[start + j] == 0 : start + j == 0) ? kPositive : kNegative;
      for (int i = 0; i < m; ++i, label += wide) __builtin_memcpy(label, pattern, 32);
      if (weighted)
        for (int i = 0; i < m; ++i, w += wide)
          for (int j = 0; j < wide; ++j)
            w[j] = (step->input_weight ? step->input_weight[i] : 1.0f) *
                   (step->output_weight ? step->output_weight[start + j] : 1.0f);
    }
  }
  store(label, vint{} + kNegative);
  if (weighted) store(w, splat(0.0f));
  store(scores + count, splat(-200.0f));
  if (weighted)
    gradients<kLoss, true>(scores, scratch.label, scratch.weight, count, group->alpha, loss,
                           scratch.loss);
  else
    gradients<kLoss, false>(scores, scratch.label, nullptr, count, group->alpha, loss,
                            scratch.loss);
}

// The labels of an ordinary step (one positive, `negative` negatives), for any number of inputs.
VECSMITH_INLINE void prepare_labels(const SkipgramJob& job, SkipgramScratch& scratch) {
  const int n = job.negative + 1;
  if (tile_count(n) == 1)
    for (int64_t at = 0; at < scratch.score_capacity; ++at)
      scratch.common_label[at] = at % n == 0 ? kPositive : kNegative;
}

// Pass 3; the rows have been gathered by pass 1 if `gathered`, as CBOW's always have been.
VECSMITH_INLINE void step_update(const SkipgramJob& job, const SkipgramStep& step, Columns columns,
                                 bool gathered, SkipgramScratch& scratch, const float* g) {
  const int n = step.output_count, tiles = tile_count(n), inputs = step.input_count;
  if (!gathered) gather(job, step, scratch);
  float** const rows = scratch.input_rows;
  if (step.pairs)
    return update_any_pairs(n, rows, scratch.output_rows, columns.full, columns.tail, inputs, g);
  if (!job.cbow && tiles == 1)
    return update_any<kInPlace>(n, {rows, rows, rows, inputs}, scratch.output_rows, columns.full,
                                columns.tail, g);
  const int64_t padded = padded_dim(job);
  float* hidden = scratch.row;
  float* hidden_update = scratch.row + padded;
  float *const *x = rows, *const *sums = &hidden_update;
  int m = inputs;
  if (job.cbow) {
    x = &hidden;
    m = 1;
  } else {
    // An input must not change before the last tile has seen it.
    for (int i = 0; i < m; ++i) scratch.input_updates[i] = scratch.accumulator + i * padded;
    sums = scratch.input_updates;
  }
  for (int tile = 0; tile < tiles; ++tile) {
    const int start = tile_start(n, tiles, tile), wide = tile_start(n, tiles, tile + 1) - start;
    float* const* const o = scratch.output_rows + start;
    const bool last = tile + 1 == tiles;
    if (job.cbow && tile == 0)
      update_any<kNothing>(wide, {x, nullptr, sums, m}, o, columns.full, columns.tail, g);
    else
      update_any<kFrom>(wide, {x, tile == 0 ? x : sums, last && !job.cbow ? x : sums, m}, o,
                        columns.full, columns.tail, g);
    g += m * wide;
  }
  if (job.cbow) {
    const float share = job.cbow_mean ? 1.0f : 1.0f / static_cast<float>(inputs);
    add_to_rows(rows, inputs, columns.full, columns.tail, share, hidden_update);
  }
}

// Trains the steps of a plan; `next` is the plan that follows it, or null.
template <bool kLoss>
VECSMITH_INLINE void train_plan(const SkipgramJob& job, const SkipgramPlan& plan,
                                const SkipgramPlan* next, SkipgramScratch& scratch, Loss& loss) {
  const Columns columns(job.dim);
  const int64_t ahead = steps_ahead(job);
  for (int64_t s = 0; s < plan.step_count;) {
    const SkipgramStep* group = plan.steps + s;
    const int32_t size = group->group;
    for (int32_t i = 0; i < size; ++i)
      step_scores(job, group[i], columns, scratch, scratch.score + group[i].score_at);
    // The sigmoids wait for the scores: meanwhile there is time to ask for the rows to come.
    for (int32_t i = 0; i < size; ++i) fetch_ahead(job, scratch, plan, next, s + i + ahead);
    group_gradients<kLoss>(job, group, scratch, scratch.score, loss);
    for (int32_t i = 0; i < size; ++i)
      step_update(job, group[i], columns, size == 1, scratch, scratch.score + group[i].score_at);
    s += size;
  }
  scratch.terms += plan.terms;
}

template <bool kLoss>
void train_range(const SkipgramJob& job, const SkipgramStream* stream, int64_t first, int64_t last,
                 SkipgramScratch& scratch) {
  prepare_labels(job, scratch);
  Loss loss;
  const auto end_of = [&](int64_t from) {
    return from + kSkipgramBlock < last ? from + kSkipgramBlock : last;
  };
  int now = 0;
  int64_t begin = first, planned = end_of(first);
  clear(scratch.plan[0]);
  plan_block(job, stream, first, planned, scratch.plan[0]);
  while (begin < last) {
    SkipgramPlan& next = scratch.plan[1 - now];
    begin = planned;
    planned = end_of(begin);
    clear(next);
    if (begin < last) plan_block(job, stream, begin, planned, next);
    train_plan<kLoss>(job, scratch.plan[now], &next, scratch, loss);
    now = 1 - now;
  }
  if (kLoss) loss.flush(scratch.loss);
}

template <bool kLoss>
void train_plans(const SkipgramJob& job, SkipgramScratch& scratch) {
  prepare_labels(job, scratch);
  Loss loss;
  for (int64_t b = 0; b < scratch.planned; ++b)
    train_plan<kLoss>(job, scratch.plan[b],
                      b + 1 < scratch.planned ? scratch.plan + b + 1 : nullptr, scratch, loss);
  if (kLoss) loss.flush(scratch.loss);
}

}  // namespace

void skipgram_survivors(const SkipgramJob& job, int64_t first, int64_t last,
                        SkipgramStream& stream) {
  const int64_t start = stream.size;
  int64_t size = start;
  constexpr int kChunk = 256;
  for (int64_t at = first; at < last; at += kChunk) {
    const int count = static_cast<int>(last - at < kChunk ? last - at : kChunk);
    if (job.keep) {
      // Drawn 256 at a time in a loop of its own, which the compiler turns into vector arithmetic.
      uint32_t bits[kChunk];
      const uint64_t counter = static_cast<uint64_t>(job.first_position + at);
      for (int i = 0; i < count; ++i)
        bits[i] = static_cast<uint32_t>(
            draw(job.key_subsample, counter + static_cast<uint64_t>(i)) >> 40);
      for (int i = 0; i < count; ++i) {
        const int32_t id = job.tokens[at + i];
        stream.id[size] = id;
        stream.position[size] = job.first_position + at + i;
        size += static_cast<float>(static_cast<int32_t>(bits[i])) * 0x1p-24f < job.keep[id];
      }
    } else {
      for (int i = 0; i < count; ++i) {
        stream.id[size] = job.tokens[at + i];
        stream.position[size++] = job.first_position + at + i;
      }
    }
  }
  // A word alone has no window: dropped, so that every survivor of a stream has a step.
  if (size - start < 2) return;
  // The distance back to the same word, where some window can hold both. (What stands before the
  // sentence may be found too: no window reaches it.)
  const int reach = job.cbow ? 0 : job.window <= 8 ? 2 * job.window : -1;
  for (int64_t begin = start; begin < size; begin += kChunk) {
    const int count = static_cast<int>(size - begin < kChunk ? size - begin : kChunk);
    int32_t distance[kChunk];
    // Windows of more than seventeen words look for themselves.
    for (int i = 0; i < count; ++i) distance[i] = reach < 0 ? 0 : 255;
    for (int back = reach; back >= 1; --back)
      for (int i = 0; i < count; ++i)
        distance[i] = stream.id[begin + i - back] == stream.id[begin + i] ? back : distance[i];
    for (int i = 0; i < count; ++i) {
      stream.repeat[begin + i] = static_cast<uint8_t>(distance[i]);
      stream.low[begin + i] = static_cast<int32_t>(start);
      stream.high[begin + i] = static_cast<int32_t>(size);
    }
  }
  stream.size = size;
}

void skipgram_merge(const SkipgramJob& job, int table, int64_t first, int64_t last,
                    const float* weights, SkipgramHot& hot) {
  const Columns columns(job.dim);
  for (int64_t r = first; r < last; ++r) {
    const int64_t id = hot.first + r;
    float* const shared = job.table[table] + id * job.stride[table];
    if (r + 2 < last) fetch_row(shared + 2 * job.stride[table], job.dim);
    float *const own = hot.row + r * hot.stride, *const base = hot.base + r * hot.stride;
    const float weight = weights[r - first];
    for (int64_t at = 0; at < columns.full; at += kLanes) {
      const vfloat sum = load(shared + at) + (load(own + at) - load(base + at)) * weight;
      store(shared + at, sum);
      store(own + at, sum);
      store(base + at, sum);
    }
    if (const int tail = columns.tail) {
      const int64_t at = columns.full;
      const vfloat sum = load_tail(shared + at, tail) +
                         (load_tail(own + at, tail) - load_tail(base + at, tail)) * weight;
      store_tail(shared + at, sum, tail);
      store_tail(own + at, sum, tail);
      store_tail(base + at, sum, tail);
    }
  }
}

void skipgram_train(const SkipgramJob& job, const SkipgramStream* stream, int64_t first,
                    int64_t last, SkipgramScratch& scratch) {
  if (first == last) return;  // the sentences may have no survivors
  if (job.compute_loss)
    train_range<true>(job, stream, first, last, scratch);
  else
    train_range<false>(job, stream, first, last, scratch);
}

void skipgram_plan(const SkipgramJob& job, const SkipgramStream* stream, int64_t first,
                   int64_t last, SkipgramScratch& scratch) {
  scratch.planned = 0;
  for (int64_t begin = first; begin < last; begin += kSkipgramBlock) {
    SkipgramPlan& plan = scratch.plan[scratch.planned++];
    clear(plan);
    plan_block(job, stream, begin, begin + kSkipgramBlock < last ? begin + kSkipgramBlock : last,
               plan);
  }
}

void skipgram_train_planned(const SkipgramJob& job, SkipgramScratch& scratch) {
  if (job.compute_loss)
    train_plans<true>(job, scratch);
  else
    train_plans<false>(job, scratch);
}

void skipgram_combine(const SkipgramJob& job, int table, int64_t id, const float* const* copies,
                      int count, float weight) {
  float* const row = job.table[table] + id * job.stride[table];
  for (int64_t at = 0; at < job.dim; at += kLanes) {
    const int tail = static_cast<int>(job.dim - at < kLanes ? job.dim - at : 0);
    const vfloat before = tail ? load_tail(row + at, tail) : load(row + at);
    vfloat change{};
    for (int c = 0; c < count; ++c)  // (copies are padded to whole vectors)
      change += load(copies[c] + at) - before;
    if (tail)
      store_tail(row + at, before + change * weight, tail);
    else
      store(row + at, before + change * weight);
  }
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
