// From text to a memory-mapped corpus, in one reading of the source.
//
// CorpusReader takes blocks of text (feed) or single tokens (add_token), numbers the words in the
// order of their first appearance, counts them, and appends these provisional ids and the ends of
// the sentences to two files. When the source has ended and the caller has decided which words
// stay, rewrite() turns the files, in place, into the final ones. What comes out does not depend on
// the number of threads nor on where the blocks are cut.
//
// A block is split among the threads at whitespace. They look words up in one table that nobody
// writes meanwhile, and collect what it lacks in tables of their own, which are then merged in the
// order of the text: after the first blocks there is little to merge.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/word_table.h"

namespace vecsmith::io {

struct CorpusOptions {
  int64_t max_sentence_length = 10'000;  // longer lines are cut
  int64_t max_vocab_size = 0;            // 0: no limit; else prune as gensim's scan_vocab does
  int threads = 1;
  size_t part_bytes = 1 << 16;  // the least that is worth a thread
};

// Open descriptors of (empty) files, for reading and writing; theirs is the caller.
struct CorpusFiles {
  int tokens;   // int32: provisional ids, -1 for a word outside a frozen vocabulary
  int offsets;  // int64: 0 and the end of each sentence that is not empty
  int spill;    // words that pruning dropped; used with max_vocab_size only, else -1 will do
};

struct CorpusSize {
  int64_t tokens;
  int64_t sentences;
  uint64_t checksum;  // of all tokens and offsets, whatever the number of threads
};

class CorpusReader {
 public:
  CorpusReader(const CorpusFiles& files, const CorpusOptions& options);

  // Before anything is read: the words that there are, with ids 0, 1, ... From then on no others
  // are known, and nothing is counted. A word that is there already is refused.
  void freeze(std::string_view word);

  // The next bytes of a text, cut anywhere, and its end (which ends its last line).
  void feed(const char* text, size_t size);
  void end_file();

  // The other way in: one token of a sentence (valid UTF-8, any bytes), and the end of the
  // sentence.
  void add_token(const char* token, size_t size);
  void end_sentence();

  // Writes what is still held back. Nothing can be read after.
  void finish();

  int64_t raw_words() const;
  int64_t bad_bytes() const { return bad_bytes_; }
  // The words in the table, by id; counts and orders (of appearance) have one entry for each.
  int32_t size() const { return table_.size(); }
  std::string_view word(int32_t id) const { return table_.word(id); }
  const std::vector<int64_t>& counts() const { return counts_; }
  std::vector<int64_t> orders() const;

  // After finish(): rewrites both files. final_ids[id] is what word `id` becomes, -1 to drop it;
  // sentences that are left empty are dropped. Returns the sizes of the files, to which they are
  // cut.
  CorpusSize rewrite(const std::vector<int32_t>& final_ids);

 private:
  static constexpr int kQueue = 16;

  // What one thread makes of its part of a block.
  struct Segment {
    WordKey queue[kQueue];  // words that are yet to be looked up
    int queued = 0;
    std::vector<int32_t> ids;         // id; -1: unknown; -2 - k: fresh word k
    std::vector<uint32_t> line_ends;  // as indices into ids
    WordTable fresh;
    std::vector<int64_t> fresh_counts;
    std::vector<uint32_t> hot_counts;  // of the ids below kHot
    std::string repaired;
    int64_t bad_bytes = 0;
  };

  bool bounded() const { return max_vocab_size_ > 0; }
  void feed_piece(const char* text, size_t size);
  void scan(Segment& segment, const char* begin, const char* end, const char* limit);
  void add_word(Segment& segment, const char* word, size_t length, size_t readable, bool ascii);
  void look_up_queue(Segment& segment);
  int32_t insert(const WordKey& key);
  void count(Segment& segment, int32_t id);
  void end_line(Segment& segment);

  void commit();
  void merge_fresh();
  void cut_sentences();
  void count_in_order(int32_t* ids, size_t size);
  void end_cut(int64_t position);
  void write_out();
  void prune();
  void compact();
  std::vector<int32_t> resolve(const std::vector<int32_t>& final_ids) const;

  CorpusFiles files_;
  int64_t max_sentence_length_, max_vocab_size_;
  size_t part_bytes_;
  bool frozen_ = false;
  bool finished_ = false;

  WordTable table_;
  std::vector<int64_t> counts_;

  std::string carry_;  // the beginning of a word whose end is in a block to come
  std::vector<Segment> segments_;
  size_t active_ = 0;          // segments with something in them, at a commit
  std::vector<int64_t> ends_;  // sentence ends not yet written
  int64_t open_ = 0;           // tokens in the sentence under way
  int64_t written_ = 0;        // tokens in the file
  int64_t offsets_written_ = 0;
  int64_t bad_bytes_ = 0;

  // With max_vocab_size: ids in the file outlive the words' places in the table.
  std::vector<int32_t> issued_;  // by place: the id in the file
  std::vector<int64_t> orders_;  // by place: when it (last) entered the vocabulary
  int32_t next_issue_ = 0;
  int64_t next_order_ = 0;
  int64_t live_ = 0;  // words with a count
  int64_t min_reduce_ = 1;
  int64_t spilled_bytes_ = 0;
};

}  // namespace vecsmith::io
