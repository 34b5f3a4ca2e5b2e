// The parsers of word2vec's formats: whatever the bytes, they stay inside them, do the same on any
// number of threads, and read back what the formatters write.
#include <cstring>

#include "fuzz.h"
#include "io/word2vec_format.h"

namespace {

using vecsmith::io::FormatError;
using vecsmith::io::ParsedVectors;
using vecsmith::io::VectorRows;

struct Parsed {
  ParsedVectors found;
  std::vector<float> values;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

Parsed parse(bool binary, const char* text, size_t size, bool last, int64_t rows, int64_t dim,
             int threads) {
  Parsed out;
  const int64_t stride = dim + 1;
  out.values.assign(static_cast<size_t>(rows * stride), 7.0f);
  const VectorRows table{out.values.data(), rows, dim, stride};
  out.found = binary ? parse_binary_vectors(text, size, table, threads)
                     : parse_text_vectors(text, size, last, table, threads);
  const ParsedVectors& found = out.found;
  FUZZ_CHECK(found.consumed <= size);
  FUZZ_CHECK(found.rows >= 0 && found.rows <= rows);
  FUZZ_CHECK(static_cast<int64_t>(found.starts.size()) == found.rows);
  FUZZ_CHECK(static_cast<int64_t>(found.lengths.size()) == found.rows);
  FUZZ_CHECK(found.nonfinite_row < rows);
  if (found.error != FormatError::none) FUZZ_CHECK(found.error_at <= size);
  for (int64_t i = 0; i < rows; ++i) FUZZ_CHECK(out.values[i * stride + dim] == 7.0f);
  if (found.error == FormatError::none) {
    for (int64_t i = 0; i < found.rows; ++i) {
      FUZZ_CHECK(found.starts[i] >= 0 && found.lengths[i] >= 0);
      FUZZ_CHECK(static_cast<size_t>(found.starts[i] + found.lengths[i]) <= size);
    }
  }
  return out;
}

// What was parsed, formatted and parsed again, is the same.
void check_round_trip(bool binary, const char* text, const Parsed& parsed, int64_t dim) {
  const ParsedVectors& found = parsed.found;
  std::string words;
  std::vector<int64_t> offsets{0}, order;
  for (int64_t i = 0; i < found.rows; ++i) {
    // A word without letters may be no word to the other parser.
    words += "w" + std::to_string(i) + std::string(text + found.starts[i], found.lengths[i]);
    offsets.push_back(static_cast<int64_t>(words.size()));
    order.push_back(i);
  }
  if (!binary && words.find_first_of(" \t\r\n") != std::string::npos) return;
  if (binary && words.find(' ') != std::string::npos) return;
  std::vector<float> values = parsed.values;
  const VectorRows table{values.data(), found.rows, dim, dim + 1};
  const vecsmith::io::WordBlock block{words.data(), offsets.data()};
  std::string file;
  for (const auto& piece : binary ? format_binary_vectors(table, block, order.data(), found.rows, 2)
                                  : format_text_vectors(table, block, order.data(), found.rows, 2))
    file += piece;
  const Parsed again = parse(binary, file.data(), file.size(), true, found.rows, dim, 1);
  FUZZ_CHECK(again.found.error == FormatError::none);
  FUZZ_CHECK(again.found.rows == found.rows);
  FUZZ_CHECK(again.found.nonfinite_row == found.nonfinite_row);
  for (int64_t i = 0; i < found.rows; ++i) {
    const std::string word(file.data() + again.found.starts[i], again.found.lengths[i]);
    FUZZ_CHECK(word == words.substr(offsets[i], offsets[i + 1] - offsets[i]));
    for (int64_t j = 0; j < dim; ++j) {
      const float a = values[i * (dim + 1) + j], b = again.values[i * (dim + 1) + j];
      FUZZ_CHECK(std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b));
    }
  }
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  const float row[3] = {1.5f, -2.25f, 1e-30f};
  const std::string bytes(reinterpret_cast<const char*>(row), sizeof row);
  return {std::string("\0\1\3\5\1", 5) + "the 1.5 -2.25 1e-3\ncat 3 4 5\n\nnew york 0 1e39 2\r\n",
          std::string("\0\0\2\5\2", 5) + "a nan inf\nb -inf 0x10\nc 1\n 1 2\nlong\t+7 .5 \n",
          std::string("\1\1\3\5\1", 5) + "the " + bytes + "cat " + bytes + "\ndog " + bytes};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const bool binary = input.number(0, 1) == 1;
  const bool last = input.number(0, 1) == 1;
  const auto dim = static_cast<int64_t>(input.number(1, 6));
  const auto rows = static_cast<int64_t>(input.number(0, 12));
  const auto threads = static_cast<int>(input.number(1, 3));
  size_t length = 0;
  const auto text = input.rest(&length);
  FUZZ_CHECK(vecsmith::io::count_text_vectors(text.get(), length, threads) >= 0);
  const Parsed parsed = parse(binary, text.get(), length, last, rows, dim, threads);
  const Parsed alone = parse(binary, text.get(), length, last, rows, dim, 1);
  FUZZ_CHECK(parsed.found.rows == alone.found.rows);
  FUZZ_CHECK(parsed.found.consumed == alone.found.consumed);
  FUZZ_CHECK(parsed.found.error == alone.found.error);
  FUZZ_CHECK(same_bits(parsed.values, alone.values));
  if (parsed.found.error == FormatError::none) check_round_trip(binary, text.get(), parsed, dim);
  return 0;
}
