// What the drivers of the skip-gram operator are made of: the memory of workers, streams and plans,
// and the two ways to share a call out over workers.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/skipgram.h"

namespace vecsmith {

template <class T>
struct Aligned {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data;
  int64_t size = 0;

  T* reserve(int64_t n) {
    if (n > size) {
      const std::size_t bytes = (static_cast<std::size_t>(n) * sizeof(T) + 63) / 64 * 64;
      void* p = std::aligned_alloc(64, bytes);
      if (!p) throw std::bad_alloc();
      data.reset(static_cast<T*>(p));
      size = n;
    }
    return data.get();
  }
};

// The most that a plan of `centers` centers (or pairs) can need.
struct Bounds {
  int64_t inputs, outputs, steps, ids, weights, bits;
  int64_t rows;   // output rows of a step
  int64_t pairs;  // drawn together
  int64_t group;  // scores of a group, padded

  Bounds(const SkipgramJob& job, int64_t centers) {
    const bool pairwise = job.offsets && !job.shared_negatives && !job.cbow;
    inputs = job.max_inputs;
    outputs = job.max_outputs;
    const int64_t own = pairwise ? inputs : 1;  // sets of negatives of a center
    const int64_t negative = job.negative;
    steps = centers * (own + 1);
    ids = centers * (2 * inputs + own * (negative + 1) + (job.path_offsets ? outputs : 0)) +
          kSkipgramPadding;
    weights = ids;
    rows = std::max(outputs, pairwise ? 1 + inputs * negative : 0) + kSkipgramPadding;
    pairs = pairwise ? std::max<int64_t>(kSkipgramPairs, inputs) : 0;
    bits = std::max<int64_t>(kSkipgramBlock, pairs) * negative + 1;
    group = ((job.cbow ? 1 : inputs) * outputs + 2 * kSkipgramPadding + 15) / 16 * 16;
  }
};

// The memory behind a SkipgramPlan.
class Plan {
 public:
  SkipgramPlan view{};

  void reserve(const SkipgramJob& job, int64_t centers) {
    const Bounds bounds(job, centers);
    view.steps = steps_.reserve(bounds.steps);
    view.ids = ids_.reserve(bounds.ids);
    view.weights = weights_.reserve(bounds.weights);
    view.bits = bits_.reserve(bounds.bits);
    view.pair_capacity = bounds.pairs;
    view.pairs.counter = counter_.reserve(bounds.pairs + 1);
    view.pairs.center = center_.reserve(bounds.pairs + 1);
    view.pairs.word = word_.reserve(bounds.pairs * job.negative + 1);
    view.pairs.coincide = coincide_.reserve(bounds.pairs + 1);
  }

 private:
  Aligned<SkipgramStep> steps_;
  Aligned<int32_t> ids_, center_, word_, coincide_;
  Aligned<float> weights_;
  Aligned<uint64_t> bits_, counter_;
};

// The memory behind one worker's SkipgramScratch.
class Worker {
 public:
  Worker(const SkipgramJob& job, int64_t plans) : plans_(static_cast<std::size_t>(plans)) {
    const Bounds bounds(job, kSkipgramBlock);
    scratch.planned = 0;
    scratch.plan = views_.reserve(plans);
    for (std::size_t b = 0; b < plans_.size(); ++b) {
      plans_[b].reserve(job, kSkipgramBlock);
      scratch.plan[b] = plans_[b].view;
    }
    const int64_t scores = bounds.group;
    scratch.input_rows = input_rows_.reserve(bounds.inputs + kSkipgramPadding);
    scratch.input_updates = input_updates_.reserve(bounds.inputs);
    scratch.output_rows = output_rows_.reserve(bounds.rows);
    scratch.score = score_.reserve(scores);
    scratch.label = label_.reserve(scores);
    scratch.common_label = common_label_.reserve(scores);
    scratch.score_capacity = scores;
    scratch.weight = weight_.reserve(scores);
    scratch.row = row_.reserve(2 * padded_dim(job));
    scratch.accumulator = accumulator_.reserve((job.cbow ? 1 : bounds.inputs) * padded_dim(job));
    for (SkipgramHot& hot : scratch.hot) hot = SkipgramHot{};
    scratch.loss = 0;
    scratch.terms = 0;
  }

  SkipgramScratch scratch;

 private:
  std::vector<Plan> plans_;
  Aligned<SkipgramPlan> views_;
  Aligned<float*> input_rows_, input_updates_, output_rows_;
  Aligned<float> score_, weight_, row_, accumulator_;
  Aligned<int32_t> label_, common_label_;
};

// A growing stream of survivors.
class Stream {
 public:
  SkipgramStream view{};

  // Room for `more` survivors beyond those there.
  void reserve(int64_t more) {
    const int64_t need = view.size + more;
    if (need <= static_cast<int64_t>(position_.size())) return;
    const std::size_t room = static_cast<std::size_t>(need + need / 2);
    // Sixteen ids before the first and after the last, so that sixteen can be read at once.
    id_.resize(room + 2 * kMargin, -1);
    position_.resize(room);
    low_.resize(room);
    high_.resize(room);
    repeat_.resize(room + kMargin);
    view.id = id_.data() + kMargin;
    view.repeat = repeat_.data();
    view.position = position_.data();
    view.low = low_.data();
    view.high = high_.data();
  }

  // Drops the survivors before the sentence of survivor k (all, if k is the end); returns how many.
  int64_t keep_from(int64_t k) {
    const int64_t from = k < view.size ? view.low[k] : view.size, left = view.size - from;
    std::copy_n(view.id + from, left, view.id);
    std::copy_n(view.position + from, left, view.position);
    std::copy_n(view.repeat + from, left, view.repeat);
    for (int64_t i = 0; i < left; ++i) {
      view.low[i] = static_cast<int32_t>(view.low[from + i] - from);
      view.high[i] = static_cast<int32_t>(view.high[from + i] - from);
    }
    view.size = left;
    return from;
  }

 private:
  std::vector<int32_t> id_, low_, high_;
  std::vector<int64_t> position_;
  std::vector<uint8_t> repeat_;
  static constexpr std::size_t kMargin = 16;
};

inline std::vector<std::unique_ptr<Worker>> make_workers(const SkipgramJob& job, int count,
                                                         int64_t plans) {
  // Before the parallel part: where others wait for a worker, it must not throw.
  std::vector<std::unique_ptr<Worker>> workers;
  for (int t = 0; t < count; ++t) workers.push_back(std::make_unique<Worker>(job, plans));
  return workers;
}

// How much of what `copies` of a row have changed is added to it, when each has been changed so
// often (see the reference).
inline float merge_weight(int copies, double changes) {
  constexpr double kSettled = 64;
  return static_cast<float>((1 + (copies - 1) / (1 + changes / kSettled)) / copies);
}

constexpr int kSkipgramShards = 4;

// One step after another, by workers that do not wait for each other (skipgram_hogwild.cpp).
void skipgram_hogwild(const SkipgramJob& job, int threads, double* result);
void skipgram_hogwild_pairs(const SkipgramJob& job, int64_t pairs, int threads, double* result);

// In shards that are merged every `sync` centers (skipgram_shards.cpp). bounds[s] .. bounds[s + 1]:
// the sentences or pairs of shard s; longest: tokens of a sentence; rows[t]: of table t.
void skipgram_sharded(const SkipgramJob& job,
                      const std::array<int64_t, kSkipgramShards + 1>& bounds, int64_t longest,
                      int threads, int64_t sync, const std::array<int64_t, 3>& rows,
                      double* result);

}  // namespace vecsmith
