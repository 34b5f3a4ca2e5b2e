#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/arena.h"
#include "cpu/cosine_topk_driver.h"
#include "cpu/parallel.h"

namespace vecsmith {
namespace {

// Of a call, whatever its size (the given rows and an index's panels apart).
constexpr int64_t kMostScratch = int64_t{40} << 20, kMostBlock = int64_t{8} << 20;
// Words of queries that stay in the second-level cache while panels pass.
constexpr int64_t kChunkBytes = 128 << 10;
constexpr int64_t kMostSample = 1024;
// Rounding to bytes may lose this much of a row; beyond it too many rows would have to be scored
// again.
constexpr double kMostByteError = 0.02;
// Up to so many queries a vocabulary that is not packed is scored as it is.
constexpr int64_t kFewQueries = 4;

int64_t padded(int64_t dim) { return (dim + 127) / 64 * 64; }

[[noreturn]] void raise_row(const char* what, int64_t row, TopkMetric metric) {
  throw std::invalid_argument(std::string("cosine_topk: expected ") + what + " to be finite" +
                              (metric == kCosine ? "" : " and of a length of at most 1e18") +
                              "; row " + std::to_string(row) + " is not");
}

// The smallest of what several workers report.
class FirstBad {
 public:
  void report(int64_t row) {
    int64_t seen = row_.load();
    while (row < seen && !row_.compare_exchange_weak(seen, row)) {
    }
  }
  bool any() const { return row_.load() != kNone; }
  void raise(const char* what, TopkMetric metric) const {
    if (any()) raise_row(what, row_.load(), metric);
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> row_{kNone};
};

// The k best of exact scores: by score, then by row.
class Best {
 public:
  explicit Best(int64_t k) : k_(k) { found_.reserve(static_cast<size_t>(k)); }
  void clear() { found_.clear(); }
  bool is_full() const { return static_cast<int64_t>(found_.size()) == k_; }
  double least() const { return found_.front().first; }
  void add(double score, int64_t row) {
    const Scored one{score, row};
    if (!is_full()) {
      found_.push_back(one);
      std::push_heap(found_.begin(), found_.end(), before);
    } else if (before(one, found_.front())) {
      std::pop_heap(found_.begin(), found_.end(), before);
      found_.back() = one;
      std::push_heap(found_.begin(), found_.end(), before);
    }
  }
  void add(const Best& other) {
    for (const Scored& one : other.found_) add(one.first, one.second);
  }
  void store(const TopkSearch& search, TopkMetric metric, int64_t query) {
    std::sort(found_.begin(), found_.end(), before);
    const double none = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < search.k; ++i) {
      const bool has = i < static_cast<int64_t>(found_.size());
      const double score = has ? found_[i].first : -none;
      const double value = metric == kL2 ? 0 - score : score;
      const int64_t at = query * search.k + i;
      if (search.wide)
        static_cast<double*>(search.values)[at] = value;
      else
        static_cast<float*>(search.values)[at] = static_cast<float>(value);
      search.indices[at] = has ? found_[i].second : -1;
    }
  }

 private:
  using Scored = std::pair<double, int64_t>;
  static bool before(const Scored& a, const Scored& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  }
  int64_t k_;
  std::vector<Scored> found_;
};

struct Kernels {
  decltype(&base::topk_screen) screen = VECSMITH_PICK_KERNEL(topk_screen);
  decltype(&base::topk_query) query = VECSMITH_PICK_KERNEL(topk_query);
  decltype(&base::topk_pack) pack = VECSMITH_PICK_KERNEL(topk_pack);
  decltype(&base::topk_bounds) bounds = VECSMITH_PICK_KERNEL(topk_bounds);
  decltype(&base::topk_clear) clear = VECSMITH_PICK_KERNEL(topk_clear);
  decltype(&base::topk_layout) layout = VECSMITH_PICK_KERNEL(topk_layout);
  decltype(&base::topk_double) to_double = VECSMITH_PICK_KERNEL(topk_double);
  decltype(&base::topk_score) score = VECSMITH_PICK_KERNEL(topk_score);
};

class Search {
 public:
  // ids: the queries that are searched for; all where it is empty.
  Search(const TopkVocabulary& vocabulary, const TopkSearch& search, int threads,
         std::vector<int64_t> ids = {})
      : vocabulary_(vocabulary),
        search_(search),
        threads_(threads),
        ids_(std::move(ids)),
        count_(ids_.empty() ? search.count : static_cast<int64_t>(ids_.size())) {}

  void run() {
    if (ids_.empty())
      check_queries();
    else if (search_.exclude_offsets)
      gather_excluded();
    if (!vocabulary_.panels && count_ <= kFewQueries) return scan_all();
    if (!vocabulary_.center) {
      own_center_.resize(static_cast<size_t>(padded(vocabulary_.rows.dim)));
      vocabulary_.unit = topk_choose_unit(vocabulary_, own_center_.data());
      vocabulary_.center = own_center_.data();
    }
    layout_ = kernels_.layout(vocabulary_.unit, vocabulary_.rows.dim);
    plan();
    for (int64_t first = 0; first < count_; first += group_)
      run_group(first, std::min(group_, count_ - first));
    if (retried_.empty()) return;
    // Too many rows could win, as far as this unit can tell: once more with the most exact one.
    TopkVocabulary again = vocabulary_;
    again.panels = nullptr;
    again.unit = kFloats;
    std::sort(retried_.begin(), retried_.end());
    Search(again, search_, threads_, std::move(retried_)).run();
  }

 private:
  // Before anything is written.
  void check_queries() const {
    FirstBad bad;
    check(bad, search_.queries, count_, nullptr);
    bad.raise("queries", vocabulary_.metric);
  }
  void check_rows() const {
    FirstBad bad;
    check(bad, vocabulary_.rows, vocabulary_.count, vocabulary_.banned);
    bad.raise("vocabulary", vocabulary_.metric);
  }
  void check(FirstBad& bad, const Rows& rows, int64_t count, const uint8_t* banned) const {
    parallel(threads_, [&](int worker, int size) {
      std::vector<double> numbers(static_cast<size_t>(rows.dim));
      const int64_t end = share(count, worker + 1, size);
      for (int64_t i = share(count, worker, size); i < end; ++i)
        if (!(banned && banned[i]) &&
            !is_good(kernels_.to_double(rows, i, vocabulary_.metric, nullptr, numbers.data(),
                                        nullptr))) {
          bad.report(i);
          break;
        }
    });
  }
  bool is_good(double squares) const {
    return std::isfinite(squares) && (vocabulary_.metric == kCosine || squares <= 1e36);
  }

  // Those of the queries that ids_ names.
  void gather_excluded() {
    own_offsets_.push_back(0);
    for (const int64_t i : ids_) {
      own_excluded_.insert(own_excluded_.end(), search_.excluded + search_.exclude_offsets[i],
                           search_.excluded + search_.exclude_offsets[i + 1]);
      own_offsets_.push_back(static_cast<int64_t>(own_excluded_.size()));
    }
  }

  // How many queries are taken at once, and how their work is cut.
  void plan() {
    const int64_t k = search_.k;
    // With room for all rows and a third more no query is ever full.
    capacity_ = std::min(std::max<int64_t>(8 * k, 512), vocabulary_.count / 3 * 4 + 512);
    const int64_t each = layout_.query_bytes() + static_cast<int64_t>(sizeof(TopkQuery)) +
                         capacity_ * static_cast<int64_t>(sizeof(TopkEntry)) + k * 4;
    group_ = std::clamp<int64_t>(kMostScratch / each, 1, count_);
    // Few queries: workers have a part of the rows each, and lists of their own.
    by_rows_ = std::min(group_, count_) < 32 * threads_;
    parts_ = by_rows_ ? std::clamp<int64_t>(kMostScratch / each, 1, threads_) : 1;
    if (by_rows_) group_ = std::clamp<int64_t>(kMostScratch / (each * parts_), 1, group_);
    block_ = vocabulary_.panels ? layout_.panels(vocabulary_.count)
                                : std::max<int64_t>(1, kMostBlock / layout_.panel_bytes());
    chunk_ = std::max<int64_t>(16, kChunkBytes / layout_.query_bytes() / 16 * 16);
  }

  TopkPack pack_of(const Rows& rows) const {
    TopkPack pack{};
    pack.layout = layout_;
    pack.metric = vocabulary_.metric;
    pack.rows = rows;
    pack.center = vocabulary_.center;
    return pack;
  }

  void run_group(int64_t first, int64_t count) {
    const int64_t k = search_.k, lists = count * parts_, panels = layout_.panels(vocabulary_.count);
    const int64_t query_bytes = layout_.query_bytes(), dim = padded(vocabulary_.rows.dim);
    const int64_t packed = vocabulary_.panels ? 0 : std::min(block_, panels);
    const auto bytes = [](int64_t n) { return Arena::room<char>(static_cast<size_t>(n)); };
    Arena arena(bytes(count * query_bytes) + Arena::room<TopkQuery>(lists) +
                Arena::room<TopkEntry>(lists * capacity_) + Arena::room<float>(lists * k) +
                bytes(packed * layout_.panel_bytes()) + threads_ * Arena::room<float>(dim));
    char* const words = arena.take<char>(static_cast<size_t>(count * query_bytes));
    TopkQuery* const queries = arena.take<TopkQuery>(static_cast<size_t>(lists));
    TopkEntry* const entries = arena.take<TopkEntry>(static_cast<size_t>(lists * capacity_));
    float* const lower = arena.take<float>(static_cast<size_t>(lists * k));
    char* const block = arena.take<char>(static_cast<size_t>(packed * layout_.panel_bytes()));
    std::vector<float*> scratch(static_cast<size_t>(threads_));
    for (float*& p : scratch) p = arena.take<float>(static_cast<size_t>(dim));

    TopkScreen job{};
    job.layout = layout_;
    job.words = words;
    job.queries = queries;
    job.entries = entries;
    job.capacity = capacity_;
    job.lower = lower;
    job.k = k;
    job.banned = vocabulary_.banned;
    job.excluded = ids_.empty() ? search_.excluded : own_excluded_.data();

    std::fill(lower, lower + lists * k, std::numeric_limits<float>::lowest());
    Barrier barrier;
    std::atomic<int64_t> next{0};
    std::vector<Finisher> finishers;
    for (int i = 0; i < threads_; ++i) finishers.emplace_back(k, search_.queries.dim);
    parallel(threads_, [&](int worker, int size) {
      for (int64_t i = share(count, worker, size); i < share(count, worker + 1, size); ++i) {
        kernels_.query(pack_of(search_.queries), id(first + i), scratch[worker],
                       words + i * query_bytes, queries + i);
        // All rows are as near to a query of zeros: none of them has to be looked at.
        if (queries[i].norm == 0 && vocabulary_.metric != kL2)
          queries[i].tau = std::numeric_limits<float>::infinity();
        for (int64_t part = 1; part < parts_; ++part) queries[part * count + i] = queries[i];
      }
      barrier.wait(size);
      for (int64_t begin = 0; begin < panels; begin += block_) {
        const int64_t end = std::min(begin + block_, panels);
        const char* from = vocabulary_.panels;
        if (packed) {
          pack_block(begin, share(end - begin, worker, size), share(end - begin, worker + 1, size),
                     block, scratch[worker]);
          barrier.wait(size);
          from = block;
        }
        if (by_rows_) {
          // A team may be smaller than what was asked for.
          for (int64_t part = worker; part < parts_; part += size)
            screen(finishers[worker], job, from, begin, share(end - begin, part, parts_),
                   share(end - begin, part + 1, parts_), part * count, 0, count, first);
        } else {
          screen(finishers[worker], job, from, begin, 0, end - begin, 0, share(count, worker, size),
                 share(count, worker + 1, size), first);
        }
        barrier.wait(size);
      }
      if (bad_.any()) return;
      // Not all queries have as many candidates.
      for (;;) {
        const int64_t from = next.fetch_add(kFinishedAtOnce);
        if (from >= count) break;
        for (int64_t i = from; i < std::min(from + kFinishedAtOnce, count); ++i)
          finish(finishers[worker], job, count, i, id(first + i));
      }
    });
    bad_.raise("vocabulary", vocabulary_.metric);
  }

  void pack_block(int64_t begin, int64_t from, int64_t to, char* block, float* scratch) {
    if (from >= to) return;
    TopkPack pack = pack_of(vocabulary_.rows);
    pack.banned = vocabulary_.banned;
    pack.panels = block;
    pack.first_row = begin * layout_.rows;
    pack.first = (begin + from) * layout_.rows;
    pack.count = std::min((begin + to) * layout_.rows, vocabulary_.count) - pack.first;
    char* const own = block + from * layout_.panel_bytes();
    kernels_.clear(layout_, own, to - from);
    const int64_t row = kernels_.pack(pack, scratch);
    if (row >= 0) bad_.report(row);
    kernels_.bounds(layout_, own, to - from);
  }

  // Scores in double precision of one query.
  struct Finisher {
    // What screening needs is there before: where others wait for a worker, it must not throw.
    Finisher(int64_t k, int64_t dim) : best(k), query(static_cast<size_t>(dim)) {
      lower.reserve(static_cast<size_t>(k));
    }
    Best best;
    std::vector<double> query;
    double norm = 0, center = 0;  // <q, m>; l2: |q - m|^2
    std::vector<TopkEntry> candidates;
    std::vector<float> lower;
  };

  int64_t id(int64_t i) const { return ids_.empty() ? i : ids_[static_cast<size_t>(i)]; }

  void read(Finisher& own, int64_t at) const {
    own.norm = std::sqrt(kernels_.to_double(search_.queries, at, vocabulary_.metric,
                                            vocabulary_.center, own.query.data(), &own.center));
  }
  double score(const Finisher& own, int64_t row) const {
    return kernels_.score(vocabulary_.metric, own.query.data(), own.norm, vocabulary_.rows, row);
  }

  // What the first pass would find for this score in exact arithmetic.
  double screened(const Finisher& own, double score) const {
    if (vocabulary_.metric == kL2) return (own.center + score) / 2;
    return (score * (vocabulary_.metric == kCosine ? own.norm : 1) - own.center) / own.norm;
  }
  // How far off a number that `screened` gives may be: it is a difference of sums of `dim` terms in
  // double precision, which are at most this large; and what a float rounds.
  double slack(const Finisher& own, double value) const {
    const double size = vocabulary_.metric == kL2
                            ? 2 * (std::abs(value) + own.center)
                            : std::abs(value) + 2 * std::abs(own.center) / own.norm;
    const double sums = static_cast<double>(search_.queries.dim + 64) * 0x1p-50;
    return size * sums + std::abs(value) * 0x1p-22 + 0x1p-120;
  }

  // Queries q0 .. q1 - 1 of the group, whose lists begin at `list`, against panels from .. to - 1
  // of those that begin with panel `begin`. The fewer rows were seen, the more often what is known
  // is made exact: each time four times as many.
  void screen(Finisher& own, TopkScreen job, const char* panels, int64_t begin, int64_t from,
              int64_t to, int64_t list, int64_t q0, int64_t q1, int64_t first) const {
    const TopkScreen all = job;
    const int64_t before = begin / parts_ - from;  // what the lists have seen when `from` comes
    for (int64_t q = q0; q < q1; q += chunk_) {
      job.query_count = std::min(chunk_, q1 - q);
      job.words = all.words + q * layout_.query_bytes();
      job.queries = all.queries + list + q;
      job.entries = all.entries + (list + q) * capacity_;
      job.lower = all.lower + (list + q) * job.k;
      if (search_.exclude_offsets)
        job.exclude_offsets =
            (ids_.empty() ? search_.exclude_offsets : own_offsets_.data()) + first + q;
      for (int64_t p = from; p < to;) {
        int64_t stage = kFirstStage * std::max<int64_t>(job.k, 16) / layout_.rows + 1;
        while (stage <= before + p) stage *= 4;
        const int64_t end = std::min(to, stage - before);
        job.panels = panels + p * layout_.panel_bytes();
        job.panel_count = end - p;
        job.first_row = (begin + p) * layout_.rows;
        kernels_.screen(job);
        if (end < to)
          for (int64_t i = 0; i < job.query_count; ++i) refine(own, job, i, id(first + q + i));
        p = end;
      }
    }
  }

  // Scores the best entries of query i of a job, which lets go of others: what is known of a row
  // is twice as sharp then. Entries that were scored have ~row.
  void refine(Finisher& own, const TopkScreen& job, int64_t i, int64_t at) const {
    TopkQuery& query = job.queries[i];
    TopkEntry* const entries = job.entries + i * capacity_;
    if (query.full || query.count < capacity_ / 4) return;
    drop(query, entries);
    if (query.count < capacity_ / 4) return;
    read(own, at);
    sort(entries, entries + query.count);
    own.lower.clear();
    for (TopkEntry* entry = entries; entry < entries + query.count; ++entry) {
      fetch(entry, entries + query.count);
      const bool enough = static_cast<int64_t>(own.lower.size()) == job.k;
      if (enough && entry->upper < own.lower.front()) break;
      float lower;
      if (entry->row >= 0) {
        const double exact = screened(own, score(own, entry->row)), off = slack(own, exact);
        entry->upper = std::min(entry->upper, static_cast<float>(exact + off));
        entry->row = ~entry->row;
        lower = static_cast<float>(exact - off);
      } else {
        // Its upper bound is its score and the slack, or less.
        lower = static_cast<float>(entry->upper - 3 * slack(own, entry->upper));
      }
      if (!enough) {
        own.lower.push_back(lower);
        std::push_heap(own.lower.begin(), own.lower.end(), std::greater<float>());
      } else if (lower > own.lower.front()) {
        std::pop_heap(own.lower.begin(), own.lower.end(), std::greater<float>());
        own.lower.back() = lower;
        std::push_heap(own.lower.begin(), own.lower.end(), std::greater<float>());
      }
    }
    float* const kept = job.lower + i * job.k;
    if (own.lower.front() > kept[0]) std::copy(own.lower.begin(), own.lower.end(), kept);
    query.tau = std::max(query.tau, kept[0]);
    drop(query, entries);
  }
  // Entries that cannot win any more.
  static void drop(TopkQuery& query, TopkEntry* entries) {
    const TopkEntry* const end =
        std::remove_if(entries, entries + query.count,
                       [&](const TopkEntry& entry) { return entry.upper < query.tau; });
    query.count = static_cast<int32_t>(end - entries);
  }
  // Asks for the rows that come next: they lie anywhere.
  void fetch(const TopkEntry* entry, const TopkEntry* end) const {
    if (entry + kFetchedAhead >= end) return;
    const int32_t row = entry[kFetchedAhead].row;
    const char* const p = vocabulary_.rows.data + (row >= 0 ? row : ~row) * vocabulary_.rows.stride;
    const int64_t bytes =
        std::min(vocabulary_.rows.dim * element_size(vocabulary_.rows.type), kMostFetched);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at);
  }
  static void sort(TopkEntry* begin, TopkEntry* end) {
    std::sort(begin, end, [](const TopkEntry& a, const TopkEntry& b) { return a.upper > b.upper; });
  }

  // The exact scores of the candidates of query i of a group: the most promising first, until none
  // of the others can be among the best.
  void finish(Finisher& own, const TopkScreen& job, int64_t count, int64_t i, int64_t at) {
    own.best.clear();
    read(own, at);
    bool full = false;
    float tau = std::numeric_limits<float>::lowest();
    for (int64_t part = 0; part < parts_; ++part) {
      const TopkQuery& query = job.queries[part * count + i];
      full |= query.full;
      tau = std::max(tau, query.tau);
    }
    const bool zero = vocabulary_.metric != kL2 && own.norm == 0;
    if (full && !zero && vocabulary_.unit != kFloats) {
      const std::lock_guard<std::mutex> lock(mutex_);
      retried_.push_back(at);
      return;
    }
    if (full || zero) {
      scan(own.best, own, at, 0, vocabulary_.count);
      return own.best.store(search_, vocabulary_.metric, at);
    }
    own.candidates.clear();
    for (int64_t part = 0; part < parts_; ++part) {
      const TopkEntry* const entries = job.entries + (part * count + i) * capacity_;
      for (int32_t e = 0; e < job.queries[part * count + i].count; ++e)
        if (entries[e].upper >= tau) own.candidates.push_back(entries[e]);
    }
    sort(own.candidates.data(), own.candidates.data() + own.candidates.size());
    for (const TopkEntry& candidate : own.candidates) {
      fetch(&candidate, own.candidates.data() + own.candidates.size());
      if (own.best.is_full()) {
        const double least = screened(own, own.best.least());
        if (candidate.upper < least - slack(own, least)) break;
      }
      const int64_t row = candidate.row >= 0 ? candidate.row : ~candidate.row;
      own.best.add(score(own, row), row);
    }
    own.best.store(search_, vocabulary_.metric, at);
  }

  // The rows from .. to - 1 in double precision.
  void scan(Best& best, const Finisher& query, int64_t at, int64_t from, int64_t to) {
    const bool zero = vocabulary_.metric != kL2 && query.norm == 0;
    for (int64_t row = from; row < to; ++row) {
      if (!topk_allows(vocabulary_.banned, search_.exclude_offsets, search_.excluded, at, row))
        continue;
      if (zero && best.is_full()) break;
      const double found = zero ? 0.0 : score(query, row);
      if (!std::isfinite(found)) {
        bad_.report(row);
        break;
      }
      best.add(found, row);
    }
  }

  // All queries, in double precision.
  void scan_all() {
    check_rows();
    Finisher own(search_.k, search_.queries.dim);
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t at = id(i);
      read(own, at);
      std::vector<Best> bests(static_cast<size_t>(threads_), Best(search_.k));
      parallel(threads_, [&](int worker, int size) {
        scan(bests[worker], own, at, share(vocabulary_.count, worker, size),
             share(vocabulary_.count, worker + 1, size));
      });
      bad_.raise("vocabulary", vocabulary_.metric);
      for (size_t other = 1; other < bests.size(); ++other) bests[0].add(bests[other]);
      bests[0].store(search_, vocabulary_.metric, at);
    }
  }

  static constexpr int64_t kFinishedAtOnce = 8, kFirstStage = 16;
  static constexpr int64_t kFetchedAhead = 2, kMostFetched = 4096;

  TopkVocabulary vocabulary_;
  const TopkSearch& search_;
  const int threads_;
  std::vector<int64_t> ids_, retried_;
  const int64_t count_;
  const Kernels kernels_;
  std::vector<float> own_center_;
  std::vector<int64_t> own_offsets_, own_excluded_;
  std::mutex mutex_;
  FirstBad bad_;
  TopkLayout layout_{};
  int64_t capacity_ = 0, group_ = 0, block_ = 0, chunk_ = 0, parts_ = 1;
  bool by_rows_ = false;
};

}  // namespace

void topk_search(const TopkVocabulary& vocabulary, const TopkSearch& search, int threads) {
  if (search.count == 0 || search.k == 0) return;
  Search(vocabulary, search, threads).run();
}

TopkUnit topk_choose_unit(const TopkVocabulary& vocabulary, float* center) {
  const Rows& rows = vocabulary.rows;
  std::vector<float> scratch(static_cast<size_t>(padded(rows.dim)));
  const double error =
      VECSMITH_PICK_KERNEL(topk_center)(rows, vocabulary.count, vocabulary.metric,
                                        vocabulary.banned, kMostSample, center, scratch.data());
  const auto has = VECSMITH_PICK_KERNEL(topk_has_unit);
  // Tiles multiply pairs.
  if (isa_level() == Isa::amx) return kPairs;
  if (has(kBytes) && error <= kMostByteError && rows.dim <= kMostBytes) return kBytes;
  return has(kPairs) ? kPairs : kFloats;
}

void topk_pack_rows(const TopkVocabulary& vocabulary, char* panels, const int64_t* ids,
                    int64_t ids_count, int threads) {
  const Kernels kernels;
  const TopkLayout layout = kernels.layout(vocabulary.unit, vocabulary.rows.dim);
  const int64_t count = layout.panels(vocabulary.count);
  FirstBad bad;
  TopkPack pack{};
  pack.layout = layout;
  pack.metric = vocabulary.metric;
  pack.rows = vocabulary.rows;
  pack.center = vocabulary.center;
  pack.banned = vocabulary.banned;
  pack.panels = panels;
  parallel(threads, [&](int worker, int size) {
    std::vector<float> scratch(static_cast<size_t>(padded(layout.dim)));
    TopkPack own = pack;
    if (!ids) {
      const int64_t from = share(count, worker, size), to = share(count, worker + 1, size);
      kernels.clear(layout, panels + from * layout.panel_bytes(), to - from);
      own.first = from * layout.rows;
      own.count = std::min(to * layout.rows, vocabulary.count) - own.first;
      const int64_t row = own.count > 0 ? kernels.pack(own, scratch.data()) : -1;
      if (row >= 0) bad.report(row);
      kernels.bounds(layout, panels + from * layout.panel_bytes(), to - from);
      return;
    }
    // A panel belongs to one worker.
    for (int64_t i = 0; i < ids_count; ++i) {
      const int64_t panel = ids[i] / layout.rows;
      if (panel % size != worker) continue;
      own.ids = ids + i;
      own.count = 1;
      const int64_t row = kernels.pack(own, scratch.data());
      if (row >= 0) bad.report(row);
      kernels.bounds(layout, panels + panel * layout.panel_bytes(), 1);
    }
  });
  bad.raise("vectors", vocabulary.metric);
}

}  // namespace vecsmith
