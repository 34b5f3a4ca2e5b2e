#include "io/row_layout.h"

#include <cmath>
#include <cstring>

namespace vecsmith::io {
namespace {

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);  // x is finite
}

// Round to nearest even; x is finite.
uint16_t to_float16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  float size = std::fabs(x);
  if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00);
  if (size < 6.103515625e-05f) {
    // Subnormal: the sum rounds to a multiple of 2^-24, whose number is in the low bits.
    size += 0.5f;
    std::memcpy(&bits, &size, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000u));
  }
  std::memcpy(&bits, &size, 4);
  bits += 0xFFF + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | ((bits >> 13) - (112u << 10)));
}

void store(Element element, int64_t j, float value, char* out) {
  if (element == Element::float32) {
    std::memcpy(out + 4 * j, &value, 4);
    return;
  }
  const uint16_t half = element == Element::float16 ? to_float16(value) : to_bfloat16(value);
  std::memcpy(out + 2 * j, &half, 2);
}

void fill_embedding(const RowLayout& layout, int64_t id, char* out) {
  const bool zeros = id == layout.zero_row;
  if (zeros || layout.fill == Fill::constant) {
    const float value = zeros ? 0.0f : static_cast<float>(layout.a);
    for (int64_t j = 0; j < layout.dim; ++j) store(layout.element, j, value, out);
    return;
  }
  const uint64_t row = mix(layout.seed + 0x9E3779B97F4A7C15ull * (static_cast<uint64_t>(id) + 1));
  for (int64_t j = 0; j < layout.dim; j += 2) {
    const uint64_t bits = mix(row + 0x9E3779B97F4A7C15ull * static_cast<uint64_t>(j + 1));
    // In (0, 1] and [0, 1), 24 bits each.
    const double first = (static_cast<double>(bits >> 40) + 1) * 0x1p-24;
    const double second = static_cast<double>((bits >> 16) & 0xFFFFFF) * 0x1p-24;
    double pair[2];
    if (layout.fill == Fill::normal) {
      // Box and Muller, 1958.
      const double radius = layout.b * std::sqrt(-2 * std::log(first));
      pair[0] = layout.a + radius * std::cos(6.283185307179586 * second);
      pair[1] = layout.a + radius * std::sin(6.283185307179586 * second);
    } else {
      pair[0] = layout.a + (layout.b - layout.a) * (1 - first);
      pair[1] = layout.a + (layout.b - layout.a) * second;
    }
    for (int64_t k = 0; k < 2 && j + k < layout.dim; ++k)
      store(layout.element, j + k, static_cast<float>(pair[k]), out);
  }
}

}  // namespace

int64_t embedding_bytes(const RowLayout& layout) {
  return layout.dim * (layout.element == Element::float32 ? 4 : 2);
}

std::vector<int64_t> part_bytes(const RowLayout& layout) {
  std::vector<int64_t> bytes{embedding_bytes(layout)};
  for (const RowState& state : layout.states) bytes.push_back(4 * state.floats);
  return bytes;
}

void fill_part(const RowLayout& layout, int64_t id, size_t part, char* out) {
  if (part == 0) {
    fill_embedding(layout, id, out);
    return;
  }
  const RowState& state = layout.states[part - 1];
  for (int64_t j = 0; j < state.floats; ++j) std::memcpy(out + 4 * j, &state.value, 4);
}

}  // namespace vecsmith::io
