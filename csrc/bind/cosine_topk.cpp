// Binding of the nearest rows: reads the addresses, releases the GIL, calls the driver.
#include <pybind11/stl.h>

#include <tuple>

#include "bind/module.h"
#include "cpu/cosine_topk_driver.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

// ops/_cosine_topk.py makes these. Rows: address, type, count, dim, row stride in elements.
using RowsTuple = std::tuple<uint64_t, int, int64_t, int64_t, int64_t>;
// Rows, metric, and addresses of banned rows, panels and center (0: none), unit.
using VocabularyTuple = std::tuple<RowsTuple, int, uint64_t, uint64_t, uint64_t, int>;

Rows rows_of(const RowsTuple& t) {
  const auto type = static_cast<ElementType>(std::get<1>(t));
  if (type < kFloat32 || type > kFloat64 || type == kQuantized8)
    throw py::value_error("cosine_topk: unknown type of rows");
  return {pointer<const char>(std::get<0>(t)), type, std::get<3>(t),
          std::get<4>(t) * element_size(type)};
}

TopkUnit unit_of(int unit) {
  if (unit < kFloats || unit > kBytes) throw py::value_error("cosine_topk: unknown unit");
  return static_cast<TopkUnit>(unit);
}

TopkVocabulary vocabulary_of(const VocabularyTuple& t) {
  const int metric = std::get<1>(t);
  if (metric < kCosine || metric > kL2) throw py::value_error("cosine_topk: unknown metric");
  if (unit_of(std::get<5>(t)) == kBytes && std::get<3>(std::get<0>(t)) > kMostBytes)
    throw py::value_error("cosine_topk: sums of so many bytes do not fit 32 bits");
  return {rows_of(std::get<0>(t)),
          std::get<2>(std::get<0>(t)),
          static_cast<TopkMetric>(metric),
          pointer<const uint8_t>(std::get<2>(t)),
          pointer<const char>(std::get<3>(t)),
          pointer<const float>(std::get<4>(t)),
          unit_of(std::get<5>(t))};
}

}  // namespace

void bind_cosine_topk(py::module_& m) {
  // masks: addresses of exclude_offsets and of excluded rows; out: of values, whether they are
  // doubles, of indices.
  m.def("cosine_topk", [](const VocabularyTuple& given, const RowsTuple& queries, int64_t k,
                          const std::tuple<uint64_t, uint64_t>& masks,
                          const std::tuple<uint64_t, bool, uint64_t>& out, int threads) {
    const TopkVocabulary vocabulary = vocabulary_of(given);
    TopkSearch search{};
    search.queries = rows_of(queries);
    search.count = std::get<2>(queries);
    search.k = k;
    search.exclude_offsets = pointer<const int64_t>(std::get<0>(masks));
    search.excluded = pointer<const int64_t>(std::get<1>(masks));
    search.values = pointer<void>(std::get<0>(out));
    search.wide = std::get<1>(out);
    search.indices = pointer<int64_t>(std::get<2>(out));
    py::gil_scoped_release release;
    topk_search(vocabulary, search, threads);
  });
  // What a panel is: (rows, words, bytes).
  m.def("cosine_topk_layout", [](int unit, int64_t dim) {
    const TopkLayout layout = VECSMITH_PICK_KERNEL(topk_layout)(unit_of(unit), dim);
    return std::tuple(layout.rows, layout.words, layout.panel_bytes());
  });
  m.def("cosine_topk_has_unit",
        [](int unit) { return VECSMITH_PICK_KERNEL(topk_has_unit)(unit_of(unit)); });
  // The fastest unit for these rows; writes the center, of (dim + 127) / 64 * 64 floats.
  m.def("cosine_topk_choose", [](const VocabularyTuple& given) {
    const TopkVocabulary vocabulary = vocabulary_of(given);
    py::gil_scoped_release release;
    return static_cast<int>(topk_choose_unit(vocabulary, const_cast<float*>(vocabulary.center)));
  });
  // Packs the rows that ids names (0: all) into the vocabulary's panels.
  m.def("cosine_topk_pack",
        [](const VocabularyTuple& given, uint64_t ids, int64_t ids_count, int threads) {
          const TopkVocabulary vocabulary = vocabulary_of(given);
          py::gil_scoped_release release;
          topk_pack_rows(vocabulary, const_cast<char*>(vocabulary.panels),
                         pointer<const int64_t>(ids), ids_count, threads);
        });
}

}  // namespace vecsmith
