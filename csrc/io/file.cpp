#include "io/file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace vecsmith::io {
namespace {

// Linux moves at most 2^31 - 4096 bytes a call, and macOS refuses more than INT_MAX.
constexpr size_t kMostBytes = 1 << 30;

[[noreturn]] void fail(int code) { throw std::system_error(code, std::generic_category()); }

}  // namespace

void write_at(int fd, const void* data, size_t size, int64_t offset) {
  const char* p = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t done = ::pwrite(fd, p, std::min(size, kMostBytes), offset);
    if (done < 0) {
      if (errno == EINTR) continue;
      fail(errno);
    }
    if (done == 0) fail(ENOSPC);
    p += done;
    size -= static_cast<size_t>(done);
    offset += done;
  }
}

void read_at(int fd, void* data, size_t size, int64_t offset) {
  char* p = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t done = ::pread(fd, p, std::min(size, kMostBytes), offset);
    if (done < 0) {
      if (errno == EINTR) continue;
      fail(errno);
    }
    if (done == 0) fail(EIO);
    p += done;
    size -= static_cast<size_t>(done);
    offset += done;
  }
}

void truncate_file(int fd, int64_t size) {
  while (::ftruncate(fd, size) != 0)
    if (errno != EINTR) fail(errno);
}

}  // namespace vecsmith::io
