// Tables for drawing negatives and for hierarchical softmax, from word counts.
#pragma once

#include <cstdint>
#include <vector>

namespace vecsmith::io {

// Walker's alias table (Vose 1991) of the distribution count^exponent: table[2i] is a threshold in
// 0..2^31-1 and table[2i+1] an alias. Draw i uniformly and 31 bits b: the word is i if b <
// threshold, else the alias. Weights are first rounded to whole units of 1 / (size * 2^31), and
// from there on the table is exact. A word with count 0 is never drawn. `table`: int32 [size, 2].
void alias_table(const int64_t* counts, int64_t size, double exponent, int32_t* table);

struct HuffmanTree {
  std::vector<int64_t> offsets;  // [size + 1]
  std::vector<int32_t> nodes;    // inner nodes 0..size-2 on the way from the root, by word
  std::vector<uint8_t> codes;    // the branch taken at each
};

// word2vec's Huffman tree over the counts (its two pointers, its ties), which need not be sorted.
// One word has an empty path.
HuffmanTree huffman_tree(const int64_t* counts, int64_t size);

}  // namespace vecsmith::io
