// One bind_<room> function per file in csrc/bind; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace vecsmith {

// What lies at an address that Python names.
template <class T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

void bind_skipgram(pybind11::module_& m);
void bind_embedding_bag(pybind11::module_& m);
void bind_rnn(pybind11::module_& m);
void bind_cosine_topk(pybind11::module_& m);
void bind_als_solve(pybind11::module_& m);
void bind_factor_sgd(pybind11::module_& m);
void bind_hals_sweep(pybind11::module_& m);
void bind_spmm(pybind11::module_& m);
void bind_corpus(pybind11::module_& m);
void bind_word2vec_format(pybind11::module_& m);
void bind_row_cache(pybind11::module_& m);

}  // namespace vecsmith
