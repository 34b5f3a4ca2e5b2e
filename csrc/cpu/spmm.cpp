#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/arena.h"
#include "cpu/parallel.h"
#include "cpu/spmm_driver.h"

namespace vecsmith {
namespace {

// A row of more cells is summed in pieces of so many, which are added up in order: so many threads
// share it, and its bits do not depend on their number.
constexpr int64_t kPiece = 1 << 13;
// Cells and rows of a task: some tens of microseconds.
constexpr int64_t kTask = 1 << 14;
// Bytes that a block of columns of X should have: most of a second-level cache.
constexpr int64_t kCache = 3 << 18;
// Bytes of a row in such a block that it has at least: processors fetch lines in pairs, and each
// block reads the cells again.
constexpr int64_t kLeast = 128;
// Bytes of a block from which on rows are fetched ahead: what the processor has under way by itself
// hides the third-level cache, not memory.
constexpr int64_t kFetched = 1 << 24;

struct Kernels {
  decltype(&base::spmm_lanes) lanes = VECSMITH_PICK_KERNEL(spmm_lanes);
  decltype(&base::spmm_most) most = VECSMITH_PICK_KERNEL(spmm_most);
  decltype(&base::spmm_width) width = VECSMITH_PICK_KERNEL(spmm_width);
  decltype(&base::spmm_rows) rows = VECSMITH_PICK_KERNEL(spmm_rows);
};

// A part of a long row.
struct Piece {
  int64_t row, cells[2];  // first, last + 1
};

class Multiplication {
 public:
  Multiplication(const SpmmMatrix& matrix, const SpmmDense& dense)
      : matrix_(matrix), dense_(dense), size_(dense.wide ? 8 : 4) {
    cells_ = begin(matrix_.rows);
    for (int64_t i = 0; i < matrix_.rows; ++i) {
      const int64_t from = begin(i), to = begin(i + 1);
      if (to - from > kPiece)
        for (int64_t at = from; at < to; at += kPiece)
          pieces_.push_back({i, {at, std::min(at + kPiece, to)}});
    }
    tasks_ = (cells_ + matrix_.rows + kTask - 1) / kTask;
    plan();
  }

  void run(int threads) {
    const int64_t rows = matrix_.columns, padded = kernels_.width(dense_.wide, step_);
    Arena arena(bytes(packed_ ? rows * padded : 0) + bytes(pieces() * padded));
    char* const right = arena.take<char>(bytes(packed_ ? rows * padded : 0));
    char* const sums = arena.take<char>(bytes(pieces() * padded));
    const int64_t blocks = (dense_.width + step_ - 1) / step_;
    const int64_t each = tasks_ + pieces();
    std::vector<std::atomic<int64_t>> next(static_cast<size_t>(blocks));
    const int64_t useful = blocks * (cells_ + matrix_.rows) / kTask + 1;
    Barrier barrier;
    parallel(static_cast<int>(std::min<int64_t>(threads, useful)), [&](int worker, int size) {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t column = b * step_, width = std::min(step_, dense_.width - column);
        SpmmBlock block = block_of(column, width);
        if (packed_) {
          const int64_t stride = kernels_.width(dense_.wide, width);
          if (dense_.wide)
            pack<double>(column, width, stride, right, worker, size);
          else
            pack<float>(column, width, stride, right, worker, size);
          block.right = right;
          block.right_stride = stride;
          barrier.wait(size);
        }
        for (int64_t task; (task = next[static_cast<size_t>(b)].fetch_add(1)) < each;)
          task < pieces() ? sum_piece(block, task, padded, sums) : multiply(block, task - pieces());
        // All have done with the packed columns, and the pieces are there.
        if (packed_ || pieces()) barrier.wait(size);
        add_pieces(block, padded, sums, worker, size);
      }
    });
  }

 private:
  int64_t begin(int64_t i) const {
    return matrix_.wide_begins ? static_cast<const int64_t*>(matrix_.begins)[i]
                               : static_cast<const int32_t*>(matrix_.begins)[i];
  }
  int64_t pieces() const { return static_cast<int64_t>(pieces_.size()); }
  size_t bytes(int64_t numbers) const {
    return static_cast<size_t>(numbers * size_ + 63) / 64 * 64;
  }

  // Columns of a block, and whether they are copied: to be one behind the other, on the boundaries
  // of cache lines, with zeros behind rows that are no whole vectors.
  void plan() {
    const int64_t lanes = kernels_.lanes(dense_.wide), row = lanes * size_;
    const int64_t all = (dense_.width + lanes - 1) / lanes;
    const int64_t fit = kCache / std::max<int64_t>(matrix_.columns * row, 1);
    const int64_t most = kernels_.most(dense_.wide) / lanes;
    const int64_t vectors = std::min(most, std::max(fit, (kLeast + row - 1) / row));
    const int64_t blocks = (all + vectors - 1) / vectors;
    step_ = blocks == 1 ? dense_.width : (all + blocks - 1) / blocks * lanes;
    const bool whole = kernels_.width(dense_.wide, step_) == step_;
    const bool aligned = reinterpret_cast<uintptr_t>(dense_.right) % 64 == 0 &&
                         dense_.right_stride * size_ % std::min<int64_t>(step_ * size_, 64) == 0;
    packed_ = blocks > 1 || !whole || !aligned || dense_.right_step != 1;
  }

  SpmmBlock block_of(int64_t column, int64_t width) const {
    SpmmBlock block{};
    block.wide = dense_.wide;
    block.wide_begins = matrix_.wide_begins;
    block.wide_indices = matrix_.wide_indices;
    block.begins = matrix_.begins;
    block.indices = matrix_.indices;
    block.values = matrix_.values;
    block.cells = cells_;
    block.longest = kPiece;
    block.right = dense_.right;
    block.right_stride = dense_.right_stride;
    block.out = static_cast<char*>(dense_.out) + column * size_;
    block.out_stride = dense_.out_stride;
    block.width = width;
    block.fetch = matrix_.columns * kernels_.width(dense_.wide, step_) * size_ > kFetched;
    return block;
  }

  template <class T>
  void pack(int64_t column, int64_t width, int64_t stride, char* to, int worker, int size) const {
    const int64_t rows = matrix_.columns, step = dense_.right_step;
    const int64_t last = share(rows, worker + 1, size);
    for (int64_t i = share(rows, worker, size); i < last; ++i) {
      const T* from = static_cast<const T*>(dense_.right) + i * dense_.right_stride + column * step;
      T* const row = reinterpret_cast<T*>(to) + i * stride;
      if (step == 1)
        std::memcpy(row, from, static_cast<size_t>(width) * sizeof(T));
      else
        for (int64_t k = 0; k < width; ++k) row[k] = from[k * step];
      std::fill(row + width, row + stride, T{0});
    }
  }

  // The first row for which cells and rows before it are at least `count`.
  int64_t row_at(int64_t count) const {
    int64_t low = 0, high = matrix_.rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (begin(middle) + middle < count)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  void multiply(const SpmmBlock& block, int64_t task) const {
    const int64_t first = row_at(task * kTask);
    const int64_t last = task + 1 == tasks_ ? matrix_.rows : row_at((task + 1) * kTask);
    if (first < last) kernels_.rows(block, first, last);
  }

  void sum_piece(SpmmBlock block, int64_t at, int64_t padded, char* sums) const {
    const Piece& piece = pieces_[static_cast<size_t>(at)];
    block.begins = piece.cells;
    block.wide_begins = true;
    block.out = sums + at * padded * size_;
    kernels_.rows(block, 0, 1);
  }

  template <class T>
  void add_pieces(const SpmmBlock& block, int64_t padded, const T* sums, int64_t from,
                  int64_t to) const {
    T* const out =
        static_cast<T*>(block.out) + pieces_[static_cast<size_t>(from)].row * block.out_stride;
    std::copy(sums + from * padded, sums + from * padded + block.width, out);
    for (int64_t at = from + 1; at < to; ++at)
      for (int64_t k = 0; k < block.width; ++k) out[k] += sums[at * padded + k];
  }

  void add_pieces(const SpmmBlock& block, int64_t padded, const char* sums, int worker,
                  int size) const {
    int64_t row = 0;
    for (int64_t from = 0, to; from < pieces(); from = to, ++row) {
      to = from + 1;
      while (to < pieces() &&
             pieces_[static_cast<size_t>(to)].row == pieces_[static_cast<size_t>(from)].row)
        ++to;
      if (row % size != worker) continue;
      if (dense_.wide)
        add_pieces(block, padded, reinterpret_cast<const double*>(sums), from, to);
      else
        add_pieces(block, padded, reinterpret_cast<const float*>(sums), from, to);
    }
  }

  const SpmmMatrix& matrix_;
  const SpmmDense& dense_;
  const int64_t size_;  // bytes of a number
  const Kernels kernels_;
  int64_t cells_ = 0, tasks_ = 0, step_ = 0;
  bool packed_ = false;
  std::vector<Piece> pieces_;
};

}  // namespace

void spmm_product(const SpmmMatrix& matrix, const SpmmDense& dense, int threads) {
  if (!matrix.rows || !dense.width) return;
  Multiplication(matrix, dense).run(threads);
}

}  // namespace vecsmith
