// The driver of the skip-gram operator: shares a call out over workers.
//
// One step after another (Hogwild): tasks of whole sentences, about 4,096 tokens each, are taken
// from an atomic counter; every worker draws, plans and trains on its own.
//
// With a lag (the same bits for any number of workers): every worker runs through the same steps,
// but owns *columns* of the tables, so that no row ever travels between their caches. What travels
// are scores: each worker sums the part of the inner products that lies in its columns, `lag`
// groups of steps ahead of the updates, so that the others' parts have arrived when they are needed
// and nobody waits. The columns are cut into a number of slices that depends on the dimension
// alone, and so does the order of every sum.
#include "cpu/skipgram.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace vecsmith {
namespace {

constexpr int64_t kTaskTokens = 4096;
constexpr int64_t kTaskPairs = 2048;
constexpr int64_t kStreamTokens =
    16384;  // a pipeline draws survivors for about this many at a time

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

int64_t padded_dim(const SkipgramJob& job) { return (job.dim + 15) / 16 * 16; }

// The most that a plan of `centers` centers (or pairs) can need.
struct Bounds {
  int64_t inputs, outputs, steps, ids, weights, bits;
  int64_t rows;   // output rows of a step
  int64_t pairs;  // drawn together
  int64_t group;  // scores of a group, padded

  Bounds(const SkipgramJob& job, int64_t centers) {
    const bool pairwise = job.tokens && !job.shared_negatives && !job.cbow;
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

// Groups in flight in a pipeline: nobody is further than 2 lag + 2 ahead of another. A power of
// two.
int64_t ring_size(int64_t lag) {
  int64_t size = 4;
  while (size < 2 * lag + 6) size *= 2;
  return size;
}

// The memory behind one worker's SkipgramScratch.
class Worker {
 public:
  Worker(const SkipgramJob& job, int64_t lag) : plans_(static_cast<std::size_t>(lag + 3)) {
    const Bounds bounds(job, kSkipgramBlock);
    scratch.plan_count = static_cast<int64_t>(plans_.size());
    scratch.plan = views_.reserve(scratch.plan_count);
    for (std::size_t b = 0; b < plans_.size(); ++b) {
      plans_[b].reserve(job, kSkipgramBlock);
      scratch.plan[b] = plans_[b].view;
    }
    scratch.groups = groups_.reserve(ring_size(lag));
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
    scratch.terms = scratch.scored = scratch.applied = scratch.blocks = 0;
  }

  SkipgramScratch scratch;

 private:
  std::vector<Plan> plans_;
  Aligned<SkipgramPlan> views_;
  Aligned<float*> input_rows_, input_updates_, output_rows_;
  Aligned<float> score_, weight_, row_, accumulator_;
  Aligned<int32_t> label_, common_label_;
  Aligned<const SkipgramStep*> groups_;
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

 private:
  std::vector<int32_t> id_, low_, high_;
  std::vector<int64_t> position_;
  std::vector<uint8_t> repeat_;
  static constexpr std::size_t kMargin = 16;
};

// Runs body(worker index) on each of `threads` workers. An exception in one of them is rethrown
// here.
template <class Body>
void parallel(int threads, const Body& body) {
#ifdef _OPENMP
  std::exception_ptr error;
#pragma omp parallel num_threads(threads)
  {
    try {
      body(omp_get_thread_num(), omp_get_num_threads());
    } catch (...) {
#pragma omp critical(vecsmith_skipgram_error)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
#else
  (void)threads;
  body(0, 1);
#endif
}

std::vector<std::unique_ptr<Worker>> make_workers(const SkipgramJob& job, int threads,
                                                  int64_t lag) {
  // Before the parallel part: where others wait for a worker, it must not throw.
  std::vector<std::unique_ptr<Worker>> workers;
  for (int t = 0; t < threads; ++t) workers.push_back(std::make_unique<Worker>(job, lag));
  return workers;
}

// Rows that several workers change all the time travel from cache to cache with every change. Each
// worker has copies of the hottest instead, and merges them with the shared rows every so often.
//
// A row that changes once in a while is merged by adding up the workers' changes, as they would
// have come without copies. One that changes very often has settled, in every copy, by the time it
// is merged: of those the mean is taken, for adding up would overshoot. Between the two it goes by
// the number of changes.
class HotRows {
 public:
  HotRows(const SkipgramJob& job, int threads) {
    if (threads < 2 || job.offsets[job.sentences] < kLeastTokens) return;
    every_ = std::max<int64_t>(kLeastCenters, kCenters * 2 / threads);
    const int64_t stride = padded_dim(job);
    const int64_t most = std::min<int64_t>(kMost, kBytes / (8 * stride)) / kStripe * kStripe;
    const auto settle = [&](int table, int64_t rows, bool front, const std::vector<double>& rate) {
      Table& t = tables_[table];
      // As many as change at least twice between two merges, found in stripes.
      int64_t count = 0;
      for (; count + kStripe <= std::min(most, rows); count += kStripe) {
        double sum = 0;
        for (int64_t r = count; r < count + kStripe; ++r) sum += rate[r];
        if (sum * every_ < kLeastChanges * kStripe) break;
      }
      t.first = front ? 0 : rows - count;
      t.weight.resize(count);
      for (int64_t r = 0; r < count; ++r) {
        const double changes = rate[r] * every_;
        t.weight[front ? r : count - 1 - r] =
            static_cast<float>((1 + (threads - 1) / (1 + changes / kSettled)) / threads);
      }
      t.locks = std::vector<std::atomic<bool>>(static_cast<std::size_t>(count / kStripe));
    };
    // Changes of each row for one center, of the first `most` words or the last `most` nodes.
    std::vector<double> word(most), node(most), negative(most);
    double survivors = 0;
    const int64_t tokens = job.offsets[job.sentences],
                  step = std::max<int64_t>(1, tokens / kSample);
    const int64_t nodes = job.vocabulary - 1;
    for (int64_t i = 0; i < tokens; i += step) {
      const int32_t id = job.tokens[i];
      const double kept = job.keep ? std::min(1.0f, job.keep[id]) : 1.0;
      survivors += kept;
      if (id < most) word[id] += kept;
      if (job.path_offsets)
        for (int64_t at = job.path_offsets[id]; at < job.path_offsets[id + 1]; ++at)
          if (nodes - 1 - job.path_nodes[at] < most) node[nodes - 1 - job.path_nodes[at]] += kept;
    }
    if (survivors <= 0) return;
    for (double& rate : word) rate /= survivors;
    for (double& rate : node) rate /= survivors;
    settle(kInput, job.vocabulary, true, word);
    if (job.path_offsets) settle(kTree, nodes, false, node);
    if (!job.negative) return;
    const bool pairwise = !job.shared_negatives && !job.cbow;
    const double contexts = job.shrink_windows ? job.window + 1 : 2 * job.window;
    const double draws = job.negative * (pairwise ? contexts : 1);
    for (int64_t v = 0; v < job.vocabulary; ++v) {
      const int32_t own = job.alias[2 * v], other = job.alias[2 * v + 1];
      if (v < most) negative[v] += own * 0x1p-31;
      if (other < most) negative[other] += 1 - own * 0x1p-31;
    }
    for (int64_t r = 0; r < most; ++r)
      word[r] += negative[r] * draws / static_cast<double>(job.vocabulary);
    settle(kOutput, job.vocabulary, true, word);
  }

  // Centers between two merges; 0: never.
  int64_t every() const { return every_; }

  // Gives a worker its copies.
  void hand_out(const SkipgramJob& job, SkipgramScratch& scratch, Aligned<float>* memory) {
    for (int table = 0; table < 3; ++table) {
      const int64_t count = static_cast<int64_t>(tables_[table].weight.size());
      const int64_t stride = padded_dim(job);
      float* rows = memory[table].reserve(2 * count * stride);
      std::fill_n(rows, 2 * count * stride, 0.0f);
      scratch.hot[table] = {tables_[table].first,        count, stride, rows, rows + count * stride,
                            tables_[table].weight.data()};
    }
  }

  void merge(const SkipgramJob& job, int worker, SkipgramScratch& scratch) {
    const auto merge_rows = VECSMITH_PICK_KERNEL(skipgram_merge);
    for (int table = 0; table < 3; ++table) {
      std::vector<std::atomic<bool>>& locks = tables_[table].locks;
      for (std::size_t k = 0; k < locks.size(); ++k) {
        const std::size_t stripe = (k + static_cast<std::size_t>(worker) * 7) % locks.size();
        while (locks[stripe].exchange(true, std::memory_order_acquire)) std::this_thread::yield();
        const int64_t first = static_cast<int64_t>(stripe) * kStripe;
        merge_rows(job, table, first, first + kStripe, scratch.hot[table]);
        locks[stripe].store(false, std::memory_order_release);
      }
    }
  }

 private:
  static constexpr int64_t kStripe = 16;         // rows under one lock
  static constexpr int64_t kMost = 1024;         // rows of a table
  static constexpr int64_t kBytes = 512 * 1024;  // of a table's copies: they must stay in the cache
  static constexpr int64_t kSample = 4096;       // tokens that the rates are taken from
  static constexpr int64_t kLeastTokens = 1 << 16;  // fewer are not worth it
  static constexpr int64_t kCenters = 4096, kLeastCenters = 256;
  static constexpr double kLeastChanges = 2, kSettled = 16;

  struct Table {
    int64_t first = 0;
    std::vector<float> weight;
    std::vector<std::atomic<bool>> locks;
  };
  Table tables_[3];
  int64_t every_ = 0;
};

void hogwild(const SkipgramJob& job, int threads, double* result) {
  // Tasks: runs of whole sentences.
  std::vector<int64_t> tasks{0};
  int64_t longest = 0;
  for (int64_t s = 0; s < job.sentences;) {
    const int64_t start = job.offsets[s];
    while (s < job.sentences && (job.offsets[s + 1] - start < kTaskTokens || s == tasks.back()))
      ++s;
    longest = std::max(longest, job.offsets[s] - start);
    tasks.push_back(s);
  }
  const int64_t task_count = static_cast<int64_t>(tasks.size()) - 1;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, task_count)));
  const auto workers = make_workers(job, threads, 0);
  std::vector<Stream> streams(static_cast<std::size_t>(threads));
  for (Stream& stream : streams) stream.reserve(longest);
  const auto survivors = VECSMITH_PICK_KERNEL(skipgram_survivors);
  const auto train = VECSMITH_PICK_KERNEL(skipgram_train);
  // Each worker begins in a stretch of text of its own (two in one article would meet in the same
  // rows), and helps the others when it has done.
  std::vector<std::atomic<int64_t>> next(static_cast<std::size_t>(threads));
  for (int t = 0; t < threads; ++t) next[t] = task_count * t / threads;
  HotRows hot(job, threads);
  std::vector<Aligned<float>> copies(static_cast<std::size_t>(threads) * 3);
  parallel(threads, [&](int worker, int size) {
    SkipgramScratch& scratch = workers[worker]->scratch;
    SkipgramStream& stream = streams[worker].view;
    const bool merges = size > 1 && hot.every() > 0;
    if (merges) {
      hot.hand_out(job, scratch, &copies[static_cast<std::size_t>(worker) * 3]);
      hot.merge(job, worker, scratch);
    }
    int64_t trained = 0;
    for (int k = 0; k < threads; ++k) {
      const int stretch = (worker + k) % threads;
      const int64_t end = task_count * (stretch + 1) / threads;
      for (int64_t task; (task = next[stretch].fetch_add(1)) < end;) {
        stream.size = 0;
        for (int64_t s = tasks[task]; s < tasks[task + 1]; ++s)
          survivors(job, job.offsets[s], job.offsets[s + 1], stream);
        for (int64_t first = 0; first < stream.size;) {
          int64_t last = stream.size;
          if (merges) last = std::min(last, first + hot.every() - trained);
          train(job, &stream, first, last, scratch);
          trained += last - first;
          first = last;
          if (merges && trained >= hot.every()) {
            hot.merge(job, worker, scratch);
            trained = 0;
          }
        }
      }
    }
    if (merges) hot.merge(job, worker, scratch);
  });
  result[0] = result[1] = 0;
  for (const auto& worker : workers) {
    result[0] += worker->scratch.loss;
    result[1] += static_cast<double>(worker->scratch.terms);
  }
}

// The memory behind a SkipgramPipeline.
class Pipeline {
 public:
  SkipgramPipeline view{};

  Pipeline(const SkipgramJob& job, int64_t lag) {
    view.lag = lag;
    const int64_t lines = (job.dim + 15) / 16;
    view.slices =
        static_cast<int32_t>(std::min<int64_t>(lines, job.dim < 512 ? 2 : kSkipgramSlices));
    for (int64_t k = 0; k <= view.slices; ++k)
      view.column[k] = k < view.slices ? lines * k / view.slices * 16 : job.dim;
    view.ring_mask = ring_size(lag) - 1;
    view.score_stride = Bounds(job, 1).group;
    view.scores = scores_.reserve(ring_size(lag) * view.slices * view.score_stride);
  }

  // The workers of a team of `threads` that have columns to work on.
  int32_t team(int threads) const {
    int32_t team = 1;
    while (2 * team <= threads && 2 * team <= view.slices) team *= 2;
    return team;
  }

 private:
  Aligned<float> scores_;
};

// Runs body(worker, scratch) on the workers of a pipeline.
template <class Body>
void pipelined(const SkipgramJob& job, int threads, Pipeline& pipeline, double* result,
               const Body& body) {
#ifdef _OPENMP
  threads = std::min(threads, omp_get_num_procs());
#endif
  threads = pipeline.team(threads);
  const auto workers = make_workers(job, threads, pipeline.view.lag);
  parallel(threads, [&](int worker, int size) {
    // The system may have given fewer than asked for: every one of them finds the same team.
    const int32_t team = pipeline.team(size);
    if (worker == 0) pipeline.view.team = team;
#ifdef _OPENMP
#pragma omp barrier
#endif
    if (worker < team) body(worker, workers[static_cast<std::size_t>(worker)]->scratch);
  });
  const SkipgramScratch& last = workers[static_cast<std::size_t>(pipeline.view.team - 1)]->scratch;
  result[0] = last.loss;
  result[1] = static_cast<double>(last.terms);
}

void lagged(const SkipgramJob& job, int threads, int64_t lag, double* result) {
  Pipeline pipeline(job, lag);
  // Every worker draws the survivors for itself: it is cheap, and saves waiting.
  std::vector<int64_t> loads{0};
  int64_t longest = 0;
  while (loads.back() < job.sentences) {
    int64_t s = loads.back();
    const int64_t start = job.offsets[s];
    do ++s;
    while (s < job.sentences && job.offsets[s + 1] - start <= kStreamTokens);
    longest = std::max(longest, job.offsets[s] - start);
    loads.push_back(s);
  }
  std::vector<Stream> streams(static_cast<std::size_t>(pipeline.team(threads)));
  for (Stream& stream : streams) stream.reserve(longest);
  const auto survivors = VECSMITH_PICK_KERNEL(skipgram_survivors);
  const auto train = VECSMITH_PICK_KERNEL(skipgram_lagged);
  pipelined(job, threads, pipeline, result, [&](int worker, SkipgramScratch& scratch) {
    SkipgramStream& stream = streams[static_cast<std::size_t>(worker)].view;
    for (std::size_t load = 0; load + 1 < loads.size(); ++load) {
      stream.size = 0;
      for (int64_t s = loads[load]; s < loads[load + 1]; ++s)
        survivors(job, job.offsets[s], job.offsets[s + 1], stream);
      train(job, &stream, 0, stream.size, false, scratch, pipeline.view, worker);
    }
    train(job, &stream, 0, 0, true, scratch, pipeline.view, worker);
  });
}

}  // namespace

uint64_t skipgram_key(uint64_t seed, uint64_t epoch, uint64_t stream) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
  const auto mix = [](uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  };
  return mix(mix(mix(seed + kGolden) + epoch + kGolden) + stream + kGolden);
}

void skipgram_run(const SkipgramJob& given, int threads, int64_t lag, double* result) {
  SkipgramJob job = given;
  // A window may be said to be far larger than any sentence.
  int64_t longest = 0;
  for (int64_t s = 0; s < job.sentences; ++s)
    longest = std::max(longest, job.offsets[s + 1] - job.offsets[s]);
  job.max_inputs =
      std::max<int64_t>(1, std::min<int64_t>(2 * static_cast<int64_t>(job.window), longest - 1));
  job.max_outputs = static_cast<int64_t>(job.negative) + 1;
  for (int64_t v = 0; job.path_offsets && v < job.vocabulary; ++v)
    job.max_outputs = std::max(job.max_outputs, job.path_offsets[v + 1] - job.path_offsets[v]);
  if (lag == 0)
    hogwild(job, threads, result);
  else
    lagged(job, threads, lag, result);
}

void skipgram_pairs_run(const SkipgramJob& given, int64_t pairs, int threads, int64_t lag,
                        double* result) {
  SkipgramJob job = given;
  job.max_inputs = 1;
  job.max_outputs = static_cast<int64_t>(job.negative) + 1;
  if (lag > 0) {
    Pipeline pipeline(job, lag);
    const auto train = VECSMITH_PICK_KERNEL(skipgram_lagged);
    return pipelined(job, threads, pipeline, result, [&](int worker, SkipgramScratch& scratch) {
      train(job, nullptr, 0, pairs, true, scratch, pipeline.view, worker);
    });
  }
  const int64_t tasks = (pairs + kTaskPairs - 1) / kTaskPairs;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
  const auto workers = make_workers(job, threads, 0);
  const auto train = VECSMITH_PICK_KERNEL(skipgram_train);
  std::atomic<int64_t> next{0};
  parallel(threads, [&](int worker, int) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;)
      train(job, nullptr, task * kTaskPairs, std::min(pairs, (task + 1) * kTaskPairs),
            workers[static_cast<std::size_t>(worker)]->scratch);
  });
  result[0] = result[1] = 0;
  for (const auto& worker : workers) {
    result[0] += worker->scratch.loss;
    result[1] += static_cast<double>(worker->scratch.terms);
  }
}

}  // namespace vecsmith
