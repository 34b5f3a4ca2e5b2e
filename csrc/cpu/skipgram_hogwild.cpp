// Lock-free training (Hogwild): tasks of whole sentences, about 4,096 tokens each, are taken from
// an atomic counter; every worker draws, plans and trains on its own.
#include <algorithm>
#include <atomic>
#include <thread>

#include "cpu/skipgram_worker.h"

namespace vecsmith {
namespace {

constexpr int64_t kTaskTokens = 4096;
constexpr int64_t kTaskPairs = 2048;

void add_up(const std::vector<std::unique_ptr<Worker>>& workers, double* result) {
  result[0] = result[1] = 0;
  for (const auto& worker : workers) {
    result[0] += worker->scratch.loss;
    result[1] += static_cast<double>(worker->scratch.terms);
  }
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
    if (threads < 2 || job.offsets[job.sentences] - job.offsets[0] < kLeastTokens) return;
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
      t.rate.resize(count);
      for (int64_t r = 0; r < count; ++r) t.rate[front ? r : count - 1 - r] = rate[r];
      t.locks = std::vector<std::atomic<bool>>(static_cast<std::size_t>(count / kStripe));
    };
    // Changes of each row for one center, of the first `most` words or the last `most` nodes.
    std::vector<double> word(most), node(most), negative(most);
    double survivors = 0;
    const int64_t begin = job.offsets[0], end = job.offsets[job.sentences];
    const int64_t step = std::max<int64_t>(1, (end - begin) / kSample);
    const int64_t nodes = job.vocabulary - 1;
    for (int64_t i = begin; i < end; i += step) {
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
      const int64_t count = static_cast<int64_t>(tables_[table].rate.size());
      const int64_t stride = padded_dim(job);
      float* rows = memory[table].reserve(2 * count * stride);
      std::fill_n(rows, 2 * count * stride, 0.0f);
      scratch.hot[table] = {tables_[table].first, count, stride, rows, rows + count * stride};
    }
  }

  // What a worker changed in `trained` centers while `active` workers (with it) were training.
  void merge(const SkipgramJob& job, int worker, int64_t trained, int active,
             SkipgramScratch& scratch) {
    const auto merge_rows = VECSMITH_PICK_KERNEL(skipgram_merge);
    for (int table = 0; table < 3; ++table) {
      std::vector<std::atomic<bool>>& locks = tables_[table].locks;
      for (std::size_t k = 0; k < locks.size(); ++k) {
        const std::size_t stripe = (k + static_cast<std::size_t>(worker) * 7) % locks.size();
        while (locks[stripe].exchange(true, std::memory_order_acquire)) std::this_thread::yield();
        const int64_t first = static_cast<int64_t>(stripe) * kStripe;
        float weight[kStripe];
        for (int64_t r = 0; r < kStripe; ++r)
          weight[r] = merge_weight(active, tables_[table].rate[first + r] * trained);
        merge_rows(job, table, first, first + kStripe, weight, scratch.hot[table]);
        locks[stripe].store(false, std::memory_order_release);
      }
    }
  }

 private:
  static constexpr int64_t kStripe = 16;         // rows under one lock
  static constexpr int64_t kMost = 1024;         // rows of a table
  static constexpr int64_t kBytes = 512 * 1024;  // of a table's copies: they must stay in the cache
  static constexpr int64_t kSample = 4096;       // tokens that the rates are taken from
  static constexpr int64_t kLeastTokens = 200000;  // of a call: fewer would be slow to start
  static constexpr int64_t kCenters = 4096, kLeastCenters = 256;
  static constexpr double kLeastChanges = 2;

  struct Table {
    int64_t first = 0;
    std::vector<double> rate;  // changes for one center
    std::vector<std::atomic<bool>> locks;
  };
  Table tables_[3];
  int64_t every_ = 0;
};

}  // namespace

void skipgram_hogwild(const SkipgramJob& job, int threads, double* result) {
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
  std::atomic<int> done{0};
  parallel(threads, [&](int worker, int size) {
    SkipgramScratch& scratch = workers[worker]->scratch;
    SkipgramStream& stream = streams[worker].view;
    const bool merges = size > 1 && hot.every() > 0;
    if (merges) {
      hot.hand_out(job, scratch, &copies[static_cast<std::size_t>(worker) * 3]);
      hot.merge(job, worker, 0, 1, scratch);  // of rows of zeros: takes over the shared ones
    }
    int64_t trained = 0;
    const auto merge = [&] {
      if (merges) hot.merge(job, worker, trained, size - done.load(), scratch);
      trained = 0;
    };
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
          if (merges && trained >= hot.every()) merge();
        }
      }
    }
    merge();
    ++done;
  });
  add_up(workers, result);
}

void skipgram_hogwild_pairs(const SkipgramJob& job, int64_t pairs, int threads, double* result) {
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
  add_up(workers, result);
}

}  // namespace vecsmith
