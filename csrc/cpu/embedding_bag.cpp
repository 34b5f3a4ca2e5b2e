// Forward driver of the embedding tables: threads share the samples, whatever bags and tables they
// are in.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/embedding_bag_driver.h"
#include "cpu/parallel.h"

namespace vecsmith {
namespace {

// Less work than this is done by the caller alone: waking another thread takes longer.
constexpr int64_t kBytesPerThread = int64_t{1} << 15;

}  // namespace

void check_bags(const Bags& bags) {
  if (bags.offset_count < 0) return;
  if (bags.offset_count > 0 && bags.offset(0) != 0)
    throw std::invalid_argument("embedding_bag: expected offsets to begin with 0; got " +
                                std::to_string(bags.offset(0)));
  for (int64_t i = 1; i < bags.offset_count; ++i)
    if (bags.offset(i) < bags.offset(i - 1))
      throw std::invalid_argument("embedding_bag: expected non-decreasing offsets; got " +
                                  std::to_string(bags.offset(i)) + " after " +
                                  std::to_string(bags.offset(i - 1)));
  if (bags.offset_count > 0 && bags.offset(bags.offset_count - 1) > bags.count)
    throw std::invalid_argument("embedding_bag: expected offsets of at most " +
                                std::to_string(bags.count) + " (the number of indices); got " +
                                std::to_string(bags.offset(bags.offset_count - 1)));
  if (bags.offset_count == 0 && bags.bags > 0)
    throw std::invalid_argument("embedding_bag: expected offsets; got none");
}

void raise_bad_index(const Bags& bags, int64_t position) {
  throw std::out_of_range("embedding_bag: expected indices in 0.." + std::to_string(bags.rows - 1) +
                          "; got " + std::to_string(bags.index(position)) + " at position " +
                          std::to_string(position));
}

void embedding_bag_forward(const BagForward* jobs, int64_t count, int threads) {
  int64_t samples = 0, bytes = 0;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t n = jobs[j].bags.samples();
    samples += n;
    bytes += n * jobs[j].table.dim * element_size(jobs[j].table.type);
  }
  threads = static_cast<int>(std::min<int64_t>(threads, bytes / kBytesPerThread + 1));
  const auto forward = VECSMITH_PICK_KERNEL(embedding_bag_forward);
  std::vector<int64_t> bad(static_cast<size_t>(threads), -1), job_of(bad.size(), 0);
  parallel(threads, [&](int worker, int size) {
    BagScratch scratch;
    scratch.bad = -1;
    std::vector<float> sum;
    scratch.kept = 0;
    // A worker has the bags that begin within its share of all samples.
    const int64_t low = share(samples, worker, size);
    const int64_t high = worker + 1 == size ? INT64_MAX : share(samples, worker + 1, size);
    int64_t before = 0;  // samples of the jobs before this one
    for (int64_t j = 0; j < count; ++j) {
      const BagForward& job = jobs[j];
      const int64_t n = job.bags.samples();
      int64_t first = std::clamp<int64_t>(low - before, 0, n);
      int64_t last = std::clamp<int64_t>(high - before, 0, n);
      if (job.bags.mode != kNone) {
        first = bag_from(job.bags, low - before);
        last = high == INT64_MAX ? job.bags.bags : bag_from(job.bags, high - before);
      }
      before += n;
      if (first >= last) continue;
      sum.resize(std::max(sum.size(), static_cast<size_t>(job.table.dim + 31) / 16 * 16));
      scratch.sum = sum.data();
      forward(job, first, last, scratch);
      if (scratch.bad >= 0) {
        bad[static_cast<size_t>(worker)] = scratch.bad;
        job_of[static_cast<size_t>(worker)] = j;
        return;
      }
    }
  });
  for (size_t t = 0; t < bad.size(); ++t)
    if (bad[t] >= 0) raise_bad_index(jobs[job_of[t]].bags, bad[t]);
}

void per_sample_weights_gradient(const Bags& bags, const Rows& grad, const Rows& table, void* out,
                                 ElementType type, int threads) {
  check_bags(bags);
  const int64_t samples = bags.samples();
  // Again: somebody may have written into the indices since they were looked up.
  if (const int64_t bad = VECSMITH_PICK_KERNEL(embedding_bag_bad)(bags, 0, samples); bad >= 0)
    raise_bad_index(bags, bad);
  threads =
      static_cast<int>(std::min<int64_t>(threads, samples * table.dim * 4 / kBytesPerThread + 1));
  const auto dots = VECSMITH_PICK_KERNEL(embedding_bag_dots);
  parallel(threads, [&](int worker, int size) {
    const int64_t first = bag_from(bags, share(samples, worker, size));
    const int64_t last =
        worker + 1 == size ? bags.bags : bag_from(bags, share(samples, worker + 1, size));
    dots(bags, grad, table, first, last, out, type);
  });
  // Behind the last bag's end nothing is weighted.
  std::fill_n(static_cast<char*>(out) + samples * element_size(type),
              (bags.count - samples) * element_size(type), 0);
}

}  // namespace vecsmith
