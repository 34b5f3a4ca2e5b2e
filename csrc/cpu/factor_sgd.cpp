#include <algorithm>
#include <atomic>
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

// Runs body(block, first cell, last cell) over all blocks, in the order that FactorBlocks
// describes.
template <class Body>
void in_order(const FactorBlocks& blocks, int threads, const Body& body) {
  const int64_t bands = blocks.bands;
  threads = static_cast<int>(std::min<int64_t>(threads, bands));
  std::atomic<int64_t> next{0};
  // Blocks that are done of each band of rows.
  struct alignas(64) Done {
    std::atomic<int64_t> blocks{0};
  };
  std::vector<Done> done(static_cast<size_t>(bands));
  parallel(threads, [&](int, int) {
    // Whoever waits does so for a band that was taken before: the first of them never waits.
    for (int64_t lane; (lane = next.fetch_add(1)) < bands;) {
      std::atomic<int64_t>& mine = done[static_cast<size_t>(lane)].blocks;
      for (int64_t k = 0; k < bands; ++k) {
        if (lane > 0) {
          const std::atomic<int64_t>& before = done[static_cast<size_t>(lane - 1)].blocks;
          wait_until([&] { return before.load(std::memory_order_acquire) > k; });
        }
        const int64_t block = blocks.rows[lane] * bands + blocks.columns[k];
        body(block, blocks.offsets[block], blocks.offsets[block + 1]);
        mine.store(k + 1, std::memory_order_release);
      }
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
