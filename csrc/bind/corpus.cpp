#include "bind/module.h"

namespace vecsmith {

void bind_corpus(pybind11::module_&) {}

}  // namespace vecsmith
