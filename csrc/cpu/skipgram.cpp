// The driver of the skip-gram operator: shares a call out over workers.
//
// One step after another (Hogwild): tasks of whole sentences, about 4,096 tokens each, are taken from an
// atomic counter; every worker draws, plans and trains on its own.
//
// Mini-batches (the same bits for any number of workers): a batch is the centers whose positions share
// floor(position / batch). Its centers are cut into parts at fixed positions. Phase one: workers take
// parts and compute their updates at the frozen tables, each part into rows of its own. Phase two: each
// worker adds the updates of all parts, in order, to its own columns of the tables. Neither the parts nor
// the order of any sum depends on the number of workers.
#include "cpu/skipgram.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace vecsmith {
namespace {

constexpr int64_t kTaskTokens = 4096;
constexpr int64_t kTaskPairs = 2048;
constexpr int64_t kPartsPerBatch = 8;
constexpr int64_t kStreamTokens = 16384;  // survivors are drawn about this many tokens at a time

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

// The memory behind one worker's SkipgramScratch.
class Worker {
 public:
  explicit Worker(const SkipgramJob& job) {
    const int64_t inputs = std::max<int64_t>(1, 2 * static_cast<int64_t>(job.window));
    const int64_t outputs = job.max_outputs;
    const bool pairwise = !job.shared_negatives && !job.cbow;
    const int64_t steps = kSkipgramBlock * (pairwise ? inputs : 1) * 2;
    const int64_t ids = kSkipgramBlock * (inputs + (pairwise ? inputs : 1) * (job.negative + 2));
    for (int b = 0; b < 2; ++b) {
      scratch.plan[b].steps = steps_[b].reserve(steps);
      scratch.plan[b].ids = ids_[b].reserve(ids);
      scratch.plan[b].bits = bits_[b].reserve(kSkipgramBlock * static_cast<int64_t>(job.negative) + 1);
      scratch.plan[b].step_count = 0;
    }
    scratch.input_rows = input_rows_.reserve(inputs);
    scratch.input_updates = input_updates_.reserve(inputs);
    scratch.output_rows = output_rows_.reserve(outputs);
    scratch.output_updates = output_updates_.reserve(outputs);
    scratch.gradient = gradient_.reserve(inputs * outputs + 64);
    scratch.label = label_.reserve(inputs * outputs + 64);
    scratch.row = row_.reserve(2 * padded_dim(job));
    scratch.accumulator = accumulator_.reserve(outputs > 6 ? inputs * padded_dim(job) : 16);
    const int64_t width = std::max(inputs, outputs);
    scratch.unique = unique_.reserve(4 * width);
    scratch.weight = weight_.reserve(2 * width);
    scratch.loss = 0;
    scratch.terms = 0;
  }

  SkipgramScratch scratch;

 private:
  Aligned<SkipgramStep> steps_[2];
  Aligned<int32_t> ids_[2], unique_;
  Aligned<uint64_t> bits_[2];
  Aligned<const float*> input_rows_;
  Aligned<float*> input_updates_, output_rows_, output_updates_;
  Aligned<float> gradient_, label_, row_, accumulator_, weight_;
};

// A growing stream of survivors.
class Stream {
 public:
  SkipgramStream view{};

  // Room for `more` survivors beyond those there.
  void reserve(int64_t more) {
    const int64_t need = view.size + more;
    if (need <= static_cast<int64_t>(id_.size())) return;
    const std::size_t room = static_cast<std::size_t>(need + need / 2);
    id_.resize(room);
    position_.resize(room);
    low_.resize(room);
    high_.resize(room);
    view.id = id_.data();
    view.position = position_.data();
    view.low = low_.data();
    view.high = high_.data();
  }

  // Forgets the first `count` survivors.
  void drop(int64_t count) {
    if (count == 0) return;
    std::copy(id_.begin() + count, id_.begin() + view.size, id_.begin());
    std::copy(position_.begin() + count, position_.begin() + view.size, position_.begin());
    for (int64_t k = count; k < view.size; ++k) {
      low_[k - count] = static_cast<int32_t>(std::max<int64_t>(0, low_[k] - count));
      high_[k - count] = static_cast<int32_t>(high_[k] - count);
    }
    view.size -= count;
  }

 private:
  std::vector<int32_t> id_, low_, high_;
  std::vector<int64_t> position_;
};

// Runs body(worker index) on each of `threads` workers. An exception in one of them is rethrown here.
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

void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

std::vector<std::unique_ptr<Worker>> make_workers(const SkipgramJob& job, int threads) {
  // Before the parallel part: nothing may throw between its barriers.
  std::vector<std::unique_ptr<Worker>> workers;
  for (int t = 0; t < threads; ++t) workers.push_back(std::make_unique<Worker>(job));
  return workers;
}

void hogwild(const SkipgramJob& job, int threads, double* result) {
  // Tasks: runs of whole sentences.
  std::vector<int64_t> tasks{0};
  int64_t longest = 0;
  for (int64_t s = 0; s < job.sentences;) {
    const int64_t start = job.offsets[s];
    while (s < job.sentences && (job.offsets[s + 1] - start < kTaskTokens || s == tasks.back())) ++s;
    longest = std::max(longest, job.offsets[s] - start);
    tasks.push_back(s);
  }
  const int64_t task_count = static_cast<int64_t>(tasks.size()) - 1;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, task_count)));
  const auto workers = make_workers(job, threads);
  std::vector<Stream> streams(static_cast<std::size_t>(threads));
  for (Stream& stream : streams) stream.reserve(longest);
  const auto survivors = VECSMITH_PICK_KERNEL(skipgram_survivors);
  const auto train = VECSMITH_PICK_KERNEL(skipgram_train);
  std::atomic<int64_t> next{0};
  parallel(threads, [&](int worker, int) {
    SkipgramScratch& scratch = workers[worker]->scratch;
    SkipgramStream& stream = streams[worker].view;
    for (int64_t task; (task = next.fetch_add(1)) < task_count;) {
      stream.size = 0;
      for (int64_t s = tasks[task]; s < tasks[task + 1]; ++s)
        survivors(job, job.offsets[s], job.offsets[s + 1], stream);
      train(job, &stream, 0, stream.size, scratch);
    }
  });
  result[0] = result[1] = 0;
  for (const auto& worker : workers) {
    result[0] += worker->scratch.loss;
    result[1] += static_cast<double>(worker->scratch.terms);
  }
}

// The memory behind the SkipgramUpdates of one part.
struct Part {
  SkipgramUpdates updates{};
  Aligned<float> deltas;
  Aligned<int32_t> rows;
  Aligned<uint8_t> tables;
  int64_t first = 0, last = 0;  // centers

  void prepare(const SkipgramJob& job, int64_t slots, int64_t first_slot) {
    const int64_t centers = last - first;
    const bool pairwise = !job.shared_negatives && !job.cbow;
    int64_t each = job.max_outputs + (job.path_offsets && job.negative ? job.negative + 1 : 0);
    if (pairwise && job.negative) each += 2 * static_cast<int64_t>(job.window) * (job.negative + 1);
    const int64_t capacity = slots + centers * each;
    updates.delta_stride = padded_dim(job);
    updates.deltas = deltas.reserve(capacity * updates.delta_stride);
    updates.rows = rows.reserve(capacity);
    updates.tables = tables.reserve(capacity);
    updates.capacity = capacity;
    updates.slot_count = slots;
    updates.first_slot = first_slot;
    updates.row_count = 0;
    updates.loss = 0;
    updates.terms = 0;
  }
};

// The columns, and the share of rows, that a worker applies.
struct Columns {
  int64_t first, last, share, shares;

  Columns(int64_t dim, int worker, int threads) {
    const int64_t lines = (dim + 15) / 16;
    const int64_t slices = std::min<int64_t>(lines, threads);
    shares = threads / slices;
    share = worker / slices;
    const int64_t slice = worker % slices;
    first = std::min(dim, lines * slice / slices * 16);
    last = std::min(dim, lines * (slice + 1) / slices * 16);
    if (share >= shares) first = last = 0;  // more workers than shares
  }
};

// One batch on the team that calls this together: collect the parts, then apply them.
class Batch {
 public:
  Batch(const SkipgramJob& job, int64_t parts)
      : job_(job),
        parts_(static_cast<std::size_t>(parts)),
        collect_(VECSMITH_PICK_KERNEL(skipgram_collect)),
        apply_(VECSMITH_PICK_KERNEL(skipgram_apply)) {}

  Part& part(int64_t p) { return parts_[static_cast<std::size_t>(p)]; }

  // Every part's first, last and updates must be ready. Called by all workers.
  void run(const SkipgramStream* stream, SkipgramScratch& scratch, int worker, int threads) {
    for (std::size_t p = static_cast<std::size_t>(worker); p < parts_.size();
         p += static_cast<std::size_t>(threads)) {
      Part& part = parts_[p];
      if (part.first >= part.last) continue;
      scratch.loss = 0;
      scratch.terms = 0;
      collect_(job_, stream, part.first, part.last, scratch, part.updates);
      part.updates.loss = scratch.loss;
      part.updates.terms = scratch.terms;
    }
    barrier();
    const Columns columns(job_.dim, worker, threads);
    for (Part& part : parts_) {
      if (part.first >= part.last) continue;
      if (columns.first < columns.last)
        apply_(job_, part.updates, columns.first, columns.last, columns.share, columns.shares);
      if (worker == 0) {
        loss_ += part.updates.loss;
        terms_ += part.updates.terms;
      }
    }
    barrier();
  }

  void result(double* out) const {
    out[0] = loss_;
    out[1] = static_cast<double>(terms_);
  }

 private:
  const SkipgramJob& job_;
  std::vector<Part> parts_;
  decltype(VECSMITH_PICK_KERNEL(skipgram_collect)) collect_;
  decltype(VECSMITH_PICK_KERNEL(skipgram_apply)) apply_;
  double loss_ = 0;
  int64_t terms_ = 0;
};

void batches(const SkipgramJob& job, int threads, int64_t batch, double* result) {
  const int64_t part_positions = std::max<int64_t>(1, (batch + kPartsPerBatch - 1) / kPartsPerBatch);
  const int64_t part_count = (batch + part_positions - 1) / part_positions;
  const auto workers = make_workers(job, threads);
  // One stream for all, so that its survivors are drawn once: filled by one worker between barriers.
  Stream stream;
  Batch parts(job, part_count);
  const auto survivors = VECSMITH_PICK_KERNEL(skipgram_survivors);
  int64_t sentence = 0, center = 0;
  std::vector<int64_t> starts;  // centers: the first of each part
  bool more = true;
  std::exception_ptr error;

  // Advances to the next batch: its centers, cut into parts. False at the end.
  const auto advance = [&]() -> bool {
    SkipgramStream& view = stream.view;
    // A batch is complete once a later sentence begins beyond it.
    const auto complete = [&] {
      return center < view.size && sentence < job.sentences &&
             (job.first_position + job.offsets[sentence]) / batch > view.position[center] / batch;
    };
    while (!complete() && sentence < job.sentences) {
      // What lies behind the windows of the next center is done with.
      if (center > 0) {
        const int64_t keep_from =
            center < view.size
                ? std::max<int64_t>(view.low[center], center - static_cast<int64_t>(job.window))
                : view.size;
        stream.drop(keep_from);
        center -= keep_from;
      }
      int64_t tokens = 0;
      for (; sentence < job.sentences && tokens < kStreamTokens; ++sentence) {
        const int64_t length = job.offsets[sentence + 1] - job.offsets[sentence];
        stream.reserve(length);
        survivors(job, job.offsets[sentence], job.offsets[sentence + 1], view);
        tokens += length;
      }
    }
    if (center >= view.size) return false;
    const int64_t base = view.position[center] / batch * batch;
    for (int64_t p = 0; p < part_count; ++p) {
      Part& part = parts.part(p);
      part.first = center;
      const int64_t end = std::min(base + batch, base + (p + 1) * part_positions);
      while (center < view.size && view.position[center] < end) ++center;
      part.last = center;
      if (part.first == part.last) continue;
      const int64_t first_slot = std::max<int64_t>(0, part.first - job.window);
      const int64_t last_slot = std::min<int64_t>(view.size, part.last + job.window);
      part.prepare(job, last_slot - first_slot, first_slot);
    }
    return true;
  };

  parallel(threads, [&](int worker, int team) {
    for (;;) {
      if (worker == 0) {
        try {
          more = advance();
        } catch (...) {
          error = std::current_exception();
          more = false;
        }
      }
      barrier();
      if (!more) break;
      parts.run(&stream.view, workers[static_cast<std::size_t>(worker)]->scratch, worker, team);
    }
  });
  if (error) std::rethrow_exception(error);
  parts.result(result);
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

void skipgram_run(const SkipgramJob& job, int threads, int64_t batch_positions, double* result) {
  if (batch_positions == 0)
    hogwild(job, threads, result);
  else
    batches(job, threads, batch_positions, result);
}

void skipgram_pairs_run(const SkipgramJob& job, int64_t pairs, int threads, int64_t batch_pairs,
                        double* result) {
  result[0] = result[1] = 0;
  if (pairs == 0) return;
  if (batch_pairs == 0) {
    const int64_t tasks = (pairs + kTaskPairs - 1) / kTaskPairs;
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
    const auto workers = make_workers(job, threads);
    const auto train = VECSMITH_PICK_KERNEL(skipgram_train);
    std::atomic<int64_t> next{0};
    parallel(threads, [&](int worker, int) {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;)
        train(job, nullptr, task * kTaskPairs, std::min(pairs, (task + 1) * kTaskPairs),
              workers[static_cast<std::size_t>(worker)]->scratch);
    });
    for (const auto& worker : workers) {
      result[0] += worker->scratch.loss;
      result[1] += static_cast<double>(worker->scratch.terms);
    }
    return;
  }
  const int64_t part_pairs = std::max<int64_t>(1, (batch_pairs + kPartsPerBatch - 1) / kPartsPerBatch);
  const int64_t part_count = (batch_pairs + part_pairs - 1) / part_pairs;
  const auto workers = make_workers(job, threads);
  Batch parts(job, part_count);
  const auto prepare = [&](int64_t base) {
    for (int64_t p = 0; p < part_count; ++p) {
      Part& part = parts.part(p);
      const int64_t end = std::min(pairs, base + batch_pairs);
      part.first = std::min(end, base + p * part_pairs);
      part.last = std::min(end, base + (p + 1) * part_pairs);
      if (part.first < part.last) part.prepare(job, part.last - part.first, part.first);
    }
  };
  prepare(0);  // the largest batch: later ones reserve no more, and cannot throw
  parallel(threads, [&](int worker, int team) {
    for (int64_t base = 0; base < pairs; base += batch_pairs) {
      if (worker == 0) prepare(base);
      barrier();
      parts.run(nullptr, workers[static_cast<std::size_t>(worker)]->scratch, worker, team);
    }
  });
  parts.result(result);
}

}  // namespace vecsmith
