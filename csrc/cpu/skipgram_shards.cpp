// Training in shards, with the same bits for any number of workers: the call's text is cut into
// four shards, and each trains on its own for some hundreds of centers. Then what they did is
// merged. Since all draws are known beforehand, so are the rows that each shard is going to touch:
// those that no other touches are trained where they are, and of the others each shard has a copy.
#include <algorithm>
#include <stdexcept>

#include "cpu/skipgram_worker.h"

namespace vecsmith {
namespace {

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
    if (job.offsets)
      stream_.reserve(std::min(2 * longest + sync, job.offsets[last] - job.offsets[first] + 1));
    const Bounds bounds(job, 1);
    const int64_t most[3] = {sync * bounds.inputs, sync * bounds.rows,
                             job.path_offsets ? sync * bounds.outputs : 0};
    for (int t = 0; t < 3; ++t) {
      const int64_t limit = std::min(most[t], rows[t]);
      tables_[t].changes.resize(static_cast<std::size_t>(limit));
      float* copies = tables_[t].memory.reserve(limit * padded_dim(job) + 1);
      worker_.scratch.hot[t] = {first_copy_, 0, padded_dim(job), copies, nullptr};
    }
  }

  // Draws and plans the next round, and notes what it touches.
  void plan(const SkipgramJob& job) {
    SkipgramScratch& scratch = worker_.scratch;
    const auto plan_kernel = VECSMITH_PICK_KERNEL(skipgram_plan);
    if (job.offsets) {
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
          table.copy[row] = static_cast<int32_t>(hot.count);
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
      for (int64_t w = part; w < shards[0]->tables_[t].shared.words(); w += kSkipgramShards) {
        uint64_t rows = 0;
        for (const auto& shard : shards) rows |= shard->tables_[t].shared.word(w);
        each_bit(rows, [&](int bit) {
          const float* copies[kSkipgramShards];
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
    explicit Table(int64_t rows) : touched(rows), shared(rows), copy(places.reserve(rows + 1)) {}

    RowSet touched, shared;  // by this shard; by others too
    Aligned<int32_t> places;
    int32_t* copy;                 // where the shard's copy of a shared row is
    std::vector<int64_t> changes;  // how often steps change each copy
    Aligned<float> memory;
  };

  void redirect(Table& table, int32_t* ids, int64_t count, int32_t times = 1) const {
    for (int64_t i = 0; i < count; ++i) {
      // (Two steps may have the same inputs: some have been seen to.)
      if (ids[i] < first_copy_) {
        if (!table.shared.has(ids[i])) continue;
        ids[i] = static_cast<int32_t>(first_copy_ + table.copy[ids[i]]);
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
        body(step, step.codes ? kTree : kOutput, output_rows(step));
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

}  // namespace

void skipgram_sharded(const SkipgramJob& job,
                      const std::array<int64_t, kSkipgramShards + 1>& bounds, int64_t longest,
                      int threads, int64_t sync, const std::array<int64_t, 3>& rows,
                      double* result) {
#ifdef _OPENMP
  threads = std::min(threads, omp_get_num_procs());
#endif
  threads = std::max(1, std::min(threads, kSkipgramShards));
  // A round is no longer than a shard.
  int64_t most = 1;
  for (int s = 0; s < kSkipgramShards; ++s)
    most = std::max(most, job.offsets ? job.offsets[bounds[s + 1]] - job.offsets[bounds[s]]
                                      : bounds[s + 1] - bounds[s]);
  sync = std::min(sync, most);
  // Copies are numbered behind the rows.
  if (job.vocabulary + *std::max_element(rows.begin(), rows.end()) > INT32_MAX)
    throw std::invalid_argument("skipgram: expected at most 2^30 rows with sync_every");
  std::vector<std::unique_ptr<Shard>> shards;
  for (int s = 0; s < kSkipgramShards; ++s)
    shards.push_back(std::make_unique<Shard>(job, bounds[s], bounds[s + 1], longest, sync, rows));
  Barrier barrier;
  parallel(threads, [&](int worker, int team) {
    const auto each = [&](const auto& body) {
      for (int s = worker; s < kSkipgramShards; s += team) body(s);
      barrier.wait(team);
    };
    const auto active = [](const auto& shard) { return shard->active(); };
    each([&](int s) { shards[s]->plan(job); });
    while (std::any_of(shards.begin(), shards.end(), active)) {
      each([&](int s) {
        shards[s]->resolve(job, shards);
        shards[s]->train(job);
      });
      each([&](int s) {
        Shard::merge(job, s, shards);
        shards[s]->plan(job);
      });
    }
  });
  result[0] = result[1] = 0;
  for (const auto& shard : shards) {
    result[0] += shard->loss();
    result[1] += static_cast<double>(shard->terms());
  }
}

}  // namespace vecsmith
