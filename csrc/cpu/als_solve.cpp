#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/als_solve_driver.h"
#include "cpu/arena.h"
#include "cpu/parallel.h"

namespace vecsmith {
namespace {

// Rows of so many cells are shared by the workers.
constexpr int64_t kShared = 1 << 15;

struct Kernels {
  decltype(&base::als_weigh) weigh = VECSMITH_PICK_KERNEL(als_weigh);
  decltype(&base::als_small) small = VECSMITH_PICK_KERNEL(als_small);
  decltype(&base::als_exact) exact = VECSMITH_PICK_KERNEL(als_exact);
  decltype(&base::als_share) share = VECSMITH_PICK_KERNEL(als_share);
  decltype(&base::als_finish) finish = VECSMITH_PICK_KERNEL(als_finish);
  decltype(&base::als_conjugate) conjugate = VECSMITH_PICK_KERNEL(als_conjugate);
  decltype(&base::als_blocks) blocks = VECSMITH_PICK_KERNEL(als_blocks);
  int lanes = VECSMITH_PICK_KERNEL(als_lanes)();
};

// Cells of rows that were read from the matrix, one behind the other.
struct Cells {
  explicit Cells(int64_t most)
      : ids(static_cast<size_t>(most)),
        scale(static_cast<size_t>(most)),
        target(static_cast<size_t>(most)),
        weight(static_cast<size_t>(most)) {}
  std::vector<int64_t> ids;
  std::vector<float> scale, target, weight;
};

// What one worker has.
struct Worker {
  Worker(int64_t most, int64_t lanes, int64_t dim)
      : cells(most), batch(lanes * kAlsSmall), columns(static_cast<size_t>(als_leading(dim))) {}
  Cells cells, batch;
  std::vector<float> columns;
};

class HalfStep {
 public:
  HalfStep(const AlsMatrix& matrix, const AlsJob& job, int threads)
      : matrix_(matrix), job_(job), threads_(threads) {
    for (int64_t i = 0; i < matrix_.rows; ++i) most_ = std::max(most_, length(i));
    sort();
  }

  int64_t run() {
    // Rows of the rest's length may go by lanes; longer ones by themselves.
    const bool lanes = job_.method != kAlsBlocks && !job_.spectrum;
    const int64_t limit =
        job_.method == kAlsConjugate ? std::min(job_.exact_below - 1, kAlsSmall) : kAlsSmall;
    int64_t single = static_cast<int64_t>(order_.size());
    if (lanes)
      single = std::partition_point(order_.begin(), order_.end(),
                                    [&](int64_t i) { return length(i) > limit; }) -
               order_.begin();
    int64_t shared = 0;
    if (threads_ > 1 && job_.method == kAlsExact)
      while (shared < single && length(order_[static_cast<size_t>(shared)]) >= kShared) ++shared;
    for (int64_t i = 0; i < shared; ++i) solve_together(order_[static_cast<size_t>(i)]);
    const int64_t rows = static_cast<int64_t>(order_.size());
    const int64_t batches = (rows - single + kernels_.lanes - 1) / kernels_.lanes;
    std::atomic<int64_t> next{shared};
    parallel(threads_, [&](int, int) {
      Worker worker(most_, kernels_.lanes, job_.table.dim);
      Arena arena(static_cast<size_t>(scratch()) * sizeof(float));
      float* const own = arena.take<float>(static_cast<size_t>(scratch()));
      for (;;) {
        const int64_t task = next.fetch_add(1);
        if (task >= single + batches) break;
        if (task < single) {
          solve_alone(order_[static_cast<size_t>(task)], worker, own);
        } else {
          const int64_t from = single + (task - single) * kernels_.lanes;
          solve_batch(from, std::min(from + kernels_.lanes, rows), worker, own);
        }
      }
    });
    return rescued_.load();
  }

 private:
  int64_t begin(int64_t i) const {
    return matrix_.wide_begins ? static_cast<const int64_t*>(matrix_.begins)[i]
                               : static_cast<const int32_t*>(matrix_.begins)[i];
  }
  int64_t length(int64_t i) const { return begin(i + 1) - begin(i); }

  // Rows in order of their length, the longest first: those that are solved together are about
  // equally long, and no long one comes last.
  void sort() {
    std::vector<int64_t> begins(static_cast<size_t>(most_) + 2);
    for (int64_t i = 0; i < matrix_.rows; ++i) ++begins[static_cast<size_t>(most_ - length(i)) + 1];
    std::partial_sum(begins.begin(), begins.end(), begins.begin());
    order_.resize(static_cast<size_t>(matrix_.rows));
    for (int64_t i = 0; i < matrix_.rows; ++i)
      order_[static_cast<size_t>(begins[static_cast<size_t>(most_ - length(i))]++)] = i;
  }

  int64_t scratch() const {
    const int64_t dim = job_.table.dim;
    int64_t floats = std::max(als_exact_scratch(dim), als_small_scratch(dim));
    if (job_.method == kAlsConjugate) floats = std::max(floats, als_conjugate_scratch(dim));
    if (job_.method == kAlsBlocks)
      floats = std::max(floats, als_blocks_scratch(dim, job_.block, most_));
    return floats;
  }

  template <class T>
  static void read(const void* from, int64_t at, int64_t count, float* to) {
    const T* values = static_cast<const T*>(from) + at;
    for (int64_t j = 0; j < count; ++j) to[j] = static_cast<float>(values[j]);
  }
  void read_values(int64_t at, int64_t count, float* to) const {
    switch (matrix_.type) {
      case kAlsFloat:
        return read<float>(matrix_.values, at, count, to);
      case kAlsDouble:
        return read<double>(matrix_.values, at, count, to);
      case kAlsInt8:
        return read<int8_t>(matrix_.values, at, count, to);
      case kAlsInt16:
        return read<int16_t>(matrix_.values, at, count, to);
      case kAlsInt32:
        return read<int32_t>(matrix_.values, at, count, to);
      case kAlsInt64:
        return read<int64_t>(matrix_.values, at, count, to);
      case kAlsUint8:
        return read<uint8_t>(matrix_.values, at, count, to);
    }
  }
  int64_t index(int64_t at) const {
    return matrix_.wide_indices ? static_cast<const int64_t*>(matrix_.indices)[at]
                                : static_cast<const int32_t*>(matrix_.indices)[at];
  }

  // The cells of row i, from cells[at] on.
  AlsRow prepare(int64_t i, Cells& cells, int64_t at, std::vector<float>& columns) const {
    const int64_t from = begin(i), count = length(i);
    int64_t* ids = cells.ids.data() + at;
    float *scale = cells.scale.data() + at, *target = cells.target.data() + at;
    float* weight = cells.weight.data() + at;
    AlsRow row{};
    row.ids = ids;
    row.scale = scale;
    row.target = target;
    row.out = job_.out + i * job_.out_stride;
    const double ridge = job_.ridges ? job_.ridges[i] : job_.ridge;
    row.ridge = static_cast<float>(ridge);
    if (job_.spectrum) {
      for (int64_t k = 0; k < job_.table.dim; ++k)
        columns[static_cast<size_t>(k)] =
            static_cast<float>(1 / std::sqrt(job_.spectrum[k] + ridge));
      row.columns = columns.data();
      row.ridge = 1;
    }
    read_values(from, count, scale);
    const AlsSigns signs = kernels_.weigh(job_.implicit, job_.alpha,
                                          matrix_.weights ? matrix_.weights + from : nullptr, count,
                                          scale, target, weight);
    row.positive = signs.positive;
    row.negative = signs.negative;
    row.zero = count - row.positive - row.negative;
    if (row.positive == count || row.negative == count || row.zero == count)
      for (int64_t j = 0; j < count; ++j) ids[j] = index(from + j);
    else
      place(row, from, count, ids, weight, target, scale);
    // Explicit feedback of weight 0 says nothing.
    if (!job_.implicit) row.zero = 0;
    return row;
  }
  // Cells of positive, negative and no weight, one behind the other.
  void place(const AlsRow& row, int64_t from, int64_t count, int64_t* ids, const float* weight,
             float* target, float* scale) const {
    int64_t at[3] = {0, row.positive, row.positive + row.negative};
    const std::vector<float> targets(target, target + count), scales(scale, scale + count);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t to = at[weight[j] > 0 ? 0 : weight[j] < 0 ? 1 : 2]++;
      ids[to] = index(from + j);
      target[to] = targets[static_cast<size_t>(j)];
      scale[to] = scales[static_cast<size_t>(j)];
    }
  }

  void solve_alone(int64_t i, Worker& worker, float* scratch) {
    const AlsRow row = prepare(i, worker.cells, 0, worker.columns);
    bool done = true;
    if (job_.method == kAlsConjugate && length(i) >= job_.exact_below)
      kernels_.conjugate(job_.table, row, job_.steps, scratch);
    else if (job_.method == kAlsBlocks && job_.block < job_.table.dim)
      done = kernels_.blocks(job_.table, row, job_.block, job_.steps, scratch);
    else
      done = kernels_.exact(job_.table, row, scratch);
    if (!done) rescue(row);
  }

  void solve_batch(int64_t from, int64_t to, Worker& worker, float* scratch) {
    AlsRow rows[kAlsMostLanes];
    int count = 0;
    int64_t at = 0;
    for (int64_t i = from; i < to; ++i) {
      const int64_t id = order_[static_cast<size_t>(i)];
      const AlsRow row = prepare(id, worker.batch, at, worker.columns);
      if (!als_is_small(row, job_.table.dim)) {
        if (!kernels_.exact(job_.table, row, scratch)) rescue(row);
        continue;
      }
      rows[count++] = row;
      at += length(id);
    }
    if (!count) return;
    const uint32_t failed = kernels_.small(job_.table, rows, count, scratch);
    for (int lane = 0; lane < count; ++lane)
      if (failed >> lane & 1) rescue(rows[lane]);
  }

  // A row of so many cells that the workers share it.
  void solve_together(int64_t i) {
    const int64_t dim = job_.table.dim;
    Worker worker(length(i), 0, dim);
    const AlsRow row = prepare(i, worker.cells, 0, worker.columns);
    std::vector<float> system(static_cast<size_t>(als_system_floats(dim)));
    std::vector<float> right(static_cast<size_t>(2 * als_leading(dim)));
    const int64_t tiles = (dim + 7) / 8;
    parallel(threads_, [&](int worker_id, int size) {
      Arena arena(static_cast<size_t>(als_exact_scratch(dim)) * sizeof(float));
      // Rows of the upper half are the shorter the later they come.
      const auto edge = [&](int w) {
        const double part = 1 - std::sqrt(1 - static_cast<double>(w) / size);
        return w == size ? tiles * 8 : static_cast<int64_t>(part * static_cast<double>(tiles)) * 8;
      };
      const int64_t first = edge(worker_id), last = edge(worker_id + 1);
      if (first < last)
        kernels_.share(job_.table, row, first, last, system.data(), right.data(),
                       arena.take<float>(static_cast<size_t>(als_exact_scratch(dim))));
    });
    if (!kernels_.finish(job_.table, row, system.data(), right.data())) rescue(row);
  }

  // The row in double precision.
  void rescue(const AlsRow& row) {
    rescued_.fetch_add(1, std::memory_order_relaxed);
    const size_t dim = static_cast<size_t>(job_.table.dim);
    const int64_t cells = row.cells() + row.zero;
    std::vector<double> matrix(dim * dim), right(dim), p(dim);
    for (int64_t j = 0; j < cells; ++j) {
      const float* from = job_.table.factors + row.ids[j] * job_.table.stride;
      const double sign = j < row.positive ? 1 : j < row.cells() ? -1 : 0;
      for (size_t k = 0; k < dim; ++k)
        p[k] = static_cast<double>(from[k]) * (row.columns ? row.columns[k] : 1.0f) * row.scale[j];
      for (size_t k = 0; k < dim; ++k) {
        right[k] += row.target[j] * p[k];
        for (size_t l = 0; l <= k; ++l) matrix[k * dim + l] += sign * p[k] * p[l];
      }
    }
    double trace = 0;
    for (size_t k = 0; k < dim; ++k) trace += std::abs(matrix[k * dim + k]);
    double ridge = row.ridge, more = 1e-12 * (trace / static_cast<double>(dim) + ridge);
    if (!(more > 0)) more = 1;
    std::vector<double> factor, x;
    while (!solve(matrix, right, ridge, factor, x)) {
      ridge += more;
      more *= 10;
      if (!std::isfinite(ridge)) {
        x.assign(dim, std::nan(""));
        break;
      }
    }
    for (size_t k = 0; k < dim; ++k)
      row.out[k] = static_cast<float>(x[k] * (row.columns ? row.columns[k] : 1.0f));
  }

  static bool solve(const std::vector<double>& matrix, const std::vector<double>& right,
                    double ridge, std::vector<double>& factor, std::vector<double>& x) {
    const size_t n = right.size();
    factor = matrix;
    x = right;
    for (size_t j = 0; j < n; ++j) {
      const double before = factor[j * n + j] + ridge;
      double* own = factor.data() + j * n;
      for (size_t k = 0; k < j; ++k) {
        const double* above = factor.data() + k * n;
        double s = own[k];
        for (size_t l = 0; l < k; ++l) s -= own[l] * above[l];
        own[k] = s / above[k];
      }
      double pivot = before;
      for (size_t k = 0; k < j; ++k) pivot -= own[k] * own[k];
      if (!(pivot > 1e-14 * before)) return false;
      own[j] = std::sqrt(pivot);
    }
    for (size_t j = 0; j < n; ++j) {
      for (size_t k = 0; k < j; ++k) x[j] -= factor[j * n + k] * x[k];
      x[j] /= factor[j * n + j];
    }
    for (size_t j = n; j-- > 0;) {
      x[j] /= factor[j * n + j];
      for (size_t k = 0; k < j; ++k) x[k] -= factor[j * n + k] * x[j];
    }
    return true;
  }

  const AlsMatrix& matrix_;
  const AlsJob& job_;
  const int threads_;
  const Kernels kernels_;
  int64_t most_ = 0;
  std::vector<int64_t> order_;
  std::atomic<int64_t> rescued_{0};
};

}  // namespace

int64_t als_solve_rows(const AlsMatrix& matrix, const AlsJob& job, int threads) {
  if (!matrix.rows || !job.table.dim) return 0;
  return HalfStep(matrix, job, threads).run();
}

void als_gram_matrix(const AlsTable& table, int64_t count, double* gram, int threads) {
  const auto kernel = VECSMITH_PICK_KERNEL(als_gram);
  const int64_t tiles = (table.dim + 7) / 8, lead = als_leading(table.dim);
  // As many rows of tiles as there are workers, or more: those of the upper half get shorter.
  std::atomic<int64_t> next{0};
  const int64_t at_once = std::max<int64_t>(1, tiles / (4 * threads));
  parallel(threads, [&](int, int) {
    const size_t floats = static_cast<size_t>((256 + at_once * 8) * lead);
    Arena arena(floats * sizeof(float));
    float* const scratch = arena.take<float>(floats);
    for (;;) {
      const int64_t from = next.fetch_add(at_once);
      if (from >= tiles) break;
      kernel(table, count, from * 8, std::min(from + at_once, tiles) * 8, gram, scratch);
    }
  });
  for (int64_t i = 0; i < table.dim; ++i)
    for (int64_t j = 0; j < i; ++j) gram[i * table.dim + j] = gram[j * table.dim + i];
}

void als_change_basis(const AlsTable& rows, int64_t count, const float* matrix, AlsShape shape,
                      float* out, int64_t out_stride, int threads) {
  const auto kernel = VECSMITH_PICK_KERNEL(als_multiply);
  const int64_t lead = als_leading(rows.dim), at_once = 16 * kAlsTileRows;
  Arena arena(static_cast<size_t>((rows.dim + threads * kAlsTileRows) * lead) * sizeof(float));
  float* const padded = arena.take<float>(static_cast<size_t>(rows.dim * lead));
  float* const scratch = arena.take<float>(static_cast<size_t>(threads * kAlsTileRows * lead));
  for (int64_t i = 0; i < rows.dim; ++i) {
    std::copy(matrix + i * rows.dim, matrix + (i + 1) * rows.dim, padded + i * lead);
    std::fill(padded + i * lead + rows.dim, padded + (i + 1) * lead, 0.0f);
  }
  std::atomic<int64_t> next{0};
  parallel(threads, [&](int worker, int) {
    for (;;) {
      const int64_t from = next.fetch_add(at_once);
      if (from >= count) break;
      const AlsTable part{rows.factors + from * rows.stride, rows.stride, rows.dim};
      kernel(part, std::min(at_once, count - from), padded, shape, out + from * out_stride,
             out_stride, scratch + worker * kAlsTileRows * lead);
    }
  });
}

}  // namespace vecsmith
