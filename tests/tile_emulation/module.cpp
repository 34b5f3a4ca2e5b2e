// The operator rnn alone, as a module: its kernels are compiled with the emulated tiles.
#include "bind/module.h"

PYBIND11_MODULE(_native, m) { vecsmith::bind_rnn(m); }
