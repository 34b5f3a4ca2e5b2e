// Host side of the CUDA kernels of `rnn`: raw device pointers and sizes, no torch, no Python.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace vecsmith::cuda {

enum class Cell { kLstm, kGru, kGruResetBefore, kTanh, kRelu };

// Gates of a cell, and what of a step is kept for the backward pass, each H wide.
constexpr int gates_of(Cell cell) {
  return cell == Cell::kLstm ? 4 : cell == Cell::kGru || cell == Cell::kGruResetBefore ? 3 : 1;
}
constexpr int saved_of(Cell cell) {
  return cell == Cell::kTanh || cell == Cell::kRelu ? 0 : cell == Cell::kGru ? 4 : gates_of(cell);
}
// Columns of the gradients before the gates, each H wide: a GRU has that of its product, too.
constexpr int derived_of(Cell cell) { return cell == Cell::kGru ? 4 : gates_of(cell); }

// What a plan depends on.
struct RnnGeometry {
  Cell cell = Cell::kLstm;
  bool fp16 = false;  // else bfloat16; "half" below is one of them
  bool backward = false;
  std::int64_t hidden = 0;
  std::int64_t batch = 0;  // rows of h0
  std::int64_t units = 0;  // of a block; 0: chosen
  std::int64_t groups = 0;
  int cluster = -1;  // 1: a group's blocks are a cluster, 0: they are not, -1: chosen
  int split = 0;     // blocks that share sums; 0: chosen
};

// How a launch is cut.
struct RnnPlan {
  int threads = 0;
  std::int64_t units = 0;   // of a block: a multiple of 8
  std::int64_t blocks = 0;  // of a group: hidden / units, or some more
  std::int64_t groups = 0;  // of rows: row r is in group r % groups
  std::int64_t slots = 0;   // rows that a group steps through the sequence together
  std::int64_t passes = 0;  // over the sequence, until all rows have had a slot
  std::int64_t round = 0;   // tiles of 8 rows whose sums are put together at once
  std::int64_t shared_bytes = 0;
  bool cluster = false;
  std::int64_t split = 1;
};

// Rows by step, as in torch's PackedSequence.
struct RnnSteps {
  const std::int64_t* starts = nullptr;  // [count + 1], on the device; null: `batch` rows each
  std::int64_t count = 0;
  bool reverse = false;
};

// T steps, N rows in all, B = batch, H = hidden, G gates.
struct RnnForward {
  RnnGeometry geometry;
  RnnSteps steps;
  const void* x = nullptr;       // half [N, G H]: the input's part, with its bias
  const void* weight = nullptr;  // half [G H, H]
  const void* bias = nullptr;    // half [G H], or null
  const void* h0 = nullptr;      // half [B, H]
  const float* c0 = nullptr;     // [B, H], LSTM
  void* output = nullptr;        // half [N, H]; blocks exchange their states through it
  float* c = nullptr;            // [N, H], LSTM; null: nothing is kept
  void* gates = nullptr;         // half [N, saved H]; may be x where saved = G; null likewise
  void* last_h = nullptr;        // half [B, H]
  float* last_c = nullptr;       // [B, H], LSTM
  void* scaled = nullptr;        // half [B, H], GRU reset before: room for r * h
  unsigned* counters = nullptr;  // [groups, kCounterStride], zero
};

struct RnnBackward {
  RnnGeometry geometry;
  RnnSteps steps;
  const void* weight = nullptr;  // half [H, G H]: the transposed one
  const void* h0 = nullptr;
  const float* c0 = nullptr;
  const void* output = nullptr;
  const float* c = nullptr;
  const void* gates = nullptr;
  const void* grad = nullptr;     // half [N, H], of the output, or null
  const void* grad_h = nullptr;   // half [B, H], of the last states, or null
  const float* grad_c = nullptr;  // [B, H], or null
  void* derived = nullptr;        // half [N, derived H]: gradients before the gates, GRU: r z n and
                                  // that of the product that r scales; exchanged like output
  float* dh0 = nullptr;           // [B, H]
  float* dc0 = nullptr;           // [B, H], LSTM
  unsigned* counters = nullptr;
};

constexpr int kCounterStride = 32;  // counters of two groups are not in one line of the cache

// Throw std::runtime_error when CUDA reports an error and std::invalid_argument when a size is out
// of range or the weight does not fit on the device; they act on the current device.
RnnPlan plan(const RnnGeometry& geometry);
void rnn(const RnnForward& a, Stream stream);
void rnn(const RnnBackward& a, Stream stream);

}  // namespace vecsmith::cuda
