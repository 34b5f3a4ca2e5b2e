// The driver of the skip-gram operator: shares a call out over workers.
//
// One step after another (Hogwild): tasks of whole sentences, about 4,096 tokens each, are taken
// from an atomic counter; every worker draws, plans and trains on its own.
//
// In shards (the same bits for any number of workers): the call's text is cut into four shards, and
// each trains on its own for some hundreds of centers. Then what they did is merged. Since all
// draws are known beforehand, so are the rows that each shard is going to touch: those that no
// other touches are trained where they are, and of the others each shard has a copy.
#include "cpu/skipgram.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
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

std::vector<std::unique_ptr<Worker>> make_workers(const SkipgramJob& job, int count,
                                                  int64_t plans) {
  // Before the parallel part: where others wait for a worker, it must not throw.
  std::vector<std::unique_ptr<Worker>> workers;
  for (int t = 0; t < count; ++t) workers.push_back(std::make_unique<Worker>(job, plans));
  return workers;
}

// How much of what `copies` of a row have changed is added to it, when each has been changed so
// often (see the reference).
float merge_weight(int copies, double changes) {
  constexpr double kSettled = 64;
  return static_cast<float>((1 + (copies - 1) / (1 + changes / kSettled)) / copies);
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
        t.weight[front ? r : count - 1 - r] = merge_weight(threads, changes);
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
  static constexpr int64_t kLeastTokens =
      200000;  // in fewer, the start of training would be slowed
  static constexpr int64_t kCenters = 4096, kLeastCenters = 256;
  static constexpr double kLeastChanges = 2;

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
  const auto workers = make_workers(job, threads, 2);
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

// Where workers wait for each other.
class Barrier {
 public:
  void set_size(int size) { size_ = size; }

  void wait() {
    const int turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    // A neighbor who was put to sleep may need our processor: after a while we sleep too.
    for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins)
      if (spins >= kSpins) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }

 private:
  static constexpr int kSpins = 1 << 16;
  int size_ = 1;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> turn_{0};
};

constexpr int kShards = 4;

// A set of rows.
class RowSet {
 public:
  explicit RowSet(int64_t rows) : bits_(static_cast<std::size_t>((rows + 63) / 64)) {}

  int64_t words() const { return static_cast<int64_t>(bits_.size()); }
  uint64_t& word(int64_t w) { return bits_[static_cast<std::size_t>(w)]; }
  uint64_t word(int64_t w) const { return bits_[static_cast<std::size_t>(w)]; }
  void add(int64_t row) { word(row / 64) |= uint64_t{1} << (row % 64); }
  bool has(int64_t row) const { return word(row / 64) >> (row % 64) & 1; }
  void clear() { std::fill(bits_.begin(), bits_.end(), 0); }

 private:
  std::vector<uint64_t> bits_;
};

template <class Body>
void each_bit(uint64_t bits, const Body& body) {
  for (; bits; bits &= bits - 1) body(__builtin_ctzll(bits));
}

// A part of a call's text (or pairs), and the rows that it touches in a round.
class Shard {
 public:
  // The sentences (or pairs) [first, last); rows[t]: of table t; `sync` centers in a round.
  Shard(const SkipgramJob& job, int64_t first, int64_t last, int64_t longest, int64_t sync,
        const std::array<int64_t, 3>& rows)
      : worker_(job, (sync + kSkipgramBlock - 1) / kSkipgramBlock),
        sync_(sync),
        next_(first),
        last_(last),
        first_copy_(job.vocabulary),
        tables_{Table(rows[0]), Table(rows[1]), Table(rows[2])} {
    if (job.tokens) stream_.reserve(2 * longest + sync);
    const Bounds bounds(job, 1);
    const int64_t most[3] = {sync * bounds.inputs, sync * bounds.rows,
                             job.path_offsets ? sync * bounds.outputs : 0};
    for (int t = 0; t < 3; ++t) {
      const int64_t limit = std::min(most[t], rows[t]);
      tables_[t].changes.resize(static_cast<std::size_t>(limit));
      float* copies = tables_[t].memory.reserve(limit * padded_dim(job) + 1);
      worker_.scratch.hot[t] = {first_copy_, 0, padded_dim(job), copies, nullptr, nullptr};
    }
  }

  // Draws and plans the next round, and notes what it touches.
  void plan(const SkipgramJob& job) {
    SkipgramScratch& scratch = worker_.scratch;
    const auto plan_kernel = VECSMITH_PICK_KERNEL(skipgram_plan);
    if (job.tokens) {
      refill(job);
      const int64_t end = std::min(stream_.view.size, cursor_ + sync_);
      plan_kernel(job, &stream_.view, cursor_, end, scratch);
      cursor_ = end;
    } else {
      const int64_t end = std::min(last_, next_ + sync_);
      plan_kernel(job, nullptr, next_, end, scratch);
      next_ = end;
    }
    for (Table& table : tables_) table.touched.clear();
    each_step([&](const SkipgramStep& step, int table, int64_t outputs) {
      for (int32_t i = 0; i < step.input_count; ++i) tables_[kInput].touched.add(step.inputs[i]);
      for (int64_t j = 0; j < outputs; ++j) tables_[table].touched.add(step.outputs[j]);
    });
  }

  // Whether there was anything to plan.
  bool active() const { return worker_.scratch.planned > 0; }

  // Gives the shard copies of the rows that others touch too, and lets its steps find them.
  void resolve(const SkipgramJob& job, const std::vector<std::unique_ptr<Shard>>& shards) {
    for (int t = 0; t < 3; ++t) {
      Table& table = tables_[t];
      SkipgramHot& hot = worker_.scratch.hot[t];
      hot.count = 0;
      for (int64_t w = 0; w < table.touched.words(); ++w) {
        uint64_t others = 0;
        for (const auto& other : shards)
          if (other.get() != this) others |= other->tables_[t].touched.word(w);
        const uint64_t shared = table.shared.word(w) = table.touched.word(w) & others;
        each_bit(shared, [&](int bit) {
          const int64_t row = 64 * w + bit;
          table.copy[static_cast<std::size_t>(row)] = static_cast<int32_t>(hot.count);
          std::copy_n(job.table[t] + row * job.stride[t], job.dim,
                      hot.row + hot.count++ * hot.stride);
        });
      }
    }
    for (int t = 0; t < 3; ++t)
      std::fill_n(tables_[t].changes.begin(), worker_.scratch.hot[t].count, 0);
    each_step([&](const SkipgramStep& step, int table, int64_t outputs) {
      redirect(tables_[kInput], const_cast<int32_t*>(step.inputs), step.input_count);
      // (All pairs of a center change its row.)
      redirect(tables_[table], const_cast<int32_t*>(step.outputs), 1,
               step.pairs ? step.input_count : 1);
      redirect(tables_[table], const_cast<int32_t*>(step.outputs + 1), outputs - 1);
    });
  }

  void train(const SkipgramJob& job) {
    VECSMITH_PICK_KERNEL(skipgram_train_planned)(job, worker_.scratch);
  }

  // Merges every fourth 64 of the rows that several shards have changed.
  static void merge(const SkipgramJob& job, int part,
                    const std::vector<std::unique_ptr<Shard>>& shards) {
    const auto combine = VECSMITH_PICK_KERNEL(skipgram_combine);
    for (int t = 0; t < 3; ++t)
      for (int64_t w = part; w < shards[0]->tables_[t].shared.words(); w += kShards) {
        uint64_t rows = 0;
        for (const auto& shard : shards) rows |= shard->tables_[t].shared.word(w);
        each_bit(rows, [&](int bit) {
          const float* copies[kShards];
          int count = 0;
          double changes = 0;
          for (const auto& shard : shards) {
            const Table& table = shard->tables_[t];
            if (!table.shared.has(64 * w + bit)) continue;
            const SkipgramHot& hot = shard->worker_.scratch.hot[t];
            const std::size_t copy = static_cast<std::size_t>(table.copy[64 * w + bit]);
            copies[count++] = hot.row + static_cast<int64_t>(copy) * hot.stride;
            changes += table.changes[copy];
          }
          combine(job, t, 64 * w + bit, copies, count, merge_weight(count, changes / count));
        });
      }
  }

  double loss() const { return worker_.scratch.loss; }
  int64_t terms() const { return worker_.scratch.terms; }

 private:
  struct Table {
    explicit Table(int64_t rows)
        : touched(rows), shared(rows), copy(static_cast<std::size_t>(rows)) {}

    RowSet touched, shared;        // by this shard; by others too
    std::vector<int32_t> copy;     // where the shard's copy of a shared row is
    std::vector<int32_t> changes;  // how often steps change each copy
    Aligned<float> memory;
  };

  void redirect(Table& table, int32_t* ids, int64_t count, int32_t times = 1) const {
    for (int64_t i = 0; i < count; ++i) {
      // (Two steps may have the same inputs: some have been seen to.)
      if (ids[i] < first_copy_) {
        if (!table.shared.has(ids[i])) continue;
        ids[i] = static_cast<int32_t>(first_copy_ + table.copy[static_cast<std::size_t>(ids[i])]);
      }
      table.changes[static_cast<std::size_t>(ids[i] - first_copy_)] += times;
    }
  }

  template <class Body>
  void each_step(const Body& body) {
    for (int64_t b = 0; b < worker_.scratch.planned; ++b) {
      const SkipgramPlan& plan = worker_.scratch.plan[b];
      for (int64_t s = 0; s < plan.step_count; ++s) {
        const SkipgramStep& step = plan.steps[s];
        body(step, step.codes ? kTree : kOutput,
             step.pairs ? 1 + static_cast<int64_t>(step.input_count) * (step.output_count - 1)
                        : step.output_count);
      }
    }
  }

  // Survivors for another round, as far as there are any.
  void refill(const SkipgramJob& job) {
    const auto survivors = VECSMITH_PICK_KERNEL(skipgram_survivors);
    if (stream_.view.size - cursor_ >= sync_ || next_ == last_) return;
    cursor_ -= stream_.keep_from(cursor_);
    while (stream_.view.size - cursor_ < sync_ && next_ < last_) {
      survivors(job, job.offsets[next_], job.offsets[next_ + 1], stream_.view);
      ++next_;
    }
  }

  Worker worker_;
  Stream stream_;
  const int64_t sync_;
  int64_t next_, last_;  // sentences or pairs
  const int64_t first_copy_;
  int64_t cursor_ = 0;  // in the stream
  Table tables_[3];
};

// bounds[s] .. bounds[s+1]: the sentences or pairs of shard s.
void in_shards(const SkipgramJob& job, const std::array<int64_t, kShards + 1>& bounds,
               int64_t longest, int threads, int64_t sync, const std::array<int64_t, 3>& rows,
               double* result) {
#ifdef _OPENMP
  threads = std::min(threads, omp_get_num_procs());
#endif
  threads = std::max(1, std::min(threads, kShards));
  std::vector<std::unique_ptr<Shard>> shards;
  for (int s = 0; s < kShards; ++s)
    shards.push_back(std::make_unique<Shard>(job, bounds[s], bounds[s + 1], longest, sync, rows));
  Barrier barrier;
  parallel(threads, [&](int worker, int team) {
  // The system may have given fewer than asked for.
#ifdef _OPENMP
#pragma omp single
#endif
    barrier.set_size(team);
    const auto each = [&](const auto& body) {
      for (int s = worker; s < kShards; s += team) body(s);
      barrier.wait();
    };
    for (;;) {
      each([&](int s) { shards[s]->plan(job); });
      if (std::none_of(shards.begin(), shards.end(), [](const auto& s) { return s->active(); }))
        break;
      each([&](int s) {
        shards[s]->resolve(job, shards);
        shards[s]->train(job);
      });
      each([&](int s) { Shard::merge(job, s, shards); });
    }
  });
  result[0] = result[1] = 0;
  for (const auto& shard : shards) {
    result[0] += shard->loss();
    result[1] += static_cast<double>(shard->terms());
  }
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

void skipgram_run(const SkipgramJob& given, int threads, int64_t sync, double* result) {
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
  if (sync == 0) return hogwild(job, threads, result);
  // Shards of whole sentences, of about as many tokens each.
  std::array<int64_t, kShards + 1> bounds{};
  for (int s = 1; s <= kShards; ++s) {
    const int64_t start =
        job.offsets[0] + (job.offsets[job.sentences] - job.offsets[0]) * s / kShards;
    bounds[s] = s == kShards ? job.sentences
                             : std::lower_bound(job.offsets, job.offsets + job.sentences, start) -
                                   job.offsets;
  }
  in_shards(job, bounds, longest, threads, sync,
            {job.vocabulary, job.table[kOutput] ? job.vocabulary : 0,
             job.table[kTree] ? job.vocabulary - 1 : 0},
            result);
}

void skipgram_pairs_run(const SkipgramJob& given, int64_t pairs, int threads, int64_t sync,
                        double* result) {
  SkipgramJob job = given;
  job.max_inputs = 1;
  job.max_outputs = static_cast<int64_t>(job.negative) + 1;
  if (sync > 0) {
    std::array<int64_t, kShards + 1> bounds{};
    for (int s = 1; s <= kShards; ++s) bounds[s] = pairs * s / kShards;
    return in_shards(job, bounds, 0, threads, sync, {job.vocabulary, job.vocabulary, 0}, result);
  }
  const int64_t tasks = (pairs + kTaskPairs - 1) / kTaskPairs;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
  const auto workers = make_workers(job, threads, 2);
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
