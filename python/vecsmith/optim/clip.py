"""Clipping of gradients, sparse and dense: torch.nn.utils' functions do not take sparse ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vecsmith import ops

_FAST = (torch.float32, torch.float16, torch.bfloat16)


def _entries(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The tensors that hold the entries of the gradients. A sparse gradient is coalesced in place
    of the parameter's before: its norm is that of the sums, not of the summands."""
    found = []
    for param in [parameters] if isinstance(parameters, Tensor) else parameters:
        if param.grad is None:
            continue
        if param.grad.layout == torch.sparse_coo:
            param.grad = _combined(param.grad)
            found.append(param.grad._values())
        else:
            found.append(param.grad)
    return found


def _combined(grad: Tensor) -> Tensor:
    """A sparse gradient with each row once."""
    fast = grad.sparse_dim() == 1 and grad.dim() == 2 and grad.dtype in _FAST
    if grad.is_coalesced() or not fast:
        return grad.coalesce()
    values = grad._values().contiguous()
    rows, values = ops.embedding_bag_gradient(values, grad._indices()[0], len(grad), mode="none")
    return torch.sparse_coo_tensor(
        rows[None], values, grad.shape, is_coalesced=True, check_invariants=False
    )


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales the gradients of ``parameters``, in place, so that the norm of all of them together is
    ``max_norm`` at most: g = g min(1, max_norm / (norm + 1e-6)).

    torch.nn.utils.clip_grad_norm_ for any mixture of dense and sparse gradients (torch's fails on
    sparse ones: "Could not run 'aten::linalg_vector_norm'"). Sparse gradients are coalesced, and
    their norm is that of the dense gradient they stand for.

    Args:
        parameters: one or several, with gradients or without.
        max_norm: the largest norm.
        norm_type: p of the p-norm; may be infinity.
        error_if_nonfinite: whether a norm that is NaN or infinite is an error.
        foreach: as in torch.

    Returns: the norm before scaling, a scalar tensor.

    Raises: RuntimeError for a norm that is not finite, with ``error_if_nonfinite``.
    """
    entries = _entries(parameters)
    total = torch.nn.utils.get_total_norm(entries, norm_type, error_if_nonfinite, foreach)
    scale = torch.clamp(float(max_norm) / (total + 1e-6), max=1.0)
    for tensor in entries:
        tensor.mul_(scale.to(tensor.device))
    return total


@torch.no_grad()
def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Clamps the entries of the gradients of ``parameters``, in place, to -clip_value..clip_value:
    torch.nn.utils.clip_grad_value_ for any mixture of dense and sparse gradients.

    Args:
        parameters: one or several, with gradients or without.
        clip_value: the largest absolute value.
        foreach: accepted as in torch.

    Raises: nothing of its own.
    """
    for tensor in _entries(parameters):
        tensor.clamp_(-float(clip_value), float(clip_value))
