// Recurrent layers on the CPU: what the kernels and the driver share.
#pragma once

#include <stdint.h>

#include "cpu/isa.h"

namespace vecsmith {

enum RnnCell : int32_t { kLstm, kGru, kGruResetBefore, kRnnTanh, kRnnRelu };

// What products are computed in. A *word* is four bytes: a float, or two bfloat16 that stand next
// to each other along the sum. Sums are floats.
enum RnnUnit : int32_t {
  kFloat,     // multiply-adds of floats
  kBfloat16,  // factors rounded to bfloat16
  kSplit,     // factors as the sum of two bfloat16: three products of four, about 16 bits each
};

// An array of floats, or of bfloat16 (half). Null where the caller has no use for it.
struct Numbers {
  char* data = nullptr;
  bool half = false;

  explicit operator bool() const { return data != nullptr; }
  Numbers at(int64_t n) const { return {data + n * (half ? 2 : 4), half}; }
};

// Rows of factors of products. A row is `words` words, which end in zeros, and with kSplit as many
// again of what the first ones leave.
struct RnnFactors {
  char* data = nullptr;
  int64_t words = 0, stride = 0;  // stride: of rows, in bytes
  RnnUnit unit = kFloat;

  explicit operator bool() const { return data != nullptr; }
  char* row(int64_t n) const { return data + n * stride; }
};

// One direction of one layer over a whole sequence. N is the sum of batch_sizes, G the number of
// gates (LSTM: i f g o; GRU: r z n). Rows are packed by step: the rows of step 0, then of step 1,
// .. Null where the caller has no use for it, unless it says otherwise.
struct Rnn {
  RnnCell cell;
  bool reverse;  // each row from its own end
  int64_t steps, batch, hidden;
  const int64_t* batch_sizes;  // [steps], non-increasing
  Numbers input;               // [N, inputs]
  int64_t inputs;
  Numbers w_ih;  // [G hidden, inputs]
  Numbers b_ih;  // [G hidden]
  // [N, x_stride] with space for G hidden, the input's part of the gates; null: not kept.
  float* x;
  int64_t x_stride;
  Numbers weight;          // [G hidden, hidden]
  Numbers bias;            // [G hidden], of weight times state
  Numbers h0, c0;          // [batch, hidden]; c0: LSTM
  Numbers out;             // [N, hidden]
  float* c;                // [N, hidden]: every cell of an LSTM, for a backward pass
  Numbers last_h, last_c;  // [batch, hidden]; last_c: LSTM
  Numbers gates;  // [N, rnn_saved(cell) hidden], for a backward pass; x itself, if of floats
};

// What a backward pass is given beside the above (out, c and gates are read, x is not).
struct RnnGrad {
  Numbers out, last_h, last_c;  // gradients of the results
  // What is written.
  Numbers h0, c0;        // [batch, hidden]
  Numbers input;         // [N, inputs]
  Numbers w_ih, weight;  // as in Rnn; null: not wanted
  Numbers b_ih, bias;    // [G hidden], of the biases of both parts
  // The driver's own: of the input's part of the gates [N, G hidden], and with kGru of the
  // candidate's product of weight and state [N, hidden].
  RnnFactors x, products;
};

constexpr int rnn_gates(RnnCell cell) {
  return cell == kLstm ? 4 : cell == kGru || cell == kGruResetBefore ? 3 : 1;
}

// Numbers per unit that a backward pass needs: LSTM i f g o; GRU r z n and the product that r
// scales; reset before r z n.
constexpr int rnn_saved(RnnCell cell) {
  return cell == kLstm || cell == kGru ? 4 : cell == kGruResetBefore ? 3 : 0;
}

// Words of a sum of k terms. Tiles take 16 at once.
constexpr int64_t rnn_words(RnnUnit unit, int64_t k) {
  return unit == kFloat ? k : (k + 31) / 32 * 16;
}

// A matrix [gates hidden, k] that factors are multiplied with. In panels: a panel has V = gates
// units vectors for each word, so that products with few vectors read it from its beginning to its
// end; with kSplit, the words of what is left come behind. Vector v = u * gates + g of panel p has
// rows g * hidden + (p * units + u) * lanes .. Without panels it is read where it is, in floats:
// its rows or its columns must be contiguous.
struct RnnMatrix {
  Numbers weight;
  int64_t row_stride, k_stride;  // of element (row, k)
  int64_t hidden, k;
  int gates, units;
  RnnUnit unit;
  float* panels;
};

// out[n] = x[n] times the transposed matrix, plus the bias.
struct RnnLinear {
  RnnFactors x;
  int64_t rows;
  const RnnMatrix* matrix;
  const float* bias;  // [gates hidden] or null
  Numbers out;        // [rows, out_stride], numbers
  int64_t out_stride;
};

// What a weight is multiplied with in all steps, side by side: rows n of the input or of the
// states, in panels of four vectors for each word of rows.
struct RnnRows {
  const char* const* rows;     // [count]
  const char* const* factors;  // [count] rows of gates that scale them, or null
  bool half, half_factors;
  int64_t count, columns;
  RnnUnit unit;
  float* panels;
};

// out[m] = the sum over n of left[n][m] right[n]: a weight's gradient.
struct RnnOuter {
  RnnFactors left;  // [count]
  const RnnRows* right;
  float* out;  // [rows, columns]
};

// A step of one worker: panels first .. last-1 for its first `rows` rows.
struct RnnStep {
  const Rnn* rnn;
  float* x;  // as the Rnn's; the row that is packed at n is x_first rows earlier
  int64_t x_first;
  const float* bias;  // [3 hidden], with kGru, or null; elsewhere it is part of x
  const RnnMatrix* matrix;
  const char* const* state;    // [rows] what is multiplied: the state before, or r times it
  int64_t state_words;         // of a whole row of factors
  const float* const* before;  // [rows] the state before
  const int64_t* at;           // [rows] where this step's row is packed
  int64_t rows;
  float* next;  // [rows, next_stride]: the state after
  int64_t next_stride;
  RnnFactors factors;  // [rows]: the state after as factors; null where `next` is
  RnnFactors scratch;  // [rows]: r times the state, with kGruResetBefore
  float* c;            // [batch, hidden]: the cells, changed in place
};

struct RnnStepBack {
  const Rnn* rnn;
  const RnnGrad* grad;
  const float *h0, *c0;        // [batch, hidden]
  const int64_t *at, *before;  // [rows] where rows are packed; before: -1 for h0
  int64_t rows;
  float *h, *c;  // [batch, stride]: gradients of the state after, then of the one before
  int64_t stride;
  const RnnMatrix* matrix;
  const char* const* state;  // [rows] what is multiplied: the gates' gradients
  int64_t state_words;
};

VECSMITH_DECLARE_KERNEL(
    int rnn_lanes();
    // How fast the level multiplies bfloat16: 0 no faster than floats, 1 as pairs, 2 in tiles.
    int rnn_matrix_units();
    // What a worker does before and after all else: tiles are the thread's own.
    void rnn_begin(); void rnn_end(); int64_t rnn_panel_count(const RnnMatrix& matrix);
    int64_t rnn_panel_words(const RnnMatrix& matrix);  // of one
    void rnn_pack(const RnnMatrix& matrix, int64_t first, int64_t last);
    // Rows first .. last-1 of an array of `columns` as factors.
    void rnn_factors(Numbers from, int64_t columns, int64_t first, int64_t last,
                     const RnnFactors& to);
    int64_t rnn_rows_words(const RnnRows& rows);
    // Words first .. last-1 (of rows, all columns) of the panels.
    void rnn_pack_rows(const RnnRows& rows, int64_t first, int64_t last);
    void rnn_linear(const RnnLinear& job, int64_t first, int64_t last);
    // Rows first .. last-1 of out.
    void rnn_outer(const RnnOuter& job, int64_t first, int64_t last);
    // out[m] = the sum over n of left[n][m], for m in first .. last-1.
    void rnn_column_sums(const RnnFactors& left, int64_t count, int64_t first, int64_t last,
                         float* out);
    void rnn_convert(const float* from, int64_t first, int64_t last, Numbers to);
    void rnn_floats(Numbers from, int64_t first, int64_t last, float* to);
    // phase 1: the second product of kGruResetBefore.
    void rnn_forward(const RnnStep& step, int phase, int64_t first, int64_t last);
    // Gradients of the gates of units first .. last-1; then, by panels, of the state before.
    void rnn_backward_gates(const RnnStepBack& step, int64_t first, int64_t last);
    void rnn_backward_state(const RnnStepBack& step, int phase, int64_t first, int64_t last))

}  // namespace vecsmith
