// Binding of the recurrent layers: reads the addresses, releases the GIL, calls the driver.
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "bind/module.h"
#include "cpu/rnn_driver.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

RnnCell cell_of(const std::string& name) {
  if (name == "lstm") return kLstm;
  if (name == "gru") return kGru;
  if (name == "gru_reset_before") return kGruResetBefore;
  if (name == "rnn_tanh") return kRnnTanh;
  if (name == "rnn_relu") return kRnnRelu;
  throw py::value_error("rnn: unknown cell " + name);
}

// ops/_rnn.py makes it: cell, reverse, batch_sizes, hidden size, unit, whether the tensors are
// bfloat16, and addresses (0: none).
using RnnTuple =
    std::tuple<std::string, bool, std::vector<int64_t>, int64_t, int, bool, std::vector<uint64_t>>;

struct Call {
  Rnn rnn{};
  RnnUnit unit = kFloat;
  bool half = false;

  explicit Call(const RnnTuple& t, int64_t inputs) {
    const auto& sizes = std::get<2>(t);
    const auto& at = std::get<6>(t);
    if (at.size() != 10) throw py::value_error("rnn: expected 10 addresses");
    const int chosen = std::get<4>(t);
    if (chosen < kFloat || chosen > kSplit) throw py::value_error("rnn: unknown unit");
    unit = static_cast<RnnUnit>(chosen);
    half = std::get<5>(t);
    rnn.cell = cell_of(std::get<0>(t));
    rnn.reverse = std::get<1>(t);
    rnn.steps = static_cast<int64_t>(sizes.size());
    rnn.batch = sizes.empty() ? 0 : sizes.front();
    rnn.hidden = std::get<3>(t);
    rnn.inputs = inputs;
    rnn.batch_sizes = sizes.data();
    rnn.input = numbers(at[0], half);
    rnn.w_ih = numbers(at[1], half);
    rnn.weight = numbers(at[2], half);
    rnn.bias = numbers(at[3], half);
    rnn.h0 = numbers(at[4], half);
    rnn.c0 = numbers(at[5], half);
    rnn.out = numbers(at[6], half);
    rnn.c = pointer<float>(at[7]);
    rnn.gates = numbers(at[8], unit == kBfloat16 && half);
    rnn.b_ih = numbers(at[9], half);
  }
  static Numbers numbers(uint64_t address, bool is_half) {
    return {pointer<char>(address), is_half};
  }
};

}  // namespace

void bind_rnn(py::module_& m) {
  m.def("rnn_matrix_units", [] { return VECSMITH_PICK_KERNEL(rnn_matrix_units)(); });
  // x: the address of gates of floats, where the input's part of them is kept, or 0.
  m.def("rnn", [](const RnnTuple& given, int64_t inputs, uint64_t x, uint64_t last_h,
                  uint64_t last_c, int threads) {
    Call call(given, inputs);
    call.rnn.x = pointer<float>(x);
    call.rnn.x_stride = rnn_saved(call.rnn.cell) * call.rnn.hidden;
    call.rnn.last_h = Call::numbers(last_h, call.half);
    call.rnn.last_c = Call::numbers(last_c, call.half);
    py::gil_scoped_release release;
    rnn_forward(call.rnn, call.unit, threads);
  });
  // gradients: of out, last h, last c; and where to write those of h0, c0, input, w_ih, weight,
  // b_ih and bias.
  m.def("rnn_backward", [](const RnnTuple& given, int64_t inputs,
                           const std::tuple<uint64_t, uint64_t, uint64_t>& from,
                           const std::vector<uint64_t>& to, int threads) {
    if (to.size() != 7) throw py::value_error("rnn_backward: expected 7 addresses");
    Call call(given, inputs);
    RnnGrad grad{};
    grad.out = Call::numbers(std::get<0>(from), call.half);
    grad.last_h = Call::numbers(std::get<1>(from), call.half);
    grad.last_c = Call::numbers(std::get<2>(from), call.half);
    grad.h0 = Call::numbers(to[0], call.half);
    grad.c0 = Call::numbers(to[1], call.half);
    grad.input = Call::numbers(to[2], call.half);
    grad.w_ih = Call::numbers(to[3], call.half);
    grad.weight = Call::numbers(to[4], call.half);
    grad.b_ih = Call::numbers(to[5], call.half);
    grad.bias = Call::numbers(to[6], call.half);
    py::gil_scoped_release release;
    rnn_backward(call.rnn, grad, call.unit, threads);
  });
}

}  // namespace vecsmith
