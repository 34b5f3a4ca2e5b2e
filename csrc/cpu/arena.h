// Memory of a call.
#pragma once

#include <cstdlib>
#include <new>
#include <utility>

namespace vecsmith {

// Uninitialized memory on a cache line's boundary. A thread keeps what it had last, so that the
// system need not clear pages for every step.
class Arena {
 public:
  explicit Arena(size_t bytes) {
    Kept& kept = kept_();
    if (kept.bytes >= bytes) {
      std::swap(data_, kept.data);
      std::swap(bytes_, kept.bytes);
      return;
    }
    bytes_ = (bytes + 4095) / 4096 * 4096;
    data_ = static_cast<char*>(std::aligned_alloc(4096, bytes_));
    if (!data_) throw std::bad_alloc();
  }
  ~Arena() {
    Kept& kept = kept_();
    if (bytes_ <= kMostKept && bytes_ > kept.bytes) {
      std::swap(data_, kept.data);
      std::swap(bytes_, kept.bytes);
    }
    std::free(data_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class T>
  T* take(size_t count) {
    T* p = reinterpret_cast<T*>(data_ + used_);
    used_ += room<T>(count);
    return p;
  }
  template <class T>
  static size_t room(size_t count) {
    return (count * sizeof(T) + 63) / 64 * 64;
  }

 private:
  static constexpr size_t kMostKept = size_t{64} << 20;
  struct Kept {
    char* data = nullptr;
    size_t bytes = 0;
    ~Kept() { std::free(data); }
  };
  static Kept& kept_() {
    thread_local Kept kept;
    return kept;
  }
  char* data_ = nullptr;
  size_t bytes_ = 0, used_ = 0;
};

}  // namespace vecsmith
