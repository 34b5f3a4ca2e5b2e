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

// Several tables at once. Throws std::out_of_range for an index that is no row.
void embedding_bag_forward(const BagForward* jobs, int64_t count, int threads);

// The samples sorted by row, and what is done with them. What the constructor throws is thrown
// before anything is changed: std::out_of_range for indices, std::invalid_argument with
// `check_finite` for a gradient or weights that are not finite.
class BagSegments {
 public:
  BagSegments(const Bags& bags, const Rows& grad, const int64_t* positions, bool check_finite,
              int threads);
  ~BagSegments();
  // Distinct rows.
  int64_t count() const;
  // table: what is changed, or where the sums go; row_ids: [count()], with kStore.
  void update(const Rows& table, float* const* state, const Rule& rule, int64_t* row_ids);

 private:
  struct Lists;
  std::unique_ptr<Lists> lists_;
};

void per_sample_weights_gradient(const Bags& bags, const Rows& grad, const Rows& table, void* out,
                                 ElementType type, int threads);

}  // namespace vecsmith
