// What a row of a table is in a store: the embedding and, behind it, the optimizer's state of this
// row; and what a row holds that was never written.
//
// Rows that nobody wrote are drawn when they are first read, from (seed, row, column): a table of
// any size is there at once, and reads the same in whatever order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vecsmith::io {

enum class Element : uint32_t { float32 = 0, float16 = 1, bfloat16 = 2 };
enum class Fill : uint32_t { constant = 0, normal = 1, uniform = 2 };

struct RowState {
  int64_t floats;  // of one row, fp32: D, or 1 for a row-wise state
  float value;     // of a row that was never written
};

struct RowLayout {
  int64_t dim = 0;
  Element element = Element::float32;
  // constant: `a` everywhere; normal: mean a, deviation b; uniform: a .. b.
  Fill fill = Fill::constant;
  double a = 0, b = 0;
  uint64_t seed = 0;
  int64_t zero_row = -1;  // this row is zeros unless it is written
  std::vector<RowState> states;
};

// Row i of a part is at data + i * bytes. Part 0 is the embedding, part 1 + k the k-th state.
struct RowPart {
  char* data;
  int64_t bytes;
};

int64_t embedding_bytes(const RowLayout& layout);
std::vector<int64_t> part_bytes(const RowLayout& layout);

// What row `id` holds as long as nobody has written it, of part `part`.
void fill_part(const RowLayout& layout, int64_t id, size_t part, char* out);

}  // namespace vecsmith::io
