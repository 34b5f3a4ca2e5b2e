#include "bind/module.h"

namespace vecsmith {

void bind_word2vec_format(pybind11::module_&) {}

}  // namespace vecsmith
