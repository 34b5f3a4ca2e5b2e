// Which rows of a table are in a cache of fewer slots, and which leave it for those that come.
//
// For every row there is one word: its slot, the last batch that used it, in how many batches it
// was used lately, and whether its slot has changed since it was loaded. A batch is looked up with
// one access per index. The count is halved at the end of every window of batches (when the row is
// next looked at: the word says when that was), so what was popular once is forgotten.
//
// Least frequently used rows leave: a row that comes takes one of the slots at the front of a short
// queue (the "porch"), whose row goes. Rows that were used once or twice so only pass through the
// porch, which is small enough to stay in the processor's caches. A row at the front of the porch
// that has been used more often than the least used of the others stays, and one of those goes
// instead; a hand that sweeps the slots, some thousand a batch, keeps a list of them and knows how
// rare they are. (The scheme is that of W-TinyLFU: Einziger, Friedman and Manes 2017.)
//
// Rows of a batch stay where they are until it is released, and as a rule so do all that were used
// since: that is one comparison. Where this leaves no room, the rows of such batches are gone
// through.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "io/row_file.h"

namespace vecsmith::io {

// More distinct rows in use than there are slots.
class CacheFullError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct CacheStatistics {
  int64_t lookups = 0, hits = 0;     // indices; hits were in the cache already
  int64_t loads = 0, evictions = 0;  // rows
  int64_t write_backs = 0;           // of the evicted, those that had changed
  int64_t prefetched = 0;            // of the loads, those ahead of their batch
  int64_t batches = 0;
};

// A row that goes from a slot (-1: none), and one that comes into it.
struct SlotMove {
  int64_t evicted, loaded;
  int32_t slot;
  bool changed;  // the evicted row is to be written back
};

class RowCache {
 public:
  enum class Use { read, update, prefetch };

  RowCache(int64_t rows, int64_t slots);
  ~RowCache();
  RowCache(const RowCache&) = delete;
  RowCache& operator=(const RowCache&) = delete;

  // Looks a batch up: out[i] is the slot of row ids[i]. Rows that were missing are loaded from
  // `file` into the parts (slot s is row s of a part), and changed rows that leave are written to
  // it. Returns a ticket: the rows stay until release(ticket). With Use::prefetch `out` is not
  // written, and the rows stay until the batch after has been looked up.
  //
  // std::out_of_range for an index outside of the table: nothing has then changed. CacheFullError
  // if there are too few slots: no row has then changed, and the batch does not count.
  template <class Index>
  uint64_t begin(const Index* ids, int64_t count, int32_t* out, Use use, RowFile& file,
                 const std::vector<RowPart>& parts, int threads);
  void release(uint64_t ticket);
  // The same for a batch that was refused after it had been looked up: it does not count. In a fork
  // both do nothing: what is freed there may have been looked up before.
  void discard(uint64_t ticket);

  // The same in two steps, for slots that are not in this memory: what has to move, then, when it
  // has, the slots. `full`: some rows got no slot; finish() throws then. cancel() instead of
  // finish(): nothing was loaded, and the evicted rows are still where they were.
  template <class Index>
  uint64_t plan(const Index* ids, int64_t count, Use use, int threads);
  const std::vector<SlotMove>& moves() const { return moves_; }
  template <class Index>
  void finish(uint64_t ticket, const Index* ids, int64_t count, int32_t* out);
  void cancel(uint64_t ticket);

  // The slots of rows, -1 where they are not here. Changes nothing.
  void find(const int64_t* ids, int64_t count, int32_t* out) const;
  // The rows that have changed, by row; cleaned(): they are in the file now. Rows of a batch that
  // is not released yet may be about to change, and stay on the list.
  void changed(std::vector<int64_t>* ids, std::vector<int32_t>* slots) const;
  void cleaned(const std::vector<int64_t>& ids);
  void write_changed(RowFile& file, const std::vector<RowPart>& parts, int threads);
  // These rows were changed, in their slots, by somebody else.
  void touch_changed(const int64_t* ids, int64_t count);
  // Empties the cache; nothing is written. False if a batch is not released.
  bool clear();

  CacheStatistics statistics() const;
  void reset_statistics();
  int64_t rows() const { return rows_; }
  int64_t slots() const { return slots_; }
  int64_t used() const;
  // Batches are numbered within kMostBatches; begin there (tests).
  void start_at(uint32_t batch) { now_ = batch; }
  static constexpr uint32_t kMostBatches = (1u << 23) - 1;

 private:
  struct Flight {
    uint64_t ticket;
    uint32_t batch;
    bool prefetch;
    std::vector<int64_t> ids;                    // its rows, some twice
    int64_t batches = 0, lookups = 0, hits = 0;  // that it counts for
  };
  // What a thread finds in its part of a batch.
  struct Found {
    void reserve(int64_t size);
    std::unique_ptr<int64_t[]> distinct;  // rows that it was the first to see
    std::unique_ptr<int64_t[]> missing;   // those of them that are not here
    std::unique_ptr<int64_t[]> holes;     // where in the batch rows are that are not here
    int64_t distinct_size = 0, missing_size = 0, holes_size = 0, room = 0;
    char apart[64];
  };

  template <class Index>
  void check(const Index* ids, int64_t count, int threads) const;
  template <class Index>
  void look_up(const Index* ids, int64_t count, int32_t* out, Use use, int threads);
  template <class Index>
  uint64_t start(const Index* ids, int64_t count, int32_t* out, Use use, int threads);
  void count_batch(int64_t count);
  void end_batch(uint64_t ticket);
  void release_locked(uint64_t ticket);
  void changed_locked(std::vector<int64_t>* ids, std::vector<int32_t>* slots) const;
  void cleaned_locked(const std::vector<int64_t>& ids);
  template <class Publish>
  void assign(Use use, const Publish& publish);
  int32_t take_slot(SlotMove* move);
  bool drop_prefetched();
  bool let_go();
  void evict(int32_t slot, SlotMove* move);
  void sweep(int64_t slots);
  int32_t pop_victim();
  int32_t any_victim();
  void end_window();
  void renumber();
  uint32_t halvings(uint32_t batch) const;
  uint32_t count_of(uint64_t word) const;
  uint32_t oldest() const { return flights_.empty() ? now_ + 1 : flights_.front().batch; }

  int64_t rows_, slots_, process_;
  uint64_t* words_ = nullptr;  // [rows]
  void* map_ = nullptr;
  size_t mapped_ = 0;
  std::vector<int64_t> ids_;       // [slots]: the row in it, -1 if none
  std::vector<uint8_t> on_porch_;  // [slots]
  std::vector<int32_t> free_;      // slots never used
  std::vector<int32_t> porch_;     // a ring of slots_ + 1
  int64_t porch_begin_ = 0, porch_size_ = 0, porch_target_ = 64, porch_left_ = 0;
  std::vector<int32_t> victims_;
  int64_t hand_ = 0, sweep_ = 1024;
  bool starved_ = false;
  uint32_t rare_ = 1;  // the count of the least used few percent of slots
  std::vector<int64_t> histogram_;
  int64_t sampled_ = 0;

  uint32_t now_ = 0;  // this batch
  uint64_t tickets_ = 0;
  std::vector<Flight> flights_;
  std::vector<std::vector<int64_t>> spare_;  // lists of ids to be used again
  uint32_t window_ = 64;                     // batches
  uint32_t boundaries_[8] = {};  // the first batches of the latest windows, newest first

  std::vector<Found> found_;
  std::vector<SlotMove> moves_;
  bool full_ = false;
  bool from_disk_ = false;
  CacheStatistics statistics_;
  mutable std::mutex mutex_;
};

}  // namespace vecsmith::io
