// Binding of the skip-gram operator: checks, releases the GIL, calls the driver.
#include "cpu/skipgram.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "bind/module.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

// Negatives or nodes of a step: the kernels count outputs, and products of their number and of the
// tiles they come in, in 32 bits.
constexpr int64_t kMostOutputs = int64_t{1} << 16;

[[noreturn]] void out_of_range(const char* name, int64_t low, int64_t high, int64_t got) {
  throw py::index_error("skipgram: expected " + std::string(name) + " in " + std::to_string(low) +
                        ".." + std::to_string(high) + "; got " + std::to_string(got));
}

template <class T>
void check_range(const char* name, const T* values, int64_t count, int64_t low, int64_t high) {
  T least = static_cast<T>(low), most = static_cast<T>(low);
  for (int64_t i = 0; i < count; ++i) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  if (least < low) out_of_range(name, low, high, least);
  if (count > 0 && most > high) out_of_range(name, low, high, most);
}

void check_offsets(const char* name, const int64_t* offsets, int64_t count, int64_t last) {
  for (int64_t i = 0; i <= count; ++i) {
    if (offsets[i] < 0 || offsets[i] > last) out_of_range(name, 0, last, offsets[i]);
    if (i > 0 && offsets[i] < offsets[i - 1])
      throw py::value_error("skipgram: expected non-decreasing " + std::string(name) + "; got " +
                            std::to_string(offsets[i]) + " after " +
                            std::to_string(offsets[i - 1]));
  }
}

// All that could lead a kernel astray, before anything is changed.
void check_job(const SkipgramJob& job, int64_t token_count, int64_t path_size) {
  check_offsets("offsets", job.offsets, job.sentences, token_count);
  for (int64_t s = 0; s < job.sentences; ++s)
    if (job.offsets[s + 1] - job.offsets[s] > (int64_t{1} << 29))
      throw py::value_error("skipgram: expected sentences of at most 2^29 tokens");
  const int64_t first = job.offsets[0], last = job.offsets[job.sentences];
  if (last > first) check_range("tokens", job.tokens + first, last - first, 0, job.vocabulary - 1);
  if (job.alias) {
    int32_t least = 0, most = 0;
    for (int64_t v = 0; v < job.vocabulary; ++v) {
      least = std::min(least, job.alias[2 * v + 1]);
      most = std::max(most, job.alias[2 * v + 1]);
    }
    if (least < 0) out_of_range("alias", 0, job.vocabulary - 1, least);
    if (most >= job.vocabulary) out_of_range("alias", 0, job.vocabulary - 1, most);
  }
  if (job.path_offsets) {
    check_offsets("path_offsets", job.path_offsets, job.vocabulary, path_size);
    for (int64_t v = 0; job.vocabulary > 1 && v < job.vocabulary; ++v)
      if (job.path_offsets[v] == job.path_offsets[v + 1])
        throw py::value_error("skipgram: expected a path for every word; got none for word " +
                              std::to_string(v));
    for (int64_t v = 0; v < job.vocabulary; ++v)
      if (job.path_offsets[v + 1] - job.path_offsets[v] > kMostOutputs)
        throw py::value_error("skipgram: expected paths of at most " +
                              std::to_string(kMostOutputs) + " nodes; got " +
                              std::to_string(job.path_offsets[v + 1] - job.path_offsets[v]) +
                              " for word " + std::to_string(v));
    if (path_size > 0) check_range("path_nodes", job.path_nodes, path_size, 0, job.vocabulary - 2);
  }
}

}  // namespace

void bind_skipgram(py::module_& m) {
  m.def(
      "skipgram",
      [](const std::array<uint64_t, 10>& address, const std::array<int64_t, 3>& stride,
         int64_t vocabulary, int64_t dim, int64_t token_count, int64_t sentences, int64_t path_size,
         uint64_t result, int64_t window, int64_t negative, bool cbow, bool cbow_mean,
         bool shrink_windows, bool shared_negatives, double alpha, double min_alpha,
         int64_t words_before, int64_t words_total, int64_t seed, int64_t epoch,
         int64_t first_position, int64_t sync_every, bool compute_loss, int num_threads) {
        SkipgramJob job{};
        for (int t = 0; t < 3; ++t) {
          job.table[t] = pointer<float>(address[t]);
          job.stride[t] = stride[t];
        }
        job.vocabulary = vocabulary;
        job.dim = dim;
        job.tokens = pointer<const int32_t>(address[3]);
        job.offsets = pointer<const int64_t>(address[4]);
        job.sentences = sentences;
        job.keep = pointer<const float>(address[5]);
        job.alias = pointer<const int32_t>(address[6]);
        job.path_offsets = pointer<const int64_t>(address[7]);
        job.path_nodes = pointer<const int32_t>(address[8]);
        job.path_codes = pointer<const uint8_t>(address[9]);
        job.window = static_cast<int32_t>(window);
        job.negative = static_cast<int32_t>(negative);
        job.cbow = cbow;
        job.cbow_mean = cbow_mean;
        job.shrink_windows = shrink_windows;
        job.shared_negatives = shared_negatives;
        job.alpha = alpha;
        job.rate_slope = (min_alpha - alpha) / static_cast<double>(words_total);
        job.rate_start = alpha + job.rate_slope * static_cast<double>(words_before);
        job.rate_least = std::min(alpha, min_alpha);
        job.key_subsample =
            skipgram_key(static_cast<uint64_t>(seed), static_cast<uint64_t>(epoch), 0);
        job.key_window = skipgram_key(static_cast<uint64_t>(seed), static_cast<uint64_t>(epoch), 1);
        job.key_negative =
            skipgram_key(static_cast<uint64_t>(seed), static_cast<uint64_t>(epoch), 2);
        job.first_position = first_position;
        job.compute_loss = compute_loss;
        py::gil_scoped_release release;
        check_job(job, token_count, path_size);
        skipgram_run(job, num_threads, sync_every, pointer<double>(result));
      },
      py::arg("address"), py::arg("stride"), py::arg("vocabulary"), py::arg("dim"),
      py::arg("token_count"), py::arg("sentences"), py::arg("path_size"), py::arg("result"),
      py::kw_only(), py::arg("window"), py::arg("negative"), py::arg("cbow"), py::arg("cbow_mean"),
      py::arg("shrink_windows"), py::arg("shared_negatives"), py::arg("alpha"),
      py::arg("min_alpha"), py::arg("words_before"), py::arg("words_total"), py::arg("seed"),
      py::arg("epoch"), py::arg("first_position"), py::arg("sync_every"), py::arg("compute_loss"),
      py::arg("num_threads"));

  m.def(
      "skipgram_pairs",
      [](const std::array<uint64_t, 5>& address, const std::array<int64_t, 2>& stride,
         int64_t input_rows, int64_t output_rows, int64_t dim, int64_t pairs, int64_t negative,
         uint64_t result, double alpha, int64_t sync_every, bool compute_loss, int num_threads) {
        SkipgramJob job{};
        job.table[kInput] = pointer<float>(address[0]);
        job.table[kOutput] = pointer<float>(address[1]);
        job.stride[kInput] = stride[0];
        job.stride[kOutput] = stride[1];
        job.vocabulary = std::max(input_rows, output_rows);
        if (negative > kMostOutputs)
          throw py::value_error("skipgram_pairs: expected at most " + std::to_string(kMostOutputs) +
                                " negatives of a pair; got " + std::to_string(negative));
        job.dim = dim;
        job.centers = pointer<const int64_t>(address[2]);
        job.contexts = pointer<const int64_t>(address[3]);
        job.negatives = pointer<const int64_t>(address[4]);
        job.negative = static_cast<int32_t>(negative);
        job.window = 1;
        job.shared_negatives = true;
        job.alpha = alpha;
        job.compute_loss = compute_loss;
        py::gil_scoped_release release;
        check_range("centers", job.centers, pairs, 0, input_rows - 1);
        check_range("contexts", job.contexts, pairs, 0, output_rows - 1);
        check_range("negatives", job.negatives, pairs * negative, -1, output_rows - 1);
        skipgram_pairs_run(job, pairs, num_threads, sync_every, pointer<double>(result));
      },
      py::arg("address"), py::arg("stride"), py::arg("input_rows"), py::arg("output_rows"),
      py::arg("dim"), py::arg("pairs"), py::arg("negative"), py::arg("result"), py::kw_only(),
      py::arg("alpha"), py::arg("sync_every"), py::arg("compute_loss"), py::arg("num_threads"));
}

}  // namespace vecsmith
