// The corpus reader: whatever the bytes, the number of threads and the cuts between the blocks, it
// writes what one thread writes that gets all at once, and that is what a reading word by word
// gives.
#include <unistd.h>

#include <map>

#include "fuzz.h"
#include "io/bytes.h"
#include "io/corpus.h"
#include "io/file.h"
#include "io/sampling_tables.h"
#include "io/utf8.h"

namespace {

using vecsmith::io::CorpusOptions;
using vecsmith::io::CorpusReader;
using vecsmith::io::CorpusSize;

class File {
 public:
  File() : file_(std::tmpfile()) { FUZZ_CHECK(file_ != nullptr); }
  ~File() { std::fclose(file_); }
  int descriptor() const { return fileno(file_); }
  void clear() { vecsmith::io::truncate_file(descriptor(), 0); }
  template <class T>
  std::vector<T> read() const {
    const off_t size = lseek(descriptor(), 0, SEEK_END);
    FUZZ_CHECK(size % sizeof(T) == 0);
    std::vector<T> values(static_cast<size_t>(size) / sizeof(T));
    vecsmith::io::read_at(descriptor(), values.data(), static_cast<size_t>(size), 0);
    return values;
  }

 private:
  std::FILE* file_;
};

struct Outcome {
  std::vector<std::string> words;
  std::vector<int64_t> counts, orders;
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets;
  int64_t raw_words, bad_bytes;
  uint64_t checksum;

  bool operator==(const Outcome& o) const {
    return words == o.words && counts == o.counts && orders == o.orders && tokens == o.tokens &&
           offsets == o.offsets && raw_words == o.raw_words && bad_bytes == o.bad_bytes &&
           checksum == o.checksum;
  }
};

// The words that are left, with the final ids by falling count, and their texts.
Outcome finish(CorpusReader& reader, const File& tokens, const File& offsets, int64_t min_count) {
  reader.finish();
  Outcome out;
  out.raw_words = reader.raw_words();
  out.bad_bytes = reader.bad_bytes();
  std::vector<int32_t> final_ids(static_cast<size_t>(reader.size()), -1);
  const std::vector<int64_t> orders = reader.orders();
  // Places in the table may differ: with a limit on its size it is tidied up after each block.
  std::map<int64_t, int32_t> by_order;
  for (int32_t id = 0; id < reader.size(); ++id)
    if (reader.counts()[id] >= min_count) FUZZ_CHECK(by_order.emplace(orders[id], id).second);
  for (const auto& [order, id] : by_order) {
    final_ids[id] = static_cast<int32_t>(out.words.size());
    out.words.emplace_back(reader.word(id));
    out.counts.push_back(reader.counts()[id]);
    out.orders.push_back(order);
  }
  const CorpusSize size = reader.rewrite(final_ids);
  out.checksum = size.checksum;
  out.tokens = tokens.read<int32_t>();
  out.offsets = offsets.read<int64_t>();
  FUZZ_CHECK(size.tokens == static_cast<int64_t>(out.tokens.size()));
  FUZZ_CHECK(size.sentences + 1 == static_cast<int64_t>(out.offsets.size()));
  FUZZ_CHECK(out.offsets.front() == 0 && out.offsets.back() == size.tokens);
  for (size_t i = 1; i < out.offsets.size(); ++i) FUZZ_CHECK(out.offsets[i - 1] < out.offsets[i]);
  for (const int32_t token : out.tokens)
    FUZZ_CHECK(token >= 0 && static_cast<size_t>(token) < out.words.size());
  for (const std::string& word : out.words)
    FUZZ_CHECK(vecsmith::io::utf8_valid(word.data(), word.size()));
  return out;
}

// Word by word, with the standard library.
Outcome plainly(const char* text, size_t size, const CorpusOptions& options, int64_t min_count) {
  Outcome out{};
  std::map<std::string, int64_t> counts;
  std::vector<std::string> order;
  std::vector<std::vector<std::string>> sentences(1);
  std::string word;
  for (size_t i = 0; i <= size; ++i) {
    const bool end = i == size || std::string(" \t\n\v\f\r").find(text[i]) != std::string::npos;
    if (!end) {
      word.push_back(text[i]);
      continue;
    }
    if (!word.empty()) {
      std::string repaired;
      out.bad_bytes += vecsmith::io::utf8_repair(word.data(), word.size(), repaired);
      if (counts[repaired]++ == 0) order.push_back(repaired);
      if (static_cast<int64_t>(sentences.back().size()) == options.max_sentence_length)
        sentences.emplace_back();
      sentences.back().push_back(repaired);
      ++out.raw_words;
      word.clear();
    }
    if (i == size || text[i] == '\n') sentences.emplace_back();
  }
  std::map<std::string, int32_t> ids;
  for (size_t i = 0; i < order.size(); ++i) {
    if (counts[order[i]] < min_count) continue;
    ids[order[i]] = static_cast<int32_t>(out.words.size());
    out.words.push_back(order[i]);
    out.counts.push_back(counts[order[i]]);
    out.orders.push_back(static_cast<int64_t>(i));
  }
  out.offsets.push_back(0);
  for (const auto& sentence : sentences) {
    for (const auto& token : sentence)
      if (ids.count(token)) out.tokens.push_back(ids[token]);
    if (static_cast<int64_t>(out.tokens.size()) > out.offsets.back())
      out.offsets.push_back(static_cast<int64_t>(out.tokens.size()));
  }
  return out;
}

// The scan for whitespace, as it is on this machine and as it is on any, against a look at each
// byte.
void check_classes(const char* text, size_t size) {
  for (size_t at = 0; at + 64 <= size; ++at) {
    const auto fast = vecsmith::io::classify64(text + at);
    const auto portable = vecsmith::io::classify64_portable(text + at);
    uint64_t space = 0, high = 0;
    for (int k = 0; k < 64; ++k) {
      if (vecsmith::io::is_space(text[at + k])) space |= uint64_t{1} << k;
      if (static_cast<unsigned char>(text[at + k]) >= 0x80) high |= uint64_t{1} << k;
    }
    FUZZ_CHECK(fast.space == space && fast.high == high);
    FUZZ_CHECK(portable.space == space && portable.high == high);
  }
}

void check_tables(const std::vector<int64_t>& counts) {
  std::vector<int32_t> table(2 * counts.size());
  vecsmith::io::alias_table(counts.data(), static_cast<int64_t>(counts.size()), 0.75, table.data());
  for (size_t i = 0; i < table.size(); i += 2) {
    FUZZ_CHECK(table[i] >= 0);
    FUZZ_CHECK(table[i + 1] >= 0 && static_cast<size_t>(table[i + 1]) < counts.size());
  }
  const auto tree = vecsmith::io::huffman_tree(counts.data(), static_cast<int64_t>(counts.size()));
  FUZZ_CHECK(tree.offsets.back() == static_cast<int64_t>(tree.nodes.size()));
  for (const int32_t node : tree.nodes)
    FUZZ_CHECK(node >= 0 && node + 1 < static_cast<int32_t>(counts.size()));
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  const std::string settings("\2\5\7\3\0\1", 6);
  return {
      settings + "the cat sat on the mat\n\none\n  the\tdog ate\r\nthe cat",
      settings + "gr\xC3\xB6\xC3\x9F\x65r caf\xE9 \xE7\x8C\xAB \xF0\x9F\x90\xB1 \xF0\x9F\x90 x\n",
      std::string("\3\1\1\2\4\0", 6) + "a b c d e f g h a b c d i j k l m n o a b p q r s t u v\n",
      std::string("\1\50\30\1\0\2", 6) +
          "a-word-of-more-than-sixteen-bytes and another-one, "
          "a-word-of-more-than-sixteen-bytes\n\n\n" +
          std::string(200, ' ') + "x"};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static File tokens, offsets, spill;
  Input input(data, size);
  CorpusOptions options;
  options.threads = static_cast<int>(input.number(1, 3));
  options.part_bytes = input.number(1, 64);
  const size_t block = input.number(1, 200);
  options.max_sentence_length = static_cast<int64_t>(input.number(1, 9));
  options.max_vocab_size = static_cast<int64_t>(input.number(0, 8));
  const auto min_count = static_cast<int64_t>(input.number(1, 3));
  size_t length = 0;
  const auto text = input.rest(&length);

  check_classes(text.get(), length);

  const auto read = [&](const CorpusOptions& how, size_t piece) {
    tokens.clear(), offsets.clear(), spill.clear();
    CorpusReader reader({tokens.descriptor(), offsets.descriptor(), spill.descriptor()}, how);
    for (size_t at = 0; at < length; at += piece) {
      // A copy: what lies behind a block is not the next one.
      const std::vector<char> copy(text.get() + at, text.get() + std::min(length, at + piece));
      reader.feed(copy.data(), copy.size());
    }
    return finish(reader, tokens, offsets, min_count);
  };
  CorpusOptions simple = options;
  simple.threads = 1;
  const Outcome outcome = read(options, block);
  FUZZ_CHECK(outcome == read(simple, length + 1));
  if (options.max_vocab_size == 0) {
    Outcome expected = plainly(text.get(), length, options, min_count);
    expected.checksum = outcome.checksum;
    FUZZ_CHECK(outcome == expected);
  }

  // The same words, given beforehand: the same ids.
  tokens.clear(), offsets.clear();
  options.max_vocab_size = 0;
  CorpusReader frozen({tokens.descriptor(), offsets.descriptor(), -1}, options);
  for (const std::string& word : outcome.words) frozen.freeze(word);
  if (!outcome.words.empty()) {
    frozen.feed(text.get(), length);
    frozen.finish();
    std::vector<int32_t> same(outcome.words.size());
    for (size_t i = 0; i < same.size(); ++i) same[i] = static_cast<int32_t>(i);
    frozen.rewrite(same);
    FUZZ_CHECK(tokens.read<int32_t>() == outcome.tokens);
    FUZZ_CHECK(offsets.read<int64_t>() == outcome.offsets);
    check_tables(outcome.counts);
  }
  return 0;
}
