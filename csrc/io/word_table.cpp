#include "io/word_table.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace vecsmith::io {
namespace {
constexpr size_t kFirstSlots = 1 << 10;
constexpr size_t kChunkBytes = 1 << 16;
}  // namespace

WordTable::WordTable() { rehash(kFirstSlots); }

void WordTable::rehash(size_t slots) {
  if (slots > (size_t{1} << 32)) throw std::length_error("too many different words (2^31)");
  std::vector<Slot>(slots, Slot{0, -1}).swap(slots_);
  mask_ = static_cast<uint32_t>(slots - 1);
  for (int32_t id = 0; id < size(); ++id) {
    uint32_t at = entries_[id].hash & mask_;
    while (slots_[at].id >= 0) at = (at + 1) & mask_;
    slots_[at] = {entries_[id].hash, id};
  }
}

int32_t WordTable::insert(const WordKey& key) {
  uint32_t at = key.hash & mask_;
  for (; slots_[at].id >= 0; at = (at + 1) & mask_)
    if (slots_[at].hash == key.hash && same(entries_[slots_[at].id], key)) return slots_[at].id;
  if (entries_.size() >= static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    throw std::length_error("too many different words (2^31)");
  if (2 * (entries_.size() + 1) > slots_.size()) {
    rehash(slots_.size() * 2);
    at = key.hash & mask_;
    while (slots_[at].id >= 0) at = (at + 1) & mask_;
  }
  const int32_t id = size();
  Entry entry{key.low, key.high, key.length, key.hash};
  if (key.length > kInlineBytes)
    entry.high =
        reinterpret_cast<uintptr_t>(keep(reinterpret_cast<const char*>(key.high), key.length));
  entries_.push_back(entry);
  slots_[at] = {key.hash, id};
  return id;
}

const char* WordTable::keep(const char* word, size_t length) {
  if (chunk_size_ - chunk_used_ < length) {
    chunk_size_ = std::max(kChunkBytes, length);
    chunks_.emplace_back(new char[chunk_size_]);
    chunk_used_ = 0;
  }
  char* at = chunks_.back().get() + chunk_used_;
  std::memcpy(at, word, length);
  chunk_used_ += length;
  return at;
}

WordKey WordTable::key(int32_t id) const {
  const Entry& entry = entries_[id];
  return {entry.low, entry.high, entry.length, entry.hash};
}

std::string_view WordTable::word(int32_t id) const {
  const Entry& entry = entries_[id];
  // `low` and `high` lie side by side: the bytes of a short word, in order.
  const char* bytes = entry.length <= kInlineBytes ? reinterpret_cast<const char*>(&entry)
                                                   : reinterpret_cast<const char*>(entry.high);
  return {bytes, entry.length};
}

void WordTable::clear() {
  entries_.clear();
  chunks_.clear();
  chunk_used_ = chunk_size_ = 0;
  std::fill(slots_.begin(), slots_.end(), Slot{0, -1});
}

}  // namespace vecsmith::io
