// Update driver of the embedding tables. The rows are cut into a part for each worker, who sorts
// its samples by row (a radix sort, which keeps their order within a row), updates its rows, and
// then helps with the parts of the others: a part's rows are handed out in small stretches. A
// segment, the samples of a row, is summed by one worker from its first sample to its last (long
// ones in pieces of a fixed size), so the bits depend on nothing but the input.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/arena.h"
#include "cpu/embedding_bag_driver.h"
#include "cpu/parallel.h"

namespace vecsmith {
namespace {

constexpr int64_t kSamplesPerThread = 2048;
constexpr int64_t kSegmentsAtOnce = 128;
constexpr int64_t kSelectAtOnce = 4096;

int bits_of(uint64_t n) {
  int bits = 0;
  for (; n; n >>= 1) ++bits;
  return bits;
}

// A worker's rows, their samples, and how far the work on them is.
struct Part {
  uint32_t low = 0, span = 0;                     // rows low .. low+span-1
  int64_t samples = 0, before = 0, segments = 0;  // before: samples of the parts before this one
  SortedSample *sorted = nullptr, *other = nullptr;
  uint32_t* begins = nullptr;  // [segments + 1]
  // Segments of many samples, and the first piece of each: [long_count], [long_count + 1].
  int64_t *long_rows = nullptr, *pieces = nullptr;
  int64_t long_count = 0;
  BagUpdate job{};
  std::atomic<bool> sorted_now{false};
  alignas(64) std::atomic<int64_t> next_piece{0};
  std::atomic<int64_t> pieces_done{0};
  alignas(64) std::atomic<int64_t> next{0};
};

// Where to cut the rows, so that each part has about as many samples: quantiles of some of them.
void cut(const Bags& bags, int64_t samples, std::vector<Part>& parts) {
  constexpr int64_t kLooked = 512;
  const int64_t count = static_cast<int64_t>(parts.size());
  std::vector<int64_t> some;
  for (int64_t k = 0; count > 1 && k < kLooked; ++k) {
    const int64_t row = bags.index(share(samples, k, kLooked));
    if (row >= 0 && row < bags.rows && row != bags.padding) some.push_back(row);
  }
  std::sort(some.begin(), some.end());
  int64_t low = 0;
  for (int64_t p = 0; p < count; ++p) {
    int64_t high = bags.rows;
    if (p + 1 < count && !some.empty())
      high = some[static_cast<size_t>(share(static_cast<int64_t>(some.size()), p + 1, count))];
    high = std::max(high, low);
    parts[static_cast<size_t>(p)].low = static_cast<uint32_t>(low);
    parts[static_cast<size_t>(p)].span = static_cast<uint32_t>(high - low);
    low = high;
  }
  parts.back().span = static_cast<uint32_t>(bags.rows - parts.back().low);
}

// Radix sort: up to three digits of up to 11 bits.
constexpr int kMostPasses = 3, kDigits = 11;

// What a worker sorts with.
struct SortRoom {
  uint32_t histogram[kMostPasses << kDigits];
  uint32_t positions[kSelectAtOnce + 16], rows[kSelectAtOnce + 16];
};

// The part's samples in the order of their positions, and how often each digit occurs. Whether they
// happen to ascend by row.
template <int kPasses>
bool collect(const Bags& bags, Part& part, const int32_t* bag_of, int digits, SortRoom& room) {
  const auto select = VECSMITH_PICK_KERNEL(embedding_bag_select);
  uint32_t* const histogram = room.histogram;
  std::fill_n(histogram, size_t{kPasses} << digits, 0u);
  const uint32_t mask = (uint32_t{1} << digits) - 1;
  SortedSample* to = part.sorted;
  uint32_t before = 0, descents = 0;
  const int64_t all = bags.samples();
  for (int64_t first = 0; first < all; first += kSelectAtOnce) {
    const int64_t n = select(bags, first, std::min(first + kSelectAtOnce, all), part.low, part.span,
                             room.positions, room.rows);
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t row = room.rows[i] - part.low, position = room.positions[i];
      *to++ = {bag_of ? static_cast<uint32_t>(bag_of[position]) : position, row};
      for (int pass = 0; pass < kPasses; ++pass)
        ++histogram[(size_t(pass) << digits) + ((row >> pass * digits) & mask)];
      descents |= row < before;
      before = row;
    }
  }
  return !descents;
}

void sort(const Bags& bags, Part& part, const int32_t* bag_of, SortRoom& room) {
  const int bits = std::max(1, bits_of(part.span ? part.span - 1 : 0));
  const int passes = (bits + kDigits - 1) / kDigits, digits = (bits + passes - 1) / passes;
  const auto collected = passes == 1 ? collect<1> : passes == 2 ? collect<2> : collect<kMostPasses>;
  if (collected(bags, part, bag_of, digits, room)) return;
  const uint32_t buckets = uint32_t{1} << digits, mask = buckets - 1;
  for (int pass = 0; pass < passes; ++pass) {
    uint32_t* const place = room.histogram + (size_t(pass) << digits);
    uint32_t sum = 0;
    for (uint32_t d = 0; d < buckets; ++d) {
      const uint32_t here = place[d];
      place[d] = sum;
      sum += here;
    }
    const int shift = pass * digits;
    const SortedSample* const from = part.sorted;
    SortedSample* const to = part.other;
    for (int64_t i = 0; i < part.samples; ++i) {
      const SortedSample sample = from[i];
      to[place[(sample.row >> shift) & mask]++] = sample;
    }
    std::swap(part.sorted, part.other);
  }
}

void find_segments(Part& part) {
  part.segments = 0;
  part.begins[0] = 0;
  const SortedSample* const sorted = part.sorted;
  int64_t segments = 0;
  for (int64_t i = 1; i <= part.samples; ++i) {
    part.begins[segments + 1] = static_cast<uint32_t>(i);  // again, until the row has ended
    segments += i == part.samples || sorted[i].row != sorted[i - 1].row;
  }
  part.segments = segments;
  // Rows of more than kLongSegment samples: one of them holds two neighbors of every so many.
  constexpr int64_t kStride = kLongSegment / 2;
  part.long_count = 0;
  part.pieces[0] = 0;
  for (int64_t i = kStride; i < part.samples; i += kStride) {
    if (sorted[i].row != sorted[i - kStride].row) continue;
    const uint32_t* after =
        std::upper_bound(part.begins, part.begins + segments, static_cast<uint32_t>(i));
    const int64_t segment = after - part.begins - 1;
    const int64_t size = int64_t{part.begins[segment + 1]} - part.begins[segment];
    const int64_t k = part.long_count;
    if (size <= kLongSegment || (k && part.long_rows[k - 1] == segment)) continue;
    part.long_rows[k] = segment;
    part.pieces[k + 1] = part.pieces[k] + (size + kLongSegment - 1) / kLongSegment;
    part.long_count = k + 1;
  }
}

// The most pieces of long rows among so many samples: a row of n > kLongSegment has
// ceil(n / kLongSegment) of them.
int64_t most_pieces(int64_t samples) { return samples / (kLongSegment / 2); }

void check_sizes(const Bags& bags) {
  check_bags(bags);
  const int64_t samples = bags.samples();
  if (samples >= int64_t{1} << 32 || (bags.mode != kNone && bags.bags >= int64_t{1} << 31))
    throw std::invalid_argument(
        "embedding_bag: expected fewer than 2^32 indices and 2^31 bags; got " +
        std::to_string(samples) + " and " + std::to_string(bags.bags));
}

int workers_for(int64_t samples, int threads) {
  return static_cast<int>(std::clamp<int64_t>(samples / kSamplesPerThread + 1, 1, threads));
}

}  // namespace

struct BagSegments::Work {
  Work(const Bags& given, const Rows& gradient, const int64_t* where, int threads)
      : bags(given),
        grad(gradient),
        positions(where),
        samples(given.samples()),
        padded((gradient.dim + 31) / 16 * 16),
        parts(static_cast<size_t>(workers_for(samples, threads))),
        arena(bytes()) {
    const size_t n = static_cast<size_t>(samples), workers = parts.size();
    sorted = arena.take<SortedSample>(n);
    other = arena.take<SortedSample>(n);
    begins = arena.take<uint32_t>(n + workers);
    long_rows = arena.take<int64_t>(n / kLongSegment);
    pieces = arena.take<int64_t>(n / kLongSegment + workers);
    room = arena.take<SortRoom>(workers);
    sums = arena.take<float>(sum_floats());
    if (bags_are_looked_up()) {
      bag_of = arena.take<int32_t>(n);
      by_position = bags.weights || bags.mode == kMax;
    }
    if (bags.mode == kMean) bag_scale = arena.take<float>(static_cast<size_t>(bags.bags));
    cut(bags, samples, parts);
  }

  bool bags_are_looked_up() const {
    return bags.mode != kNone && !(bags.offset_count < 0 && bags.length == 1);
  }

  size_t sum_floats() const {
    return (static_cast<size_t>(most_pieces(samples)) + parts.size()) * static_cast<size_t>(padded);
  }

  size_t bytes() const {
    const size_t n = static_cast<size_t>(samples), workers = parts.size();
    return 2 * Arena::room<SortedSample>(n) + Arena::room<uint32_t>(n + workers) +
           Arena::room<int64_t>(n / kLongSegment) +
           Arena::room<int64_t>(n / kLongSegment + workers) + Arena::room<SortRoom>(workers) +
           Arena::room<float>(sum_floats()) + (bags_are_looked_up() ? Arena::room<int32_t>(n) : 0) +
           (bags.mode == kMean ? Arena::room<float>(static_cast<size_t>(bags.bags)) : 0);
  }

  void look(int worker, int size, bool check_finite);
  void raise_if_bad() const;
  bool is_bad() const { return bad >= 0 || infinite; }
  template <class Body>
  void own_parts(int worker, int size, const Body& body) {
    // More than one where the system gives fewer workers than were asked for.
    for (size_t p = static_cast<size_t>(worker); p < parts.size(); p += static_cast<size_t>(size))
      body(parts[p]);
  }
  void sort_own(int worker, int size);
  void expect(const Rows& table, float* const* state, const Rule& rule);
  void describe(Part& part, int64_t rows_before, int64_t* row_ids);
  void update(int worker, int size);

  Bags bags;
  Rows grad;
  const int64_t* positions;
  int64_t samples, padded;  // padded: a row's floats, and some more
  std::vector<Part> parts;
  Arena arena;
  SortedSample *sorted = nullptr, *other = nullptr;
  uint32_t* begins = nullptr;
  int64_t *long_rows = nullptr, *pieces = nullptr;
  SortRoom* room = nullptr;
  float* sums = nullptr;       // of pieces, and one for each worker: [.., padded]
  int32_t* bag_of = nullptr;   // null where each position is a bag of its own
  float* bag_scale = nullptr;  // with kMean
  bool by_position = false;    // a sample's source is its position
  std::atomic<int64_t> bad{-1};
  std::atomic<bool> infinite{false};
  BagUpdate job{};  // what all parts have in common
  Barrier barrier;
};

// A worker's share of what is read before anything is changed.
void BagSegments::Work::look(int worker, int size, bool check_finite) {
  const auto finite = VECSMITH_PICK_KERNEL(all_finite);
  const auto bad_in = VECSMITH_PICK_KERNEL(embedding_bag_bad);
  const auto select = VECSMITH_PICK_KERNEL(embedding_bag_select);
  const int64_t low = share(samples, worker, size), high = share(samples, worker + 1, size);
  if (check_finite) {
    const int64_t values = grad.dim * (bags.mode == kNone ? bags.count : bags.bags);
    const int64_t from = share(values, worker, size), to = share(values, worker + 1, size);
    bool good = finite(grad.data + from * element_size(grad.type), grad.type, to - from);
    if (bags.weights)
      good &= finite(static_cast<const char*>(bags.weights) + low * element_size(bags.weight_type),
                     bags.weight_type, high - low);
    if (!good) infinite = true;
  }
  if (const int64_t i = bad_in(bags, low, high); i >= 0) bad = i;
  if (bag_of) {
    const int64_t last = worker + 1 == size ? bags.bags : bag_from(bags, high);
    for (int64_t bag = bag_from(bags, low); bag < last; ++bag) {
      const int64_t begin = bags.bag_begin(bag), end = bags.bag_begin(bag + 1);
      std::fill(bag_of + begin, bag_of + end, static_cast<int32_t>(bag));
      if (!bag_scale) continue;
      int64_t kept = end - begin;
      if (bags.padding >= 0)
        for (int64_t i = begin; i < end; ++i) kept -= bags.index(i) == bags.padding;
      bag_scale[bag] = kept ? 1.0f / static_cast<float>(kept) : 0.0f;
    }
  } else if (bag_scale) {
    for (int64_t i = low; i < high; ++i) bag_scale[i] = 1.0f;
  }
  own_parts(worker, size, [&](Part& part) {
    part.samples = select(bags, 0, samples, part.low, part.span, nullptr, nullptr);
  });
}

void BagSegments::Work::raise_if_bad() const {
  if (bad >= 0) raise_bad_index(bags, bad);
  if (infinite)
    throw std::invalid_argument(
        "embedding_bag: expected a finite gradient (and weights); got NaN or infinity");
}

void BagSegments::Work::sort_own(int worker, int size) {
  own_parts(worker, size, [&](Part& part) {
    for (const Part* p = parts.data(); p < &part; ++p) part.before += p->samples;
    const int64_t nth = &part - parts.data();
    part.sorted = sorted + part.before;
    part.other = other + part.before;
    part.begins = begins + part.before + nth;
    part.long_rows = long_rows + part.before / kLongSegment;
    part.pieces = pieces + part.before / kLongSegment + nth;
    sort(bags, part, by_position ? nullptr : bag_of, room[worker]);
    find_segments(part);
  });
}

// What will be done with the segments, sorted or not yet.
void BagSegments::Work::expect(const Rows& table, float* const* state, const Rule& rule) {
  job.bags = bags;
  job.grad = grad;
  job.positions = positions;
  job.table = table;
  job.rule = rule;
  for (int k = 0; k < 2; ++k) job.state[k] = state ? state[k] : nullptr;
  job.bag_of = by_position ? bag_of : nullptr;
  job.bag_scale = bag_scale;
  job.part_stride = padded;
}

// The job of a sorted part, which all workers may now take from.
void BagSegments::Work::describe(Part& part, int64_t rows_before, int64_t* row_ids) {
  part.job = job;
  part.job.first_row = part.low;
  part.job.sorted = part.sorted;
  part.job.begins = part.begins;
  part.job.segments = part.segments;
  if (job.rule.kind == kStore) {
    part.job.row_ids = row_ids + rows_before;
    part.job.table.data += rows_before * job.table.stride;
  }
  part.job.parts = sums + most_pieces(part.before) * padded;
  part.job.long_rows = part.long_rows;
  part.job.long_count = part.long_count;
  part.job.part_of = part.pieces;
  part.sorted_now.store(true, std::memory_order_release);
}

// A worker's own part first, then what is left of the others.
void BagSegments::Work::update(int worker, int size) {
  const auto sum_piece = VECSMITH_PICK_KERNEL(embedding_bag_part);
  const auto update_segments = VECSMITH_PICK_KERNEL(embedding_bag_update);
  float* const sum = sums + (most_pieces(samples) + worker) * padded;
  for (size_t k = 0; k < parts.size(); ++k) {
    Part& part = parts[(static_cast<size_t>(worker) + k) % parts.size()];
    wait_until([&] { return part.sorted_now.load(std::memory_order_acquire); });
    const BagUpdate& todo = part.job;
    const int64_t count = todo.part_of[todo.long_count];
    int64_t row = 0;
    for (int64_t p; (p = part.next_piece.fetch_add(1)) < count;) {
      while (todo.part_of[row + 1] <= p) ++row;
      const int64_t segment = todo.long_rows[row];
      const int64_t first = todo.begins[segment] + (p - todo.part_of[row]) * kLongSegment;
      const int64_t last = std::min<int64_t>(first + kLongSegment, todo.begins[segment + 1]);
      sum_piece(todo, first, last, todo.parts + p * padded);
      part.pieces_done.fetch_add(1, std::memory_order_release);
    }
    wait_until([&] { return part.pieces_done.load(std::memory_order_acquire) >= count; });
    for (int64_t u; (u = part.next.fetch_add(kSegmentsAtOnce)) < todo.segments;)
      update_segments(todo, u, std::min(u + kSegmentsAtOnce, todo.segments), sum);
  }
  barrier.wait(size);  // (the region's own end waits by running)
}

BagSegments::BagSegments(const Bags& bags, const Rows& grad, const int64_t* positions,
                         int threads) {
  check_sizes(bags);
  work_ = std::make_unique<Work>(bags, grad, positions, threads);
  Work& work = *work_;
  parallel(static_cast<int>(work.parts.size()), [&](int worker, int size) {
    work.look(worker, size, false);
    work.barrier.wait(size);
    if (!work.is_bad()) work.sort_own(worker, size);
    work.barrier.wait(size);
  });
  work.raise_if_bad();
}

BagSegments::~BagSegments() = default;

int64_t BagSegments::count() const {
  int64_t count = 0;
  for (const Part& part : work_->parts) count += part.segments;
  return count;
}

void BagSegments::store(const Rows& values, int64_t* row_ids) {
  Work& work = *work_;
  Rule rule{};
  rule.kind = kStore;
  work.expect(values, nullptr, rule);
  int64_t before = 0;
  for (Part& part : work.parts) {
    work.describe(part, before, row_ids);
    before += part.segments;
  }
  parallel(static_cast<int>(work.parts.size()),
           [&](int worker, int size) { work.update(worker, size); });
}

void embedding_bag_step(const Bags& bags, const Rows& grad, const int64_t* positions,
                        const Rows& table, float* const* state, const Rule& rule, bool check_finite,
                        int threads) {
  check_sizes(bags);
  BagSegments::Work work(bags, grad, positions, threads);
  work.expect(table, state, rule);
  parallel(static_cast<int>(work.parts.size()), [&](int worker, int size) {
    work.look(worker, size, check_finite);
    work.barrier.wait(size);
    if (work.is_bad()) return;
    work.sort_own(worker, size);
    work.own_parts(worker, size, [&](Part& part) { work.describe(part, 0, nullptr); });
    work.update(worker, size);
  });
  work.raise_if_bad();
}

}  // namespace vecsmith
