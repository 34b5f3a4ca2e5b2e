// The nearest rows of a vocabulary: the jobs that the driver (cosine_topk_driver.h) hands to the
// kernels. Formulas: python/vecsmith/reference/cosine_topk.py.
//
// A first pass takes all products in low precision, <a, b> + bias, of a query's factors a and a
// row's factors b, and proves for each row an interval that holds what exact arithmetic gives:
//
//   cosine   a = q / |q|   b = w / |w| - m   bias = 0           m: any vector, the rows' mean, so
//   dot      a = q / |q|   b = w - m         bias = 0           that what is rounded is small
//   l2       a = q - m     b = w - m         bias = -|b|^2 / 2
//
// which rank the rows as the metric does. With a~, b~ what is left of a and b after rounding,
// |<a, b> - <a~, b~>| <= |a - a~| |b| + |a~| |b - b~|. Rows whose interval could reach the k-th
// best are kept, and scored again from the given rows in double precision.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"
#include "cpu/rows.h"

namespace vecsmith {

enum TopkMetric : int32_t { kCosine = 0, kDot = 1, kL2 = 2 };

// What a word, the four bytes that are multiplied at once, holds: one float, two bfloat16, or four
// bytes with a scale for each row.
enum TopkUnit : int32_t { kFloats = 0, kPairs = 1, kBytes = 2 };

// A panel is `rows` rows: words[words][rows] of four bytes, then floats: scale[rows], bias[rows],
// norm[rows] (|b|), error[rows] (|b - b~|), and the greatest norm, error and |bias| of all.
struct TopkLayout {
  TopkUnit unit;
  int32_t rows;
  int64_t dim, words;

  int64_t panel_bytes() const { return ((words + 4) * rows + 16) * 4; }
  int64_t panels(int64_t count) const { return (count + rows - 1) / rows; }
  int64_t query_bytes() const { return (words * 4 + 63) / 64 * 64; }
};

// Rows to be packed: `count` of them, from `first` on, or those that `ids` names.
struct TopkPack {
  TopkLayout layout;
  TopkMetric metric;
  Rows rows;
  const float* center;    // [dim]
  const uint8_t* banned;  // by row; these are never found, and may hold anything; or null
  const int64_t* ids;     // or null
  int64_t first, count;
  char* panels;  // the first one holds row first_row
  int64_t first_row;
};

struct TopkEntry {
  float upper;  // no exact score is above it
  int32_t row;
};

// A query of the first pass.
struct TopkQuery {
  float scale;        // of its bytes
  int32_t start;      // what the sum of products of bytes begins with
  float norm, error;  // |a~|, |a - a~|
  float tau;          // the k-th best of what the rows so far reach for certain
  int32_t count;      // of entries
  bool full;          // they did not suffice
};

struct TopkScreen {
  TopkLayout layout;
  const char* panels;
  int64_t panel_count, first_row;
  const char* words;  // [queries][query_bytes]
  TopkQuery* queries;
  int64_t query_count;
  TopkEntry* entries;  // [queries][capacity]
  int64_t capacity;
  float* lower;  // [queries][k], the k best of what rows reach for certain, a heap: the least first
  int64_t k;
  const uint8_t* banned;  // as in TopkPack
  // Rows that query i may not have: excluded[offsets[i]] .. excluded[offsets[i + 1] - 1],
  // ascending; or null
  const int64_t *exclude_offsets, *excluded;
};

// Whether query i may have this row.
inline bool topk_allows(const uint8_t* banned, const int64_t* offsets, const int64_t* excluded,
                        int64_t i, int64_t row) {
  if (banned && banned[row]) return false;
  if (!offsets) return true;
  int64_t low = offsets[i], high = offsets[i + 1];
  const int64_t end = high;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (excluded[middle] < row)
      low = middle + 1;
    else
      high = middle;
  }
  return low == end || excluded[low] != row;
}

VECSMITH_DECLARE_KERNEL(
    // Whether this processor multiplies these units faster than floats.
    bool topk_has_unit(TopkUnit unit); TopkLayout topk_layout(TopkUnit unit, int64_t dim);
    // Panels of no rows at all.
    void topk_clear(const TopkLayout& layout, char* panels, int64_t count);
    // Returns the first row that is not finite, or that is too long (|w| > 1e18; cosine: any length
    // that a double holds), or -1.
    int64_t topk_pack(const TopkPack& pack, float* scratch);
    // The greatest norms and errors of a panel, after rows of it were packed.
    void topk_bounds(const TopkLayout& layout, char* panels, int64_t count);
    // One query: its words, and what a TopkQuery knows before the pass. False: it is not finite, or
    // it is too long.
    bool topk_query(const TopkPack& pack, int64_t row, float* scratch, char* words,
                    TopkQuery* query);
    // The mean of up to `most` rows, as `metric` takes them, and how large the errors of bytes
    // are, relative to the rows.
    double topk_center(const Rows& rows, int64_t count, TopkMetric metric, const uint8_t* banned,
                       int64_t most, float* center, float* scratch);
    void topk_screen(const TopkScreen& job);
    // |q|^2, which is not finite where q is not; q in double precision; and with a center m <q, m>,
    // or |q - m|^2 with l2.
    double topk_double(const Rows& rows, int64_t row, TopkMetric metric, const float* center,
                       double* out, double* to_center);
    // The score of a row: cosine (0 where one of them is zero), product, or minus the squared
    // distance.
    double topk_score(TopkMetric metric, const double* query, double query_norm, const Rows& rows,
                      int64_t row))

}  // namespace vecsmith
