// A tile of rows, one in each lane of a few vectors, goes through all components:
//
//   w_t <- max(0, w_t + (n_t - l1 - sum_s g_ts w_s) / g_tt)
//
// The tile lies in the first-level cache, component by component. The sums of a block of components
// are found together, so that a vector of the tile is loaded once for all of them and their numbers
// of the Gram matrix are broadcast to all rows; inside the block each component's change is taken
// off the sums of those that follow. Rows do not meet, so nothing waits for anything but the few
// steps inside of a block: what bounds the speed is the rate of multiplications, 2 k^2 operations a
// row. No STL here: see simd.h.
#include "cpu/hals_sweep.h"

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kVectors = 4;  // 16 sums in registers, of 32
#else
constexpr int kVectors = 2;  // 8 of 16
#endif

template <class T>
struct Sweep {
  static constexpr int kWidth = kLanes * 4 / static_cast<int>(sizeof(T));
  static constexpr int64_t kTile = kVectors * kWidth;
  typedef T V __attribute__((vector_size(kWidth * sizeof(T))));
  typedef T V_memory
      __attribute__((vector_size(kWidth * sizeof(T)), aligned(sizeof(T)), may_alias));

  static VECSMITH_METHOD V get(const T* p) { return *reinterpret_cast<const V_memory*>(p); }
  static VECSMITH_METHOD void put(T* p, V v) { *reinterpret_cast<V_memory*>(p) = v; }

  // to[component][row of the tile], zeros behind the last row.
  static VECSMITH_METHOD void read(const T* from, int64_t row, int64_t step, int64_t count,
                                   int64_t dim, T* to) {
    if (count < kTile) __builtin_memset(to, 0, static_cast<size_t>(dim * kTile) * sizeof(T));
    if (row == 1)
      for (int64_t t = 0; t < dim; ++t)
        for (int64_t i = 0; i < count; ++i) to[t * kTile + i] = from[i + t * step];
    else
      for (int64_t i = 0; i < count; ++i)
        for (int64_t t = 0; t < dim; ++t) to[t * kTile + i] = from[i * row + t * step];
  }
  static VECSMITH_METHOD void write(const T* from, int64_t row, int64_t step, int64_t count,
                                    int64_t dim, T* to) {
    if (row == 1)
      for (int64_t t = 0; t < dim; ++t)
        for (int64_t i = 0; i < count; ++i) to[i + t * step] = from[t * kTile + i];
    else
      for (int64_t i = 0; i < count; ++i)
        for (int64_t t = 0; t < dim; ++t) to[i * row + t * step] = from[t * kTile + i];
  }

  // Components first .. first + kCount - 1.
  template <int kCount>
  static VECSMITH_METHOD void block(const T* gram, const T* scale, T l1, int64_t dim, int64_t first,
                                    const T* numerator, T* tile, V (&moved)[kVectors]) {
    V sums[kCount][kVectors];
    for (int i = 0; i < kCount; ++i)
      for (int v = 0; v < kVectors; ++v) sums[i][v] = get(numerator + i * kTile + v * kWidth) - l1;
    for (int64_t s = 0; s < dim; ++s)
      for (int v = 0; v < kVectors; ++v) {
        const V w = get(tile + s * kTile + v * kWidth);
        for (int i = 0; i < kCount; ++i) sums[i][v] -= w * gram[s * kHalsBlock + i];
      }
    for (int i = 0; i < kCount; ++i) {
      // A component of zeros on the other side: any value will do.
      if (scale[first + i] <= 0) continue;
      const T inverse = T{1} / scale[first + i];
      T* const at = tile + (first + i) * kTile;
      for (int v = 0; v < kVectors; ++v) {
        const V old = get(at + v * kWidth), to = old + sums[i][v] * inverse;
        const V now = to < T{0} ? V{} : to;  // nan stays nan
        const V change = now - old;
        put(at + v * kWidth, now);
        moved[v] += (change < T{0} ? -change : change) * scale[first + i];
        for (int j = i + 1; j < kCount; ++j)
          sums[j][v] -= change * gram[(first + i) * kHalsBlock + j];
      }
    }
  }

  static double rows(const HalsJob& job, int64_t first, int64_t count, T* scratch) {
    const int64_t dim = job.dim;
    T *const tile = scratch, *const numerator = scratch + dim * kTile;
    T* const factor = static_cast<T*>(job.factor) + first * job.factor_row;
    read(static_cast<const T*>(job.numerator) + first * job.numerator_row, job.numerator_row,
         job.numerator_step, count, dim, numerator);
    read(factor, job.factor_row, job.factor_step, count, dim, tile);
    const T* gram = static_cast<const T*>(job.gram);
    const T* const scale = static_cast<const T*>(job.scale);
    const T l1 = static_cast<T>(job.l1);
    V moved[kVectors] = {};
    for (int64_t t = 0; t < dim; t += kHalsBlock, gram += dim * kHalsBlock)
      with_number<1, static_cast<int>(kHalsBlock)>(
          dim - t < kHalsBlock ? dim - t : kHalsBlock, [&](auto number) VECSMITH_LAMBDA {
            block<decltype(number)::value>(gram, scale, l1, dim, t, numerator + t * kTile, tile,
                                           moved);
          });
    write(tile, job.factor_row, job.factor_step, count, dim, factor);
    double sum = 0;
    for (int v = 0; v < kVectors; ++v)
      for (int lane = 0; lane < kWidth; ++lane) sum += static_cast<double>(moved[v][lane]);
    return sum;
  }
};

}  // namespace

int64_t hals_tile(bool wide) { return wide ? Sweep<double>::kTile : Sweep<float>::kTile; }

double hals_rows(const HalsJob& job, int64_t first, int64_t count, void* scratch) {
  return job.wide ? Sweep<double>::rows(job, first, count, static_cast<double*>(scratch))
                  : Sweep<float>::rows(job, first, count, static_cast<float*>(scratch));
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
