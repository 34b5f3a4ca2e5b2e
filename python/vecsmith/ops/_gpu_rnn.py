"""``rnn`` on a GPU: the operators that :mod:`vecsmith.ops._rnn` registers, with its fakes and
derivatives, by the kernels that their ``unit`` names: CUDA's or Triton's."""

from __future__ import annotations

from typing import Any

import torch

from vecsmith.ops import _cuda_rnn, _rnn, _triton_rnn


def _forward(*arguments: Any) -> Any:
    *tensors, cell, reverse, _, unit, save = arguments
    if unit != _rnn.CUDA:
        return _triton_rnn._forward(*arguments)
    forward: Any = _cuda_rnn.forward
    return forward(*tensors, cell, reverse, save)


def _backward(*arguments: Any) -> Any:
    *tensors, cell, reverse, _, unit, needs_input, needs_weights = arguments
    if unit != _rnn.CUDA:
        return _triton_rnn._backward(*arguments)
    backward: Any = _cuda_rnn.backward
    return backward(*tensors, cell, reverse, needs_input, needs_weights)


_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.impl("rnn", _forward, "CUDA")
_LIBRARY.impl("rnn_backward", _backward, "CUDA")
