// Rows of numbers of some type, as the drivers and the kernels take them from Python.
#pragma once

#include <stdint.h>

namespace vecsmith {

enum ElementType : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBfloat16 = 2,
  kQuantized8 = 3,
  kFloat64 = 4
};

inline int64_t element_size(ElementType type) {
  return type == kFloat64 ? 8 : type == kFloat32 ? 4 : type == kQuantized8 ? 1 : 2;
}

// Rows of some type, `stride` bytes apart. A quantized row is D bytes and two floats: scale, bias.
struct Rows {
  const char* data;
  ElementType type;
  int64_t dim;
  int64_t stride;  // bytes
};

}  // namespace vecsmith
