// Binding of the product of a sparse and a dense matrix: reads the addresses, releases the GIL,
// calls the driver.
#include <pybind11/stl.h>

#include <tuple>

#include "bind/module.h"
#include "cpu/spmm_driver.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

// ops/_spmm.py makes these. Addresses of begins, indices and values, whether begins and indices are
// int64, rows, columns.
using MatrixTuple = std::tuple<uint64_t, uint64_t, uint64_t, bool, bool, int64_t, int64_t>;
// Address, strides of rows and columns, in numbers.
using DenseTuple = std::tuple<uint64_t, int64_t, int64_t>;

}  // namespace

void bind_spmm(py::module_& m) {
  m.def("spmm", [](const MatrixTuple& cells, bool wide, const DenseTuple& dense, uint64_t out,
                   int64_t out_stride, int64_t width, int threads) {
    SpmmMatrix matrix{};
    matrix.begins = pointer<const void>(std::get<0>(cells));
    matrix.indices = pointer<const void>(std::get<1>(cells));
    matrix.values = pointer<const void>(std::get<2>(cells));
    std::tie(std::ignore, std::ignore, std::ignore, matrix.wide_begins, matrix.wide_indices,
             matrix.rows, matrix.columns) = cells;
    SpmmDense job{};
    job.wide = wide;
    job.right = pointer<const void>(std::get<0>(dense));
    job.right_stride = std::get<1>(dense);
    job.right_step = std::get<2>(dense);
    job.out = pointer<void>(out);
    job.out_stride = out_stride;
    job.width = width;
    if (out_stride < width) throw py::value_error("spmm: expected rows of out apart");
    py::gil_scoped_release release;
    spmm_product(matrix, job, threads);
  });
}

}  // namespace vecsmith
