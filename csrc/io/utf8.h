// UTF-8 of words that are not ASCII: is it valid, and if not, what Python would replace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace vecsmith::io {

bool utf8_valid(const char* text, size_t size);

// Appends text to `out` with each invalid part (the longest prefix of a well-formed sequence, or
// one byte) replaced by U+FFFD: bytes.decode("utf-8", errors="replace"). Returns the bytes
// replaced.
int64_t utf8_repair(const char* text, size_t size, std::string& out);

}  // namespace vecsmith::io
