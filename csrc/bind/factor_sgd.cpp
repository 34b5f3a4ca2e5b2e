// Binding of stochastic gradient descent on factors: reads the addresses, releases the GIL, calls
// the driver.
#include <pybind11/stl.h>

#include <tuple>

#include "bind/module.h"
#include "cpu/factor_sgd_driver.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

// ops/_factor_sgd.py makes these. Addresses of factors, bias and squares (0: none), and their
// strides.
using SideTuple = std::tuple<uint64_t, uint64_t, uint64_t, int64_t, int64_t, int64_t>;
// Addresses of users, items, values, offsets, rows and columns; how many cells and bands.
using BlocksTuple =
    std::tuple<uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, int64_t, int64_t>;

FactorSide side_of(const SideTuple& t) {
  return {pointer<float>(std::get<0>(t)),
          pointer<float>(std::get<1>(t)),
          pointer<float>(std::get<2>(t)),
          std::get<3>(t),
          std::get<4>(t),
          std::get<5>(t)};
}

FactorBlocks fill(const BlocksTuple& t, FactorJob& job) {
  job.users = pointer<const int32_t>(std::get<0>(t));
  job.items = pointer<const int32_t>(std::get<1>(t));
  job.values = pointer<const float>(std::get<2>(t));
  job.cells = std::get<6>(t);
  const FactorBlocks blocks{std::get<7>(t), pointer<const int64_t>(std::get<3>(t)),
                            pointer<const int64_t>(std::get<4>(t)),
                            pointer<const int64_t>(std::get<5>(t))};
  if (blocks.bands < 1 || blocks.offsets[0] != 0 ||
      blocks.offsets[blocks.bands * blocks.bands] != job.cells)
    throw py::value_error("factor_sgd: expected offsets of blocks from 0 to the number of cells");
  return blocks;
}

}  // namespace

void bind_factor_sgd(py::module_& m) {
  // rule: mean, rate, ridge, bias_rate, bias_ridge.
  m.def("factor_sgd",
        [](const SideTuple& users, const SideTuple& items, int64_t dim, const BlocksTuple& cells,
           const std::tuple<float, float, float, float, float>& rule, int threads) {
          FactorJob job{};
          job.user = side_of(users);
          job.item = side_of(items);
          job.dim = dim;
          if (!job.user.squares != !job.item.squares)
            throw py::value_error("factor_sgd: expected squares of both sides, or of none");
          std::tie(job.mean, job.rate, job.ridge, job.bias_rate, job.bias_ridge) = rule;
          const FactorBlocks blocks = fill(cells, job);
          py::gil_scoped_release release;
          return factor_sgd_epoch(job, blocks, threads);
        });
  // liked: addresses of where each row's columns begin and of the columns; 0: not looked up.
  m.def("factor_sgd_bpr",
        [](const SideTuple& users, const SideTuple& items, int64_t dim, const BlocksTuple& cells,
           const std::tuple<float, float>& rule, const std::tuple<uint64_t, uint64_t>& liked,
           uint64_t key, int threads) {
          FactorJob job{};
          job.user = side_of(users);
          job.item = side_of(items);
          job.dim = dim;
          std::tie(job.rate, job.ridge) = rule;
          job.begins = pointer<const int64_t>(std::get<0>(liked));
          job.liked = pointer<const int32_t>(std::get<1>(liked));
          job.key = key;
          const FactorBlocks blocks = fill(cells, job);
          FactorPairsResult result;
          {
            py::gil_scoped_release release;
            result = factor_sgd_bpr_epoch(job, blocks, threads);
          }
          return std::make_tuple(result.loss, result.correct, result.trained);
        });
  // from, to: addresses of users, items and values; to's offsets; bands: addresses of each row's
  // and each column's band, and their number.
  m.def("factor_sgd_layout",
        [](const std::tuple<uint64_t, uint64_t, uint64_t>& from, int64_t cells,
           const std::tuple<uint64_t, uint64_t, int64_t>& bands, uint64_t key,
           const std::tuple<uint64_t, uint64_t, uint64_t, uint64_t>& to, int threads) {
          FactorLayout layout{};
          layout.cells = cells;
          layout.bands = std::get<2>(bands);
          layout.users = pointer<const int32_t>(std::get<0>(from));
          layout.items = pointer<const int32_t>(std::get<1>(from));
          layout.values = pointer<const float>(std::get<2>(from));
          layout.user_band = pointer<const int32_t>(std::get<0>(bands));
          layout.item_band = pointer<const int32_t>(std::get<1>(bands));
          layout.key = key;
          layout.new_users = pointer<int32_t>(std::get<0>(to));
          layout.new_items = pointer<int32_t>(std::get<1>(to));
          layout.new_values = pointer<float>(std::get<2>(to));
          layout.offsets = pointer<int64_t>(std::get<3>(to));
          py::gil_scoped_release release;
          factor_sgd_layout(layout, threads);
        });
}

}  // namespace vecsmith
