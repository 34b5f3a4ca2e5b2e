// The _native module: what every operator's binding registers into, and the ISA level.
#include "bind/module.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/isa.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  using namespace vecsmith;
  m.doc() = "CPU kernels and readers of vecsmith. Private: call vecsmith.ops instead.";
  m.attr("version") = VECSMITH_VERSION;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("isa_level", [] { return std::string(isa_name(isa_level())); });
  m.def("set_isa_level", [](const std::string& name) { set_isa_level(name.c_str()); });
  m.def("isa_levels", [] {
    std::vector<std::string> names;
    for (int level = 0; level < kIsaLevels; ++level)
      if (isa_supported(static_cast<Isa>(level)))
        names.push_back(isa_name(static_cast<Isa>(level)));
    return names;
  });
  isa_level();  // A bad VECSMITH_ISA fails here, at import, by name.
  bind_skipgram(m);
  bind_embedding_bag(m);
  bind_rnn(m);
  bind_cosine_topk(m);
  bind_als_solve(m);
  bind_factor_sgd(m);
  bind_hals_sweep(m);
  bind_spmm(m);
  bind_corpus(m);
  bind_word2vec_format(m);
  bind_row_cache(m);
}
