// Host side of the CUDA kernels of `skipgram`: raw device pointers and sizes, no torch, no Python.
// No CUDA header either, so that the host's compiler needs none for what calls this.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace vecsmith::cuda {

enum class Mode { kWindow, kPair, kCbow };  // shared_negatives="window", "pair"; CBOW

struct Table {
  float* data = nullptr;    // [rows, dim]; null: absent
  std::int64_t stride = 0;  // floats from row to row
};

// What one launch trains on. Meanings are those of reference/skipgram.py.
struct TextArguments {
  Table inputs, outputs, tree;
  std::int64_t dim = 0;
  std::int64_t vocabulary = 0;
  const std::int32_t* words = nullptr;  // [count]: the survivors of sub-sampling
  const std::int64_t* positions = nullptr;
  const std::int64_t* first = nullptr;  // survivor k's sentence: survivors first[k] .. last[k] - 1
  const std::int64_t* last = nullptr;
  std::int64_t count = 0;
  const std::int32_t* alias = nullptr;  // [vocabulary, 2]
  const std::int64_t* path_offsets = nullptr;
  const std::int32_t* path_nodes = nullptr;
  const std::uint8_t* path_codes = nullptr;
  std::int64_t window = 0;
  std::int64_t negative = 0;
  Mode mode = Mode::kWindow;
  bool cbow_mean = true;
  bool shrink_windows = true;
  double alpha = 0, min_alpha = 0;
  std::int64_t words_before = 0, words_total = 0;
  std::uint64_t seed = 0, epoch = 0;
  double* loss = nullptr;    // [2]: the loss and its number of terms are added
  bool compute_loss = true;  // false: only the number of terms is
  float* scratch = nullptr;
  std::int64_t scratch_floats = 0;
  std::int64_t blocks = 0;  // 0: fill the device; 1: one group after another
  // What a CUDA graph reads anew in every replay, or null. The first `live` survivors count;
  // `place` stands for seed, epoch, the first position (of mark_survivors) and words_before;
  // `rates` for alpha and min_alpha.
  const std::int64_t* live = nullptr;   // [1]
  const std::int64_t* place = nullptr;  // [4]
  const double* rates = nullptr;        // [2]
};

struct PairsArguments {
  Table inputs, outputs;
  std::int64_t dim = 0;
  const std::int64_t* centers = nullptr;    // [count]
  const std::int64_t* contexts = nullptr;   // [count]
  const std::int64_t* negatives = nullptr;  // [count, negative]
  std::int64_t negatives_stride = 0;
  std::int64_t count = 0;
  std::int64_t negative = 0;
  double alpha = 0;
  double* loss = nullptr;
  bool compute_loss = true;
  float* scratch = nullptr;
  std::int64_t scratch_floats = 0;
  std::int64_t blocks = 0;
  const double* rates = nullptr;  // [1], stands for alpha; or null
};

// How a launch is cut; for the same arguments always the same on one device.
struct Plan {
  int threads = 0;
  std::int64_t blocks = 0;
  std::int64_t shared_bytes = 0;
  std::int64_t scratch_floats = 0;  // device memory the caller must lend (0: all is on chip)
};

// All of these throw std::runtime_error when CUDA reports an error and std::invalid_argument when a
// size is out of range; they act on the current device.
Plan plan(const TextArguments& a);
Plan plan(const PairsArguments& a);
void train(const TextArguments& a, Stream stream);
void train(const PairsArguments& a, Stream stream);

// mask[i] = 1 where tokens[start + i], at position first_position + start + i, survives. place: as
// TextArguments has it, or null.
void mark_survivors(const std::int32_t* tokens, const float* keep, std::uint8_t* mask,
                    std::int64_t start, std::int64_t count, std::int64_t first_position,
                    std::uint64_t seed, std::uint64_t epoch, const std::int64_t* place,
                    Stream stream);

}  // namespace vecsmith::cuda
