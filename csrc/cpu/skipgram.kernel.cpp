// word2vec's training step on the CPU (formulas: python/vecsmith/reference/skipgram.py).
//
// A *step* has m input rows and n output rows: a window's contexts against its center and negatives
// (6 x 6 on average), one context against its own, CBOW's mean against them, or the contexts against a
// path of the Huffman tree. All of them run through the same three passes:
//
//   1. scores   all m x n inner products, two inputs x up to six outputs at a time in registers, folded
//               together four at a time;
//   2. sigmoid  over the m x n scores at once, exact (no table), with the loss beside it;
//   3. update   blocked over the dimension: the output rows and their updates stay in registers while each
//               input row is read, updated and written once.
//
// Steps are *planned* in blocks of centers (windows and negatives drawn, ids laid out) one block ahead
// of training, so that the rows of the steps to come are fetched while a step runs.
//
// What bounds it: 3 m n D multiply-adds a step (10,800 at D = 100) and, once D is a few hundred or the
// tables outgrow the cache, m/6 + n rows read and written. No STL here: see simd.h.
#include "cpu/skipgram.h"

#include <string.h>

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr int kRedraws = 32;
constexpr int kTile = 6;  // output rows in registers at a time
constexpr int kBlockVectors = kLanes == 16 ? 2 : 1;  // vectors of each row per update block

// --- random draws ---------------------------------------------------------------------------------

VECSMITH_INLINE uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

VECSMITH_INLINE uint64_t draw(uint64_t key, uint64_t counter) {
  return mix(key + (counter + 1) * kGolden);
}

VECSMITH_INLINE int32_t sampled_word(const SkipgramJob& job, uint64_t bits) {
  const uint64_t index = ((bits >> 32) * static_cast<uint64_t>(job.vocabulary)) >> 32;
  const int32_t* entry = job.alias + 2 * index;
  return static_cast<int32_t>((bits & 0xffffffffu) >> 1) < entry[0] ? static_cast<int32_t>(index)
                                                                    : entry[1];
}

// Writes the words of `bits` that differ from `positive`; returns how many. (Thirty-two redraws fail
// only where hardly any other word exists.)
VECSMITH_INLINE int32_t negatives(const SkipgramJob& job, const uint64_t* bits, int64_t stride,
                                  int32_t positive, int32_t* out) {
  int32_t count = 0;
  for (int32_t k = 0; k < job.negative; ++k) {
    uint64_t b = bits[k * stride];
    int32_t word = sampled_word(job, b);
    for (int again = 0; __builtin_expect(word == positive, 0) && again < kRedraws; ++again) {
      b = mix(b + kGolden);
      word = sampled_word(job, b);
    }
    out[count] = word;
    count += word != positive;
  }
  return count;
}

// --- planning -------------------------------------------------------------------------------------

VECSMITH_INLINE float rate_at(const SkipgramJob& job, int64_t position) {
  const double done = (job.words_before + static_cast<double>(position)) / job.words_total;
  const double rate = job.alpha + (job.min_alpha - job.alpha) * done;
  const double least = job.alpha < job.min_alpha ? job.alpha : job.min_alpha;
  return static_cast<float>(rate > least ? rate : least);
}

// The steps of the centers [first, last) of a stream, last - first <= kSkipgramBlock.
void plan_centers(const SkipgramJob& job, const SkipgramStream& stream, int64_t first, int64_t last,
                  SkipgramPlan& plan) {
  plan.step_count = 0;
  if (first >= last) return;
  const int count = static_cast<int>(last - first);
  const int64_t* position = stream.position + first;
  int32_t reach[kSkipgramBlock];
  for (int c = 0; c < count; ++c) {
    const uint64_t bits = draw(job.key_window, static_cast<uint64_t>(position[c]));
    reach[c] = job.shrink_windows
                   ? 1 + static_cast<int32_t>(((bits >> 32) * static_cast<uint64_t>(job.window)) >> 32)
                   : job.window;
  }
  const bool pairwise = !job.shared_negatives && !job.cbow;
  if (job.negative && !pairwise)
    for (int64_t k = 0; k < job.negative; ++k)
      for (int c = 0; c < count; ++c)
        plan.bits[k * kSkipgramBlock + c] = draw(
            job.key_negative, static_cast<uint64_t>(position[c]) * static_cast<uint64_t>(job.negative) +
                                  static_cast<uint64_t>(k));
  SkipgramStep* step = plan.steps;
  int32_t* ids = plan.ids;
  for (int c = 0; c < count; ++c) {
    const int64_t k = first + c;
    const int32_t center = stream.id[k];
    const int64_t low = k - reach[c] > stream.low[k] ? k - reach[c] : stream.low[k];
    const int64_t high = k + reach[c] + 1 < stream.high[k] ? k + reach[c] + 1 : stream.high[k];
    const int32_t contexts = static_cast<int32_t>(high - low - 1);
    if (contexts == 0) continue;
    const float alpha = rate_at(job, position[c]);
    int32_t* inputs = ids;
    for (int64_t j = low; j < k; ++j) *ids++ = stream.id[j];
    for (int64_t j = k + 1; j < high; ++j) *ids++ = stream.id[j];
    const int64_t entering = k + job.window < stream.size ? k + job.window : stream.size - 1;
    SkipgramStep shared;
    shared.inputs = inputs;
    shared.input_count = contexts;
    shared.first_slot = low;
    shared.center_slot = k;
    shared.next_input = stream.id[entering];
    shared.alpha = alpha;
    shared.outputs = nullptr;
    shared.codes = nullptr;
    shared.output_count = 0;
    // Values are frozen in a mini-batch: there the pairs of a path are the window's one step.
    const bool split_path = pairwise && !job.frozen;
    if (job.path_offsets) {
      shared.outputs = job.path_nodes + job.path_offsets[center];
      shared.codes = job.path_codes + job.path_offsets[center];
      shared.output_count =
          static_cast<int32_t>(job.path_offsets[center + 1] - job.path_offsets[center]);
    }
    if (!pairwise) {
      if (job.path_offsets) *step++ = shared;
      if (job.negative) {
        *ids = center;
        shared.outputs = ids;
        shared.codes = nullptr;
        shared.output_count = 1 + negatives(job, plan.bits + c, kSkipgramBlock, center, ids + 1);
        ids += shared.output_count;
        *step++ = shared;
      }
      continue;
    }
    if (job.path_offsets && !split_path) *step++ = shared;
    const uint64_t slots = 2 * static_cast<uint64_t>(job.window) + 1;
    for (int32_t i = 0; i < contexts; ++i) {
      const int64_t j = low + i + (low + i >= k);
      SkipgramStep pair = shared;
      pair.inputs = inputs + i;
      pair.input_count = 1;
      pair.first_slot = j;
      pair.center_slot = INT64_MAX;
      pair.next_input = inputs[i];
      if (job.path_offsets && split_path) *step++ = pair;
      if (!job.negative) continue;
      const uint64_t slot = static_cast<uint64_t>(j - k + job.window);
      const uint64_t counter =
          (static_cast<uint64_t>(position[c]) * slots + slot) * static_cast<uint64_t>(job.negative);
      for (int32_t n = 0; n < job.negative; ++n)
        plan.bits[n] = draw(job.key_negative, counter + static_cast<uint64_t>(n));
      *ids = center;
      pair.outputs = ids;
      pair.codes = nullptr;
      pair.output_count = 1 + negatives(job, plan.bits, 1, center, ids + 1);
      ids += pair.output_count;
      *step++ = pair;
    }
  }
  plan.step_count = static_cast<int32_t>(step - plan.steps);
}

// The steps of the given pairs [first, last).
void plan_pairs(const SkipgramJob& job, int64_t first, int64_t last, SkipgramPlan& plan) {
  SkipgramStep* step = plan.steps;
  int32_t* ids = plan.ids;
  for (int64_t p = first; p < last; ++p, ++step) {
    *ids = static_cast<int32_t>(job.centers[p]);
    step->inputs = ids;
    step->input_count = 1;
    step->next_input = *ids++;
    step->outputs = ids;
    step->codes = nullptr;
    const int64_t positive = job.contexts[p];
    *ids++ = static_cast<int32_t>(positive);
    for (int32_t k = 0; k < job.negative; ++k) {
      const int64_t word = job.negatives[p * job.negative + k];
      *ids = static_cast<int32_t>(word);
      ids += word >= 0 && word != positive;
    }
    step->output_count = static_cast<int32_t>(ids - step->outputs);
    step->first_slot = p - job.first_position;
    step->center_slot = INT64_MAX;
    step->alpha = static_cast<float>(job.alpha);
  }
  plan.step_count = static_cast<int32_t>(step - plan.steps);
}

void plan_block(const SkipgramJob& job, const SkipgramStream* stream, int64_t first, int64_t last,
                SkipgramPlan& plan) {
  if (stream)
    plan_centers(job, *stream, first, last, plan);
  else
    plan_pairs(job, first, last, plan);
}

VECSMITH_INLINE void fetch_row(const float* row, int64_t dim) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < dim * 4; byte += 64) __builtin_prefetch(p + byte, 1, 3);
}

VECSMITH_INLINE void fetch_step(const SkipgramJob& job, const SkipgramStep& step) {
  fetch_row(job.table[kInput] + step.next_input * job.stride[kInput], job.dim);
  const int table = step.codes ? kTree : kOutput;
  for (int32_t j = 0; j < step.output_count; ++j)
    fetch_row(job.table[table] + step.outputs[j] * job.stride[table], job.dim);
}

// --- pass 1: scores -------------------------------------------------------------------------------

template <int I, int J>
VECSMITH_INLINE void score_block(const float* const* x, float* const* o, int64_t full, int tail,
                                 float* out) {
  vfloat sum[I * J];
#pragma GCC unroll 16
  for (int a = 0; a < I * J; ++a) sum[a] = vfloat{};
  for (int64_t at = 0; at < full; at += kLanes) {
    vfloat xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load(x[i] + at);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vfloat ov = load(o[j] + at);
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] += xv[i] * ov;
    }
  }
  if (tail) {
    vfloat xv[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) xv[i] = load_tail(x[i] + full, tail);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vfloat ov = load_tail(o[j] + full, tail);
#pragma GCC unroll 4
      for (int i = 0; i < I; ++i) sum[i * J + j] += xv[i] * ov;
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < I * J; a += 4) {
    const vfloat zero{};
    fold4(sum[a], a + 1 < I * J ? sum[a + 1] : zero, a + 2 < I * J ? sum[a + 2] : zero,
          a + 3 < I * J ? sum[a + 3] : zero, out + a);
  }
}

// scores[i * J + j] = x[i] . o[j]; writes up to three floats beyond the last.
template <int J>
__attribute__((noinline)) void score_tile(const float* const* x, float* const* o, int64_t full, int tail,
                                          int m, float* scores) {
  int i = 0;
  for (; i + 2 <= m; i += 2) score_block<2, J>(x + i, o, full, tail, scores + i * J);
  if (i < m) score_block<1, J>(x + i, o, full, tail, scores + i * J);
}

// --- pass 2: sigmoid, gradient, loss --------------------------------------------------------------

// Turns scores into alpha * (label - sigmoid(score)); returns the loss of them all. `count` is padded to
// whole vectors by scores and labels that contribute nothing.
template <bool kLoss>
VECSMITH_INLINE double gradients(float* score, const float* label, int count, float alpha) {
  vdouble loss{};
  for (int at = 0; at < count; at += kLanes) {
    const vfloat s = load(score + at), y = load(label + at);
    const vfloat t = exp_negative(max(-abs(s), splat(-87.0f)));
    const vfloat inverse = 1.0f / (1.0f + t);
    const vfloat p = s >= 0.0f ? inverse : t * inverse;
    store(score + at, (y - p) * alpha);
    if (kLoss) {
      const vfloat z = y > 0.5f ? -s : s;
      const vfloat term = max(z, splat(0.0f)) + log1p_unit(t);
      loss += __builtin_convertvector(term, vdouble);
    }
  }
  double sum = 0;
  if (kLoss)
    for (int lane = 0; lane < kLanes; ++lane) sum += loss[lane];
  return sum;
}

// --- pass 3: update -------------------------------------------------------------------------------

enum Update {
  kInPlace,     // inputs and outputs are changed where they are
  kAccumulate,  // outputs in place; the inputs' updates are added to rows of their own
  kFrozen       // nothing is changed: the outputs' updates are written, the inputs' added, elsewhere
};

template <int J, int V, Update U, bool T>
VECSMITH_INLINE void update_block(const float* const* x, float* const* dx, float* const* o,
                                  float* const* d, int64_t at, int tail, int m, const float* g) {
  vfloat ov[J][V], dv[J][V];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      ov[j][v] = T ? load_tail(o[j] + at, tail) : load(o[j] + at + v * kLanes);
      dv[j][v] = U == kFrozen ? vfloat{} : ov[j][v];
    }
  for (int i = 0; i < m; ++i) {
    vfloat xv[V], nv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      xv[v] = T ? load_tail(x[i] + at, tail) : load(x[i] + at + v * kLanes);
      nv[v] = U == kInPlace ? xv[v]
                            : (T ? load_tail(dx[i] + at, tail) : load(dx[i] + at + v * kLanes));
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const vfloat gv = splat(g[i * J + j]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        dv[j][v] += gv * xv[v];
        nv[v] += gv * ov[j][v];
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if (T)
        store_tail(dx[i] + at, nv[v], tail);
      else
        store(dx[i] + at + v * kLanes, nv[v]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if (T)
        store_tail(d[j] + at, dv[j][v], tail);
      else
        store(d[j] + at + v * kLanes, dv[j][v]);
    }
}

// d[j] (+)= sum_i g[i * J + j] x[i];  dx[i] += sum_j g[i * J + j] o[j].
template <int J, Update U>
__attribute__((noinline)) void update_tile(const float* const* x, float* const* dx, float* const* o,
                                           float* const* d, int64_t full, int tail, int m,
                                           const float* g) {
  int64_t at = 0;
  for (; at + kBlockVectors * kLanes <= full; at += kBlockVectors * kLanes)
    update_block<J, kBlockVectors, U, false>(x, dx, o, d, at, tail, m, g);
  for (; at < full; at += kLanes) update_block<J, 1, U, false>(x, dx, o, d, at, tail, m, g);
  if (tail) update_block<J, 1, U, true>(x, dx, o, d, at, tail, m, g);
}

void score_any(int n, const float* const* x, float* const* o, int64_t full, int tail, int m, float* s) {
  switch (n) {
    case 1: return score_tile<1>(x, o, full, tail, m, s);
    case 2: return score_tile<2>(x, o, full, tail, m, s);
    case 3: return score_tile<3>(x, o, full, tail, m, s);
    case 4: return score_tile<4>(x, o, full, tail, m, s);
    case 5: return score_tile<5>(x, o, full, tail, m, s);
    default: return score_tile<6>(x, o, full, tail, m, s);
  }
}

template <Update U>
void update_any(int n, const float* const* x, float* const* dx, float* const* o, float* const* d,
                int64_t full, int tail, int m, const float* g) {
  switch (n) {
    case 1: return update_tile<1, U>(x, dx, o, d, full, tail, m, g);
    case 2: return update_tile<2, U>(x, dx, o, d, full, tail, m, g);
    case 3: return update_tile<3, U>(x, dx, o, d, full, tail, m, g);
    case 4: return update_tile<4, U>(x, dx, o, d, full, tail, m, g);
    case 5: return update_tile<5, U>(x, dx, o, d, full, tail, m, g);
    default: return update_tile<6, U>(x, dx, o, d, full, tail, m, g);
  }
}

// --- a step ---------------------------------------------------------------------------------------

// y (+)= scale * x over a row.
VECSMITH_INLINE void add_row(float* y, const float* x, float scale, int64_t full, int tail) {
  for (int64_t at = 0; at < full; at += kLanes) store(y + at, load(y + at) + load(x + at) * scale);
  if (tail)
    store_tail(y + full, load_tail(y + full, tail) + load_tail(x + full, tail) * scale, tail);
}

VECSMITH_INLINE bool has_duplicates(const int32_t* ids, int count) {
  if (count <= 16) {
    // All against all at a few vector compares: ids[i] with ids[i + shift], for every shift.
    int32_t padded[32];
    for (int i = 0; i < 32; ++i) padded[i] = -1 - i;
    for (int i = 0; i < count; ++i) padded[i] = ids[i];
    vint found{};
    for (int shift = 1; shift < count; ++shift)
      for (int at = 0; at < 16; at += kLanes)
        found |= load(padded + at) == load(padded + at + shift);
    int32_t any = 0;
    for (int lane = 0; lane < kLanes; ++lane) any |= found[lane];
    return any != 0;
  }
  for (int i = 1; i < count; ++i) {
    int32_t same = 0;
    for (int j = 0; j < i; ++j) same |= ids[i] == ids[j];
    if (same) return true;
  }
  return false;
}

// rows: the distinct ids in order of first appearance; from: where; weight: how often. Returns how many.
int distinct(const int32_t* ids, int count, int32_t* rows, int32_t* from, float* weight) {
  int found = 0;
  for (int i = 0; i < count; ++i) {
    int at = 0;
    while (at < found && rows[at] != ids[i]) ++at;
    if (at == found) {
      rows[found] = ids[i];
      from[found] = i;
      weight[found++] = 0;
    }
    weight[at] += 1;
  }
  return found;
}

VECSMITH_INLINE float* delta_row(SkipgramUpdates& updates, int64_t row) {
  return updates.deltas + row * updates.delta_stride;
}

template <bool kIsFrozen, bool kLoss>
VECSMITH_INLINE void train_step(const SkipgramJob& job, const SkipgramStep& step,
                                SkipgramScratch& scratch, SkipgramUpdates* updates) {
  const int64_t dim = job.dim, full = dim / kLanes * kLanes;
  const int tail = static_cast<int>(dim - full);
  const int64_t padded = (dim + 15) / 16 * 16;
  float* const input = job.table[kInput];
  const int table = step.codes ? kTree : kOutput;
  float* const output = job.table[table];

  // Rows, without duplicates: a row that comes twice gets its update twice, from one read.
  int m = step.input_count, n = step.output_count;
  if (n == 0) return;
  const int32_t *input_ids = step.inputs, *output_ids = step.outputs, *from = nullptr;
  const float *input_weight = nullptr, *output_weight = nullptr;
  const int64_t width = job.max_outputs > 2 * job.window ? job.max_outputs : 2 * job.window;
  if (!job.cbow && m > 1 && __builtin_expect(has_duplicates(input_ids, m), 0)) {
    m = distinct(input_ids, m, scratch.unique, scratch.unique + width, scratch.weight);
    input_ids = scratch.unique;
    from = scratch.unique + width;
    input_weight = scratch.weight;
  }
  if (!step.codes && n > 2 && __builtin_expect(has_duplicates(output_ids, n), 0)) {
    n = distinct(output_ids, n, scratch.unique + 2 * width, scratch.unique + 3 * width,
                 scratch.weight + width);
    output_ids = scratch.unique + 2 * width;
    output_weight = scratch.weight + width;
  }
  const auto slot_of = [&](int i) {
    const int32_t original = from ? from[i] : i;
    const int64_t slot = step.first_slot + original;
    return slot + (slot >= step.center_slot) - updates->first_slot;
  };

  const float** const x = scratch.input_rows;
  float** const dx = scratch.input_updates;
  float** const o = scratch.output_rows;
  const int steps_inputs = m;
  float* const hidden = scratch.row;
  float* const hidden_update = scratch.row + padded;
  if (job.cbow) {
    const float scale = job.cbow_mean ? 1.0f / static_cast<float>(m) : 1.0f;
    for (int64_t at = 0; at < padded; at += kLanes) store(hidden_update + at, vfloat{});
    for (int64_t at = 0; at < full; at += kLanes) {
      vfloat sum{};
      for (int i = 0; i < m; ++i) sum += load(input + input_ids[i] * job.stride[kInput] + at);
      store(hidden + at, sum * scale);
    }
    if (tail) {
      vfloat sum{};
      for (int i = 0; i < m; ++i)
        sum += load_tail(input + input_ids[i] * job.stride[kInput] + full, tail);
      store_tail(hidden + full, sum * scale, tail);
    }
    x[0] = hidden;
    dx[0] = hidden_update;
    m = 1;
  } else {
    for (int i = 0; i < m; ++i) {
      x[i] = input + input_ids[i] * job.stride[kInput];
      dx[i] = const_cast<float*>(x[i]);
    }
    if (kIsFrozen)
      for (int i = 0; i < m; ++i) {
        const int64_t slot = slot_of(i);
        updates->rows[slot] = input_ids[i];
        dx[i] = delta_row(*updates, slot);
      }
  }
  for (int j = 0; j < n; ++j) o[j] = output + output_ids[j] * job.stride[table];
  float** d = o;
  if (kIsFrozen) {
    d = scratch.output_updates;
    for (int j = 0; j < n; ++j) {
      const int64_t row = updates->row_count++;
      updates->rows[row] = output_ids[j];
      updates->tables[row] = static_cast<uint8_t>(table);
      d[j] = delta_row(*updates, row);
    }
  }

  // Tiles of outputs of almost equal width; the scores of a tile are laid out together.
  const int tiles = (n + kTile - 1) / kTile;
  const auto tile_start = [&](int tile) { return tile * n / tiles; };
  float *const g = scratch.gradient, *const label = scratch.label;
  int count = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int start = tile_start(tile), wide = tile_start(tile + 1) - start;
    float pattern[8] = {};
    if (step.codes)
      for (int j = 0; j < wide; ++j) pattern[j] = 1.0f - static_cast<float>(step.codes[start + j]);
    else if (tile == 0)
      pattern[0] = 1.0f;
    score_any(wide, x, o + start, full, tail, m, g + count);
    for (int i = 0; i < m; ++i) memcpy(label + count + i * wide, pattern, sizeof pattern);
    count += m * wide;
  }
  store(g + count, splat(80.0f));  // the padding: sigmoid 1, label 1
  store(label + count, splat(1.0f));
  if (__builtin_expect(input_weight || output_weight, 0)) {
    // Rare, so simple: one score at a time through the same arithmetic.
    int at = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      const int start = tile_start(tile), wide = tile_start(tile + 1) - start;
      for (int i = 0; i < m; ++i)
        for (int j = 0; j < wide; ++j, ++at) {
          const float weight = (input_weight ? input_weight[i] : 1.0f) *
                               (output_weight ? output_weight[start + j] : 1.0f);
          float s[kLanes], y[kLanes];
          store(s, splat(80.0f));
          store(y, splat(1.0f));
          s[0] = g[at];
          y[0] = label[at];
          const double loss = gradients<kLoss>(s, y, 1, step.alpha);
          g[at] = weight * s[0];
          scratch.loss += static_cast<double>(weight) * loss;
        }
    }
  } else {
    scratch.loss += gradients<kLoss>(g, label, count, step.alpha);
  }
  scratch.terms += static_cast<int64_t>(job.cbow ? 1 : step.input_count) * step.output_count;

  if (kIsFrozen || job.cbow || tiles > 1) {
    const bool own = !kIsFrozen && !job.cbow;  // the inputs' updates must wait until the last tile
    if (own)
      for (int i = 0; i < m; ++i) {
        dx[i] = scratch.accumulator + i * padded;
        for (int64_t at = 0; at < padded; at += kLanes) store(dx[i] + at, vfloat{});
      }
    int at = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      const int start = tile_start(tile), wide = tile_start(tile + 1) - start;
      update_any<kIsFrozen ? kFrozen : kAccumulate>(wide, x, dx, o + start, d + start, full, tail, m,
                                                    g + at);
      at += m * wide;
    }
    if (own)
      for (int i = 0; i < m; ++i) add_row(const_cast<float*>(x[i]), dx[i], 1.0f, full, tail);
  } else {
    update_any<kInPlace>(n, x, dx, o, o, full, tail, m, g);
  }

  if (job.cbow) {
    const float share = job.cbow_mean ? 1.0f : 1.0f / static_cast<float>(steps_inputs);
    for (int i = 0; i < steps_inputs; ++i) {
      float* row = input + input_ids[i] * job.stride[kInput];
      if (kIsFrozen) {
        const int64_t slot = slot_of(i);
        updates->rows[slot] = input_ids[i];
        row = delta_row(*updates, slot);
      }
      add_row(row, hidden_update, share, full, tail);
    }
  }
}

template <bool kIsFrozen, bool kLoss>
void train_range(const SkipgramJob& job, const SkipgramStream* stream, int64_t first, int64_t last,
                 SkipgramScratch& scratch, SkipgramUpdates* updates) {
  // Two windows ahead their rows have time to arrive; single pairs are shorter.
  const bool windows = stream && (job.shared_negatives || job.cbow);
  const int32_t ahead = windows ? 2 : 5;
  const auto end_of = [&](int64_t from) {
    return from + kSkipgramBlock < last ? from + kSkipgramBlock : last;
  };
  int now = 0;
  int64_t planned = end_of(first);
  plan_block(job, stream, first, planned, scratch.plan[0]);
  int64_t begin = first;
  while (begin < last) {
    const SkipgramPlan& plan = scratch.plan[now];
    SkipgramPlan& next = scratch.plan[1 - now];
    begin = planned;
    planned = end_of(begin);
    next.step_count = 0;
    if (begin < last) plan_block(job, stream, begin, planned, next);
    for (int32_t s = 0; s < plan.step_count; ++s) {
      const int32_t later = s + ahead;
      if (later < plan.step_count)
        fetch_step(job, plan.steps[later]);
      else if (later - plan.step_count < next.step_count)
        fetch_step(job, next.steps[later - plan.step_count]);
      train_step<kIsFrozen, kLoss>(job, plan.steps[s], scratch, updates);
    }
    now = 1 - now;
  }
}

}  // namespace

void skipgram_survivors(const SkipgramJob& job, int64_t first, int64_t last, SkipgramStream& stream) {
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
        bits[i] = static_cast<uint32_t>(draw(job.key_subsample, counter + static_cast<uint64_t>(i)) >> 40);
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
  for (int64_t k = start; k < size; ++k) {
    stream.low[k] = static_cast<int32_t>(start);
    stream.high[k] = static_cast<int32_t>(size);
  }
  stream.size = size;
}

void skipgram_train(const SkipgramJob& job, const SkipgramStream* stream, int64_t first, int64_t last,
                    SkipgramScratch& scratch) {
  if (job.compute_loss)
    train_range<false, true>(job, stream, first, last, scratch, nullptr);
  else
    train_range<false, false>(job, stream, first, last, scratch, nullptr);
}

void skipgram_collect(const SkipgramJob& job, const SkipgramStream* stream, int64_t first, int64_t last,
                      SkipgramScratch& scratch, SkipgramUpdates& updates) {
  updates.row_count = updates.slot_count;
  for (int64_t row = 0; row < updates.slot_count; ++row) {
    updates.rows[row] = -1;
    updates.tables[row] = kInput;
    float* delta = delta_row(updates, row);
    for (int64_t at = 0; at < updates.delta_stride; at += kLanes) store(delta + at, vfloat{});
  }
  if (job.compute_loss)
    train_range<true, true>(job, stream, first, last, scratch, &updates);
  else
    train_range<true, false>(job, stream, first, last, scratch, &updates);
}

void skipgram_apply(const SkipgramJob& job, const SkipgramUpdates& updates, int64_t first, int64_t last,
                    int64_t share, int64_t shares) {
  constexpr int64_t kAhead = 4;
  const int64_t full = first + (last - first) / kLanes * kLanes;
  const int tail = static_cast<int>(last - full);
  for (int64_t r = 0; r < updates.row_count; ++r) {
    if (r + kAhead < updates.row_count && updates.rows[r + kAhead] >= 0) {
      const int table = updates.tables[r + kAhead];
      fetch_row(job.table[table] + updates.rows[r + kAhead] * job.stride[table] + first, last - first);
    }
    const int32_t id = updates.rows[r];
    if (id < 0 || (shares > 1 && id % shares != share)) continue;
    float* row = job.table[updates.tables[r]] + id * job.stride[updates.tables[r]];
    const float* delta = updates.deltas + r * updates.delta_stride;
    for (int64_t at = first; at < full; at += kLanes) store(row + at, load(row + at) + load(delta + at));
    if (tail) store_tail(row + full, load_tail(row + full, tail) + load_tail(delta + full, tail), tail);
  }
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
