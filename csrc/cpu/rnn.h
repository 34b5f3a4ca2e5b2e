// Recurrent layers on the CPU: what the kernels and the driver share.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"

namespace vecsmith {

enum RnnCell : int32_t { kLstm, kGru, kGruResetBefore, kRnnTanh, kRnnRelu };

// One direction of one layer over a whole sequence. N is the sum of batch_sizes, G the number of
// gates (LSTM: i f g o; GRU: r z n). Rows are packed by step: the rows of step 0, then of step 1,
// .. Null where the caller has no use for it, unless it says otherwise.
struct Rnn {
  RnnCell cell;
  bool reverse;  // each row from its own end
  int64_t steps, batch, hidden;
  const int64_t* batch_sizes;  // [steps], non-increasing
  const float* input;          // [N, inputs]
  int64_t inputs;
  const float *w_ih, *b_ih;  // [G hidden, inputs], [G hidden]
  float* x;                  // [N, G hidden], the input's part of the gates; null: not kept
  const float* weight;       // [G hidden, hidden]
  const float* bias;     // [3 hidden], of weight times state; kGru alone: elsewhere it is in b_ih
  const float *h0, *c0;  // [batch, hidden]; c0: LSTM
  float* out;            // [N, hidden]
  float* c;              // [N, hidden]: every cell of an LSTM, for a backward pass
  float* last_c;         // [batch, hidden], LSTM
  float* gates;          // [N, rnn_saved(cell) hidden], for a backward pass; x itself, if as wide
};

// What a backward pass is given beside the above (out, c and gates are read, x is not).
struct RnnGrad {
  const float *out, *last_h, *last_c;  // gradients of the results
  // What is written.
  float *h0, *c0;        // [batch, hidden]
  float* input;          // [N, inputs], or null
  float *w_ih, *weight;  // as in Rnn
  float *b_ih, *bias;    // [G hidden], of the biases of both parts, or null
  // The driver's own, [N, G hidden]: of the input's part of the gates, and of weight times state
  // where the reset gate comes between.
  float *x, *products;
};

constexpr int rnn_gates(RnnCell cell) {
  return cell == kLstm ? 4 : cell == kGru || cell == kGruResetBefore ? 3 : 1;
}

// Numbers per unit that a backward pass needs: LSTM i f g o; GRU r z n and the product that r
// scales; reset before r z n.
constexpr int rnn_saved(RnnCell cell) {
  return cell == kLstm || cell == kGru ? 4 : cell == kGruResetBefore ? 3 : 0;
}

// A matrix [rows, k] as panels: a panel has V vectors of `lanes` rows for each k, so that products
// with few vectors read it from its beginning to its end. Vector v = u * gates + g of panel p has
// rows g * hidden + (p * units + u) * lanes ..
struct RnnPanels {
  const float* weight;
  int64_t row_stride, k_stride;  // of element (row, k)
  int64_t hidden, k;             // rows of a gate; columns
  int gates, units;
};

// out[n] = x[n] times the transposed weight in panels, plus the bias.
struct RnnLinear {
  const float* x;  // [rows, x_stride]
  int64_t x_stride, rows, k;
  int gates;
  int64_t hidden;
  const float *panels, *bias;  // bias: [gates hidden] or null
  float* out;                  // [rows, gates hidden]
};

// out[m] = the sum over n of left[n][m] right[n]: a weight's gradient. right: in panels.
struct RnnOuter {
  const float* left;  // [count, left_stride]
  int64_t left_stride, count;
  const float* panels;
  int64_t columns;
  float* out;  // [rows, columns]
};

// A step of one worker: panels first .. last-1 for its first `rows` rows.
struct RnnStep {
  const Rnn* rnn;
  const float* panels;
  const float* const* state;   // [rows] what is multiplied: the state before, or r times it
  const float* const* before;  // [rows] the state before
  const int64_t* at;           // [rows] where this step's row is packed
  int64_t rows;
  float* next;  // [rows, next_stride]: the state after
  int64_t next_stride;
  float* c;        // [batch, hidden]: the cells, changed in place
  float* scratch;  // [rows, next_stride]: r times the state, with kGruResetBefore
};

struct RnnStepBack {
  const Rnn* rnn;
  const RnnGrad* grad;
  const int64_t *at, *before;  // [rows] where rows are packed; before: -1 for h0
  int64_t rows;
  float *h, *c;  // [batch, stride]: gradients of the state after, then of the one before
  int64_t stride;
  const float* panels;        // of the product
  const float* const* state;  // [rows] what is multiplied: the gates' gradients
};

VECSMITH_DECLARE_KERNEL(
    int rnn_lanes(); int64_t rnn_panel_count(const RnnPanels& panels);
    int64_t rnn_panel_floats(const RnnPanels& panels);  // of one
    void rnn_pack(const RnnPanels& panels, int64_t first, int64_t last, float* to);
    void rnn_linear(const RnnLinear& job, int64_t first, int64_t last);
    // Rows first .. last-1 of out.
    void rnn_outer(const RnnOuter& job, int64_t first, int64_t last);
    // out[m] = the sum over n of left[n][m], for m in first .. last-1.
    void rnn_column_sums(const float* left, int64_t stride, int64_t count, int64_t first,
                         int64_t last, float* out);
    // phase 1: the second product of kGruResetBefore.
    void rnn_forward(const RnnStep& step, int phase, int64_t first, int64_t last);
    // Gradients of the gates of units first .. last-1; then, by panels, of the state before.
    void rnn_backward_gates(const RnnStepBack& step, int64_t first, int64_t last);
    void rnn_backward_state(const RnnStepBack& step, int phase, int64_t first, int64_t last))

}  // namespace vecsmith
