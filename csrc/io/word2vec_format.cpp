#include "io/word2vec_format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <system_error>

namespace vecsmith::io {
namespace {

constexpr size_t kLongestWord = 1 << 20;   // bytes; a longer run without a space is not this format
constexpr int64_t kBatchBytes = 64 << 20;  // records that are scanned, then copied
constexpr size_t kPieceBytes = 256 << 10;

bool is_blank(char c) { return c == ' ' || c == '\t'; }

// True if all values are finite: an exponent of all ones is a nan or an infinity.
bool all_finite(const float* values, int64_t count) {
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

void keep_least(int64_t& least, int64_t row) {
  if (row >= 0 && (least < 0 || row < least)) least = row;
}

// --- text: one number, one line ---------------------------------------------------------------

// Values beyond the range of float32: rounded to infinity or towards zero, as a cast does.
float parse_extreme(const char* begin, const char* end) {
  std::string copy(begin, end);
  return static_cast<float>(std::strtod(copy.c_str(), nullptr));
}

// A number at [*at, end); moves *at behind it. False if there is none.
bool parse_number(const char** at, const char* end, float* value) {
  const char* begin = *at;
  if (begin != end && *begin == '+') {  // from_chars takes no plus
    ++begin;
    if (begin != end && (*begin == '-' || *begin == '+')) return false;
  }
#if defined(__cpp_lib_to_chars)
  const auto result = std::from_chars(begin, end, *value);
  if (result.ec == std::errc::invalid_argument) return false;
  if (result.ec == std::errc::result_out_of_range) *value = parse_extreme(begin, result.ptr);
  *at = result.ptr;
  return true;
#else
  // A standard library without floating-point from_chars. Python leaves LC_NUMERIC at "C".
  const char* stop = begin;
  while (stop != end && !is_blank(*stop)) ++stop;
  const std::string copy(begin, stop);
  char* parsed = nullptr;
  *value = std::strtof(copy.c_str(), &parsed);
  if (parsed == copy.c_str() || copy[0] == ' ') return false;
  *at = begin + (parsed - copy.c_str());
  return true;
#endif
}

// word, then dim numbers: the word ends at the first blank.
FormatError parse_forward(const char* begin, const char* end, int64_t dim, float* out,
                          const char** word_end) {
  const char* at = begin;
  while (at != end && !is_blank(*at)) ++at;
  *word_end = at;
  for (int64_t i = 0; i < dim; ++i) {
    if (at == end) return FormatError::too_few;
    if (!is_blank(*at)) return FormatError::bad_number;
    while (at != end && is_blank(*at)) ++at;
    if (at == end) return FormatError::too_few;
    if (!parse_number(&at, end, out + i)) return FormatError::bad_number;
  }
  return at == end ? FormatError::none : FormatError::bad_number;
}

// The last dim fields are the numbers: the word is what comes before them, blanks and all.
FormatError parse_backward(const char* begin, const char* end, int64_t dim, float* out,
                           const char** word_end) {
  const char* stop = end;
  for (int64_t i = dim - 1; i >= 0; --i) {
    const char* start = stop;
    while (start != begin && !is_blank(start[-1])) --start;
    if (start == begin) return FormatError::too_few;  // nothing is left for the word
    const char* at = start;
    if (start == stop || !parse_number(&at, stop, out + i) || at != stop)
      return FormatError::bad_number;
    stop = start;
    while (stop != begin && is_blank(stop[-1])) --stop;
  }
  *word_end = stop;
  return FormatError::none;
}

struct Line {
  const char* begin;
  const char* end;   // without the newline and blanks before it
  const char* next;  // the line after it
  bool blank;
};

Line read_line(const char* at, const char* end) {
  const void* newline = std::memchr(at, '\n', end - at);
  Line line{at, newline ? static_cast<const char*>(newline) : end, nullptr, false};
  line.next = newline ? line.end + 1 : end;
  while (line.end != line.begin && (is_blank(line.end[-1]) || line.end[-1] == '\r')) --line.end;
  line.blank = line.end == line.begin;
  return line;
}

// Where the pieces for the threads begin; each but the first begins after a newline.
std::vector<const char*> cut_at_lines(const char* data, size_t size) {
  std::vector<const char*> cuts{data};
  const char* end = data + size;
  while (static_cast<size_t>(end - cuts.back()) > kPieceBytes) {
    const char* from = cuts.back() + kPieceBytes;
    const void* newline = std::memchr(from, '\n', end - from);
    if (!newline) break;
    cuts.push_back(static_cast<const char*>(newline) + 1);
  }
  if (cuts.back() != end) cuts.push_back(end);
  return cuts;
}

std::vector<int64_t> count_lines(const std::vector<const char*>& cuts, int threads) {
  const int64_t pieces = static_cast<int64_t>(cuts.size()) - 1;
  std::vector<int64_t> counts(std::max<int64_t>(pieces, 0));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    int64_t count = 0;
    for (const char* at = cuts[piece]; at != cuts[piece + 1];) {
      const Line line = read_line(at, cuts[piece + 1]);
      count += !line.blank;
      at = line.next;
    }
    counts[piece] = count;
  }
  (void)threads;
  return counts;
}

}  // namespace

ParsedVectors parse_binary_vectors(const char* data, size_t size, const VectorRows& table,
                                   int threads) {
  ParsedVectors parsed;
  const size_t vector_bytes = static_cast<size_t>(table.dim) * sizeof(float);
  const int64_t batch = std::max<int64_t>(1, kBatchBytes / static_cast<int64_t>(vector_bytes + 8));
  const char* at = data;
  const char* end = data + size;
  bool more = true;
  while (more && parsed.rows < table.rows) {
    // Where the words are is known only one after the other: this scan touches a line or two of
    // each record. The copies of a batch then run in parallel, on pages that are already mapped.
    const int64_t first = parsed.rows;
    while (parsed.rows < table.rows && parsed.rows - first < batch) {
      const char* word = at;
      while (word != end && *word == '\n') ++word;
      const size_t left = end - word;
      const void* found = left ? std::memchr(word, ' ', std::min(left, kLongestWord)) : nullptr;
      const char* space = static_cast<const char*>(found);
      if (!space || static_cast<size_t>(end - space) - 1 < vector_bytes) {
        if (!space && left >= kLongestWord) {
          parsed.error = FormatError::no_space;
          parsed.error_row = parsed.rows;
          parsed.error_at = word - data;
        }
        more = false;
        break;
      }
      parsed.starts.push_back(word - data);
      parsed.lengths.push_back(space - word);
      ++parsed.rows;
      at = space + 1 + vector_bytes;
#if defined(__GNUC__)
      // The next words lie about this far apart; a wrong guess costs nothing.
      if (static_cast<size_t>(end - at) > 4 * (vector_bytes + 8))
        __builtin_prefetch(at + 3 * (vector_bytes + 8));
#endif
    }
    int64_t nonfinite = -1;
#pragma omp parallel num_threads(threads) if (parsed.rows - first > 64)
    {
      int64_t mine = -1;
#pragma omp for schedule(dynamic, 128)
      for (int64_t row = first; row < parsed.rows; ++row) {
        float* out = table.data + row * table.stride;
        std::memcpy(out, data + parsed.starts[row] + parsed.lengths[row] + 1, vector_bytes);
        if (!all_finite(out, table.dim)) keep_least(mine, row);
      }
#pragma omp critical
      keep_least(nonfinite, mine);
    }
    keep_least(parsed.nonfinite_row, nonfinite);
  }
  (void)threads;
  parsed.consumed = at - data;
  return parsed;
}

ParsedVectors parse_text_vectors(const char* data, size_t size, bool last, const VectorRows& table,
                                 int threads) {
  ParsedVectors parsed;
  if (!last) {  // leave the unfinished line to the next call
    while (size && data[size - 1] != '\n') --size;
  }
  const std::vector<const char*> cuts = cut_at_lines(data, size);
  const std::vector<int64_t> counts = count_lines(cuts, threads);
  const int64_t pieces = static_cast<int64_t>(counts.size());
  std::vector<int64_t> first(pieces + 1, 0);
  for (int64_t piece = 0; piece < pieces; ++piece) first[piece + 1] = first[piece] + counts[piece];
  parsed.rows = std::min(first[pieces], table.rows);
  parsed.starts.resize(parsed.rows);
  parsed.lengths.resize(parsed.rows);
  const char* used = data + size;  // unless the table is full before

#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    int64_t row = first[piece];
    int64_t nonfinite = -1;
    FormatError error = FormatError::none;
    const char* at = cuts[piece];
    while (at != cuts[piece + 1] && row < table.rows) {
      const Line line = read_line(at, cuts[piece + 1]);
      if (!line.blank) {
        float* out = table.data + row * table.stride;
        const char* word_end = line.begin;
        if (parse_forward(line.begin, line.end, table.dim, out, &word_end) != FormatError::none)
          error = parse_backward(line.begin, line.end, table.dim, out, &word_end);
        if (error != FormatError::none) break;
        parsed.starts[row] = line.begin - data;
        parsed.lengths[row] = word_end - line.begin;
        if (!all_finite(out, table.dim)) keep_least(nonfinite, row);
        ++row;
      }
      at = line.next;
    }
#pragma omp critical
    {
      keep_least(parsed.nonfinite_row, nonfinite);
      if (error != FormatError::none && (parsed.error_row < 0 || row < parsed.error_row)) {
        parsed.error = error;
        parsed.error_row = row;
        parsed.error_at = at - data;
      }
      if (row == table.rows && row > first[piece]) used = at;
    }
  }
  (void)threads;
  parsed.consumed = used - data;
  if (!parsed.rows && table.rows == 0) parsed.consumed = 0;
  return parsed;
}

int64_t count_text_vectors(const char* data, size_t size, int threads) {
  int64_t total = 0;
  for (int64_t count : count_lines(cut_at_lines(data, size), threads)) total += count;
  return total;
}

namespace {

template <typename Append>
std::vector<std::string> format_pieces(int64_t count, int threads, const Append& append) {
  const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(threads, count));
  std::vector<std::string> out(pieces);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t piece = 0; piece < pieces; ++piece)
    for (int64_t i = count * piece / pieces; i < count * (piece + 1) / pieces; ++i)
      append(out[piece], i);
  return out;
}

}  // namespace

std::vector<std::string> format_binary_vectors(const VectorRows& table, const WordBlock& words,
                                               const int64_t* order, int64_t count, int threads) {
  return format_pieces(count, threads, [&](std::string& out, int64_t i) {
    const int64_t row = order[i];
    out.append(words.words + words.offsets[row], words.offsets[row + 1] - words.offsets[row]);
    out.push_back(' ');
    out.append(reinterpret_cast<const char*>(table.data + row * table.stride),
               static_cast<size_t>(table.dim) * sizeof(float));
  });
}

std::vector<std::string> format_text_vectors(const VectorRows& table, const WordBlock& words,
                                             const int64_t* order, int64_t count, int threads) {
  return format_pieces(count, threads, [&](std::string& out, int64_t i) {
    const int64_t row = order[i];
    out.append(words.words + words.offsets[row], words.offsets[row + 1] - words.offsets[row]);
    char number[64];
    number[0] = ' ';
    for (int64_t j = 0; j < table.dim; ++j) {
      const float value = table.data[row * table.stride + j];
#if defined(__cpp_lib_to_chars)
      const char* end = std::to_chars(number + 1, number + sizeof(number), value).ptr;
      out.append(number, end - number);
#else
      const int length = std::snprintf(number + 1, sizeof(number) - 1, "%.9g", value);
      out.append(number, length + 1);
#endif
    }
    out.push_back('\n');
  });
}

}  // namespace vecsmith::io
