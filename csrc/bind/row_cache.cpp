// Bindings of the row file and of the cache over it: check, release the GIL, call. Files are named
// and errors explained in vecsmith/io/row_file.py.
#include "io/row_cache.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "bind/module.h"
#include "io/row_file.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

using io::Element;
using io::Fill;
using io::RowCache;
using io::RowFile;
using io::RowLayout;
using io::RowPart;
using Ids = py::array_t<int64_t, py::array::c_style>;
using Addresses = std::vector<uint64_t>;
using States = std::vector<std::pair<int64_t, float>>;

std::vector<io::RowState> states_from(const States& states) {
  std::vector<io::RowState> out;
  for (const auto& [floats, value] : states) out.push_back({floats, value});
  return out;
}

RowLayout layout_from(int64_t dim, int element, int fill, double a, double b, uint64_t seed,
                      int64_t zero_row, const States& states) {
  RowLayout layout;
  layout.dim = dim;
  layout.element = static_cast<Element>(element);
  layout.fill = static_cast<Fill>(fill);
  layout.a = a;
  layout.b = b;
  layout.seed = seed;
  layout.zero_row = zero_row;
  layout.states = states_from(states);
  return layout;
}

py::dict layout_of(const RowFile& file) {
  const RowLayout& layout = file.layout();
  States states;
  for (const io::RowState& state : layout.states) states.emplace_back(state.floats, state.value);
  py::dict out;
  out["dim"] = layout.dim;
  out["element"] = static_cast<int>(layout.element);
  out["fill"] = static_cast<int>(layout.fill);
  out["a"] = layout.a;
  out["b"] = layout.b;
  out["seed"] = layout.seed;
  out["zero_row"] = layout.zero_row;
  out["states"] = states;
  return out;
}

int checked_threads(int threads) {
  if (threads < 1) throw py::value_error("expected num_threads >= 1");
  return threads;
}

void check_open(const RowFile& file) {
  if (file.closed()) throw py::value_error("expected an open table, got a closed one");
  file.check_process();
}

// The parts of a row, from the first on: the addresses of their tables.
std::vector<RowPart> parts_from(const RowFile& file, const Addresses& addresses) {
  check_open(file);
  const auto& bytes = file.parts();
  if (addresses.empty() || addresses.size() > bytes.size())
    throw py::value_error("expected 1.." + std::to_string(bytes.size()) + " parts, got " +
                          std::to_string(addresses.size()));
  std::vector<RowPart> parts;
  for (size_t p = 0; p < addresses.size(); ++p)
    parts.push_back({reinterpret_cast<char*>(static_cast<uintptr_t>(addresses[p])), bytes[p]});
  return parts;
}

void check_ids(const RowFile& file, const Ids& ids, bool distinct) {
  check_open(file);
  const int64_t* values = ids.data();
  for (py::ssize_t i = 0; i < ids.size(); ++i)
    if (values[i] < 0 || values[i] >= file.rows())
      throw py::index_error("expected indices in 0.." + std::to_string(file.rows() - 1) + "; got " +
                            std::to_string(values[i]) + " at position " + std::to_string(i));
  if (!distinct || std::is_sorted(values, values + ids.size(), std::less_equal<int64_t>())) return;
  std::vector<int64_t> sorted(values, values + ids.size());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end())
    throw py::value_error("expected distinct indices; got " + std::to_string(*twice) + " twice");
}

void read_rows(const RowFile& file, const Ids& ids, const Addresses& addresses, int threads) {
  check_ids(file, ids, false);
  const std::vector<RowPart> parts = parts_from(file, addresses);
  checked_threads(threads);
  py::gil_scoped_release release;
  file.read(ids.data(), ids.size(), parts, threads);
}

void write_rows(RowFile& file, const Ids& ids, const Addresses& addresses, int threads) {
  if (file.read_only()) throw py::value_error("expected a file open for writing");
  check_ids(file, ids, true);
  const std::vector<RowPart> parts = parts_from(file, addresses);
  checked_threads(threads);
  py::gil_scoped_release release;
  file.write(ids.data(), ids.size(), parts, threads);
}

// What a batch is: `count` indices at an address, int32 or int64.
struct Batch {
  uint64_t address;
  int64_t count;
  bool wide;
};

template <class Call>
auto with_ids(const Batch& batch, const Call& call) {
  const auto at = static_cast<uintptr_t>(batch.address);
  return batch.wide ? call(reinterpret_cast<const int64_t*>(at))
                    : call(reinterpret_cast<const int32_t*>(at));
}

RowCache::Use use_from(int use) {
  if (use < 0 || use > 2) throw py::value_error("expected a use of 0..2");
  return static_cast<RowCache::Use>(use);
}

void check_cache(const RowCache& cache, const RowFile& file) {
  if (cache.rows() != file.rows())
    throw py::value_error("expected a cache of " + std::to_string(file.rows()) + " rows, got " +
                          std::to_string(cache.rows()));
}

uint64_t begin(RowCache& cache, uint64_t ids, int64_t count, bool wide, uint64_t out, int use,
               RowFile& file, const Addresses& addresses, int threads) {
  check_cache(cache, file);
  const std::vector<RowPart> parts = parts_from(file, addresses);
  const RowCache::Use kind = use_from(use);
  if (kind == RowCache::Use::update && file.read_only())
    throw py::value_error("expected a file open for writing");
  checked_threads(threads);
  auto* slots = reinterpret_cast<int32_t*>(static_cast<uintptr_t>(out));
  py::gil_scoped_release release;
  return with_ids({ids, count, wide}, [&](const auto* values) {
    return cache.begin(values, count, slots, kind, file, parts, threads);
  });
}

py::tuple plan(RowCache& cache, uint64_t ids, int64_t count, bool wide, int use, int threads) {
  const RowCache::Use kind = use_from(use);
  checked_threads(threads);
  uint64_t ticket = 0;
  std::vector<int64_t> changed, loaded;
  std::vector<int32_t> from, to;
  {
    py::gil_scoped_release release;
    ticket = with_ids({ids, count, wide},
                      [&](const auto* values) { return cache.plan(values, count, kind, threads); });
    for (const io::SlotMove& move : cache.moves()) {
      if (move.changed) {
        changed.push_back(move.evicted);
        from.push_back(move.slot);
      }
      loaded.push_back(move.loaded);
      to.push_back(move.slot);
    }
  }
  const auto wide_array = [](const std::vector<int64_t>& values) {
    return Ids(static_cast<py::ssize_t>(values.size()), values.data());
  };
  const auto array = [](const std::vector<int32_t>& values) {
    return py::array_t<int32_t>(static_cast<py::ssize_t>(values.size()), values.data());
  };
  return py::make_tuple(ticket, wide_array(changed), array(from), wide_array(loaded), array(to));
}

void finish(RowCache& cache, uint64_t ticket, uint64_t ids, int64_t count, bool wide,
            uint64_t out) {
  auto* slots = reinterpret_cast<int32_t*>(static_cast<uintptr_t>(out));
  py::gil_scoped_release release;
  with_ids({ids, count, wide},
           [&](const auto* values) { cache.finish(ticket, values, count, slots); });
}

py::array_t<int32_t> find(const RowCache& cache, const Ids& ids) {
  py::array_t<int32_t> out(ids.size());
  int32_t* slots = out.mutable_data();
  py::gil_scoped_release release;
  cache.find(ids.data(), ids.size(), slots);
  return out;
}

py::tuple changed(const RowCache& cache) {
  std::vector<int64_t> ids;
  std::vector<int32_t> slots;
  {
    py::gil_scoped_release release;
    cache.changed(&ids, &slots);
  }
  return py::make_tuple(Ids(static_cast<py::ssize_t>(ids.size()), ids.data()),
                        py::array_t<int32_t>(static_cast<py::ssize_t>(slots.size()), slots.data()));
}

py::dict statistics(const RowCache& cache) {
  const io::CacheStatistics s = cache.statistics();
  py::dict out;
  out["batches"] = s.batches;
  out["lookups"] = s.lookups;
  out["hits"] = s.hits;
  out["loads"] = s.loads;
  out["evictions"] = s.evictions;
  out["write_backs"] = s.write_backs;
  out["prefetched"] = s.prefetched;
  return out;
}

void translate(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::system_error& e) {
    if (e.code().category() != std::generic_category()) throw;
    errno = e.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
  }
}

}  // namespace

void bind_row_cache(py::module_& m) {
  py::register_local_exception_translator(&translate);
  py::register_local_exception<io::RowFileError>(m, "RowFileError", PyExc_ValueError);
  py::register_local_exception<io::CacheFullError>(m, "CacheFullError", PyExc_ValueError);
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  py::class_<RowFile>(m, "RowFile")
      .def_static(
          "in_memory",
          [](int64_t rows, int64_t dim, int element, int fill, double a, double b, uint64_t seed,
             int64_t zero_row, const States& states) {
            return RowFile::in_memory(layout_from(dim, element, fill, a, b, seed, zero_row, states),
                                      rows);
          },
          py::kw_only(), py::arg("rows"), py::arg("dim"), py::arg("element"), py::arg("fill"),
          py::arg("a"), py::arg("b"), py::arg("seed"), py::arg("zero_row"), py::arg("states"))
      .def_static(
          "create",
          [](const std::string& path, const py::bytes& label, int64_t rows, int64_t dim,
             int element, int fill, double a, double b, uint64_t seed, int64_t zero_row,
             const States& states) {
            const RowLayout layout = layout_from(dim, element, fill, a, b, seed, zero_row, states);
            const std::string text = label;
            py::gil_scoped_release release;
            return RowFile::create(path, layout, rows, text);
          },
          py::arg("path"), py::kw_only(), py::arg("label"), py::arg("rows"), py::arg("dim"),
          py::arg("element"), py::arg("fill"), py::arg("a"), py::arg("b"), py::arg("seed"),
          py::arg("zero_row"), py::arg("states"))
      .def_static("open", &RowFile::open, py::arg("path"), py::kw_only(), py::arg("read_only"),
                  nogil)
      .def(
          "with_states",
          [](const RowFile& file, const States& states, const py::bytes& label) {
            const auto more = states_from(states);
            const std::string text = label;
            py::gil_scoped_release release;
            return file.with_states(more, text);
          },
          py::arg("states"), py::kw_only(), py::arg("label"))
      .def("layout", &layout_of)
      .def_property_readonly("rows", &RowFile::rows)
      .def_property_readonly("label", [](const RowFile& f) { return py::bytes(f.label()); })
      .def_property_readonly("metadata", [](const RowFile& f) { return py::bytes(f.metadata()); })
      .def_property_readonly("flushes", &RowFile::flushes)
      .def_property_readonly("read_only", &RowFile::read_only)
      .def_property_readonly("in_file", &RowFile::in_file)
      .def_property_readonly("closed", &RowFile::closed)
      .def_property_readonly("forked", &RowFile::forked)
      .def_property_readonly("size_in_bytes", &RowFile::size_in_bytes)
      .def("read", &read_rows, py::arg("indices"), py::arg("parts"), py::kw_only(),
           py::arg("threads") = 1)
      .def("write", &write_rows, py::arg("indices"), py::arg("parts"), py::kw_only(),
           py::arg("threads") = 1)
      .def(
          "will_need",
          [](const RowFile& file, const Ids& ids) {
            check_ids(file, ids, false);
            py::gil_scoped_release release;
            file.will_need(ids.data(), ids.size());
          },
          py::arg("indices"))
      .def(
          "flush",
          [](RowFile& file, const py::bytes& metadata) {
            const std::string text = metadata;
            py::gil_scoped_release release;
            file.flush(text);
          },
          py::arg("metadata"))
      .def("close", &RowFile::close, nogil);
  py::class_<RowCache>(m, "RowCache")
      .def(py::init<int64_t, int64_t>(), py::arg("rows"), py::arg("slots"))
      .def_property_readonly("rows", &RowCache::rows)
      .def_property_readonly("slots", &RowCache::slots)
      .def_property_readonly("used", &RowCache::used)
      .def("begin", &begin)
      .def("plan", &plan)
      .def("finish", &finish)
      .def("cancel", &RowCache::cancel, nogil)
      .def("release", &RowCache::release, nogil)
      .def("discard", &RowCache::discard, nogil)
      .def("find", &find)
      .def("changed", &changed)
      .def("cleaned",
           [](RowCache& cache, const Ids& ids) {
             cache.cleaned(std::vector<int64_t>(ids.data(), ids.data() + ids.size()));
           })
      .def("touch_changed",
           [](RowCache& cache, const Ids& ids) { cache.touch_changed(ids.data(), ids.size()); })
      .def("write_changed",
           [](RowCache& cache, RowFile& file, const Addresses& addresses, int threads) {
             check_cache(cache, file);
             const std::vector<RowPart> parts = parts_from(file, addresses);
             checked_threads(threads);
             py::gil_scoped_release release;
             cache.write_changed(file, parts, threads);
           })
      .def("clear", &RowCache::clear, nogil)
      .def("statistics", &statistics)
      .def("reset_statistics", &RowCache::reset_statistics)
      .def("start_at", &RowCache::start_at)
      .def_property_readonly_static("most_batches",
                                    [](const py::object&) { return RowCache::kMostBatches; });
}

}  // namespace vecsmith
