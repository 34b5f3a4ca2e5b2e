// Update driver of the embedding tables. The samples are sorted by row, by a parallel radix sort
// that keeps their order within a row, and the rows' segments are handed out in small stretches.
// A segment is summed by one worker from its first sample to its last (long ones in parts of a
// fixed size), so the bits depend on nothing but the input.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/embedding_bag_driver.h"
#include "cpu/parallel.h"

namespace vecsmith {
namespace {

// Uninitialized memory on a cache line's boundary. A thread keeps what it had last, so that the
// system need not clear pages for every step.
class Arena {
 public:
  explicit Arena(size_t bytes) {
    Kept& kept = kept_();
    if (kept.bytes >= bytes) {
      std::swap(data_, kept.data);
      std::swap(bytes_, kept.bytes);
      return;
    }
    bytes_ = (bytes + 4095) / 4096 * 4096;
    data_ = static_cast<char*>(std::aligned_alloc(4096, bytes_));
    if (!data_) throw std::bad_alloc();
  }
  ~Arena() {
    Kept& kept = kept_();
    if (bytes_ <= kMostKept && bytes_ > kept.bytes) {
      std::swap(data_, kept.data);
      std::swap(bytes_, kept.bytes);
    }
    std::free(data_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class T>
  T* take(size_t count) {
    T* p = reinterpret_cast<T*>(data_ + used_);
    used_ += room<T>(count);
    return p;
  }
  template <class T>
  static size_t room(size_t count) {
    return (count * sizeof(T) + 63) / 64 * 64;
  }

 private:
  static constexpr size_t kMostKept = size_t{32} << 20;
  struct Kept {
    char* data = nullptr;
    size_t bytes = 0;
    ~Kept() { std::free(data); }
  };
  static Kept& kept_() {
    thread_local Kept kept;
    return kept;
  }
  char* data_ = nullptr;
  size_t bytes_ = 0, used_ = 0;
};

constexpr int64_t kSamplesPerThread = 2048;
constexpr int64_t kSegmentsAtOnce = 128;
constexpr int64_t kSelectAtOnce = 4096;

int bits_of(uint64_t n) {
  int bits = 0;
  for (; n; n >>= 1) ++bits;
  return bits;
}

// A worker's rows and their samples.
struct Part {
  uint32_t low = 0, span = 0;  // rows low .. low+span-1
  int64_t samples = 0, segments = 0;
  SortedSample *sorted = nullptr, *other = nullptr;
  uint32_t* begins = nullptr;              // [segments + 1]
  std::vector<int64_t> long_rows, pieces;  // segments of many samples; first piece of each

  void sort(const Bags& bags, const int32_t* bag_of);
  void find_segments();
};

// The part's samples, by row.
void Part::sort(const Bags& bags, const int32_t* bag_of) {
  const int bits = std::max(1, bits_of(span ? span - 1 : 0));
  const int passes = (bits + 10) / 11, digits = (bits + passes - 1) / passes;
  const uint32_t buckets = uint32_t{1} << digits, mask = buckets - 1;
  std::vector<uint32_t> histogram(static_cast<size_t>(passes) << digits);
  const auto select = VECSMITH_PICK_KERNEL(embedding_bag_select);
  std::vector<uint32_t> positions(kSelectAtOnce + 16), rows(kSelectAtOnce + 16);
  SortedSample* to = sorted;
  bool ascending = true;
  uint32_t before = 0;
  const int64_t all = bags.samples();
  for (int64_t first = 0; first < all; first += kSelectAtOnce) {
    const int64_t n = select(bags, first, std::min(first + kSelectAtOnce, all), low, span,
                             positions.data(), rows.data());
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t row = rows[static_cast<size_t>(i)] - low;
      const uint32_t position = positions[static_cast<size_t>(i)];
      *to++ = {bag_of ? static_cast<uint32_t>(bag_of[position]) : position, row};
      for (int pass = 0; pass < passes; ++pass)
        ++histogram[(static_cast<size_t>(pass) << digits) + ((row >> pass * digits) & mask)];
      ascending &= row >= before;
      before = row;
    }
  }
  for (int pass = 0; pass < passes && !ascending; ++pass) {
    uint32_t* const place = histogram.data() + (static_cast<size_t>(pass) << digits);
    uint32_t sum = 0;
    for (uint32_t d = 0; d < buckets; ++d) {
      const uint32_t here = place[d];
      place[d] = sum;
      sum += here;
    }
    const int shift = pass * digits;
    for (int64_t i = 0; i < samples; ++i) {
      const SortedSample sample = sorted[i];
      other[place[(sample.row >> shift) & mask]++] = sample;
    }
    std::swap(sorted, other);
  }
}

void Part::find_segments() {
  segments = 0;
  begins[0] = 0;
  for (int64_t i = 1; i <= samples; ++i) {
    begins[segments + 1] = static_cast<uint32_t>(i);  // written again until the row has ended
    segments += i == samples || sorted[i].row != sorted[i - 1].row;
  }
}

}  // namespace

struct BagSegments::Lists {
  Lists(const Bags& given, const Rows& gradient, const int64_t* where, size_t bytes)
      : bags(given), grad(gradient), positions(where), arena(bytes) {}

  Bags bags;
  Rows grad;
  const int64_t* positions;
  Arena arena;
  int32_t* bag_of = nullptr;   // null where each position is a bag of its own
  float* bag_scale = nullptr;  // with kMean
  bool by_position = false;    // a sample's source is its position
  std::vector<Part> parts;
};

namespace {

// Where to cut the rows, so that each part has about as many samples: quantiles of some of them.
std::vector<Part> cut(const Bags& bags, int64_t samples, int count) {
  constexpr int64_t kLooked = 512;
  std::vector<Part> parts(static_cast<size_t>(count));
  std::vector<int64_t> some;
  for (int64_t k = 0; count > 1 && k < kLooked; ++k) {
    const int64_t row = bags.index(share(samples, k, kLooked));
    if (row >= 0 && row < bags.rows && row != bags.padding) some.push_back(row);
  }
  std::sort(some.begin(), some.end());
  int64_t low = 0;
  for (int p = 0; p < count; ++p) {
    int64_t high = bags.rows;
    if (p + 1 < count && !some.empty())
      high = some[static_cast<size_t>(share(static_cast<int64_t>(some.size()), p + 1, count))];
    high = std::max(high, low);
    parts[static_cast<size_t>(p)].low = static_cast<uint32_t>(low);
    parts[static_cast<size_t>(p)].span = static_cast<uint32_t>(high - low);
    low = high;
  }
  parts.back().span = static_cast<uint32_t>(bags.rows - parts.back().low);
  return parts;
}

}  // namespace

BagSegments::BagSegments(const Bags& bags, const Rows& grad, const int64_t* positions,
                         bool check_finite, int threads) {
  check_bags(bags);
  const bool none = bags.mode == kNone;
  const int64_t samples = bags.samples();
  if (samples >= int64_t{1} << 32 || (!none && bags.bags >= int64_t{1} << 31))
    throw std::invalid_argument(
        "embedding_bag: expected fewer than 2^32 indices and 2^31 bags; got " +
        std::to_string(samples) + " and " + std::to_string(bags.bags));
  threads = static_cast<int>(std::clamp<int64_t>(samples / kSamplesPerThread + 1, 1, threads));
  const size_t n = static_cast<size_t>(samples), workers = static_cast<size_t>(threads);
  const size_t scales = bags.mode == kMean ? static_cast<size_t>(bags.bags) : 0;
  lists_ = std::make_unique<Lists>(bags, grad, positions,
                                   2 * Arena::room<SortedSample>(n) +
                                       Arena::room<uint32_t>(n + workers) +
                                       Arena::room<int32_t>(n) + Arena::room<float>(scales));
  Lists& lists = *lists_;
  SortedSample* const sorted = lists.arena.take<SortedSample>(n);
  SortedSample* const other = lists.arena.take<SortedSample>(n);
  uint32_t* const begins = lists.arena.take<uint32_t>(n + workers);
  if (!none && !(bags.offset_count < 0 && bags.length == 1)) {
    lists.bag_of = lists.arena.take<int32_t>(n);
    lists.by_position = bags.weights || bags.mode == kMax;
  }
  if (scales) lists.bag_scale = lists.arena.take<float>(scales);
  lists.parts = cut(bags, samples, threads);

  const auto finite = VECSMITH_PICK_KERNEL(all_finite);
  const auto bad_in = VECSMITH_PICK_KERNEL(embedding_bag_bad);
  const auto select = VECSMITH_PICK_KERNEL(embedding_bag_select);
  std::atomic<int64_t> bad{-1};
  std::atomic<bool> infinite{false};
  Barrier barrier;
  // Parts are made one by one where the system gives fewer workers than were asked for.
  const auto each_part = [&](int worker, int size, const auto& body) {
    for (int p = worker; p < threads; p += size) body(lists.parts[static_cast<size_t>(p)]);
  };
  parallel(threads, [&](int worker, int size) {
    const int64_t low = share(samples, worker, size), high = share(samples, worker + 1, size);
    if (check_finite) {
      const int64_t values = grad.dim * (none ? bags.count : bags.bags);
      const int64_t from = share(values, worker, size), to = share(values, worker + 1, size);
      bool good = finite(grad.data + from * element_size(grad.type), grad.type, to - from);
      if (bags.weights)
        good &=
            finite(static_cast<const char*>(bags.weights) + low * element_size(bags.weight_type),
                   bags.weight_type, high - low);
      if (!good) infinite = true;
    }
    if (const int64_t i = bad_in(bags, low, high); i >= 0) bad = i;
    if (lists.bag_of) {
      const int64_t last = worker + 1 == size ? bags.bags : bag_from(bags, high);
      for (int64_t bag = bag_from(bags, low); bag < last; ++bag) {
        const int64_t begin = bags.bag_begin(bag), end = bags.bag_begin(bag + 1);
        std::fill(lists.bag_of + begin, lists.bag_of + end, static_cast<int32_t>(bag));
        if (!lists.bag_scale) continue;
        int64_t kept = end - begin;
        if (bags.padding >= 0)
          for (int64_t i = begin; i < end; ++i) kept -= bags.index(i) == bags.padding;
        lists.bag_scale[bag] = kept ? 1.0f / static_cast<float>(kept) : 0.0f;
      }
    } else if (lists.bag_scale) {
      for (int64_t i = low; i < high; ++i) lists.bag_scale[i] = 1.0f;
    }
    each_part(worker, size, [&](Part& part) {
      part.samples = select(bags, 0, samples, part.low, part.span, nullptr, nullptr);
    });
    barrier.wait(size);
    if (bad >= 0 || infinite) return;
    each_part(worker, size, [&](Part& part) {
      int64_t before = 0;
      for (const Part* p = lists.parts.data(); p < &part; ++p) before += p->samples;
      part.sorted = sorted + before;
      part.other = other + before;
      part.begins = begins + before + (&part - lists.parts.data());
      part.sort(bags, lists.by_position ? nullptr : lists.bag_of);
      part.find_segments();
    });
    barrier.wait(size);  // (the region's own end waits by running)
  });
  if (bad >= 0)
    throw std::out_of_range(
        "embedding_bag: expected indices in 0.." + std::to_string(bags.rows - 1) + "; got " +
        std::to_string(bags.index(bad)) + " at position " + std::to_string(bad.load()));
  if (infinite)
    throw std::invalid_argument(
        "embedding_bag: expected a finite gradient (and weights); got NaN or infinity");
  // Rows of more than kLongSegment samples: one of them holds two neighbors of every so many.
  constexpr int64_t kStride = kLongSegment / 2;
  for (Part& part : lists.parts) {
    part.pieces.push_back(0);
    for (int64_t i = kStride; i < part.samples; i += kStride) {
      if (part.sorted[i].row != part.sorted[i - kStride].row) continue;
      const uint32_t* after =
          std::upper_bound(part.begins, part.begins + part.segments, static_cast<uint32_t>(i));
      const int64_t segment = after - part.begins - 1;
      const int64_t size = int64_t{part.begins[segment + 1]} - part.begins[segment];
      if (size <= kLongSegment || (!part.long_rows.empty() && part.long_rows.back() == segment))
        continue;
      part.long_rows.push_back(segment);
      part.pieces.push_back(part.pieces.back() + (size + kLongSegment - 1) / kLongSegment);
    }
  }
}

BagSegments::~BagSegments() = default;

int64_t BagSegments::count() const {
  int64_t count = 0;
  for (const Part& part : lists_->parts) count += part.segments;
  return count;
}

void BagSegments::update(const Rows& table, float* const* state, const Rule& rule,
                         int64_t* row_ids) {
  Lists& lists = *lists_;
  const int threads = static_cast<int>(lists.parts.size());
  const int64_t padded = (table.dim + 31) / 16 * 16;
  int64_t pieces = 0;
  for (const Part& part : lists.parts) pieces += part.pieces.back();
  // The pieces' sums, and a sum for each worker.
  const size_t floats = static_cast<size_t>((pieces + threads) * padded);
  Arena arena(Arena::room<float>(floats));
  float* const sums = arena.take<float>(floats);

  std::vector<BagUpdate> jobs;
  int64_t before = 0, pieces_before = 0;
  for (const Part& part : lists.parts) {
    BagUpdate job{};
    job.bags = lists.bags;
    job.grad = lists.grad;
    job.positions = lists.positions;
    job.table = table;
    job.rule = rule;
    for (int k = 0; k < 2; ++k) job.state[k] = state ? state[k] : nullptr;
    job.first_row = part.low;
    job.sorted = part.sorted;
    job.bag_of = lists.by_position ? lists.bag_of : nullptr;
    job.bag_scale = lists.bag_scale;
    job.begins = part.begins;
    job.segments = part.segments;
    if (rule.kind == kStore) {
      job.row_ids = row_ids + before;
      job.table.data += before * table.stride;
    }
    job.parts = sums + pieces_before * padded;
    job.part_stride = padded;
    job.long_rows = part.long_rows.data();
    job.long_count = static_cast<int64_t>(part.long_rows.size());
    job.part_of = part.pieces.data();
    jobs.push_back(job);
    before += part.segments;
    pieces_before += part.pieces.back();
  }
  const auto sum_piece = VECSMITH_PICK_KERNEL(embedding_bag_part);
  const auto update_segments = VECSMITH_PICK_KERNEL(embedding_bag_update);
  std::vector<std::atomic<int64_t>> next_piece(jobs.size()), next(jobs.size());
  // A worker's own part first, then what is left of the others.
  const auto each_job = [&](int worker, const auto& body) {
    for (int k = 0; k < threads; ++k) body(static_cast<size_t>((worker + k) % threads));
  };
  Barrier barrier;
  parallel(threads, [&](int worker, int size) {
    if (pieces) {
      each_job(worker, [&](size_t j) {
        const BagUpdate& job = jobs[j];
        const int64_t count = job.part_of[job.long_count];
        int64_t row = 0;
        for (int64_t p; (p = next_piece[j].fetch_add(1)) < count;) {
          while (job.part_of[row + 1] <= p) ++row;
          const int64_t segment = job.long_rows[row];
          const int64_t first = job.begins[segment] + (p - job.part_of[row]) * kLongSegment;
          const int64_t last = std::min<int64_t>(first + kLongSegment, job.begins[segment + 1]);
          sum_piece(job, first, last, job.parts + p * padded);
        }
      });
      barrier.wait(size);
    }
    float* const sum = sums + (pieces + worker) * padded;
    each_job(worker, [&](size_t j) {
      for (int64_t u; (u = next[j].fetch_add(kSegmentsAtOnce)) < jobs[j].segments;)
        update_segments(jobs[j], u, std::min(u + kSegmentsAtOnce, jobs[j].segments), sum);
    });
    barrier.wait(size);  // (the region's own end waits by running)
  });
}

}  // namespace vecsmith
