"""The operator ``embedding_bag``: rows of a table by index, pooled or not, their gradients, and the
gradient and the optimizer's step on the touched rows in one pass.

What it computes is written down in :mod:`vecsmith.reference.embedding_bag`. Its checks are in
``_bag_checks.py``; how torch knows it, and its backends, in ``_embedding_bag.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops._bag_checks import (
    check_bags,
    check_grad,
    check_indices,
    check_positions,
    check_weight,
    padding_row,
    what,
)
from vecsmith.ops._embedding_bag import (
    forward_many,
    is_plain,
    look_up,
    settings_of,
    update,
)
from vecsmith.ops._update_rule import UpdateRule
from vecsmith.reference import embedding_bag as reference


def embedding(
    indices: Tensor,
    weight: Tensor,
    *,
    padding_idx: int | None = None,
    sparse: bool = False,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """Rows of a table: out[..., :] = weight[indices[...], :].

    The same as the product of the one-hot matrix of the indices with the table.

    Args:
        indices: int32 or int64 of any shape, in 0..V-1.
        weight: [V, D] of float32, float16 or bfloat16 (float64: the reference), rows of unit
            stride; or uint8 [V, D + 8] from :func:`quantize_rows`.
        padding_idx: the row that gets no gradient (negative: from the end).
        sparse, backend, num_threads: as in :func:`embedding_bag`.

    Returns:
        [*indices.shape, D], of weight's dtype; float32 for a uint8 table.

    Raises:
        As :func:`embedding_bag`.
    """
    name = "embedding"
    dim = check_weight(name, weight)
    check_indices(name, indices, weight)
    out = look_up(
        weight,
        indices.reshape(-1).contiguous(),  # of one dimension it may still have strides
        None,
        None,
        "none",
        False,
        padding_row(name, padding_idx, weight.shape[0]),
        _sparse(name, sparse, weight),
        _threads(name, num_threads),
        backend or "",
    )
    return out.view(*indices.shape, dim)


def embedding_bag(
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    *,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    sparse: bool = False,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """Rows of a table, pooled over bags of indices (torch.nn.functional.embedding_bag):

        out[b] = sum | mean | max over n in bag b of  per_sample_weights[n] * weight[indices[n]]

    Sums are taken in float32 whatever the table's dtype. An empty bag gives zeros.

    Args:
        indices: int32 or int64 in 0..V-1: [N] with ``offsets``, or [B, L] for bags of one length.
        weight: as in :func:`embedding`.
        offsets: [B], of indices' dtype, non-decreasing from 0: where each bag begins; [B + 1] with
            ``include_last_offset``.
        mode: "sum", "mean" or "max".
        per_sample_weights: of indices' shape, in weight's dtype or float32; mode "sum" alone.
        padding_idx: entries that are left out, and get no gradient (negative: from the end).
        sparse: the gradient of ``weight`` is a ``torch.sparse_coo`` tensor of the touched rows,
            each row once, ascending. Not under torch.compile.
        backend: "native", "triton" or "reference" to force one.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        [B, D], of weight's dtype; float32 for a uint8 table. Twice differentiable in ``weight`` and
        ``per_sample_weights`` (once with ``sparse``).

    Raises:
        TypeError, ValueError: wrong types, shapes, devices, offsets.
        IndexError: an index out of 0..V-1.
        BackendUnavailable: a forced backend that cannot run.
    """
    return look_up(
        *_arguments(
            *("embedding_bag", indices, weight, offsets, mode, per_sample_weights),
            *(include_last_offset, padding_idx, sparse, backend, num_threads),
        )
    )


def embedding_bags(
    requests: Sequence[Mapping[str, Any]], *, num_threads: int | None = None
) -> list[Tensor]:
    """:func:`embedding_bag` of many tables in one call: on the CPU its threads share the samples of
    all of them, so that small tables are not waited for one after another.

    Args:
        requests: for each table the arguments of :func:`embedding_bag` by name: ``indices``,
            ``weight``, and what else there is but ``num_threads``.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        The pooled rows of each: [B, D].

    Raises:
        As :func:`embedding_bag`, before any look-up is made.
    """
    made = []
    for request in requests:
        unknown = set(request) - _BAG_ARGUMENTS
        if unknown or not {"indices", "weight"} <= set(request):
            raise TypeError(
                "embedding_bags: expected the arguments of embedding_bag by name; got "
                f"{', '.join(sorted(request))}"
            )
        values = {**_DEFAULTS, **request}
        made.append(_arguments("embedding_bag", num_threads=num_threads, **values))
    if len(made) < 2 or not all(is_plain(a[0], a[1]) for a in made):
        return [look_up(*arguments) for arguments in made]
    with torch.no_grad():
        outputs = forward_many(made)
    return [look_up(*a, made=output) for a, output in zip(made, outputs, strict=True)]


_DEFAULTS: dict[str, Any] = {
    "offsets": None,
    "mode": "mean",
    "per_sample_weights": None,
    "include_last_offset": False,
    "padding_idx": None,
    "sparse": False,
    "backend": None,
}
_BAG_ARGUMENTS = {"indices", "weight", *_DEFAULTS}


def _arguments(
    name: str,
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    mode: str,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    sparse: bool,
    backend: str | None,
    num_threads: int | None,
) -> tuple[Any, ...]:
    """The checked arguments of the registered operator."""
    check_weight(name, weight)
    bags = check_bags(
        *(name, indices, weight, offsets, per_sample_weights, mode, include_last_offset)
    )
    return (
        weight,
        *bags,
        mode,
        bool(include_last_offset),
        padding_row(name, padding_idx, weight.shape[0]),
        _sparse(name, sparse, weight),
        _threads(name, num_threads),
        backend or "",
    )


def embedding_bag_gradient(
    grad: Tensor,
    indices: Tensor,
    num_rows: int,
    offsets: Tensor | None = None,
    *,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    positions: Tensor | None = None,
    backend: str | None = None,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of a table's touched rows, each row once:

        values[u] = sum over positions n with indices[n] = rows[u] of  c_n * grad[bag(n)]

    with c_n = 1, per_sample_weights[n] or 1 / |bag| by mode. The positions of a row are summed in
    their order, so the bits do not depend on the number of threads.

    Args:
        grad: [B, D] of float32, float16 or bfloat16, or [*indices.shape, D] with mode "none" (the
            gradient of :func:`embedding`).
        num_rows: V.
        positions: [B, D] int64, with mode "max": where in ``indices`` each maximum is (the second
            result of ``torch.ops.vecsmith.embedding_bag``).
        indices, offsets, mode, per_sample_weights, include_last_offset: as in
            :func:`embedding_bag`, and mode "none".
        padding_idx, backend, num_threads: as in :func:`embedding_bag`.

    Returns:
        (rows int64 [U], ascending; values [U, D] of grad's dtype).

    Raises:
        As :func:`embedding_bag`.
    """
    name = "embedding_bag_gradient"
    if not isinstance(grad, Tensor) or not grad.dtype.is_floating_point:
        raise TypeError(f"{name}: expected grad to be a floating point tensor; got {what(grad)}")
    check.integer(name, "num_rows", num_rows, low=0, high=2**31 - 1)
    arguments = check_bags(
        *(name, indices, grad, offsets, per_sample_weights, mode, include_last_offset)
    )
    grad = check_grad(name, grad, arguments, mode, include_last_offset, grad.shape[-1])
    check_positions(name, positions, mode, grad)
    return torch.ops.vecsmith.embedding_bag_gradient(
        grad,
        *arguments,
        positions,
        mode,
        bool(include_last_offset),
        padding_row(name, padding_idx, num_rows),
        num_rows,
        _threads(name, num_threads),
        backend or "",
    )


def embedding_bag_update(
    weight: Tensor,
    state: Sequence[Tensor],
    indices: Tensor,
    grad: Tensor,
    offsets: Tensor | None = None,
    *,
    rule: UpdateRule,
    mode: str = "sum",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    positions: Tensor | None = None,
    backend: str | None = None,
    num_threads: int | None = None,
) -> None:
    """The backward pass of :func:`embedding_bag` and the optimizer's step on the touched rows, at
    once and in place: the gradient of each row is summed as by :func:`embedding_bag_gradient`, and
    then the row of ``weight`` and of every tensor of ``state`` is read and written once. No
    gradient is stored. The bits do not depend on the number of threads.

    Args:
        weight: [V, D] of float32, float16 or bfloat16, changed in place.
        state: float32 tensors of the shapes ``rule.state_shapes(V, D)``, changed in place.
        grad: as in :func:`embedding_bag_gradient`; finite. While a CUDA graph is captured the host
            cannot look: a replay whose ``grad`` or weights are not finite changes nothing, and an
            index out of range stops the device with an assertion.
        rule: what is done with the gradient of a row (:class:`UpdateRule`).
        Others: as in :func:`embedding_bag_gradient`.

    Raises:
        ValueError: a gradient that is not finite; else as :func:`embedding_bag`. Before anything is
            changed.
    """
    name = "embedding_bag_update"
    if not isinstance(rule, UpdateRule):
        raise TypeError(f"{name}: expected rule to be an UpdateRule; got {type(rule).__name__}")
    check.table(name, "weight", weight)
    lr = rule.lr if isinstance(rule.lr, Tensor) else None
    steps = rule.step if isinstance(rule.step, Tensor) else None
    for label, value in (("rule.lr", lr), ("rule.step", steps)):
        if value is not None:
            check.numbers(name, label, value, (torch.float32, torch.float64), weight)
    if not isinstance(grad, Tensor):
        raise TypeError(f"{name}: expected grad to be a torch.Tensor; got {what(grad)}")
    if grad.dtype != weight.dtype and grad.dtype != torch.float32:
        raise TypeError(f"{name}: expected grad to be {weight.dtype}; got {grad.dtype}")
    shapes = rule.state_shapes(*weight.shape)
    if len(state) != len(shapes):
        raise ValueError(
            f"{name}: expected {len(shapes)} state tensors for {rule.name!r}; got {len(state)}"
        )
    wide = reference.wide(weight.dtype)
    for n, (tensor, shape) in enumerate(zip(state, shapes, strict=True)):
        check.tensor(name, f"state[{n}]", tensor, wide, shape, weight)
    if len(shapes):
        views = {f"state[{n}]": t.view(weight.shape[0], -1) for n, t in enumerate(state)}
        check.distinct(name, weight=weight, **views)
    arguments = check_bags(
        *(name, indices, weight, offsets, per_sample_weights, mode, include_last_offset)
    )
    if grad.device != weight.device:
        raise ValueError(f"{name}: expected grad on {weight.device}; got it on {grad.device}")
    grad = check_grad(name, grad, arguments, mode, include_last_offset, weight.shape[1])
    check_positions(name, positions, mode, grad)
    bags = (*arguments, positions, mode, bool(include_last_offset))
    padding = padding_row(name, padding_idx, weight.shape[0])
    where = (_threads(name, num_threads), backend or "")
    if is_plain(weight, grad, indices):
        return update(weight, list(state), grad, *bags, padding, rule, *where)
    tables = (weight.detach(), [t.detach() for t in state], grad.detach())
    how = (padding, rule.name, settings_of(rule), 1 if steps is not None else rule.step)
    return torch.ops.vecsmith.embedding_bag_update(*tables, *bags, *how, *where, lr, steps)


def _threads(name: str, num_threads: int | None) -> int:
    """0 for torch's own number, which torch.compile cannot ask for."""
    return 0 if num_threads is None else check.threads(name, num_threads)


def _sparse(name: str, sparse: bool, weight: Tensor) -> bool:
    if sparse and torch.compiler.is_compiling() and weight.requires_grad:
        raise RuntimeError(
            f"{name}: sparse=True has a gradient of unknown size, which torch.compile cannot "
            "trace: use sparse=False there"
        )
    return bool(sparse)
