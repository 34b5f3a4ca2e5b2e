"""``rnn`` on a GPU: the operators that :mod:`vecsmith.ops._rnn` registers, with its fakes and
derivatives, by the kernels that their ``unit`` names: CUDA's or Triton's."""

from __future__ import annotations

import torch

from vecsmith.ops import _cuda_rnn, _rnn, _triton_rnn


def _forward(*arguments):
    *tensors, cell, reverse, _, unit, save = arguments
    if unit == _rnn.CUDA:
        return _cuda_rnn.forward(*tensors, cell, reverse, save)
    return _triton_rnn._forward(*arguments)


def _backward(*arguments):
    *tensors, cell, reverse, _, unit, needs_input, needs_weights = arguments
    if unit == _rnn.CUDA:
        return _cuda_rnn.backward(*tensors, cell, reverse, needs_input, needs_weights)
    return _triton_rnn._backward(*arguments)


_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.impl("rnn", _forward, "CUDA")
_LIBRARY.impl("rnn_backward", _backward, "CUDA")
