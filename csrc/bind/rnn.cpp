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

// ops/_rnn.py makes it: cell, reverse, batch_sizes, hidden size, and the addresses of weight, bias,
// h0, c0, out, c, gates (0: none).
using RnnTuple = std::tuple<std::string, bool, std::vector<int64_t>, int64_t, uint64_t, uint64_t,
                            uint64_t, uint64_t, uint64_t, uint64_t, uint64_t>;

Rnn rnn_of(const RnnTuple& t) {
  const auto& sizes = std::get<2>(t);
  Rnn rnn{};
  rnn.cell = cell_of(std::get<0>(t));
  rnn.reverse = std::get<1>(t);
  rnn.steps = static_cast<int64_t>(sizes.size());
  rnn.batch = sizes.empty() ? 0 : sizes.front();
  rnn.hidden = std::get<3>(t);
  rnn.batch_sizes = sizes.data();
  rnn.weight = pointer<const float>(std::get<4>(t));
  rnn.bias = pointer<const float>(std::get<5>(t));
  rnn.h0 = pointer<const float>(std::get<6>(t));
  rnn.c0 = pointer<const float>(std::get<7>(t));
  rnn.out = pointer<float>(std::get<8>(t));
  rnn.c = pointer<float>(std::get<9>(t));
  rnn.gates = pointer<float>(std::get<10>(t));
  return rnn;
}

}  // namespace

void bind_rnn(py::module_& m) {
  // projection: addresses of input, w_ih, b_ih and where their product is written; columns.
  m.def("rnn", [](const RnnTuple& given,
                  const std::tuple<uint64_t, uint64_t, uint64_t, uint64_t, int64_t>& projection,
                  uint64_t last_c, int threads) {
    Rnn rnn = rnn_of(given);
    rnn.input = pointer<const float>(std::get<0>(projection));
    rnn.w_ih = pointer<const float>(std::get<1>(projection));
    rnn.b_ih = pointer<const float>(std::get<2>(projection));
    rnn.x = pointer<float>(std::get<3>(projection));
    rnn.inputs = std::get<4>(projection);
    rnn.last_c = pointer<float>(last_c);
    py::gil_scoped_release release;
    rnn_forward(rnn, threads);
  });
  // projection: input, w_ih, columns. gradients: of out, last h, last c; and where to write those
  // of h0, c0, input, w_ih, weight, b_ih and bias.
  m.def("rnn_backward",
        [](const RnnTuple& given, const std::tuple<uint64_t, uint64_t, int64_t>& projection,
           const std::tuple<uint64_t, uint64_t, uint64_t>& from, const std::vector<uint64_t>& to,
           int threads) {
          if (to.size() != 7) throw py::value_error("rnn_backward: expected 7 addresses");
          Rnn rnn = rnn_of(given);
          rnn.input = pointer<const float>(std::get<0>(projection));
          rnn.w_ih = pointer<const float>(std::get<1>(projection));
          rnn.inputs = std::get<2>(projection);
          RnnGrad grad{};
          grad.out = pointer<const float>(std::get<0>(from));
          grad.last_h = pointer<const float>(std::get<1>(from));
          grad.last_c = pointer<const float>(std::get<2>(from));
          float** const fields[] = {&grad.h0,     &grad.c0,   &grad.input, &grad.w_ih,
                                    &grad.weight, &grad.b_ih, &grad.bias};
          for (size_t i = 0; i < to.size(); ++i) *fields[i] = pointer<float>(to[i]);
          py::gil_scoped_release release;
          rnn_backward(rnn, grad, threads);
        });
}

}  // namespace vecsmith
