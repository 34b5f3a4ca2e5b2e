#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/arena.h"
#include "cpu/hals_sweep_driver.h"
#include "cpu/parallel.h"

namespace vecsmith {
namespace {

// The Gram matrix block by block, and its diagonal.
template <class T>
void pack(const T* gram, int64_t dim, T* packed, T* scale) {
  for (int64_t t = 0; t < dim; ++t) scale[t] = gram[t * dim + t];
  for (int64_t t = 0; t < dim; t += kHalsBlock)
    for (int64_t s = 0; s < dim; ++s)
      for (int64_t i = 0; i < kHalsBlock; ++i)
        *packed++ = t + i < dim ? gram[(t + i) * dim + s] : T{0};
}

}  // namespace

double hals_sweep_rows(HalsJob job, int64_t rows, const void* gram, int threads) {
  if (!rows || !job.dim) return 0;
  const auto kernel = VECSMITH_PICK_KERNEL(hals_rows);
  const int64_t tile = VECSMITH_PICK_KERNEL(hals_tile)(job.wide), size = job.wide ? 8 : 4;
  const int64_t packed = (job.dim + kHalsBlock - 1) / kHalsBlock * kHalsBlock * job.dim;
  const auto bytes = [&](int64_t numbers) {
    return static_cast<size_t>(numbers * size + 63) / 64 * 64;
  };
  Arena arena(bytes(packed) + bytes(job.dim));
  char* const blocks = arena.take<char>(bytes(packed));
  char* const scale = arena.take<char>(bytes(job.dim));
  if (job.wide)
    pack(static_cast<const double*>(gram), job.dim, reinterpret_cast<double*>(blocks),
         reinterpret_cast<double*>(scale));
  else
    pack(static_cast<const float*>(gram), job.dim, reinterpret_cast<float*>(blocks),
         reinterpret_cast<float*>(scale));
  job.gram = blocks;
  job.scale = scale;
  const int64_t tiles = (rows + tile - 1) / tile;
  std::vector<double> moved(static_cast<size_t>(tiles));
  std::atomic<int64_t> next{0};
  parallel(static_cast<int>(std::min<int64_t>(threads, tiles)), [&](int, int) {
    Arena own(bytes(2 * tile * job.dim));
    char* const scratch = own.take<char>(bytes(2 * tile * job.dim));
    for (int64_t at; (at = next.fetch_add(1)) < tiles;)
      moved[static_cast<size_t>(at)] =
          kernel(job, at * tile, std::min(tile, rows - at * tile), scratch);
  });
  double sum = 0;
  for (const double part : moved) sum += part;
  return sum;
}

}  // namespace vecsmith
