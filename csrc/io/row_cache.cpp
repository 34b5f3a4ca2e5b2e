#include "io/row_cache.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "io/team.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace vecsmith::io {
namespace {

// A word: slot + 1 (32 bits; 0: not here), batch (23), changed (1), count (8).
constexpr uint64_t kChanged = 1 << 8;
constexpr uint32_t kMostCount = 255;

int32_t slot_of(uint64_t word) { return static_cast<int32_t>(word >> 32) - 1; }
bool is_here(uint64_t word) { return word >> 32; }
uint32_t batch_of(uint64_t word) {
  return static_cast<uint32_t>(word >> 9) & RowCache::kMostBatches;
}
uint64_t with_slot(uint64_t word, int32_t slot) {
  return (word & 0xFFFFFFFFu) | static_cast<uint64_t>(static_cast<uint32_t>(slot + 1)) << 32;
}

// Threads that look a batch up write the same to the same word, or lose a count of one.
uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
void store(uint64_t* word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }

constexpr int64_t kAhead = 40;       // words fetched ahead
constexpr int64_t kMovesAhead = 12;  // rows
constexpr int64_t kMovesAtOnce = 64;
constexpr int64_t kLeastPorch = 64;
constexpr int64_t kLeastSweep = 1024;
constexpr size_t kHugePage = 2 << 20;
constexpr double kRareShare = 0.02;

inline void pause() {
#if defined(__SSE2__)
  _mm_pause();
#endif
}

// Into the second level: it takes more lines at a time than the first.
inline void fetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// Page faults of this thread that had to wait for the disk.
int64_t waits_for_disk() {
#if defined(RUSAGE_THREAD)
  struct rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) == 0) return usage.ru_majflt;
#endif
  return 0;
}

// The least work that is worth a thread.
int team(int64_t work, int threads, int64_t least) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, work / least)));
}

}  // namespace

RowCache::RowCache(int64_t rows, int64_t slots) : rows_(rows), slots_(slots), process_(getpid()) {
  if (rows < 1 || rows > (int64_t{1} << 31))
    throw std::invalid_argument("expected 1..2^31 rows, got " + std::to_string(rows));
  if (slots < 1 || slots >= (int64_t{1} << 31))
    throw std::invalid_argument("expected 1..2^31 - 1 slots, got " + std::to_string(slots));
  // On the border of a huge page, so that all of it can be on such pages.
  const size_t size = static_cast<size_t>(rows) * sizeof(uint64_t);
  mapped_ = size + kHugePage;
  void* at = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::system_error(errno, std::generic_category());
  map_ = at;
  const auto first = (reinterpret_cast<uintptr_t>(at) + kHugePage - 1) / kHugePage * kHugePage;
  words_ = reinterpret_cast<uint64_t*>(first);
#ifdef MADV_HUGEPAGE
  madvise(words_, size, MADV_HUGEPAGE);
#endif
  ids_.assign(static_cast<size_t>(slots), -1);
  on_porch_.assign(static_cast<size_t>(slots), 0);
  porch_.assign(static_cast<size_t>(slots) + 1, 0);
  histogram_.assign(kMostCount + 1, 0);
  for (int64_t s = slots; s-- > 0;) free_.push_back(static_cast<int32_t>(s));
}

RowCache::~RowCache() { munmap(map_, mapped_); }

// --- Counting. ---------------------------------------------------------------------------------

uint32_t RowCache::halvings(uint32_t batch) const {
  uint32_t k = 0;
  while (k < 8 && batch < boundaries_[k]) ++k;
  return k;
}

uint32_t RowCache::count_of(uint64_t word) const {
  return static_cast<uint32_t>(word & kMostCount) >> halvings(batch_of(word));
}

void RowCache::end_window() {
  if (now_ - boundaries_[0] < window_) return;
  std::copy_backward(boundaries_, boundaries_ + 7, boundaries_ + 8);
  boundaries_[0] = now_ + 1;
  if (!free_.empty()) return;
  // Long enough that the rows at the edge of the cache are told apart, and no longer.
  if (rare_ < 3)
    window_ = std::min<uint32_t>(2 * window_, 1 << 16);
  else if (rare_ > 12)
    window_ = std::max<uint32_t>(window_ / 2, 16);
}

// The numbers of batches start over: all of them shift down.
void RowCache::renumber() {
  const uint32_t shift = std::min(oldest(), now_) - 1;
  for (int64_t id = 0; id < rows_; ++id) {
    const uint64_t word = words_[id];
    if (word == 0) continue;
    const uint32_t batch = batch_of(word);
    const uint64_t later = batch > shift ? batch - shift : 0;
    words_[id] = (word & ~(uint64_t{kMostBatches} << 9 | kMostCount)) | later << 9 | count_of(word);
  }
  for (uint32_t& boundary : boundaries_) boundary = boundary > shift ? boundary - shift : 0;
  for (Flight& flight : flights_) flight.batch -= shift;
  now_ -= shift;
}

// --- A batch. ----------------------------------------------------------------------------------

void RowCache::Found::reserve(int64_t size) {
  distinct_size = missing_size = holes_size = 0;
  if (size <= room) return;
  const auto count = static_cast<size_t>(size);
  distinct.reset(new int64_t[count]);
  missing.reset(new int64_t[count]);
  holes.reset(new int64_t[count]);
  room = size;
}

// Before the first word is written: a batch that is refused leaves no mark.
template <class Index>
void RowCache::check(const Index* ids, int64_t count, int threads) const {
  const auto last = static_cast<uint64_t>(rows_ - 1);
  std::atomic<bool> outside{false};
  run_team(threads, [&](int t) {
    const int64_t end = part_begin(count, t + 1, threads);
    uint64_t any = 0;  // its sign bit: an index below zero, or above the last
    const auto look = [&](int64_t i) {
      const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids[i]));
      any |= id | (last - id);
    };
    int64_t i = part_begin(count, t, threads);
    for (; i + 4 <= end; i += 4)
      for (int64_t k = 0; k < 4; ++k) look(i + k);
    for (; i < end; ++i) look(i);
    if (any >> 63) outside = true;
  });
  if (!outside) return;
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || static_cast<int64_t>(ids[i]) >= rows_)
      throw std::out_of_range("expected indices in 0.." + std::to_string(rows_ - 1) + "; got " +
                              std::to_string(static_cast<int64_t>(ids[i])) + " at position " +
                              std::to_string(i));
}

// Whether a row is the first of its kind is as random as the batch: nothing branches on it.
template <class Index>
void RowCache::look_up(const Index* ids, int64_t count, int32_t* out, Use use, int threads) {
  const uint64_t change = use == Use::update ? kChanged : 0;
  const uint64_t now = static_cast<uint64_t>(now_) << 9;
  uint64_t* const words = words_;
  const uint32_t window = boundaries_[0];
  run_team(threads, [&](int t) {
    const int64_t begin = part_begin(count, t, threads), end = part_begin(count, t + 1, threads);
    Found& found = found_[t];
    found.reserve(end - begin + 1);
    int64_t* const distinct = found.distinct.get();
    int64_t* const missing = found.missing.get();
    int64_t* const holes = found.holes.get();
    int64_t distinct_size = 0, missing_size = 0, holes_size = 0;
    uint64_t unused;
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(words + static_cast<int64_t>(ids[i + kAhead]));
      const auto id = static_cast<int64_t>(ids[i]);
      const uint64_t word = load(words + id);
      const uint32_t batch = batch_of(word);
      const bool first = batch << 9 != now;
      const bool here = is_here(word);
      uint64_t seen = word & kMostCount;
      if (batch < window) seen >>= halvings(batch);
      seen += seen < kMostCount;
      const uint64_t next =
          (word & ~(uint64_t{kMostBatches} << 9 | kMostCount)) | now | seen | (here ? change : 0);
      store(first ? words + id : &unused, next);
      distinct[distinct_size] = id;
      distinct_size += first;
      missing[missing_size] = id;
      missing_size += first & !here;
      holes[holes_size] = i;
      holes_size += !here;
      if (out) out[i] = slot_of(word);
    }
    found.distinct_size = distinct_size;
    found.missing_size = missing_size;
    found.holes_size = holes_size;
  });
}

// Looks up, and has the rows of the batch stay. Returns the ticket.
template <class Index>
uint64_t RowCache::start(const Index* ids, int64_t count, int32_t* out, Use use, int threads) {
  threads = team(count, threads, 4096);
  check(ids, count, threads);
  if (now_ + 1 >= kMostBatches) renumber();
  ++now_;
  found_.resize(static_cast<size_t>(threads));
  moves_.clear();
  full_ = false;
  look_up(ids, count, out, use, threads);
  flights_.push_back({++tickets_, now_, use == Use::prefetch, {}});
  std::vector<int64_t>& rows = flights_.back().ids;
  if (!spare_.empty()) {
    rows.swap(spare_.back());
    spare_.pop_back();
  }
  rows.clear();
  for (const Found& found : found_)
    rows.insert(rows.end(), found.distinct.get(), found.distinct.get() + found.distinct_size);
  return tickets_;
}

void RowCache::count_batch(int64_t count) {
  Flight& flight = flights_.back();
  if (flight.prefetch) {
    statistics_.prefetched += static_cast<int64_t>(moves_.size());
  } else if (!full_) {
    flight.batches = 1;
    flight.lookups = flight.hits = count;
    for (const Found& found : found_) flight.hits -= found.holes_size;
    statistics_.batches += flight.batches;
    statistics_.lookups += flight.lookups;
    statistics_.hits += flight.hits;
  }
  statistics_.loads += static_cast<int64_t>(moves_.size());
  for (const SlotMove& move : moves_) {
    statistics_.evictions += move.evicted >= 0;
    statistics_.write_backs += move.changed;
  }
  end_window();
}

// Throws CacheFullError where rows got no slot.
void RowCache::end_batch(uint64_t ticket) {
  if (full_) {
    release_locked(ticket);
    throw CacheFullError("");
  }
  // What was fetched ahead of this batch is among its rows now; of other batches, the latest few.
  int64_t ahead = 0;
  uint64_t first = 0;
  for (const Flight& flight : flights_) {
    if (!flight.prefetch) continue;
    if (ahead++ == 0) first = flight.ticket;
  }
  if (first && (!flights_.back().prefetch || ahead > 4)) release_locked(first);
}

template <class Index>
uint64_t RowCache::begin(const Index* ids, int64_t count, int32_t* out, Use use, RowFile& file,
                         const std::vector<RowPart>& parts, int threads) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (use == Use::prefetch) out = nullptr;
  const uint64_t ticket = start(ids, count, out, use, threads);
  int64_t bytes = 0, missing = 0;
  for (const RowPart& part : parts) bytes += part.bytes;
  for (const Found& found : found_) missing += found.missing_size;
  const auto fetch_ahead = [&](int64_t i) {
    const SlotMove& move = moves_[i];
    const char* from = file.find(move.loaded);
    if (from) fetch(from, bytes);
    if (move.changed)
      for (const RowPart& part : parts) fetch(part.data + move.slot * part.bytes, part.bytes);
  };
  // The first thread says who goes where, and the others begin to carry meanwhile; it then helps.
  std::atomic<int64_t> planned{0}, next{0};
  std::atomic<bool> done{false};
  // Where rows come from the disk, many are asked for at a time. That costs a call of the system
  // for each, so only if some of the last batch did.
  std::atomic<int64_t> waits{0};
  const bool from_disk = from_disk_;
  const int movers = std::max(team(missing, threads, 64), static_cast<int>(found_.size()));
  run_team(missing ? movers : 1, [&](int t) {
    const int64_t waits_before = waits_for_disk();
    if (t == 0) {
      assign(use, [&] {
        planned.store(static_cast<int64_t>(moves_.size()), std::memory_order_release);
      });
      for (const SlotMove& move : moves_)
        if (move.changed) {
          file.will_write();
          break;
        }
      planned.store(static_cast<int64_t>(moves_.size()), std::memory_order_release);
      done.store(true, std::memory_order_release);
    }
    for (;;) {
      const int64_t first = next.fetch_add(kMovesAtOnce, std::memory_order_relaxed);
      int64_t last = planned.load(std::memory_order_acquire);
      while (last < first + kMovesAtOnce && !done.load(std::memory_order_acquire)) {
        pause();
        last = planned.load(std::memory_order_acquire);
      }
      last = std::min(planned.load(std::memory_order_acquire), first + kMovesAtOnce);
      if (first >= last) break;
      if (from_disk)
        for (int64_t i = first; i < last; ++i) {
          file.will_need(&moves_[i].loaded, 1);
          if (moves_[i].changed) file.will_need(&moves_[i].evicted, 1);
        }
      for (int64_t i = first; i < last; ++i) {
        __builtin_prefetch(file.header(moves_[i].loaded));
        if (moves_[i].changed) __builtin_prefetch(file.header(moves_[i].evicted), 1);
      }
      for (int64_t i = first; i < std::min(last, first + kMovesAhead); ++i) fetch_ahead(i);
      for (int64_t i = first; i < last; ++i) {
        if (i + kMovesAhead < last) fetch_ahead(i + kMovesAhead);
        const SlotMove& move = moves_[i];
        if (move.changed) file.write_row(move.evicted, parts.data(), parts.size(), move.slot);
        file.read_row(move.loaded, parts.data(), parts.size(), move.slot);
      }
    }
    RowFile::written();
    if (out && t < static_cast<int>(found_.size()))
      for (int64_t k = 0; k < found_[t].holes_size; ++k) {
        const int64_t at = found_[t].holes[k];
        out[at] = slot_of(load(words_ + ids[at]));
      }
    waits += waits_for_disk() - waits_before;
  });
  from_disk_ = waits * 64 > static_cast<int64_t>(moves_.size()) ||
               (from_disk && !moves_.empty() && now_ % 64);
  count_batch(count);
  end_batch(ticket);
  return ticket;
}

template <class Index>
uint64_t RowCache::plan(const Index* ids, int64_t count, Use use, int threads) {
  const std::lock_guard<std::mutex> guard(mutex_);
  const uint64_t ticket = start(ids, count, static_cast<int32_t*>(nullptr), use, threads);
  assign(use, [] {});
  return ticket;
}

template <class Index>
void RowCache::finish(uint64_t ticket, const Index* ids, int64_t count, int32_t* out) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (flights_.empty() || flights_.back().ticket != ticket)
    throw std::invalid_argument("expected the ticket of the latest plan");
  count_batch(count);
  end_batch(ticket);
  moves_.clear();
  for (int64_t i = 0; out && i < count; ++i) out[i] = slot_of(words_[ids[i]]);
}

void RowCache::cancel(uint64_t ticket) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (flights_.empty() || flights_.back().ticket != ticket)
    throw std::invalid_argument("expected the ticket of the latest plan");
  for (size_t i = moves_.size(); i-- > 0;) {
    const SlotMove& move = moves_[i];
    words_[move.loaded] = with_slot(words_[move.loaded] & ~kChanged, -1);
    ids_[move.slot] = move.evicted;
    if (move.evicted >= 0)
      words_[move.evicted] =
          with_slot(words_[move.evicted], move.slot) | (move.changed ? kChanged : 0);
    else
      free_.push_back(move.slot);
  }
  moves_.clear();
  release_locked(ticket);
}

void RowCache::release_locked(uint64_t ticket) {
  for (size_t i = 0; i < flights_.size(); ++i) {
    if (flights_[i].ticket != ticket) continue;
    if (spare_.size() < 4) spare_.push_back(std::move(flights_[i].ids));
    flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(i));
    return;
  }
}

void RowCache::release(uint64_t ticket) {
  if (process_ != getpid()) return;  // the mutex may have been copied as it was held
  const std::lock_guard<std::mutex> guard(mutex_);
  release_locked(ticket);
}

void RowCache::discard(uint64_t ticket) {
  if (process_ != getpid()) return;
  const std::lock_guard<std::mutex> guard(mutex_);
  for (const Flight& flight : flights_) {
    if (flight.ticket != ticket) continue;
    statistics_.batches -= flight.batches;
    statistics_.lookups -= flight.lookups;
    statistics_.hits -= flight.hits;
  }
  release_locked(ticket);
}

// --- Who stays and who goes. -------------------------------------------------------------------

template <class Publish>
void RowCache::assign(Use use, const Publish& publish) {
  int64_t missing = 0;
  for (const Found& found : found_) missing += found.missing_size;
  if (missing == 0) return;
  const int64_t most = std::max<int64_t>(1, slots_ / 2);
  porch_target_ =
      std::max({kLeastPorch, missing + missing / 4, porch_target_ - porch_target_ / 16});
  porch_target_ = std::min(porch_target_, most);
  porch_left_ = porch_size_;
  moves_.reserve(static_cast<size_t>(missing));
  if (free_.empty() && victims_.size() < 64) sweep(sweep_);
  starved_ = false;
  for (const Found& found : found_) {
    for (int64_t i = 0; i < found.missing_size; ++i) {
      const int64_t id = found.missing[i];
      const uint64_t word = words_[id];
      if (is_here(word)) continue;  // another thread missed it as well
      SlotMove move{-1, id, -1, false};
      move.slot = take_slot(&move);
      if (move.slot < 0) {
        if (!let_go() && drop_prefetched()) let_go();
        porch_left_ = porch_size_;
        move.slot = take_slot(&move);
      }
      if (move.slot < 0) {
        full_ = true;
        return;
      }
      ids_[move.slot] = id;
      // Who comes is changed if who is here is.
      words_[id] = with_slot(words_[id], move.slot) | (use == Use::update ? kChanged : 0);
      moves_.push_back(move);
      if (moves_.size() % kMovesAtOnce == 0) publish();
    }
  }
  if (starved_)
    sweep_ = std::min(2 * sweep_, std::max(kLeastSweep, slots_ / 16));
  else
    sweep_ = std::max(kLeastSweep, sweep_ - sweep_ / 16);
}

// Rows that were used since the oldest batch that is not released, but are in none of these, may
// go. False if there are none.
bool RowCache::let_go() {
  std::vector<uint8_t> stays(static_cast<size_t>(slots_), 0);
  for (const Flight& flight : flights_)
    for (const int64_t id : flight.ids)
      if (is_here(words_[id])) stays[slot_of(words_[id])] = 1;
  bool any = false;
  const uint32_t in_use = oldest();
  for (int64_t s = 0; s < slots_; ++s) {
    if (stays[s] || ids_[s] < 0) continue;
    uint64_t& word = words_[ids_[s]];
    if (batch_of(word) < in_use) continue;
    word = (word & ~(uint64_t{kMostBatches} << 9)) | static_cast<uint64_t>(in_use - 1) << 9;
    any = true;
  }
  return any;
}

// For want of slots, gives up what was fetched ahead of later batches. False if there is none.
bool RowCache::drop_prefetched() {
  if (flights_.back().prefetch) return false;
  const size_t before = flights_.size();
  flights_.erase(std::remove_if(flights_.begin(), flights_.end(),
                                [](const Flight& flight) { return flight.prefetch; }),
                 flights_.end());
  return flights_.size() < before;
}

void RowCache::evict(int32_t slot, SlotMove* move) {
  const int64_t id = ids_[slot];
  const uint64_t word = words_[id];
  move->evicted = id;
  move->changed = word & kChanged;
  words_[id] = with_slot(word & ~kChanged, -1);
}

int32_t RowCache::take_slot(SlotMove* move) {
  if (!free_.empty()) {
    const int32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  const auto ring = static_cast<int64_t>(porch_.size());
  const auto at = [&](int64_t i) {
    i += porch_begin_;
    return porch_[i < ring ? i : i - ring];
  };
  const auto push = [&](int32_t slot) {
    int64_t i = porch_begin_ + porch_size_++;
    porch_[i < ring ? i : i - ring] = slot;
    on_porch_[slot] = 1;
  };
  const uint32_t in_use = oldest();
  for (; porch_left_ > 0; --porch_left_) {
    if (porch_left_ > 16) {
      __builtin_prefetch(&ids_[at(16)]);
      const int64_t next = ids_[at(8)];
      if (next >= 0) __builtin_prefetch(words_ + next, 1);
    }
    const int32_t slot = at(0);
    porch_begin_ = porch_begin_ + 1 < ring ? porch_begin_ + 1 : 0;
    --porch_size_;
    const int64_t id = ids_[slot];
    if (id < 0) {  // a batch was canceled
      push(slot);
      continue;
    }
    const uint64_t word = words_[id];
    if (porch_size_ >= porch_target_) {
      on_porch_[slot] = 0;  // the porch is too long
      continue;
    }
    if (count_of(word) > rare_) {
      const int32_t victim = pop_victim();
      if (victim >= 0) {
        on_porch_[slot] = 0;
        push(victim);
        evict(victim, move);
        --porch_left_;
        return victim;
      }
    }
    push(slot);
    if (batch_of(word) >= in_use) continue;
    evict(slot, move);
    --porch_left_;
    return slot;
  }
  int32_t victim = pop_victim();
  if (victim < 0) {
    sweep(sweep_);
    victim = pop_victim();
  }
  if (victim < 0) victim = any_victim();
  if (victim < 0) return -1;
  if (!on_porch_[victim]) push(victim);
  evict(victim, move);
  return victim;
}

// The next slots under the hand: those whose rows are rare are listed, and how rare is rare is
// measured.
void RowCache::sweep(int64_t slots) {
  for (int64_t k = std::min(slots, slots_); k > 0; --k) {
    const int64_t s = hand_;
    hand_ = hand_ + 1 < slots_ ? hand_ + 1 : 0;
    if (s + kAhead < slots_ && ids_[s + kAhead] >= 0) __builtin_prefetch(words_ + ids_[s + kAhead]);
    if (on_porch_[s] || ids_[s] < 0) continue;
    const uint32_t count = count_of(words_[ids_[s]]);
    if (count <= rare_ && static_cast<int64_t>(victims_.size()) < slots_)
      victims_.push_back(static_cast<int32_t>(s));
    ++histogram_[count];
    if (++sampled_ < std::min<int64_t>(slots_, 8192)) continue;
    const auto enough = std::max<int64_t>(1, static_cast<int64_t>(kRareShare * sampled_));
    int64_t sum = 0;
    rare_ = 0;
    while ((sum += histogram_[rare_]) < enough) ++rare_;
    std::fill(histogram_.begin(), histogram_.end(), 0);
    sampled_ = 0;
  }
}

int32_t RowCache::pop_victim() {
  while (!victims_.empty()) {
    const int32_t slot = victims_.back();
    victims_.pop_back();
    const int64_t id = ids_[slot];
    if (on_porch_[slot] || id < 0) continue;
    const uint64_t word = words_[id];
    if (batch_of(word) < oldest() && count_of(word) <= rare_) return slot;
  }
  starved_ = true;
  return -1;
}

// Any row that may go: of the next 64 such the least used. -1 if there is none.
int32_t RowCache::any_victim() {
  int32_t best = -1;
  uint32_t least = kMostCount + 1;
  int64_t seen = 0;
  for (int64_t k = 0; k < slots_ && seen < 64; ++k) {
    const int64_t s = hand_;
    hand_ = hand_ + 1 < slots_ ? hand_ + 1 : 0;
    if (ids_[s] < 0) continue;
    const uint64_t word = words_[ids_[s]];
    if (batch_of(word) >= oldest()) continue;
    ++seen;
    if (count_of(word) >= least) continue;
    least = count_of(word);
    best = static_cast<int32_t>(s);
  }
  return best;
}

// --- Looking in from outside. ------------------------------------------------------------------

void RowCache::find(const int64_t* ids, int64_t count, int32_t* out) const {
  const std::lock_guard<std::mutex> guard(mutex_);
  for (int64_t i = 0; i < count; ++i) {
    if (static_cast<uint64_t>(ids[i]) >= static_cast<uint64_t>(rows_))
      throw std::out_of_range("expected indices in 0.." + std::to_string(rows_ - 1) + "; got " +
                              std::to_string(ids[i]) + " at position " + std::to_string(i));
    out[i] = slot_of(words_[ids[i]]);
  }
}

void RowCache::changed(std::vector<int64_t>* ids, std::vector<int32_t>* slots) const {
  const std::lock_guard<std::mutex> guard(mutex_);
  changed_locked(ids, slots);
}

void RowCache::changed_locked(std::vector<int64_t>* ids, std::vector<int32_t>* slots) const {
  ids->clear();
  slots->clear();
  for (const int64_t id : ids_)
    if (id >= 0 && (words_[id] & kChanged)) ids->push_back(id);
  std::sort(ids->begin(), ids->end());
  for (const int64_t id : *ids) slots->push_back(slot_of(words_[id]));
}

void RowCache::cleaned(const std::vector<int64_t>& ids) {
  const std::lock_guard<std::mutex> guard(mutex_);
  cleaned_locked(ids);
}

void RowCache::cleaned_locked(const std::vector<int64_t>& ids) {
  for (const int64_t id : ids)
    if (batch_of(words_[id]) < oldest()) words_[id] &= ~kChanged;
}

void RowCache::write_changed(RowFile& file, const std::vector<RowPart>& parts, int threads) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::vector<int64_t> ids;
  std::vector<int32_t> slots;
  changed_locked(&ids, &slots);
  if (ids.empty()) return;
  file.will_write();
  const auto size = static_cast<int64_t>(ids.size());
  threads = team(size, threads, 256);
  run_team(threads, [&](int t) {
    const int64_t end = part_begin(size, t + 1, threads);
    for (int64_t i = part_begin(size, t, threads); i < end; ++i) {
      if (i + kMovesAhead < end) {
        __builtin_prefetch(file.header(ids[i + kMovesAhead]), 1);
        for (const RowPart& part : parts)
          fetch(part.data + slots[i + kMovesAhead] * part.bytes, part.bytes);
      }
      file.write_row(ids[i], parts.data(), parts.size(), slots[i]);
    }
    RowFile::written();
  });
  cleaned_locked(ids);
}

void RowCache::touch_changed(const int64_t* ids, int64_t count) {
  const std::lock_guard<std::mutex> guard(mutex_);
  for (int64_t i = 0; i < count; ++i)
    if (is_here(words_[ids[i]])) words_[ids[i]] |= kChanged;
}

bool RowCache::clear() {
  const std::lock_guard<std::mutex> guard(mutex_);
  for (const Flight& flight : flights_)
    if (!flight.prefetch) return false;
  flights_.clear();
  for (const int64_t id : ids_)
    if (id >= 0) words_[id] = with_slot(words_[id] & ~kChanged, -1);
  std::fill(ids_.begin(), ids_.end(), -1);
  std::fill(on_porch_.begin(), on_porch_.end(), 0);
  free_.clear();
  for (int64_t s = slots_; s-- > 0;) free_.push_back(static_cast<int32_t>(s));
  porch_begin_ = porch_size_ = 0;
  victims_.clear();
  return true;
}

CacheStatistics RowCache::statistics() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return statistics_;
}

void RowCache::reset_statistics() {
  const std::lock_guard<std::mutex> guard(mutex_);
  statistics_ = {};
  for (Flight& flight : flights_) flight.batches = flight.lookups = flight.hits = 0;
}

int64_t RowCache::used() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return slots_ - static_cast<int64_t>(free_.size());
}

template uint64_t RowCache::begin(const int32_t*, int64_t, int32_t*, Use, RowFile&,
                                  const std::vector<RowPart>&, int);
template uint64_t RowCache::begin(const int64_t*, int64_t, int32_t*, Use, RowFile&,
                                  const std::vector<RowPart>&, int);
template uint64_t RowCache::plan(const int32_t*, int64_t, Use, int);
template uint64_t RowCache::plan(const int64_t*, int64_t, Use, int);
template void RowCache::finish(uint64_t, const int32_t*, int64_t, int32_t*);
template void RowCache::finish(uint64_t, const int64_t*, int64_t, int32_t*);

}  // namespace vecsmith::io
