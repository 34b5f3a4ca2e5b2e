"""From the recurrent layers and cells to the operator ``rnn``: precision, states, and who
computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith import ops


class Precision:
    """What autocast makes of the tensors of one call: all are cast to its dtype, but for float64,
    as for torch's own products of matrices."""

    def __init__(self, device: torch.device) -> None:
        self.device = device.type
        self.dtype: torch.dtype | None = None
        if torch.amp.is_autocast_available(self.device) and torch.is_autocast_enabled(self.device):
            self.dtype = torch.get_autocast_dtype(self.device)

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.dtype is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
            return tensor
        return tensor.to(self.dtype)

    def rnn(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """The operator, for tensors that have been cast."""
        if self.dtype is None:
            return ops.rnn(*arguments, **options)
        with torch.autocast(self.device, enabled=False):
            return ops.rnn(*arguments, **options)


def check_input(name: str, input: Any, features: int, weight: Tensor, precision: Precision) -> None:
    """The input fits the weights. The classes of the errors are those of torch's layers."""
    if precision.dtype is None and input.dtype != weight.dtype:
        raise ValueError(
            f"{name}: expected input of {weight.dtype}, as the weights; got {input.dtype}. Convert "
            f"the input, input.to({weight.dtype}), or the model, model.to({input.dtype})"
        )
    if input.shape[-1] != features:
        raise RuntimeError(
            f"{name}: expected input of input_size {features} along its last dimension; "
            f"got {list(input.shape)}"
        )
    if input.device != weight.device:
        raise RuntimeError(
            f"{name}: expected input on {weight.device}, as the weights; got it on {input.device}"
        )


def check_state(
    name: str, what: str, state: Tensor, shape: list[int], input: Tensor, precision: Precision
) -> None:
    """A state is of this shape, with the dtype and device of the input."""
    if list(state.shape) != shape:
        raise RuntimeError(f"{name}: expected {what} of shape {shape}; got {list(state.shape)}")
    if precision.dtype is None and state.dtype != input.dtype:
        raise RuntimeError(
            f"{name}: expected {what} of {input.dtype}, as the input; got {state.dtype}"
        )
    if state.device != input.device:
        raise RuntimeError(
            f"{name}: expected {what} on {input.device}, as the input; got it on {state.device}"
        )


def states_of(name: str, hx: Any, has_cell: bool) -> tuple[Tensor, ...]:
    """(h,) or (h, c) of what a layer was given as hx."""
    if not has_cell:
        if not isinstance(hx, Tensor):
            raise TypeError(f"{name}: expected hx to be a torch.Tensor; got {type(hx).__name__}")
        return (hx,)
    pair = isinstance(hx, tuple | list) and len(hx) == 2
    if not pair or not all(isinstance(state, Tensor) for state in hx):
        got = [type(each).__name__ for each in hx] if isinstance(hx, tuple | list) else type(hx)
        raise TypeError(f"{name}: expected hx to be a tuple of two tensors, (h_0, c_0); got {got}")
    return tuple(hx)
