// A few threads for one call: body(0), ..., body(count - 1), each on its own thread, the first on
// the caller's. std::thread and not OpenMP: the readers' work comes in blocks of milliseconds, and
// an exception must get out.
#pragma once

#include <exception>
#include <thread>
#include <vector>

namespace vecsmith::io {

template <class Body>
void run_parallel(int count, const Body& body) {
  std::vector<std::exception_ptr> errors(count > 0 ? count : 0);
  const auto guarded = [&](int i) {
    try {
      body(i);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(errors.size());
  int started = 1;
  try {
    for (; started < count; ++started) threads.emplace_back(guarded, started);
  } catch (const std::system_error&) {
    // No more threads to be had: the caller does the rest.
  }
  if (count > 0) guarded(0);
  for (int i = started; i < count; ++i) guarded(i);
  for (auto& thread : threads) thread.join();
  for (auto& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace vecsmith::io
