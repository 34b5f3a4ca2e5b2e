// word2vec's text and binary files of word vectors: parsing and formatting, without a file in
// sight.
//
// Both formats begin with a line "rows dim\n", which the caller reads. Then, for each word,
//   binary: the word, one space, dim little-endian float32; a newline may follow (word2vec.c) or
//           not (gensim).
//   text:   the word, then dim numbers, all separated by blanks, in one line.
// The parsers take a piece of the file that begins at a record, and say how much of it they used:
// a whole file that is memory-mapped is one piece, a compressed stream is many. They never read
// outside the piece and allocate only what the records that are really there need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vecsmith::io {

// Rows of float32: row i starts at data + i * stride, dim values, adjacent.
struct VectorRows {
  float* data;
  int64_t rows;
  int64_t dim;
  int64_t stride;
};

enum class FormatError {
  none,
  no_space,    // binary: no space within the longest word that we believe in
  bad_number,  // text: a field that is no number
  too_few,     // text: fewer than dim numbers in a line
};

struct ParsedVectors {
  size_t consumed = 0;           // bytes, up to the first record that is not whole
  int64_t rows = 0;              // records, at most table.rows
  std::vector<int64_t> starts;   // [rows] where each word begins in the piece
  std::vector<int64_t> lengths;  // [rows] and its length, in bytes
  int64_t nonfinite_row = -1;    // the first row with a nan or an infinity, or -1
  FormatError error = FormatError::none;
  int64_t error_row = -1;  // the record that is malformed
  size_t error_at = 0;     // and where it begins
};

// Reads at most table.rows records. Copies the floats while the scan for words goes on ahead.
ParsedVectors parse_binary_vectors(const char* data, size_t size, const VectorRows& table,
                                   int threads);

// Reads at most table.rows lines; blank ones are skipped. An unfinished last line is a line only if
// `last`. A word may hold blanks where the line's last dim fields are numbers.
ParsedVectors parse_text_vectors(const char* data, size_t size, bool last, const VectorRows& table,
                                 int threads);

// The lines that are not blank.
int64_t count_text_vectors(const char* data, size_t size, int threads);

// Words as one block of bytes: word i is words[offsets[i]] .. words[offsets[i + 1]].
struct WordBlock {
  const char* words;
  const int64_t* offsets;
};

// Records of the rows order[0..count) of a table, in pieces to be written one after the other.
// Text has the shortest digits that read back as the same float32.
std::vector<std::string> format_binary_vectors(const VectorRows& table, const WordBlock& words,
                                               const int64_t* order, int64_t count, int threads);
std::vector<std::string> format_text_vectors(const VectorRows& table, const WordBlock& words,
                                             const int64_t* order, int64_t count, int threads);

}  // namespace vecsmith::io
