// Rows of a sparse matrix times a few columns of a dense one: out_u = sum over the cells (i, v) of
// row u of v x_i.
//
// The whole row of out stays in registers, up to eight vectors, while the rows x_i that the cells
// name are read once each. Narrow rows have more than one set of sums, each of every second or
// fourth cell: one alone would wait for the addition before. Sums are of the type of the numbers.
//
// What bounds the speed is how fast the x_i come: one load of a vector for each multiplication. The
// driver cuts X into blocks of columns that stay in the second-level cache, where that is 32 bytes
// a cycle; cells are 8 to 16 bytes each, in order. Where X is too tall for that, rows are fetched
// some cells ahead. No STL here: see simd.h.
#include "cpu/spmm.h"

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr int kMostVectors = 8;
constexpr int64_t kAhead = 16;  // cells whose rows are fetched before their turn

// kWidth numbers of type T.
template <class T, int kWidth>
struct VectorOf {
  typedef T type __attribute__((vector_size(kWidth * sizeof(T))));
};
template <class T>
struct VectorOf<T, 1> {
  typedef T type;
};

template <class T>
constexpr int kLanesOf = kLanes * 4 / static_cast<int>(sizeof(T));

template <class T, class Index, int kWidth, int kVectors>
struct Product {
  typedef typename VectorOf<T, kWidth>::type V;
  // Sets of sums: about as many as additions are under way.
  static constexpr int kSets = kVectors == 1 ? 4 : kVectors <= 4 ? 2 : 1;

  static VECSMITH_METHOD void add(const T* row, T value, V (&sums)[kVectors]) {
    for (int k = 0; k < kVectors; ++k) {
      V x;
      __builtin_memcpy(&x, row + k * kWidth, sizeof x);
      sums[k] += x * value;
    }
  }

  static VECSMITH_METHOD void fetch(const T* row) {
    constexpr int kBytes = kVectors * static_cast<int>(sizeof(V));
    for (int at = 0; at < kBytes; at += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(row) + at, 0, 3);
  }

  static VECSMITH_METHOD void row(const SpmmBlock& block, int64_t from, int64_t to, T* out) {
    const Index* const ids = static_cast<const Index*>(block.indices);
    const T* const values = static_cast<const T*>(block.values);
    const T* const right = static_cast<const T*>(block.right);
    const int64_t stride = block.right_stride;
    const int64_t fetched = block.fetch ? block.cells - kAhead : 0;
    V sums[kSets][kVectors] = {};
    int64_t j = from;
    for (; j + kSets <= to; j += kSets) {
      if (j + kSets <= fetched)
        for (int s = 0; s < kSets; ++s) fetch(right + ids[j + kAhead + s] * stride);
      for (int s = 0; s < kSets; ++s) add(right + ids[j + s] * stride, values[j + s], sums[s]);
    }
    for (int s = 0; s < kSets - 1; ++s)
      if (j + s < to) add(right + ids[j + s] * stride, values[j + s], sums[s]);
    for (int half = kSets / 2; half; half /= 2)
      for (int s = 0; s < half; ++s)
        for (int k = 0; k < kVectors; ++k) sums[s][k] += sums[s + half][k];
    for (int k = 0; k + 1 < kVectors; ++k)
      __builtin_memcpy(out + k * kWidth, &sums[0][k], sizeof(V));
    // The last vector may be wider than what is left of the row.
    const int64_t left = block.width - (kVectors - 1) * kWidth;
    const V last = sums[0][kVectors - 1];
    if (left == kWidth) {
      __builtin_memcpy(out + (kVectors - 1) * kWidth, &last, sizeof last);
    } else {
      T numbers[kWidth];
      __builtin_memcpy(numbers, &last, sizeof last);
      for (int64_t k = 0; k < left; ++k) out[(kVectors - 1) * kWidth + k] = numbers[k];
    }
  }

  static void rows(const SpmmBlock& block, int64_t first, int64_t last) {
    const auto begin = [&](int64_t i) VECSMITH_LAMBDA {
      return block.wide_begins ? static_cast<const int64_t*>(block.begins)[i]
                               : static_cast<const int32_t*>(block.begins)[i];
    };
    T* out = static_cast<T*>(block.out) + first * block.out_stride;
    int64_t from = begin(first);
    for (int64_t i = first; i < last; ++i, out += block.out_stride) {
      const int64_t to = begin(i + 1);
      if (to - from <= block.longest) row(block, from, to, out);
      from = to;
    }
  }
};

// The width of a single vector for rows that are narrower than the level's vectors.
template <class T, class Index, int kWidth>
VECSMITH_INLINE void narrow(const SpmmBlock& block, int64_t first, int64_t last) {
  if constexpr (kWidth > 1) {
    if (block.width <= kWidth / 2) return narrow<T, Index, kWidth / 2>(block, first, last);
  }
  Product<T, Index, kWidth, 1>::rows(block, first, last);
}

template <class T, class Index>
VECSMITH_INLINE void multiply(const SpmmBlock& block, int64_t first, int64_t last) {
  constexpr int kWidth = kLanesOf<T>;
  if (block.width <= kWidth) return narrow<T, Index, kWidth>(block, first, last);
  with_number<2, kMostVectors>((block.width + kWidth - 1) / kWidth, [&](auto count) {
    Product<T, Index, kWidth, decltype(count)::value>::rows(block, first, last);
  });
}

}  // namespace

int64_t spmm_lanes(bool wide) { return wide ? kLanesOf<double> : kLanesOf<float>; }

int64_t spmm_most(bool wide) { return kMostVectors * spmm_lanes(wide); }

int64_t spmm_width(bool wide, int64_t width) {
  const int64_t lanes = spmm_lanes(wide);
  if (width >= lanes) return (width + lanes - 1) / lanes * lanes;
  int64_t padded = 1;
  while (padded < width) padded *= 2;
  return padded;
}

void spmm_rows(const SpmmBlock& block, int64_t first, int64_t last) {
  if (block.wide)
    block.wide_indices ? multiply<double, int64_t>(block, first, last)
                       : multiply<double, int32_t>(block, first, last);
  else
    block.wide_indices ? multiply<float, int64_t>(block, first, last)
                       : multiply<float, int32_t>(block, first, last);
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
