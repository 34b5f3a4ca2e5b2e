// The driver of the nearest rows: panels, threads, candidates, errors. The binding calls these.
#pragma once

#include "cpu/cosine_topk.h"

namespace vecsmith {

// Sums of products of so many bytes fit 32 bits.
constexpr int64_t kMostBytes = 65536;

// What a search looks through.
struct TopkVocabulary {
  Rows rows;
  int64_t count;
  TopkMetric metric;
  const uint8_t* banned;  // [count], or null
  // As topk_pack_all has made them of the same rows; null: they are packed block by block.
  const char* panels;
  const float* center;
  TopkUnit unit;
};

struct TopkSearch {
  Rows queries;
  int64_t count, k;
  const int64_t *exclude_offsets, *excluded;  // as in TopkScreen; or null
  void* values;                               // [count, k]
  bool wide;                                  // values are doubles, not floats
  int64_t* indices;                           // [count, k]
};

// The k best rows of each query: by score, of equal ones the lower row first. Where fewer rows are
// allowed the rest has index -1 and a value of -infinity (l2: infinity). Throws
// std::invalid_argument for rows that are not finite, or too long; nothing is written then.
void topk_search(const TopkVocabulary& vocabulary, const TopkSearch& search, int threads);

// The fastest unit for these rows on this processor.
TopkUnit topk_choose_unit(const TopkVocabulary& vocabulary, float* center);

// Packs all rows (`ids` null), or those that ids names into panels that are there. panels:
// topk_layout(unit, dim).panels(count) of them. Throws as topk_search, for the first bad row.
void topk_pack_rows(const TopkVocabulary& vocabulary, char* panels, const int64_t* ids,
                    int64_t ids_count, int threads);

}  // namespace vecsmith
