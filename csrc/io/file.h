// Whole reads and writes at a place in a file, by descriptor; what fails is thrown with its errno.
#pragma once

#include <cstddef>
#include <cstdint>
#include <system_error>

namespace vecsmith::io {

// std::system_error in the generic category, code = errno.
void write_at(int fd, const void* data, size_t size, int64_t offset);
// Reads exactly `size` bytes (EIO when the file ends before).
void read_at(int fd, void* data, size_t size, int64_t offset);
void truncate_file(int fd, int64_t size);

}  // namespace vecsmith::io
