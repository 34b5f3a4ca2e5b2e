// Binding of a half-step of alternating least squares: reads the addresses, releases the GIL, calls
// the driver.
#include <pybind11/stl.h>

#include <tuple>

#include "bind/module.h"
#include "cpu/als_solve_driver.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

// ops/_als_solve.py makes these. Addresses of begins, indices, values and weights (0: none),
// whether begins and indices are int64, the type of the values, the number of rows.
using MatrixTuple = std::tuple<uint64_t, uint64_t, uint64_t, uint64_t, bool, bool, int, int64_t>;
// Address, stride, dim.
using TableTuple = std::tuple<uint64_t, int64_t, int64_t>;

AlsTable table_of(const TableTuple& t) {
  if (std::get<2>(t) < 1 || std::get<1>(t) < std::get<2>(t))
    throw py::value_error("als_solve: expected rows of at least one factor, apart");
  return {pointer<const float>(std::get<0>(t)), std::get<1>(t), std::get<2>(t)};
}

}  // namespace

void bind_als_solve(py::module_& m) {
  // rule: implicit, alpha, method, steps, block, exact_below; ridge: the number, addresses of one
  // for each row and of the spectrum (0: none).
  m.def("als_solve", [](const MatrixTuple& cells, const TableTuple& table,
                        const std::tuple<bool, float, int, int64_t, int64_t, int64_t>& rule,
                        const std::tuple<double, uint64_t, uint64_t>& ridge, uint64_t out,
                        int64_t out_stride, int threads) {
    AlsMatrix matrix{};
    matrix.begins = pointer<const void>(std::get<0>(cells));
    matrix.indices = pointer<const void>(std::get<1>(cells));
    matrix.values = pointer<const void>(std::get<2>(cells));
    matrix.weights = pointer<const float>(std::get<3>(cells));
    matrix.wide_begins = std::get<4>(cells);
    matrix.wide_indices = std::get<5>(cells);
    if (std::get<6>(cells) < kAlsFloat || std::get<6>(cells) > kAlsUint8)
      throw py::value_error("als_solve: unknown type of values");
    matrix.type = static_cast<AlsValue>(std::get<6>(cells));
    matrix.rows = std::get<7>(cells);
    AlsJob job{};
    job.table = table_of(table);
    job.implicit = std::get<0>(rule);
    job.alpha = std::get<1>(rule);
    if (std::get<2>(rule) < kAlsExact || std::get<2>(rule) > kAlsBlocks)
      throw py::value_error("als_solve: unknown method");
    job.method = static_cast<AlsMethod>(std::get<2>(rule));
    job.steps = std::get<3>(rule);
    job.block = std::get<4>(rule);
    job.exact_below = std::get<5>(rule);
    job.ridge = std::get<0>(ridge);
    job.ridges = pointer<const double>(std::get<1>(ridge));
    job.spectrum = pointer<const double>(std::get<2>(ridge));
    job.out = pointer<float>(out);
    job.out_stride = out_stride;
    py::gil_scoped_release release;
    return als_solve_rows(matrix, job, threads);
  });
  m.def("als_change_basis", [](const TableTuple& table, int64_t count, uint64_t matrix, int shape,
                               uint64_t out, int64_t out_stride, int threads) {
    const AlsTable rows = table_of(table);
    if (shape < kAlsFull || shape > kAlsLower) throw py::value_error("als_solve: unknown shape");
    py::gil_scoped_release release;
    als_change_basis(rows, count, pointer<const float>(matrix), static_cast<AlsShape>(shape),
                     pointer<float>(out), out_stride, threads);
  });
  m.def("als_gram", [](const TableTuple& table, int64_t count, uint64_t gram, int threads) {
    const AlsTable factors = table_of(table);
    py::gil_scoped_release release;
    als_gram_matrix(factors, count, pointer<double>(gram), threads);
  });
}

}  // namespace vecsmith
