// The operators that multiply by tiles, as a module: their kernels are compiled with emulated ones.
#include "bind/module.h"

PYBIND11_MODULE(_native, m) {
  vecsmith::bind_rnn(m);
  vecsmith::bind_cosine_topk(m);
}
