#include "bind/module.h"

namespace vecsmith {

void bind_skipgram(pybind11::module_&) {}

}  // namespace vecsmith
