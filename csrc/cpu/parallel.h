// Workers of a driver, on the OpenMP runtime that torch brings.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <thread>

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

// Returns when another worker has made ready() true. Not OpenMP's way, which waits by running, for
// milliseconds: where another process has the processor of a neighbor, the neighbor does not get
// ours.
template <class Ready>
void wait_until(const Ready& ready) {
  constexpr int kSpins = 1 << 16;
  for (int spins = 0; !ready(); ++spins)
    if (spins >= kSpins) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

// Where all workers of a region wait for each other.
class Barrier {
 public:
  // size: of the region, the same from all.
  void wait(int size) {
    if (size == 1) return;
    const int turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    wait_until([&] { return turn_.load(std::memory_order_acquire) != turn; });
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> turn_{0};
};

// Where worker w's part of n things begins; it ends where the next one's begins.
inline int64_t share(int64_t n, int64_t worker, int64_t size) { return n * worker / size; }

}  // namespace vecsmith
