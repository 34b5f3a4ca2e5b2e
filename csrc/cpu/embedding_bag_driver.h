// The drivers of the embedding tables: threads, sorting, errors. The bindings call these.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/embedding_bag.h"

namespace vecsmith {

// The first bag that begins at sample s or later.
inline int64_t bag_from(const Bags& bags, int64_t s) {
  if (s <= 0) return 0;
  if (bags.offset_count < 0)
    return bags.length > 0 ? std::min(bags.bags, (s + bags.length - 1) / bags.length) : bags.bags;
  int64_t low = 0, high = bags.bags;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (bags.offset(middle) < s)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Throws std::invalid_argument for offsets that do not begin with 0, decrease or pass the end.
void check_bags(const Bags& bags);

// Throws std::out_of_range: the index at this position is no row.
[[noreturn]] void raise_bad_index(const Bags& bags, int64_t position);

// Several tables at once. Throws std::out_of_range for an index that is no row.
void embedding_bag_forward(const BagForward* jobs, int64_t count, int threads);

// The gradient of the touched rows, each row once. The constructor throws std::out_of_range for an
// index that is no row.
class BagSegments {
 public:
  BagSegments(const Bags& bags, const Rows& grad, const int64_t* positions, int threads);
  ~BagSegments();
  // Distinct rows.
  int64_t count() const;
  // Once: the rows and their sums, by row, [count()] of each.
  void store(const Rows& values, int64_t* row_ids);

  struct Work;

 private:
  std::unique_ptr<Work> work_;
};

// The gradient of each touched row, and what `rule` does with it and the row. Before anything is
// changed it throws std::out_of_range for an index that is no row, and with `check_finite`
// std::invalid_argument for a gradient or weights that are not finite.
void embedding_bag_step(const Bags& bags, const Rows& grad, const int64_t* positions,
                        const Rows& table, float* const* state, const Rule& rule, bool check_finite,
                        int threads);

// Throws as embedding_bag_forward.
void per_sample_weights_gradient(const Bags& bags, const Rows& grad, const Rows& table, void* out,
                                 ElementType type, int threads);

}  // namespace vecsmith
