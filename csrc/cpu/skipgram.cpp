// The driver of the skip-gram operator: shares a call out over workers.
//
// One step after another (Hogwild): tasks of whole sentences, about 4,096 tokens each, are taken from an
// atomic counter; every worker draws, plans and trains on its own.
//
// Mini-batches (the same bits for any number of workers): a batch is the centers whose positions share
// floor(position / batch). The workers own *columns* of the tables, so that no row ever travels between
// their caches; what travels are scores. A batch has four phases, with a barrier after each of the first
// three:
//
//   plan      workers share out parts of the batch and lay out their steps;
//   score     the inner products are summed over two fixed ranges of columns, by different workers;
//   gradient  workers share out the parts, add the two sums and take the sigmoid;
//   update    every worker applies all steps, in order, to its own columns.
//
// Neither the parts, nor the two ranges, nor the order of any sum depends on the number of workers.
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

// The most that steps of `centers` centers (or pairs) can need.
struct Bounds {
  int64_t inputs, outputs, steps, ids, weights, scores;

  Bounds(const SkipgramJob& job, int64_t centers) {
    const bool pairwise = job.tokens && !job.shared_negatives && !job.cbow;
    inputs = job.tokens ? 2 * static_cast<int64_t>(job.window) : 1;
    outputs = job.max_outputs;
    const int64_t each = pairwise ? inputs : 1;  // steps of one kind for a center
    const int64_t kinds = (job.path_offsets ? 1 : 0) + (job.negative ? 1 : 0) + (job.tokens ? 0 : 1);
    const int64_t width = job.cbow || pairwise ? 1 : inputs;  // inputs that meet the outputs
    steps = centers * each * kinds;
    ids = centers * (inputs + each * (static_cast<int64_t>(job.negative) + 1)) + kSkipgramPadding;
    weights = ids;
    scores = centers * each * width * outputs * kinds + kSkipgramPadding;
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
    view.bits = bits_.reserve(kSkipgramBlock * static_cast<int64_t>(job.negative) + 1);
  }

 private:
  Aligned<SkipgramStep> steps_;
  Aligned<int32_t> ids_;
  Aligned<float> weights_;
  Aligned<uint64_t> bits_;
};

// The memory behind one worker's SkipgramScratch.
class Worker {
 public:
  explicit Worker(const SkipgramJob& job) {
    const Bounds bounds(job, kSkipgramBlock);
    for (int b = 0; b < 2; ++b) {
      plans_[b].reserve(job, kSkipgramBlock);
      scratch.plan[b] = plans_[b].view;
    }
    const int64_t scores = bounds.inputs * bounds.outputs + kSkipgramPadding;
    scratch.input_rows = input_rows_.reserve(bounds.inputs);
    scratch.input_updates = input_updates_.reserve(bounds.inputs);
    scratch.output_rows = output_rows_.reserve(bounds.outputs);
    scratch.score = score_.reserve(scores);
    scratch.label = label_.reserve(scores);
    scratch.common_label = common_label_.reserve(scores);
    scratch.score_capacity = scores;
    scratch.weight = weight_.reserve(scores);
    scratch.row = row_.reserve(2 * padded_dim(job));
    scratch.accumulator = accumulator_.reserve(bounds.inputs * padded_dim(job));
    scratch.loss = 0;
    scratch.terms = 0;
  }

  SkipgramScratch scratch;

 private:
  Plan plans_[2];
  Aligned<const float*> input_rows_;
  Aligned<float*> input_updates_, output_rows_;
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

  // Forgets the first `count` survivors.
  void drop(int64_t count) {
    if (count == 0) return;
    std::copy(view.id + count, view.id + view.size, view.id);
    std::copy(view.repeat + count, view.repeat + view.size, view.repeat);
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
  std::vector<uint8_t> repeat_;
  static constexpr std::size_t kMargin = 16;
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

// A part of a batch: planned by one worker, its gradients taken by one worker.
struct Part {
  int64_t first = 0, last = 0;  // centers
  Plan plan;
  Aligned<float> scores[2];
  double loss = 0;
  int64_t terms = 0;

  void reserve(const SkipgramJob& job) {
    plan.reserve(job, last - first);
    const Bounds bounds(job, last - first);
    for (Aligned<float>& half : scores) half.reserve(bounds.scores);
  }
};

// Where the columns of the k-th of n equal ranges begin: whole cache lines.
int64_t column(int64_t dim, int64_t k, int64_t n) {
  const int64_t lines = (dim + 15) / 16;
  return std::min(dim, (lines * k + n - 1) / n * 16);
}

// One batch after another on the team that calls run() together.
class Batch {
 public:
  Batch(const SkipgramJob& job, int64_t parts)
      : job_(job),
        parts_(static_cast<std::size_t>(parts)),
        plan_(VECSMITH_PICK_KERNEL(skipgram_plan)),
        score_(VECSMITH_PICK_KERNEL(skipgram_score)),
        gradient_(VECSMITH_PICK_KERNEL(skipgram_gradient)),
        update_(VECSMITH_PICK_KERNEL(skipgram_update)) {}

  Part& part(int64_t p) { return parts_[static_cast<std::size_t>(p)]; }

  // The centers of every part must be set, and its memory reserved.
  void run(const SkipgramStream* stream, SkipgramScratch& scratch, int worker, int team) {
    const int parts = static_cast<int>(parts_.size());
    for (int p = worker; p < parts; p += team)
      plan_(job_, stream, parts_[p].first, parts_[p].last, parts_[p].plan.view);
    barrier();
    for (int half = 0; half < 2; ++half) {
      // The workers of this half of the columns share its parts; a single worker does both halves.
      const int others = (team + 1) / 2;
      const int rank = team == 1 ? 0 : half == 0 ? worker : worker - others;
      const int size = team == 1 ? 1 : half == 0 ? others : team - others;
      if (rank < 0 || rank >= size) continue;
      const int64_t first = column(job_.dim, half, 2), last = column(job_.dim, half + 1, 2);
      if (first == last) continue;
      for (int p = rank * parts / size; p < (rank + 1) * parts / size; ++p)
        score_(job_, parts_[p].plan.view, p + 1 < parts ? &parts_[p + 1].plan.view : nullptr, first,
               last, scratch, parts_[p].scores[half].data.get());
    }
    barrier();
    const bool halves = column(job_.dim, 1, 2) < job_.dim;
    for (int p = worker * parts / team; p < (worker + 1) * parts / team; ++p) {
      scratch.loss = 0;
      scratch.terms = 0;
      gradient_(job_, parts_[p].plan.view, scratch, parts_[p].scores[0].data.get(),
                halves ? parts_[p].scores[1].data.get() : nullptr);
      parts_[p].loss = scratch.loss;
      parts_[p].terms = scratch.terms;
    }
    barrier();
    const int64_t first = column(job_.dim, worker, team), last = column(job_.dim, worker + 1, team);
    if (first < last)
      for (int p = 0; p < parts; ++p)
        update_(job_, parts_[p].plan.view, p + 1 < parts ? &parts_[p + 1].plan.view : nullptr, first,
                last, scratch, parts_[p].scores[0].data.get());
    if (worker == 0)
      for (const Part& part : parts_) {
        loss_ += part.loss;
        terms_ += part.terms;
      }
  }

  void result(double* out) const {
    out[0] = loss_;
    out[1] = static_cast<double>(terms_);
  }

 private:
  const SkipgramJob& job_;
  std::vector<Part> parts_;
  decltype(VECSMITH_PICK_KERNEL(skipgram_plan)) plan_;
  decltype(VECSMITH_PICK_KERNEL(skipgram_score)) score_;
  decltype(VECSMITH_PICK_KERNEL(skipgram_gradient)) gradient_;
  decltype(VECSMITH_PICK_KERNEL(skipgram_update)) update_;
  double loss_ = 0;
  int64_t terms_ = 0;
};

void batches(const SkipgramJob& job, int threads, int64_t batch, double* result) {
  const int64_t part_positions = std::max<int64_t>(1, (batch + kPartsPerBatch - 1) / kPartsPerBatch);
  const int64_t part_count = (batch + part_positions - 1) / part_positions;
  const auto workers = make_workers(job, threads);
  Stream stream;
  Batch parts(job, part_count);
  const auto survivors = VECSMITH_PICK_KERNEL(skipgram_survivors);
  int64_t sentence = 0, center = 0;
  bool more = true;
  std::exception_ptr error;

  // Sets the parts of the next batch. False at the end of the corpus.
  const auto advance = [&]() -> bool {
    SkipgramStream& view = stream.view;
    // A batch is complete once the next sentence to be read begins beyond it.
    const auto complete = [&] {
      return center < view.size && sentence < job.sentences &&
             (job.first_position + job.offsets[sentence]) / batch > view.position[center] / batch;
    };
    while (!complete() && sentence < job.sentences) {
      // What lies behind the windows of the next center is done with.
      const int64_t done =
          center < view.size
              ? std::max<int64_t>(view.low[center], center - static_cast<int64_t>(job.window))
              : view.size;
      stream.drop(done);
      center -= done;
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
      part.reserve(job);
    }
    return true;
  };

  parallel(threads, [&](int worker, int team) {
    for (;;) {
      barrier();  // the last batch has been applied
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
  const auto advance = [&](int64_t base) {
    for (int64_t p = 0; p < part_count; ++p) {
      Part& part = parts.part(p);
      const int64_t end = std::min(pairs, base + batch_pairs);
      part.first = std::min(end, base + p * part_pairs);
      part.last = std::min(end, base + (p + 1) * part_pairs);
      part.reserve(job);
    }
  };
  advance(0);  // the largest batch: later ones reserve no more, and cannot throw
  parallel(threads, [&](int worker, int team) {
    for (int64_t base = 0; base < pairs; base += batch_pairs) {
      barrier();
      if (worker == 0) advance(base);
      barrier();
      parts.run(nullptr, workers[static_cast<std::size_t>(worker)]->scratch, worker, team);
    }
  });
  parts.result(result);
}

}  // namespace vecsmith
