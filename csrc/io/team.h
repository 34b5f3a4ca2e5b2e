// A few threads for some microseconds of work: OpenMP's, which torch's operators keep waiting
// anyway. body(0), ..., body(count - 1); it must not throw.
#pragma once

#include <cstdint>

#include "io/parallel.h"

namespace vecsmith::io {

template <class Body>
void run_team(int count, const Body& body) {
  if (count <= 1) {
    body(0);
    return;
  }
#ifdef _OPENMP
  // A loop, and not one body a thread: fewer threads may be given than were asked for.
#pragma omp parallel for num_threads(count) schedule(static, 1)
  for (int i = 0; i < count; ++i) body(i);
#else
  run_parallel(count, body);
#endif
}

// The i-th of `count` even parts of 0..size.
inline int64_t part_begin(int64_t size, int i, int count) {
  return size / count * i + size % count * i / count;
}

}  // namespace vecsmith::io
