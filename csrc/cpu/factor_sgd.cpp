#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "cpu/factor_sgd_driver.h"
#include "cpu/parallel.h"

namespace vecsmith {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Who may train which block. A band of rows goes on where the band before it is ahead; a worker
// stays with its band, and takes the first other one that can go on where its own cannot: where one
// of them is held up, by another process, the others have work for a while.
class Turns {
 public:
  explicit Turns(int64_t bands)
      : bands_(bands), done_(static_cast<size_t>(bands)), busy_(static_cast<size_t>(bands)) {}

  // Takes the next block of a band, its own if it can (bands: it has none yet). False: all are
  // done.
  bool take(int64_t& band, int64_t& block) {
    std::unique_lock<std::mutex> held(mutex_);
    changed_.wait(held, [&] {
      band = next(band);
      return band < bands_ || first_ == bands_;
    });
    if (band == bands_) return false;
    busy_[static_cast<size_t>(band)] = true;
    block = done_[static_cast<size_t>(band)];
    return true;
  }

  void give_back(int64_t band) {
    {
      const std::lock_guard<std::mutex> held(mutex_);
      busy_[static_cast<size_t>(band)] = false;
      ++done_[static_cast<size_t>(band)];
      while (first_ < bands_ && done_[static_cast<size_t>(first_)] == bands_) ++first_;
    }
    changed_.notify_all();
  }

 private:
  bool ready(int64_t band) const {
    const size_t at = static_cast<size_t>(band);
    return !busy_[at] && done_[at] < bands_ && (band == 0 || done_[at - 1] > done_[at]);
  }
  int64_t next(int64_t own) const {
    if (own < bands_ && ready(own)) return own;
    int64_t band = first_;
    while (band < bands_ && !ready(band)) ++band;
    return band;
  }

  const int64_t bands_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int64_t> done_;  // blocks of each band
  std::vector<bool> busy_;
  int64_t first_ = 0;  // band that is not done
};

// Runs body(block, first cell, last cell) over all blocks, in the order that FactorBlocks
// describes.
template <class Body>
void in_order(const FactorBlocks& blocks, int threads, const Body& body) {
  const int64_t bands = blocks.bands;
  Turns turns(bands);
  parallel(static_cast<int>(std::min<int64_t>(threads, bands)), [&](int, int) {
    for (int64_t band = bands, k; turns.take(band, k); turns.give_back(band)) {
      const int64_t block = blocks.rows[band] * bands + blocks.columns[k];
      body(block, blocks.offsets[block], blocks.offsets[block + 1]);
    }
  });
}

}  // namespace

double factor_sgd_epoch(const FactorJob& job, const FactorBlocks& blocks, int threads) {
  const auto train = VECSMITH_PICK_KERNEL(factor_sgd_cells);
  std::vector<double> loss(static_cast<size_t>(blocks.bands * blocks.bands));
  in_order(blocks, threads, [&](int64_t block, int64_t first, int64_t last) {
    loss[static_cast<size_t>(block)] = train(job, first, last);
  });
  double sum = 0;
  for (const double part : loss) sum += part;
  return sum;
}

FactorPairsResult factor_sgd_bpr_epoch(const FactorJob& job, const FactorBlocks& blocks,
                                       int threads) {
  const auto train = VECSMITH_PICK_KERNEL(factor_sgd_bpr_cells);
  std::vector<FactorPairsResult> parts(static_cast<size_t>(blocks.bands * blocks.bands));
  in_order(blocks, threads, [&](int64_t block, int64_t first, int64_t last) {
    train(job, first, last, parts[static_cast<size_t>(block)]);
  });
  FactorPairsResult sum{};
  for (const FactorPairsResult& part : parts) {
    sum.loss += part.loss;
    sum.correct += part.correct;
    sum.trained += part.trained;
  }
  return sum;
}

void factor_sgd_layout(const FactorLayout& layout, int threads) {
  const int64_t blocks = layout.bands * layout.bands;
  const auto block_of = [&](int64_t k) {
    return layout.user_band[layout.users[k]] * layout.bands + layout.item_band[layout.items[k]];
  };
  std::vector<int64_t> next(static_cast<size_t>(blocks));
  for (int64_t k = 0; k < layout.cells; ++k) ++next[static_cast<size_t>(block_of(k))];
  layout.offsets[0] = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t& count = next[static_cast<size_t>(b)];
    layout.offsets[b + 1] = layout.offsets[b] + count;
    count = layout.offsets[b];
  }
  for (int64_t k = 0; k < layout.cells; ++k) {
    const int64_t at = next[static_cast<size_t>(block_of(k))]++;
    layout.new_users[at] = layout.users[k];
    layout.new_items[at] = layout.items[k];
    layout.new_values[at] = layout.values[k];
  }
  // Cells that follow one another in the matrix have a row in common: each would wait for the one
  // before.
  parallel(threads, [&](int worker, int size) {
    for (int64_t b = share(blocks, worker, size); b < share(blocks, worker + 1, size); ++b) {
      const uint64_t key = mix(layout.key + (static_cast<uint64_t>(b) + 1) * kGolden);
      const int64_t first = layout.offsets[b];
      for (int64_t k = layout.offsets[b + 1] - first - 1; k > 0; --k) {
        const uint64_t bits = mix(key + (static_cast<uint64_t>(k) + 1) * kGolden);
        const auto wide = static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(k + 1);
        const int64_t j = first + static_cast<int64_t>(wide >> 64);
        std::swap(layout.new_users[first + k], layout.new_users[j]);
        std::swap(layout.new_items[first + k], layout.new_items[j]);
        std::swap(layout.new_values[first + k], layout.new_values[j]);
      }
    }
  });
}

}  // namespace vecsmith
