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

int bits_of(uint64_t n) {
  int bits = 0;
  for (; n; n >>= 1) ++bits;
  return bits;
}

// The first bag that begins at sample s or later.
int64_t bag_from(const Bags& bags, int64_t s) {
  int64_t low = 0, high = bags.bags;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (bags.bag_begin(middle) < s)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace

struct BagSegments::Lists {
  Lists(const Bags& given, const Rows& gradient, const int64_t* where, int workers, int64_t samples,
        int digit_bits, size_t bytes)
      : bags(given),
        grad(gradient),
        positions(where),
        threads(workers),
        digits(digit_bits),
        arena(bytes) {
    const size_t n = static_cast<size_t>(samples);
    sorted = arena.take<SortedSample>(n);
    other = arena.take<SortedSample>(n);
    begins = arena.take<uint32_t>(n + 1);
    bag_of = arena.take<int32_t>(n);
    bag_scale = arena.take<float>(given.mode == kMean ? static_cast<size_t>(given.bags) : 0);
    histogram = arena.take<uint32_t>(static_cast<size_t>(workers) << digit_bits);
    places = arena.take<uint32_t>(static_cast<size_t>(workers) << digit_bits);
  }

  void find_long();

  Bags bags;
  Rows grad;
  const int64_t* positions;
  int threads, digits;
  Arena arena;
  SortedSample *sorted, *other;
  uint32_t* begins;
  int32_t* bag_of;
  float* bag_scale;
  uint32_t *histogram, *places;
  bool own_bags = false;  // each position is a bag of its own
  int64_t kept = 0, segments = 0;
  std::vector<int64_t> long_rows, part_of;
};

namespace {

// What the workers tell each other while they sort.
struct Shared {
  std::atomic<int64_t> bad{-1};
  std::atomic<bool> infinite{false}, ascending{true};
  std::vector<int64_t> kept, heads;
};

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
  const int bits = std::max(1, bits_of(static_cast<uint64_t>(std::max<int64_t>(bags.rows - 1, 0))));
  const int passes = (bits + 10) / 11, digits = (bits + passes - 1) / passes;
  const size_t n = static_cast<size_t>(samples);
  const size_t bytes = 2 * Arena::room<SortedSample>(n) + Arena::room<uint32_t>(n + 1) +
                       Arena::room<int32_t>(n) +
                       Arena::room<float>(bags.mode == kMean ? static_cast<size_t>(bags.bags) : 0) +
                       2 * Arena::room<uint32_t>(static_cast<size_t>(threads) << digits);
  lists_ = std::make_unique<Lists>(bags, grad, positions, threads, samples, digits, bytes);
  Lists& lists = *lists_;
  lists.own_bags = none || (bags.offset_count < 0 && bags.length == 1);

  Shared shared;
  shared.kept.resize(static_cast<size_t>(threads) + 1);
  shared.heads.resize(static_cast<size_t>(threads) + 1);
  const auto finite = VECSMITH_PICK_KERNEL(all_finite);
  const uint32_t buckets = uint32_t{1} << digits, mask = buckets - 1;

  Barrier barrier;
  parallel(threads, [&](int worker, int size) {
    uint32_t* const mine = lists.histogram + (static_cast<size_t>(worker) << digits);
    uint32_t* const place = lists.places + (static_cast<size_t>(worker) << digits);
    if (check_finite) {
      const int64_t values = grad.dim * (none ? bags.count : bags.bags);
      const int64_t from = share(values, worker, size), to = share(values, worker + 1, size);
      if (!finite(grad.data + from * element_size(grad.type), grad.type, to - from))
        shared.infinite = true;
      if (bags.weights) {
        const int64_t low = share(samples, worker, size), high = share(samples, worker + 1, size);
        if (!finite(static_cast<const char*>(bags.weights) + low * element_size(bags.weight_type),
                    bags.weight_type, high - low))
          shared.infinite = true;
      }
    }
    // The samples of this worker's bags, with their row, in their order.
    std::fill_n(mine, buckets, 0u);
    const int64_t first = lists.own_bags ? share(samples, worker, size)
                                         : bag_from(bags, share(samples, worker, size));
    const int64_t last = worker + 1 == size
                             ? (lists.own_bags ? samples : bags.bags)
                             : (lists.own_bags ? share(samples, worker + 1, size)
                                               : bag_from(bags, share(samples, worker + 1, size)));
    const int64_t start = lists.own_bags      ? first
                          : first < bags.bags ? bags.bag_begin(first)
                                              : samples;
    SortedSample* to = lists.other + start;
    const auto sample = [&](int64_t position, int64_t row) {
      if (static_cast<uint64_t>(row) >= static_cast<uint64_t>(bags.rows)) {
        shared.bad = position;
        return false;
      }
      *to = {static_cast<uint32_t>(position), static_cast<uint32_t>(row)};
      const bool keep = row != bags.padding;
      to += keep;
      mine[static_cast<uint32_t>(row) & mask] += keep;
      return true;
    };
    if (lists.own_bags) {
      int64_t before = first ? bags.index(first - 1) : -1;
      bool ascending = true;
      for (int64_t i = first; i < last; ++i) {
        const int64_t row = bags.index(i);
        ascending &= row > before;
        before = row;
        if (!sample(i, row)) break;
      }
      if (!ascending) shared.ascending = false;
    } else {
      shared.ascending = false;
      bool good = true;
      for (int64_t bag = first; bag < last && good; ++bag) {
        const int64_t end = bags.bag_begin(bag + 1);
        const SortedSample* const before = to;
        for (int64_t i = bags.bag_begin(bag); i < end && good; ++i) {
          lists.bag_of[i] = static_cast<int32_t>(bag);
          good = sample(i, bags.index(i));
        }
        if (bags.mode == kMean)
          lists.bag_scale[bag] = to == before ? 0.0f : 1.0f / static_cast<float>(to - before);
      }
    }
    shared.kept[static_cast<size_t>(worker)] = to - (lists.other + start);
    SortedSample *from = lists.other, *into = lists.sorted;
    barrier.wait(size);
    if (shared.bad >= 0 || shared.infinite) return;
    int64_t total = 0;
    for (int w = 0; w < size; ++w) total += shared.kept[static_cast<size_t>(w)];
    int64_t begin = start, end = start + shared.kept[static_cast<size_t>(worker)];
    // What a combined gradient brings is in order.
    const bool in_order = shared.ascending && total == samples;
    for (int pass = 0; pass < passes && !in_order; ++pass) {
      const int shift = pass * digits;
      if (pass) {
        begin = share(total, worker, size);
        end = share(total, worker + 1, size);
        std::fill_n(mine, buckets, 0u);
        for (int64_t i = begin; i < end; ++i) ++mine[(from[i].row >> shift) & mask];
        barrier.wait(size);
      }
      // Where this worker's samples of each digit go: behind those of smaller digits, and of the
      // same from the workers before.
      uint32_t sum = 0;
      for (uint32_t d = 0; d < buckets; ++d)
        for (int w = 0; w < size; ++w) {
          if (w == worker) place[d] = sum;
          sum += lists.histogram[(static_cast<size_t>(w) << digits) + d];
        }
      for (int64_t i = begin; i < end; ++i) into[place[(from[i].row >> shift) & mask]++] = from[i];
      std::swap(from, into);
      barrier.wait(size);
    }
    // `from` has the sorted samples. Where does each row begin?
    begin = share(total, worker, size);
    end = share(total, worker + 1, size);
    int64_t heads = 0;
    for (int64_t i = begin; i < end; ++i) heads += i == 0 || from[i].row != from[i - 1].row;
    shared.heads[static_cast<size_t>(worker) + 1] = heads;
    barrier.wait(size);
    int64_t at = 0;
    for (int w = 0; w < worker; ++w) at += shared.heads[static_cast<size_t>(w) + 1];
    const int64_t stop = at + heads;
    for (int64_t i = begin; at < stop; ++i) {  // written again until it is a head
      lists.begins[at] = static_cast<uint32_t>(i);
      at += i == 0 || from[i].row != from[i - 1].row;
    }
    if (worker + 1 == size) {
      lists.segments = at;
      lists.kept = total;
    }
    barrier.wait(size);
    if (worker == 0) {
      lists.begins[lists.segments] = static_cast<uint32_t>(total);
      lists.sorted = from;
    }
  });
  if (shared.bad >= 0)
    throw std::out_of_range("embedding_bag: expected indices in 0.." +
                            std::to_string(bags.rows - 1) + "; got " +
                            std::to_string(bags.index(shared.bad)) + " at position " +
                            std::to_string(shared.bad.load()));
  if (shared.infinite)
    throw std::invalid_argument(
        "embedding_bag: expected a finite gradient (and weights); got NaN or infinity");
  lists.find_long();
}

BagSegments::~BagSegments() = default;

int64_t BagSegments::count() const { return lists_->segments; }

// Rows of more than kLongSegment samples: one of them holds two neighbors of every so many samples.
void BagSegments::Lists::find_long() {
  constexpr int64_t kStride = kLongSegment / 2;
  part_of.push_back(0);
  for (int64_t i = kStride; i < kept; i += kStride) {
    if (sorted[i].row != sorted[i - kStride].row) continue;
    const uint32_t* after = std::upper_bound(begins, begins + segments, static_cast<uint32_t>(i));
    const int64_t segment = after - begins - 1;
    const int64_t size = int64_t{begins[segment + 1]} - begins[segment];
    if (size <= kLongSegment || (!long_rows.empty() && long_rows.back() == segment)) continue;
    long_rows.push_back(segment);
    part_of.push_back(part_of.back() + (size + kLongSegment - 1) / kLongSegment);
  }
}

void BagSegments::update(const Rows& table, float* const* state, const Rule& rule,
                         int64_t* row_ids) {
  Lists& lists = *lists_;
  BagUpdate job{};
  job.bags = lists.bags;
  job.grad = lists.grad;
  job.positions = lists.positions;
  job.table = table;
  job.state[0] = state ? state[0] : nullptr;
  job.state[1] = state ? state[1] : nullptr;
  job.rule = rule;
  job.sorted = lists.sorted;
  job.bag_of = lists.own_bags ? nullptr : lists.bag_of;
  job.bag_scale = lists.bags.mode == kMean && !lists.own_bags ? lists.bag_scale : nullptr;
  job.begins = lists.begins;
  job.segments = lists.segments;
  job.row_ids = row_ids;
  const int64_t padded = (table.dim + 31) / 16 * 16;
  const int64_t parts = lists.part_of.back();
  // Parts, and a sum for each worker.
  const size_t floats = static_cast<size_t>((parts + lists.threads) * padded);
  Arena arena(Arena::room<float>(floats));
  job.parts = arena.take<float>(floats);
  job.part_stride = padded;
  job.long_rows = lists.long_rows.data();
  job.long_count = static_cast<int64_t>(lists.long_rows.size());
  job.part_of = lists.part_of.data();
  const auto sum_part = VECSMITH_PICK_KERNEL(embedding_bag_part);
  const auto update_segments = VECSMITH_PICK_KERNEL(embedding_bag_update);
  std::atomic<int64_t> next_part{0}, next{0};
  Barrier barrier;
  parallel(lists.threads, [&](int worker, int size) {
    if (parts) {
      int64_t row = 0;
      for (int64_t p; (p = next_part.fetch_add(1)) < parts;) {
        while (job.part_of[row + 1] <= p) ++row;
        const int64_t segment = job.long_rows[row];
        const int64_t first = job.begins[segment] + (p - job.part_of[row]) * kLongSegment;
        const int64_t last = std::min<int64_t>(first + kLongSegment, job.begins[segment + 1]);
        sum_part(job, first, last, job.parts + p * padded);
      }
      barrier.wait(size);
    }
    float* const sum = job.parts + (parts + worker) * padded;
    for (int64_t u; (u = next.fetch_add(kSegmentsAtOnce)) < job.segments;)
      update_segments(job, u, std::min(u + kSegmentsAtOnce, job.segments), sum);
    barrier.wait(size);  // (the region's own end waits by running)
  });
}

}  // namespace vecsmith
