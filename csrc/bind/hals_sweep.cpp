// Binding of a sweep of hierarchical alternating least squares: reads the addresses, releases the
// GIL, calls the driver.
#include <pybind11/stl.h>

#include <tuple>

#include "bind/module.h"
#include "cpu/hals_sweep_driver.h"

namespace py = pybind11;

namespace vecsmith {

void bind_hals_sweep(py::module_& m) {
  // ops/_hals_sweep.py makes these: an address, and strides of rows and of components.
  using FactorTuple = std::tuple<uint64_t, int64_t, int64_t>;
  m.def("hals_sweep", [](const FactorTuple& factor, const FactorTuple& numerator, bool wide,
                         int64_t rows, int64_t dim, uint64_t gram, double l1, int threads) {
    if (rows < 0 || dim < 0) throw py::value_error("hals_sweep: expected sizes >= 0");
    HalsJob job{};
    job.wide = wide;
    job.dim = dim;
    job.factor = pointer<void>(std::get<0>(factor));
    std::tie(std::ignore, job.factor_row, job.factor_step) = factor;
    job.numerator = pointer<const void>(std::get<0>(numerator));
    std::tie(std::ignore, job.numerator_row, job.numerator_step) = numerator;
    job.l1 = l1;
    py::gil_scoped_release release;
    return hals_sweep_rows(job, rows, pointer<const void>(gram), threads);
  });
}

}  // namespace vecsmith
