// How fast this machine can read random rows: the yardstick of bench_embedding_bag.py. Nothing of
// vecsmith; built by the benchmark with the compiler of this machine (-O3 -march=native -fopenmp).
//
// Every row is fetched whole, some way ahead, and one vector's worth of sums is kept; the best of a
// few ways of asking (into which cache, how far ahead) counts.
#include <cstdint>

namespace {

template <int kLevel>
float read(const float* table, int64_t dim, const int64_t* rows, int64_t first, int64_t last,
           int64_t ahead) {
  typedef float vector __attribute__((vector_size(64), aligned(4)));
  vector sums[4] = {};
  for (int64_t i = first; i < last; ++i) {
    if (i + ahead < last) {
      const char* p = reinterpret_cast<const char*>(table + rows[i + ahead] * dim);
      for (int64_t b = 0; b < dim * 4; b += 64) __builtin_prefetch(p + b, 0, kLevel);
    }
    const float* row = table + rows[i] * dim;
    for (int64_t at = 0; at + 16 <= dim; at += 16)
      sums[at / 16 % 4] += *reinterpret_cast<const vector*>(row + at);
  }
  const vector sum = sums[0] + sums[1] + sums[2] + sums[3];
  float total = 0;
  for (int lane = 0; lane < 16; ++lane) total += sum[lane];
  return total;
}

}  // namespace

// Reads `count` rows with `threads` threads; way: 0 .. 5. Returns the sum of what was read.
extern "C" float gather(const float* table, int64_t dim, const int64_t* rows, int64_t count,
                        int threads, int way) {
  const int64_t ahead = way % 3 == 0 ? 8 : way % 3 == 1 ? 16 : 32;
  float total = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : total)
  for (int t = 0; t < threads; ++t) {
    const int64_t first = count * t / threads, last = count * (t + 1) / threads;
    total += way < 3 ? read<3>(table, dim, rows, first, last, ahead)
                     : read<2>(table, dim, rows, first, last, ahead);
  }
  return total;
}
