// A hash table from words to dense ids 0, 1, 2, ... in the order of insertion.
//
// Open addressing over 8-byte slots (hash, id); the words themselves lie in a dense array by id, up
// to 16 bytes of them in place and longer ones in an arena. Frequent words come early in any text,
// so the entries that are looked at most share few cache lines.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "io/bytes.h"

namespace vecsmith::io {

class WordTable {
 public:
  WordTable();

  int32_t size() const { return static_cast<int32_t>(entries_.size()); }

  // The id of a word, or -1.
  int32_t find(const WordKey& key) const {
    for (uint32_t at = key.hash & mask_;; at = (at + 1) & mask_) {
      const Slot& slot = slots_[at];
      if (slot.id < 0) return -1;
      if (slot.hash == key.hash && same(entries_[slot.id], key)) return slot.id;
    }
  }

  // Two steps towards finding a word, to be taken a few words ahead: where it may be in the table,
  // and what it may then have to be compared with.
  void prefetch_slot(const WordKey& key) const { __builtin_prefetch(&slots_[key.hash & mask_]); }
  void prefetch_entry(const WordKey& key) const {
    const int32_t id = slots_[key.hash & mask_].id;
    if (id >= 0) __builtin_prefetch(&entries_[id]);
  }

  // The id of a word, a new one if need be. The bytes of a long word are copied.
  int32_t insert(const WordKey& key);

  // A key that is good as long as the table is; and the bytes of a word, until the next insertion.
  WordKey key(int32_t id) const;
  std::string_view word(int32_t id) const;

  void clear();

 private:
  struct Slot {
    uint32_t hash;
    int32_t id;
  };
  struct Entry {
    uint64_t low, high;
    uint32_t length;
    uint32_t hash;
  };

  static bool same(const Entry& entry, const WordKey& key) {
    if (entry.low != key.low || entry.length != key.length) return false;
    if (entry.length <= kInlineBytes) return entry.high == key.high;
    return std::memcmp(reinterpret_cast<const char*>(entry.high),
                       reinterpret_cast<const char*>(key.high), entry.length) == 0;
  }
  void rehash(size_t slots);
  const char* keep(const char* word, size_t length);

  std::vector<Slot> slots_;
  uint32_t mask_ = 0;
  std::vector<Entry> entries_;
  std::vector<std::unique_ptr<char[]>> chunks_;
  size_t chunk_used_ = 0, chunk_size_ = 0;
};

}  // namespace vecsmith::io
