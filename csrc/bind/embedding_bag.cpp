// Binding of the embedding tables: reads the jobs, releases the GIL, calls the drivers.
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "bind/module.h"
#include "cpu/embedding_bag_driver.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

// ops/embedding_bag.py makes these: bags, a table (address, type, dim, row stride in elements), a
// gradient (address, type, dim).
using BagsTuple = std::tuple<uint64_t, bool, int64_t, uint64_t, int64_t, int64_t, int64_t, uint64_t,
                             int, int, int64_t, int64_t>;
using TableTuple = std::tuple<uint64_t, int, int64_t, int64_t>;
using GradTuple = std::tuple<uint64_t, int, int64_t>;

Bags bags_of(const BagsTuple& t) {
  Bags bags;
  bags.indices = pointer<const void>(std::get<0>(t));
  bags.wide = std::get<1>(t);
  bags.count = std::get<2>(t);
  bags.offsets = pointer<const void>(std::get<3>(t));
  bags.offset_count = std::get<4>(t);
  bags.bags = std::get<5>(t);
  bags.length = std::get<6>(t);
  bags.weights = pointer<const void>(std::get<7>(t));
  bags.weight_type = static_cast<ElementType>(std::get<8>(t));
  bags.mode = static_cast<BagMode>(std::get<9>(t));
  bags.padding = std::get<10>(t);
  bags.rows = std::get<11>(t);
  return bags;
}

Rows table_of(const TableTuple& t) {
  const auto type = static_cast<ElementType>(std::get<1>(t));
  return {pointer<const char>(std::get<0>(t)), type, std::get<2>(t),
          std::get<3>(t) * element_size(type)};
}

Rows grad_of(const GradTuple& t) {
  const auto type = static_cast<ElementType>(std::get<1>(t));
  return {pointer<const char>(std::get<0>(t)), type, std::get<2>(t),
          std::get<2>(t) * element_size(type)};
}

Rule rule_of(const std::string& name, const std::vector<double>& numbers) {
  if (numbers.size() != 9) throw py::value_error("embedding_bag_update: expected 9 numbers");
  const bool momentum = numbers[4] != 0;
  const auto number = [&](size_t i) { return static_cast<float>(numbers[i]); };
  Rule rule{};
  if (name == "sgd")
    rule.kind = momentum ? kMomentum : kSgd;
  else if (name == "adagrad")
    rule.kind = kAdagrad;
  else if (name == "rowwise_adagrad")
    rule.kind = kRowwiseAdagrad;
  else if (name == "adam")
    rule.kind = kAdam;
  else if (name == "rowwise_adam")
    rule.kind = kRowwiseAdam;
  else
    throw py::value_error("embedding_bag_update: unknown rule " + name);
  rule.rate = number(0);
  rule.eps = number(1);
  rule.blend1 = number(2);
  rule.blend2 = number(3);
  rule.momentum = number(4);
  rule.fresh = number(5);
  rule.nesterov = numbers[6] != 0;
  rule.decay = number(7);
  rule.maximize = numbers[8] != 0;
  return rule;
}

}  // namespace

void bind_embedding_bag(py::module_& m) {
  m.def("embedding_bag",
        [](const std::vector<std::tuple<BagsTuple, TableTuple, uint64_t, uint64_t>>& given,
           int threads) {
          std::vector<BagForward> jobs;
          for (const auto& [bags, table, out, positions] : given)
            jobs.push_back(
                {bags_of(bags), table_of(table), pointer<void>(out), pointer<int64_t>(positions)});
          py::gil_scoped_release release;
          for (const BagForward& job : jobs) check_bags(job.bags);
          embedding_bag_forward(jobs.data(), static_cast<int64_t>(jobs.size()), threads);
        });
  m.def("embedding_bag_update",
        [](const BagsTuple& bags, const GradTuple& grad, uint64_t positions,
           const TableTuple& table, const std::vector<uint64_t>& state, const std::string& name,
           const std::vector<double>& numbers, int threads) {
          const Rule rule = rule_of(name, numbers);
          float* states[2] = {nullptr, nullptr};
          for (size_t i = 0; i < state.size() && i < 2; ++i) states[i] = pointer<float>(state[i]);
          py::gil_scoped_release release;
          embedding_bag_step(bags_of(bags), grad_of(grad), pointer<const int64_t>(positions),
                             table_of(table), states, rule, true, threads);
        });
  m.def("embedding_bag_gradient",
        [](const BagsTuple& bags, const GradTuple& source, uint64_t positions,
           const py::function& allocate, int threads) {
          const Rows grad = grad_of(source);
          std::unique_ptr<BagSegments> segments;
          {
            py::gil_scoped_release release;
            segments = std::make_unique<BagSegments>(bags_of(bags), grad,
                                                     pointer<const int64_t>(positions), threads);
          }
          // (what is returned, address of the rows, address of the values)
          const py::tuple room = allocate(segments->count());
          const Rows values{pointer<const char>(room[2].cast<uint64_t>()), grad.type, grad.dim,
                            grad.stride};
          auto* rows = pointer<int64_t>(room[1].cast<uint64_t>());
          {
            py::gil_scoped_release release;
            segments->store(values, rows);
            segments.reset();
          }
          return py::object(room[0]);
        });
  m.def("embedding_bag_dense_gradient", [](const BagsTuple& bags, const GradTuple& source,
                                           uint64_t positions, uint64_t table, int threads) {
    const Rows grad = grad_of(source);
    Rule rule{};
    rule.kind = kScatter;
    py::gil_scoped_release release;
    const Rows rows{pointer<const char>(table), grad.type, grad.dim, grad.stride};
    embedding_bag_step(bags_of(bags), grad, pointer<const int64_t>(positions), rows, nullptr, rule,
                       false, threads);
  });
  m.def("per_sample_weights_gradient",
        [](const BagsTuple& bags, const GradTuple& grad, const TableTuple& table,
           std::tuple<uint64_t, int> out, int threads) {
          py::gil_scoped_release release;
          per_sample_weights_gradient(bags_of(bags), grad_of(grad), table_of(table),
                                      pointer<void>(std::get<0>(out)),
                                      static_cast<ElementType>(std::get<1>(out)), threads);
        });
}

}  // namespace vecsmith
