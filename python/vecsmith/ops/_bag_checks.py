"""The checks of ``embedding_bag``'s arguments: what can be said without reading the contents of
indices and offsets (the native module reads those; :func:`check_contents` does for other backends).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops._quantized import check_packed

MODES = ("sum", "mean", "max")


def what(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def check_weight(name: str, weight: Tensor) -> int:
    """D."""
    if isinstance(weight, Tensor) and weight.dtype == torch.uint8:
        check_packed(name, "weight", weight)
        return weight.shape[1] - 8
    check.table(name, "weight", weight)
    return weight.shape[1]


def check_indices(name: str, indices: Tensor, like: Tensor) -> None:
    if not isinstance(indices, Tensor):
        raise TypeError(f"{name}: expected indices to be a torch.Tensor; got {what(indices)}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected indices of int32 or int64; got {indices.dtype}")
    if indices.device != like.device:
        raise ValueError(f"{name}: expected indices on {like.device}; got them on {indices.device}")


def check_bags(
    name: str,
    indices: Tensor,
    like: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(indices, offsets, per_sample_weights), contiguous. Their contents are checked later."""
    check_indices(name, indices, like)
    none = mode == "none" and name not in ("embedding", "embedding_bag")
    if mode not in MODES and not none:
        raise ValueError(f"{name}: expected mode to be 'sum', 'mean' or 'max'; got {mode!r}")
    if none:
        if offsets is not None or per_sample_weights is not None:
            raise ValueError(f"{name}: expected no offsets and no weights with mode 'none'")
        return indices.reshape(-1).contiguous(), None, None
    if offsets is None:
        if include_last_offset:
            raise ValueError(f"{name}: expected offsets with include_last_offset; got None")
        if indices.dim() != 2:
            raise ValueError(
                f"{name}: expected offsets, or indices of shape [B, L]; got indices of shape "
                f"{list(indices.shape)} and no offsets"
            )
    else:
        if indices.dim() != 1:
            raise ValueError(
                f"{name}: expected indices of shape [N] with offsets; got {list(indices.shape)}"
            )
        check.tensor(name, "offsets", offsets, indices.dtype, (None,), like)
        if include_last_offset and offsets.numel() < 1:
            raise ValueError(f"{name}: expected offsets of at least 1 entry; got an empty tensor")
    if per_sample_weights is not None:
        weights = per_sample_weights
        if mode != "sum":
            raise ValueError(f"{name}: expected mode 'sum' with per_sample_weights; got {mode!r}")
        if not isinstance(weights, Tensor) or not weights.dtype.is_floating_point:
            raise TypeError(f"{name}: expected floating per_sample_weights; got {what(weights)}")
        if weights.dtype not in (like.dtype, torch.float32):
            raise TypeError(
                f"{name}: expected per_sample_weights of {like.dtype} or torch.float32; "
                f"got {weights.dtype}"
            )
        if weights.shape != indices.shape:
            raise ValueError(
                f"{name}: expected per_sample_weights of shape {list(indices.shape)}; "
                f"got {list(weights.shape)}"
            )
        if weights.device != like.device:
            raise ValueError(
                f"{name}: expected per_sample_weights on {like.device}; got {weights.device}"
            )
        per_sample_weights = weights.contiguous()
    return indices.contiguous(), offsets, per_sample_weights


def bag_count(indices: Tensor, offsets: Tensor | None, include_last_offset: bool) -> int:
    if offsets is None:
        return indices.shape[0]
    return offsets.shape[0] - include_last_offset


def check_grad(
    name: str,
    grad: Tensor,
    arguments: tuple[Tensor, Tensor | None, Tensor | None],
    mode: str,
    include_last_offset: bool,
    dim: int,
) -> Tensor:
    indices, offsets, _ = arguments
    if mode == "none":
        if grad.dim() < 2 or grad.shape[-1] != dim or grad.numel() != indices.numel() * dim:
            raise ValueError(
                f"{name}: expected grad of shape [*indices.shape, {dim}]; got {list(grad.shape)}"
            )
        return grad.reshape(-1, dim).contiguous()
    count = bag_count(indices, offsets, include_last_offset)
    if grad.shape != (count, dim):
        raise ValueError(f"{name}: expected grad of shape [{count}, {dim}]; got {list(grad.shape)}")
    return grad.contiguous()


def check_positions(name: str, positions: Tensor | None, mode: str, grad: Tensor) -> None:
    if mode == "max":
        if positions is None:
            raise ValueError(f"{name}: expected positions with mode 'max'; got None")
        check.tensor(name, "positions", positions, torch.int64, tuple(grad.shape), grad)


def padding_row(name: str, padding_idx: int | None, rows: int) -> int:
    """In 0..rows-1; -1 for none."""
    if padding_idx is None:
        return -1
    check.integer(name, "padding_idx", padding_idx, low=-rows, high=rows - 1)
    return padding_idx + rows if padding_idx < 0 else padding_idx


def check_contents(name: str, indices: Tensor, offsets: Tensor | None, last: bool, rows: int):
    """What the native binding checks in C++, for the backends that do not."""
    check.ids(name, "indices", indices, 0, rows)
    if offsets is not None and offsets.numel():
        if check.is_capturing(offsets):
            ascend = (offsets[1:] >= offsets[:-1]).all()
            check.holds_on_device(
                (offsets[0] == 0) & (offsets[-1] <= indices.numel()) & ascend,
                f"{name}: expected offsets that begin with 0, do not decrease and are at most "
                f"{indices.numel()}",
            )
            return
        if int(offsets[0]) != 0:
            raise ValueError(f"{name}: expected offsets to begin with 0; got {int(offsets[0])}")
        if bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"{name}: expected non-decreasing offsets")
        if int(offsets[-1]) > indices.numel():
            raise ValueError(
                f"{name}: expected offsets of at most {indices.numel()}; got {int(offsets[-1])}"
            )
