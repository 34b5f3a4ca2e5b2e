// Workers of a driver, on the OpenMP runtime that torch brings.
#pragma once

#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace vecsmith {

// Runs body(worker, size) by each of `threads` workers (OpenMP may start fewer: size says how
// many). An exception in one of them is rethrown here; a body in which workers wait for each other
// must not throw.
template <class Body>
void parallel(int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) {
    std::exception_ptr error;
#pragma omp parallel num_threads(threads)
    {
      try {
        body(omp_get_thread_num(), omp_get_num_threads());
      } catch (...) {
#pragma omp critical(vecsmith_parallel_error)
        error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  body(0, 1);
}

// All workers wait for each other.
inline void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

// Where worker w's part of n things begins; it ends where the next one's begins.
inline int64_t share(int64_t n, int64_t worker, int64_t size) { return n * worker / size; }

}  // namespace vecsmith
