#include "io/corpus.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "io/file.h"
#include "io/parallel.h"
#include "io/remap.h"
#include "io/utf8.h"

namespace vecsmith::io {
namespace {

// Words as common as these are counted by each thread for itself: a shared counter of "the" would
// be fought over. The others share theirs.
constexpr int32_t kHot = 4096;
// What is done at a time at most, so that indices fit and buffers stay small.
constexpr size_t kPiece = 16 << 20;
constexpr size_t kTokensHeld = 1 << 20;
constexpr size_t kLongestWord = std::numeric_limits<int32_t>::max();

}  // namespace

CorpusReader::CorpusReader(const CorpusFiles& files, const CorpusOptions& options)
    : files_(files),
      max_sentence_length_(options.max_sentence_length),
      max_vocab_size_(options.max_vocab_size),
      part_bytes_(options.part_bytes) {
  if (max_sentence_length_ < 1) throw std::invalid_argument("max_sentence_length must be positive");
  if (max_vocab_size_ < 0) throw std::invalid_argument("max_vocab_size must not be negative");
  if (part_bytes_ < 1) throw std::invalid_argument("part_bytes must be positive");
  if (options.threads < 1) throw std::invalid_argument("threads must be positive");
  segments_.resize(options.threads);
  for (auto& segment : segments_) segment.hot_counts.assign(kHot, 0);
  ends_.push_back(0);
}

void CorpusReader::freeze(std::string_view word) {
  frozen_ = true;
  if (word.size() > kLongestWord) throw std::length_error("a word is longer than 2^31 bytes");
  const WordKey key = make_key(word.data(), word.size(), word.size());
  if (bounded()) throw std::logic_error("words are given: max_vocab_size has no meaning");
  if (table_.find(key) >= 0) throw std::invalid_argument("a word is there twice");
  insert(key);
}

int32_t CorpusReader::insert(const WordKey& key) {
  const int32_t before = table_.size(), id = table_.insert(key);
  if (id == before) {
    counts_.push_back(0);
    if (bounded()) {
      if (next_issue_ == std::numeric_limits<int32_t>::max())
        throw std::length_error("too many different words (2^31)");
      issued_.push_back(next_issue_++);
      orders_.push_back(-1);
    }
  }
  return id;
}

// --- Text in
// ---------------------------------------------------------------------------------------

void CorpusReader::feed(const char* text, size_t size) {
  if (finished_) throw std::logic_error("the corpus is finished");
  for (size_t at = 0; at < size; at += kPiece) feed_piece(text + at, std::min(kPiece, size - at));
}

void CorpusReader::feed_piece(const char* text, size_t size) {
  const char* const limit = text + size;
  const char* first = text;
  while (first < limit && !is_space(*first)) ++first;
  if (static_cast<size_t>(first - text) > kLongestWord - carry_.size())
    throw std::length_error("a word is longer than 2^31 bytes: this is no text");
  if (first == limit) {  // no end of the word in sight
    carry_.append(text, size);
    return;
  }
  if (carry_.empty()) {
    first = text;
  } else {
    carry_.append(text, first);
    add_word(segments_[0], carry_.data(), carry_.size(), carry_.size(), false);
    look_up_queue(segments_[0]);
    // A word of megabytes should not be paid for until the end.
    if (carry_.capacity() > (1 << 16)) std::string().swap(carry_);
    carry_.clear();
  }
  const char* last = limit;  // behind the last whitespace
  while (!is_space(last[-1])) --last;

  const size_t length = static_cast<size_t>(last - first);
  const size_t parts = std::min(segments_.size(), std::max<size_t>(1, length / part_bytes_));
  std::vector<const char*> cuts(parts + 1, last);
  cuts[0] = first;
  for (size_t i = 1; i < parts; ++i) {
    const char* cut = std::max(cuts[i - 1], first + length / parts * i);
    while (!is_space(*cut)) ++cut;  // last[-1] is one
    cuts[i] = cut;
  }
  run_parallel(static_cast<int>(parts),
               [&](int i) { scan(segments_[i], cuts[i], cuts[i + 1], limit); });
  carry_.append(last, limit);
  commit();
}

void CorpusReader::end_file() {
  if (finished_) throw std::logic_error("the corpus is finished");
  if (!carry_.empty()) {
    add_word(segments_[0], carry_.data(), carry_.size(), carry_.size(), false);
    look_up_queue(segments_[0]);
    carry_.clear();
  }
  end_line(segments_[0]);
  commit();
}

// Words and line ends of [begin, end), which ends where a word does; bytes up to `limit` may be
// read.
void CorpusReader::scan(Segment& segment, const char* begin, const char* end, const char* limit) {
  const char* start = begin;  // of the word under way
  bool ascii = true;          // so far
  for (const char* base = begin; base < end; base += 64) {
    ByteClasses classes;
    if (limit - base >= 64) {
      classes = classify64(base);
    } else {
      char padded[64] = {};
      std::memcpy(padded, base, static_cast<size_t>(limit - base));
      classes = classify64(padded);
    }
    if (end - base < 64) {
      const uint64_t within = (uint64_t{1} << (end - base)) - 1;
      classes.space &= within;
      classes.high &= within;
    }
    for (uint64_t space = classes.space; space; space &= space - 1) {
      const int k = lowest_bit(space);
      const uint64_t below = (uint64_t{1} << k) - 1;
      const char* const stop = base + k;
      if (stop > start)
        add_word(segment, start, static_cast<size_t>(stop - start),
                 static_cast<size_t>(limit - start), ascii && !(classes.high & below));
      classes.high &= ~below;
      ascii = true;
      if (*stop == '\n') end_line(segment);
      start = stop + 1;
    }
    ascii = ascii && !classes.high;
  }
  if (end > start)
    add_word(segment, start, static_cast<size_t>(end - start), static_cast<size_t>(limit - start),
             ascii);
  look_up_queue(segment);
}

// Looking a word up waits for memory twice. So words queue up, each with its slot on the way, until
// there are a few to be waited for together.
void CorpusReader::add_word(Segment& segment, const char* word, size_t length, size_t readable,
                            bool ascii) {
  const bool repair = !ascii && !utf8_valid(word, length);
  if (repair) {
    segment.repaired.clear();
    segment.bad_bytes += utf8_repair(word, length, segment.repaired);
    word = segment.repaired.data();
    length = readable = segment.repaired.size();
    if (length > kLongestWord) throw std::length_error("a word is longer than 2^31 bytes");
  }
  const WordKey& key = segment.queue[segment.queued++] = make_key(word, length, readable);
  table_.prefetch_slot(key);
  // A repaired word lies in memory that the next one needs.
  if (segment.queued == kQueue || repair) look_up_queue(segment);
}

void CorpusReader::look_up_queue(Segment& segment) {
  const int queued = segment.queued;
  segment.queued = 0;
  for (int i = 0; i < queued; ++i) table_.prefetch_entry(segment.queue[i]);
  for (int i = 0; i < queued; ++i) {
    const WordKey& key = segment.queue[i];
    int32_t id = table_.find(key);
    if (id >= 0) {
      if (!frozen_) count(segment, id);
    } else if (!frozen_) {
      const int32_t fresh = segment.fresh.insert(key);
      if (static_cast<size_t>(fresh) == segment.fresh_counts.size())
        segment.fresh_counts.push_back(0);
      ++segment.fresh_counts[fresh];
      id = -2 - fresh;
    }
    segment.ids.push_back(id);
  }
}

void CorpusReader::count(Segment& segment, int32_t id) {
  if (bounded()) return;  // counted in order, later
  if (id < kHot)
    ++segment.hot_counts[id];
  else
    __atomic_fetch_add(&counts_[id], 1, __ATOMIC_RELAXED);
}

void CorpusReader::end_line(Segment& segment) {
  const auto end = static_cast<uint32_t>(segment.ids.size()) + segment.queued;
  // Of empty lines only the first of a part matters: it may end a line that began before.
  if (segment.line_ends.empty() || segment.line_ends.back() != end)
    segment.line_ends.push_back(end);
}

// --- Tokens in
// -------------------------------------------------------------------------------------

void CorpusReader::add_token(const char* token, size_t size) {
  if (finished_) throw std::logic_error("the corpus is finished");
  if (size > kLongestWord) throw std::length_error("a token is longer than 2^31 bytes");
  Segment& segment = segments_[0];
  const WordKey key = make_key(token, size, size);
  const int32_t id = frozen_ ? table_.find(key) : insert(key);
  if (id >= 0 && !frozen_) count(segment, id);
  segment.ids.push_back(id);
  if (segment.ids.size() >= kTokensHeld) commit();
}

void CorpusReader::end_sentence() {
  if (finished_) throw std::logic_error("the corpus is finished");
  end_line(segments_[0]);
  if (segments_[0].line_ends.size() >= kTokensHeld) commit();
}

void CorpusReader::finish() {
  if (finished_) return;
  end_file();
  finished_ = true;
}

// --- From the threads' parts to the files
// ----------------------------------------------------------

void CorpusReader::commit() {
  active_ = segments_.size();
  while (active_ > 0 && segments_[active_ - 1].ids.empty() &&
         segments_[active_ - 1].line_ends.empty())
    --active_;
  merge_fresh();
  cut_sentences();
  write_out();
  for (auto& segment : segments_) {
    bad_bytes_ += segment.bad_bytes;
    segment.bad_bytes = 0;
    segment.ids.clear();
    segment.line_ends.clear();
  }
  if (bounded() && table_.size() > 2 * live_ + 1024) compact();
}

void CorpusReader::merge_fresh() {
  std::vector<std::vector<int32_t>> ids(active_);
  for (size_t i = 0; i < active_; ++i) {
    Segment& segment = segments_[i];
    const int32_t fresh = segment.fresh.size();
    ids[i].resize(fresh);
    for (int32_t k = 0; k < fresh; ++k) {
      ids[i][k] = insert(segment.fresh.key(k));
      if (!bounded()) counts_[ids[i][k]] += segment.fresh_counts[k];
    }
    const int32_t hot = std::min(kHot, table_.size());
    for (int32_t id = 0; id < hot; ++id) counts_[id] += segment.hot_counts[id];
    std::fill(segment.hot_counts.begin(), segment.hot_counts.end(), 0);
  }
  run_parallel(static_cast<int>(active_), [&](int i) {
    Segment& segment = segments_[i];
    if (ids[i].empty()) return;
    for (int32_t& id : segment.ids)
      if (id < -1) id = ids[i][-2 - id];
    segment.fresh.clear();
    segment.fresh_counts.clear();
  });
}

void CorpusReader::cut_sentences() {
  int64_t position = written_;
  for (auto& segment : segments_) {
    size_t from = 0;
    const auto advance = [&](size_t to) {
      while (from < to) {
        const size_t room = static_cast<size_t>(
            std::min<int64_t>(max_sentence_length_ - open_, std::numeric_limits<int32_t>::max()));
        const size_t step = std::min(to - from, room);
        if (bounded()) count_in_order(segment.ids.data() + from, step);
        from += step;
        open_ += static_cast<int64_t>(step);
        position += static_cast<int64_t>(step);
        if (open_ == max_sentence_length_) end_cut(position);
      }
    };
    for (const uint32_t end : segment.line_ends) {
      advance(end);
      if (open_ > 0) end_cut(position);
    }
    advance(segment.ids.size());
  }
}

void CorpusReader::end_cut(int64_t position) {
  ends_.push_back(position);
  open_ = 0;
  if (bounded() && live_ > max_vocab_size_) prune();
}

void CorpusReader::write_out() {
  std::vector<int64_t> starts(active_);
  for (size_t i = 0; i < active_; ++i) {
    starts[i] = written_;
    written_ += static_cast<int64_t>(segments_[i].ids.size());
  }
  run_parallel(static_cast<int>(active_), [&](int i) {
    const auto& ids = segments_[i].ids;
    write_at(files_.tokens, ids.data(), ids.size() * sizeof(int32_t), starts[i] * 4);
  });
  write_at(files_.offsets, ends_.data(), ends_.size() * sizeof(int64_t), offsets_written_ * 8);
  offsets_written_ += static_cast<int64_t>(ends_.size());
  ends_.clear();
}

// --- A vocabulary of limited size
// ------------------------------------------------------------------
//
// gensim's scan_vocab: after each sentence, if there are more than max_vocab_size words, those with
// a count below min_reduce are forgotten and min_reduce rises by one. A word that comes back starts
// from nothing. Its earlier ids are in the file already, so what is dropped from memory is noted
// down in the spill file, and resolve() finds those that came back.

void CorpusReader::count_in_order(int32_t* ids, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    const int32_t id = ids[i];
    if (counts_[id]++ == 0) {
      ++live_;
      orders_[id] = next_order_++;
    }
    ids[i] = issued_[id];
  }
}

void CorpusReader::prune() {
  for (auto& count : counts_) {
    if (count > 0 && count < min_reduce_) {
      count = 0;
      --live_;
    }
  }
  ++min_reduce_;
}

void CorpusReader::compact() {
  WordTable kept;
  int32_t place = 0;
  std::string spill;
  const auto flush = [&] {
    write_at(files_.spill, spill.data(), spill.size(), spilled_bytes_);
    spilled_bytes_ += static_cast<int64_t>(spill.size());
    spill.clear();
  };
  for (int32_t id = 0; id < table_.size(); ++id) {
    if (counts_[id] > 0) {
      kept.insert(table_.key(id));
      counts_[place] = counts_[id];
      orders_[place] = orders_[id];
      issued_[place] = issued_[id];
      ++place;
    } else {
      const std::string_view word = table_.word(id);
      const int32_t header[2] = {issued_[id], static_cast<int32_t>(word.size())};
      spill.append(reinterpret_cast<const char*>(header), sizeof header);
      spill.append(word);
      if (spill.size() > (1 << 20)) flush();
    }
  }
  flush();
  counts_.resize(place);
  orders_.resize(place);
  issued_.resize(place);
  table_ = std::move(kept);
}

int64_t CorpusReader::raw_words() const {
  // What add_token holds back counts too.
  return written_ + (segments_.empty() ? 0 : static_cast<int64_t>(segments_[0].ids.size()));
}

std::vector<int64_t> CorpusReader::orders() const {
  if (bounded()) return orders_;
  std::vector<int64_t> orders(counts_.size());
  for (size_t id = 0; id < orders.size(); ++id) orders[id] = static_cast<int64_t>(id);
  return orders;
}

// final_ids by place in the table -> by id in the file.
std::vector<int32_t> CorpusReader::resolve(const std::vector<int32_t>& final_ids) const {
  std::vector<int32_t> by_issue(next_issue_, -1);
  for (size_t id = 0; id < issued_.size(); ++id) by_issue[issued_[id]] = final_ids[id];
  std::string buffer;
  for (int64_t at = 0; at < spilled_bytes_;) {
    int32_t header[2];
    read_at(files_.spill, header, sizeof header, at);
    buffer.resize(header[1]);
    read_at(files_.spill, buffer.data(), buffer.size(), at + 8);
    at += 8 + header[1];
    const int32_t id = table_.find(make_key(buffer.data(), buffer.size(), buffer.size()));
    if (id >= 0) by_issue[header[0]] = final_ids[id];
  }
  return by_issue;
}

CorpusSize CorpusReader::rewrite(const std::vector<int32_t>& final_ids) {
  if (!finished_) throw std::logic_error("the corpus is not finished");
  if (final_ids.size() != counts_.size())
    throw std::invalid_argument("expected one final id for each word");
  const RawCorpus raw{files_.tokens, files_.offsets, written_, offsets_written_ - 1};
  const int threads = static_cast<int>(segments_.size());
  std::vector<Segment>().swap(segments_);  // their memory is free for the rewriting
  return bounded() ? remap(raw, resolve(final_ids), threads) : remap(raw, final_ids, threads);
}

}  // namespace vecsmith::io
