// What a fuzz target has: LLVMFuzzerTestOneInput (libFuzzer's entry, which the driver calls too), a
// few inputs to begin with, and Input, which takes settings from the front of the bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
std::vector<std::string> fuzz_seeds();

// A wrong result is as much a find as a wrong access.
#define FUZZ_CHECK(condition)                                                      \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (0)

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  // A number in low..high; low when the bytes have run out.
  uint64_t number(uint64_t low, uint64_t high) {
    if (size_ == 0) return low;
    --size_;
    return low + *data_++ % (high - low + 1);
  }

  // The bytes that are left, in memory of just that size: one too far is an error that is seen.
  std::unique_ptr<char[]> rest(size_t* size) const {
    *size = size_;
    std::unique_ptr<char[]> copy(new char[size_]);
    std::copy(data_, data_ + size_, copy.get());
    return copy;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};
