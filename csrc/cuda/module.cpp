// The _cuda module: pybind11 over the CUDA kernels. Pointers come as integers; the caller has
// checked the tensors behind them. Imports where there is no driver: device_count() is 0 then.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "cuda/rnn.h"
#include "cuda/skipgram.h"

namespace py = pybind11;

namespace {

using vecsmith::cuda::Cell;
using vecsmith::cuda::DeviceGuard;
using vecsmith::cuda::Mode;
using vecsmith::cuda::PairsArguments;
using vecsmith::cuda::Plan;
using vecsmith::cuda::RnnBackward;
using vecsmith::cuda::RnnForward;
using vecsmith::cuda::RnnGeometry;
using vecsmith::cuda::RnnPlan;
using vecsmith::cuda::RnnSteps;
using vecsmith::cuda::Stream;
using vecsmith::cuda::Table;
using vecsmith::cuda::TextArguments;

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address, const char* name, bool needed) {
  if (needed && address == 0) throw py::value_error(std::string("expected ") + name + ", got null");
  return reinterpret_cast<T*>(address);
}

Mode mode_of(const std::string& name) {
  if (name == "window") return Mode::kWindow;
  if (name == "pair") return Mode::kPair;
  if (name == "cbow") return Mode::kCbow;
  throw py::value_error("expected mode 'window', 'pair' or 'cbow', got '" + name + "'");
}

Table table_of(Address address, std::int64_t stride, std::int64_t dim, const char* name,
               bool needed) {
  Table table;
  table.data = pointer<float>(address, name, needed);
  table.stride = stride;
  if (table.data && stride < dim) {
    throw py::value_error(std::string("expected a row stride of ") + name + " of at least " +
                          std::to_string(dim) + ", got " + std::to_string(stride));
  }
  return table;
}

// Keyword arguments of one call, read by name: a wrong or missing one is a KeyError that says
// which.
class Keywords {
 public:
  explicit Keywords(const py::kwargs& given) : given_(given) {}
  template <class T>
  T get(const char* name) const {
    if (!given_.contains(name)) throw py::key_error(std::string("missing argument: ") + name);
    ++read_;
    return given_[name].template cast<T>();
  }
  void done() const {
    if (read_ != given_.size()) {
      throw py::key_error("expected " + std::to_string(read_) + " arguments, got " +
                          std::to_string(given_.size()));
    }
  }

 private:
  const py::kwargs& given_;
  mutable size_t read_ = 0;
};

struct Where {
  int device;
  Stream stream;
};

Where where_of(const Keywords& k) {
  return {k.get<int>("device"), reinterpret_cast<Stream>(k.get<Address>("stream"))};
}

TextArguments text_of(const Keywords& k) {
  TextArguments a;
  a.dim = k.get<std::int64_t>("dim");
  a.vocabulary = k.get<std::int64_t>("vocabulary");
  a.negative = k.get<std::int64_t>("negative");
  const auto nodes = k.get<Address>("tree");
  const bool tree = nodes != 0;
  if (!tree && a.negative == 0) {
    throw py::value_error("expected negative > 0 or a tree table, got neither");
  }
  if (a.vocabulary < 1 || a.vocabulary > (std::int64_t{1} << 31)) {
    throw py::value_error("expected 1 <= vocabulary <= 2^31, got " + std::to_string(a.vocabulary));
  }
  a.inputs = table_of(k.get<Address>("inputs"), k.get<std::int64_t>("input_stride"), a.dim,
                      "input_table", true);
  a.outputs = table_of(k.get<Address>("outputs"), k.get<std::int64_t>("output_stride"), a.dim,
                       "output_table", a.negative > 0);
  a.tree = table_of(nodes, k.get<std::int64_t>("tree_stride"), a.dim, "tree_table", false);
  a.count = k.get<std::int64_t>("count");
  const bool any = a.count > 0;
  a.words = pointer<const std::int32_t>(k.get<Address>("words"), "words", any);
  a.positions = pointer<const std::int64_t>(k.get<Address>("positions"), "positions", any);
  a.first = pointer<const std::int64_t>(k.get<Address>("first"), "first", any);
  a.last = pointer<const std::int64_t>(k.get<Address>("last"), "last", any);
  a.alias = pointer<const std::int32_t>(k.get<Address>("alias"), "alias", a.negative > 0);
  a.path_offsets =
      pointer<const std::int64_t>(k.get<Address>("path_offsets"), "path_offsets", tree);
  // Empty where the only word has an empty path.
  a.path_nodes = pointer<const std::int32_t>(k.get<Address>("path_nodes"), "path_nodes", false);
  a.path_codes = pointer<const std::uint8_t>(k.get<Address>("path_codes"), "path_codes", false);
  a.window = k.get<std::int64_t>("window");
  a.mode = mode_of(k.get<std::string>("mode"));
  a.cbow_mean = k.get<bool>("cbow_mean");
  a.shrink_windows = k.get<bool>("shrink_windows");
  a.alpha = k.get<double>("alpha");
  a.min_alpha = k.get<double>("min_alpha");
  a.words_before = k.get<std::int64_t>("words_before");
  a.words_total = k.get<std::int64_t>("words_total");
  if (a.words_total < 1) {
    throw py::value_error("expected words_total >= 1, got " + std::to_string(a.words_total));
  }
  a.seed = k.get<std::uint64_t>("seed");
  a.epoch = k.get<std::uint64_t>("epoch");
  a.loss = pointer<double>(k.get<Address>("loss"), "loss", true);
  a.compute_loss = k.get<bool>("compute_loss");
  a.scratch = pointer<float>(k.get<Address>("scratch"), "scratch", false);
  a.scratch_floats = k.get<std::int64_t>("scratch_floats");
  a.blocks = k.get<std::int64_t>("blocks");
  a.live = pointer<const std::int64_t>(k.get<Address>("live"), "live", false);
  a.place = pointer<const std::int64_t>(k.get<Address>("place"), "place", a.live != nullptr);
  a.rates = pointer<const double>(k.get<Address>("rates"), "rates", a.live != nullptr);
  return a;
}

PairsArguments pairs_of(const Keywords& k) {
  PairsArguments a;
  a.dim = k.get<std::int64_t>("dim");
  a.inputs = table_of(k.get<Address>("inputs"), k.get<std::int64_t>("input_stride"), a.dim,
                      "input_table", true);
  a.outputs = table_of(k.get<Address>("outputs"), k.get<std::int64_t>("output_stride"), a.dim,
                       "output_table", true);
  a.count = k.get<std::int64_t>("count");
  a.negative = k.get<std::int64_t>("negative");
  const bool any = a.count > 0;
  a.centers = pointer<const std::int64_t>(k.get<Address>("centers"), "centers", any);
  a.contexts = pointer<const std::int64_t>(k.get<Address>("contexts"), "contexts", any);
  a.negatives =
      pointer<const std::int64_t>(k.get<Address>("negatives"), "negatives", any && a.negative > 0);
  a.negatives_stride = k.get<std::int64_t>("negatives_stride");
  a.alpha = k.get<double>("alpha");
  a.loss = pointer<double>(k.get<Address>("loss"), "loss", true);
  a.compute_loss = k.get<bool>("compute_loss");
  a.scratch = pointer<float>(k.get<Address>("scratch"), "scratch", false);
  a.scratch_floats = k.get<std::int64_t>("scratch_floats");
  a.blocks = k.get<std::int64_t>("blocks");
  a.rates = pointer<const double>(k.get<Address>("rates"), "rates", false);
  return a;
}

py::dict describe(const Plan& plan) {
  py::dict result;
  result["threads"] = plan.threads;
  result["blocks"] = plan.blocks;
  result["shared_bytes"] = plan.shared_bytes;
  result["scratch_floats"] = plan.scratch_floats;
  return result;
}

Cell cell_of(const std::string& name) {
  if (name == "lstm") return Cell::kLstm;
  if (name == "gru") return Cell::kGru;
  if (name == "gru_reset_before") return Cell::kGruResetBefore;
  if (name == "rnn_tanh") return Cell::kTanh;
  if (name == "rnn_relu") return Cell::kRelu;
  throw py::value_error(
      "expected cell 'lstm', 'gru', 'gru_reset_before', 'rnn_tanh' or 'rnn_relu', got '" + name +
      "'");
}

bool is_fp16(const std::string& dtype) {
  if (dtype != "float16" && dtype != "bfloat16") {
    throw py::value_error("expected dtype 'float16' or 'bfloat16', got '" + dtype + "'");
  }
  return dtype == "float16";
}

RnnGeometry geometry_of(const Keywords& k, bool backward) {
  RnnGeometry g;
  g.cell = cell_of(k.get<std::string>("cell"));
  g.fp16 = is_fp16(k.get<std::string>("dtype"));
  g.backward = backward;
  g.hidden = k.get<std::int64_t>("hidden");
  g.batch = k.get<std::int64_t>("batch");
  g.units = k.get<std::int64_t>("units");
  g.groups = k.get<std::int64_t>("groups");
  g.cluster = k.get<int>("cluster");
  g.split = k.get<int>("split");
  return g;
}

RnnSteps steps_of(const Keywords& k) {
  RnnSteps steps;
  steps.starts = pointer<const std::int64_t>(k.get<Address>("starts"), "starts", false);
  steps.count = k.get<std::int64_t>("steps");
  steps.reverse = k.get<bool>("reverse");
  if (steps.count < 1) {
    throw py::value_error("expected steps >= 1, got " + std::to_string(steps.count));
  }
  return steps;
}

// A tensor whose rows are read and written 16 bytes at a time.
template <class T>
T* aligned(const Keywords& k, const char* name, bool needed = true) {
  const auto address = k.get<Address>(name);
  if (address % 16) throw py::value_error(std::string("expected 16-byte aligned ") + name);
  return pointer<T>(address, name, needed);
}

RnnForward rnn_of(const Keywords& k) {
  RnnForward a;
  a.geometry = geometry_of(k, false);
  a.steps = steps_of(k);
  const bool lstm = a.geometry.cell == Cell::kLstm;
  a.x = aligned<const void>(k, "x");
  a.weight = aligned<const void>(k, "weight");
  a.bias = aligned<const void>(k, "bias", false);
  a.h0 = aligned<const void>(k, "h0");
  a.c0 = aligned<const float>(k, "c0", lstm);
  a.output = aligned<void>(k, "output");
  a.c = aligned<float>(k, "c", false);
  a.gates = aligned<void>(k, "gates", false);
  a.last_h = aligned<void>(k, "last_h");
  a.last_c = aligned<float>(k, "last_c", lstm);
  a.scaled = aligned<void>(k, "scaled", a.geometry.cell == Cell::kGruResetBefore);
  a.counters = aligned<unsigned>(k, "counters");
  return a;
}

RnnBackward rnn_backward_of(const Keywords& k) {
  RnnBackward a;
  a.geometry = geometry_of(k, true);
  a.steps = steps_of(k);
  const bool lstm = a.geometry.cell == Cell::kLstm;
  a.weight = aligned<const void>(k, "weight");
  a.h0 = aligned<const void>(k, "h0");
  a.c0 = aligned<const float>(k, "c0", lstm);
  a.output = aligned<const void>(k, "output");
  a.c = aligned<const float>(k, "c", lstm);
  a.gates = aligned<const void>(k, "gates", vecsmith::cuda::saved_of(a.geometry.cell) > 0);
  a.grad = aligned<const void>(k, "grad", false);
  a.grad_h = aligned<const void>(k, "grad_h", false);
  a.grad_c = aligned<const float>(k, "grad_c", false);
  a.derived = aligned<void>(k, "derived");
  a.dh0 = aligned<float>(k, "dh0");
  a.dc0 = aligned<float>(k, "dc0", lstm);
  a.counters = aligned<unsigned>(k, "counters");
  return a;
}

template <class Arguments>
void run_rnn(const Arguments& a, const Where& where) {
  py::gil_scoped_release release;
  const DeviceGuard guard(where.device);
  vecsmith::cuda::rnn(a, where.stream);
}

template <class Arguments>
py::dict plan_with(const Arguments& a, const Where& where) {
  Plan plan;
  {
    py::gil_scoped_release release;
    const DeviceGuard guard(where.device);
    plan = vecsmith::cuda::plan(a);
  }
  return describe(plan);
}

template <class Arguments>
void train_with(const Arguments& a, const Where& where) {
  py::gil_scoped_release release;
  const DeviceGuard guard(where.device);
  vecsmith::cuda::train(a, where.stream);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of vecsmith. Private: call vecsmith.ops instead.";
  m.def("device_count", &vecsmith::cuda::device_count);
  m.def("plan_skipgram", [](const py::kwargs& given) {
    const Keywords k(given);
    const TextArguments a = text_of(k);
    const Where where = where_of(k);
    k.done();
    return plan_with(a, where);
  });
  m.def("skipgram", [](const py::kwargs& given) {
    const Keywords k(given);
    const TextArguments a = text_of(k);
    const Where where = where_of(k);
    k.done();
    train_with(a, where);
  });
  m.def("plan_skipgram_pairs", [](const py::kwargs& given) {
    const Keywords k(given);
    const PairsArguments a = pairs_of(k);
    const Where where = where_of(k);
    k.done();
    return plan_with(a, where);
  });
  m.def("skipgram_pairs", [](const py::kwargs& given) {
    const Keywords k(given);
    const PairsArguments a = pairs_of(k);
    const Where where = where_of(k);
    k.done();
    train_with(a, where);
  });
  m.def("plan_rnn", [](const py::kwargs& given) {
    const Keywords k(given);
    const RnnGeometry g = geometry_of(k, k.get<bool>("backward"));
    const int device = k.get<int>("device");
    k.done();
    RnnPlan plan;
    {
      py::gil_scoped_release release;
      const DeviceGuard guard(device);
      plan = vecsmith::cuda::plan(g);
    }
    py::dict result;
    result["threads"] = plan.threads;
    result["units"] = plan.units;
    result["blocks"] = plan.blocks;
    result["groups"] = plan.groups;
    result["slots"] = plan.slots;
    result["passes"] = plan.passes;
    result["round"] = plan.round;
    result["shared_bytes"] = plan.shared_bytes;
    result["cluster"] = plan.cluster;
    result["split"] = plan.split;
    result["counters"] = plan.groups * vecsmith::cuda::kCounterStride;
    return result;
  });
  m.def("rnn", [](const py::kwargs& given) {
    const Keywords k(given);
    const RnnForward a = rnn_of(k);
    const Where where = where_of(k);
    k.done();
    run_rnn(a, where);
  });
  m.def("rnn_backward", [](const py::kwargs& given) {
    const Keywords k(given);
    const RnnBackward a = rnn_backward_of(k);
    const Where where = where_of(k);
    k.done();
    run_rnn(a, where);
  });
  m.def(
      "mark_survivors",
      [](Address tokens, Address keep, Address mask, std::int64_t start, std::int64_t count,
         std::int64_t first_position, std::uint64_t seed, std::uint64_t epoch, Address place,
         int device, Address stream) {
        const auto* t = pointer<const std::int32_t>(tokens, "tokens", count > 0);
        const auto* p = pointer<const float>(keep, "keep", count > 0);
        auto* out = pointer<std::uint8_t>(mask, "mask", count > 0);
        const auto* where = pointer<const std::int64_t>(place, "place", false);
        py::gil_scoped_release release;
        const DeviceGuard guard(device);
        vecsmith::cuda::mark_survivors(t, p, out, start, count, first_position, seed, epoch, where,
                                       reinterpret_cast<Stream>(stream));
      },
      py::kw_only(), py::arg("tokens"), py::arg("keep"), py::arg("mask"), py::arg("start"),
      py::arg("count"), py::arg("first_position"), py::arg("seed"), py::arg("epoch"),
      py::arg("place") = 0, py::arg("device"), py::arg("stream"));
}
