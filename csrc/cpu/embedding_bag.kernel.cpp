// Embedding tables on the CPU: pooled gathers, and the sums and steps of touched rows (formulas:
// python/vecsmith/reference/embedding_bag.py).
#include "cpu/embedding_bag.h"

#include "cpu/embedding_bag_pool.h"
#include "cpu/embedding_bag_rules.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {

void embedding_bag_forward(const BagForward& job, int64_t first, int64_t last,
                           BagScratch& scratch) {
  const int64_t ahead = rows_ahead(row_bytes(job.table));
  Cursor cursor{first, job.bags.mode == kNone ? first : job.bags.bag_begin(first)};
  const auto more = [&] {
    return job.bags.mode == kNone ? cursor.position < last : cursor.bag < last;
  };
  int now = 0;
  if (!more() || !fill_any(job, last, cursor, scratch.block[0], scratch.bad)) return;
  for (int64_t i = 0; i < scratch.block[0].samples && i < ahead; ++i)
    fetch(scratch.block[0].row[i], row_bytes(job.table));
  for (bool going = true; going; now = 1 - now) {
    BagBlock &block = scratch.block[now], &next = scratch.block[1 - now];
    going = more();
    next.samples = 0;
    if (going && !fill_any(job, last, cursor, next, scratch.bad)) return;
    // Behind a block's rows stand the first of the next: what is asked for at its end.
    for (int64_t i = 0; i < kBagAhead; ++i)
      block.row[block.samples + i] = i < next.samples ? next.row[i]
                                     : block.samples  ? block.row[block.samples - 1]
                                                      : nullptr;
    switch (job.table.type) {
      case kFloat32:
        forward_block<Float32, Float32>(job, block, ahead, scratch);
        break;
      case kFloat16:
        forward_block<Float16, Float16>(job, block, ahead, scratch);
        break;
      case kBfloat16:
        forward_block<Bfloat16, Bfloat16>(job, block, ahead, scratch);
        break;
      default:
        forward_block<Quantized8, Float32>(job, block, ahead, scratch);
    }
  }
}

namespace {

template <class G, class E>
VECSMITH_INLINE void dots(const Bags& bags, const Rows& grad, const Rows& table, int64_t first,
                          int64_t last, void* out, ElementType type) {
  const int64_t dim = table.dim, full = dim / kLanes * kLanes, bytes = row_bytes(table);
  for (int64_t bag = first; bag < last; ++bag) {
    const char* g = grad.data + bag * grad.stride;
    const int64_t end = bags.bag_begin(bag + 1);
    for (int64_t n = bags.bag_begin(bag); n < end; ++n) {
      const int64_t later = n + 8;
      if (later < bags.count) fetch(table.data + bags.index(later) * table.stride, bytes);
      const char* row = table.data + bags.index(n) * table.stride;
      vfloat sum{}, other{};  // two, so that an addition does not wait for the one before it
      if (bags.index(n) != bags.padding) {
        int64_t at = 0;
        for (; at + 2 * kLanes <= full; at += 2 * kLanes) {
          sum += G::get(g, at, kLanes) * E::get(row, at, kLanes);
          other += G::get(g, at + kLanes, kLanes) * E::get(row, at + kLanes, kLanes);
        }
        if (at < full) sum += G::get(g, at, kLanes) * E::get(row, at, kLanes);
        if (full < dim) {
          const int tail = static_cast<int>(dim - full);
          sum += G::get(g, full, tail) * E::get(row, full, tail);
        }
      }
      const vfloat value = splat(sum_of_lanes(sum + other));
      char* to = static_cast<char*>(out);
      if (type == kFloat32)
        Float32::put(to, n, value, 1);
      else if (type == kFloat16)
        Float16::put(to, n, value, 1);
      else
        Bfloat16::put(to, n, value, 1);
    }
  }
}

}  // namespace

void embedding_bag_dots(const Bags& bags, const Rows& grad, const Rows& table, int64_t first,
                        int64_t last, void* out, ElementType type) {
  // The gradient has the table's type, or is float32 beside another.
  if (table.type == kFloat32)
    return dots<Float32, Float32>(bags, grad, table, first, last, out, type);
  if (table.type == kFloat16)
    return grad.type == kFloat16
               ? dots<Float16, Float16>(bags, grad, table, first, last, out, type)
               : dots<Float32, Float16>(bags, grad, table, first, last, out, type);
  return grad.type == kBfloat16
             ? dots<Bfloat16, Bfloat16>(bags, grad, table, first, last, out, type)
             : dots<Float32, Bfloat16>(bags, grad, table, first, last, out, type);
}

void embedding_bag_update(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  if (job.table.type == kFloat32)
    update_with<Float32>(job, first, last, sum);
  else if (job.table.type == kFloat16)
    update_with<Float16>(job, first, last, sum);
  else
    update_with<Bfloat16>(job, first, last, sum);
}

void embedding_bag_part(const BagUpdate& job, int64_t first, int64_t last, float* sum) {
  // Lanes beyond the row are summed with the others.
  for (int64_t at = job.grad.dim / kLanes * kLanes; at < job.part_stride; ++at) sum[at] = 0.0f;
  sum_samples(job, first, last, sum);
}

int64_t embedding_bag_select(const Bags& bags, int64_t first, int64_t last, uint32_t low,
                             uint32_t span, uint32_t* positions, uint32_t* rows) {
  int64_t count = 0, i = first;
#if defined(__AVX512F__)
  const __m512i base = _mm512_set1_epi32(static_cast<int>(low));
  const __m512i width = _mm512_set1_epi32(static_cast<int>(span));
  const __m512i padding = _mm512_set1_epi32(static_cast<int>(bags.padding));
  __m512i position =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  for (; i + 16 <= last; i += 16, position = _mm512_add_epi32(position, _mm512_set1_epi32(16))) {
    __m512i row;
    if (bags.wide) {
      const int64_t* p = static_cast<const int64_t*>(bags.indices) + i;
      row = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(_mm512_loadu_si512(p))),
                               _mm512_cvtepi64_epi32(_mm512_loadu_si512(p + 8)), 1);
    } else {
      row = _mm512_loadu_si512(static_cast<const int32_t*>(bags.indices) + i);
    }
    const __mmask16 here = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(row, base), width) &
                           _mm512_cmpneq_epi32_mask(row, padding);
    if (positions) {  // (compressing into memory is slow on some processors)
      _mm512_storeu_si512(positions + count, _mm512_maskz_compress_epi32(here, position));
      _mm512_storeu_si512(rows + count, _mm512_maskz_compress_epi32(here, row));
    }
    count += __builtin_popcount(here);
  }
#endif
  for (; i < last; ++i) {
    const uint32_t row = static_cast<uint32_t>(bags.index(i));
    if (positions) {
      positions[count] = static_cast<uint32_t>(i);
      rows[count] = row;
    }
    count += (row - low < span) & (static_cast<int64_t>(row) != bags.padding);
  }
  return count;
}

int64_t embedding_bag_bad(const Bags& bags, int64_t first, int64_t last) {
  const auto rows = static_cast<uint64_t>(bags.rows);
  uint64_t bad = 0;
  if (bags.wide) {
    const int64_t* p = static_cast<const int64_t*>(bags.indices);
    for (int64_t i = first; i < last; ++i) bad |= static_cast<uint64_t>(p[i]) >= rows;
  } else {
    const int32_t* p = static_cast<const int32_t*>(bags.indices);
    for (int64_t i = first; i < last; ++i)
      bad |= static_cast<uint64_t>(static_cast<int64_t>(p[i])) >= rows;
  }
  for (int64_t i = first; bad && i < last; ++i)
    if (static_cast<uint64_t>(bags.index(i)) >= rows) return i;
  return -1;
}

bool all_finite(const void* values, ElementType type, int64_t count) {
  // x - x is zero for what is finite, and NaN for what is not.
  vfloat bad{};
  const char* p = static_cast<const char*>(values);
  const auto look = [&](auto element) VECSMITH_LAMBDA {
    using E = decltype(element);
    each_vector(count, [&](int64_t at, int n) VECSMITH_LAMBDA {
      const vfloat x = E::get(p, at, n);
      bad += x - x;
    });
  };
  if (type == kFloat32)
    look(Float32{});
  else if (type == kFloat16)
    look(Float16{});
  else
    look(Bfloat16{});
  return sum_of_lanes(bad) == 0.0f;
}

}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
