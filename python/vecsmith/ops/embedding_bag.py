"""The operator ``embedding_bag``: rows of a table by index, pooled or not, their gradients, and the
gradient and the optimizer's step on the touched rows in one pass.

What it computes is written down in :mod:`vecsmith.reference.embedding_bag`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops._quantized import check_packed
from vecsmith.ops._registry import Backend, Operator, choose, native, register, run
from vecsmith.ops._update_rule import UpdateRule
from vecsmith.reference import embedding_bag as reference

_FAST = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
OPERATOR = register(
    Operator(
        "embedding_bag",
        (
            Backend("native", "cpu", _FAST),
            Backend("triton", "cuda", _FAST),
            Backend("reference", "any", (*_FAST, torch.float64)),
        ),
        ("embedding_bag", "embedding_bag_gradient", "embedding_bag_update"),
    )
)

MODES = ("sum", "mean", "max")
# The kernels' numbers for modes and for dtypes (csrc/cpu/embedding_bag.h).
_MODE = {"none": 0, "sum": 1, "mean": 2, "max": 3}
_TYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_BAGS = "Tensor indices, Tensor? offsets, Tensor? per_sample_weights"
# (torch calls functionalized operators with an argument "mode" of its own)
_HOW = "str pooling, bool include_last_offset, int padding_idx"
_WHERE = "int num_threads, str backend"
_LIBRARY.define(
    f"embedding_bag(Tensor weight, {_BAGS}, {_HOW}, bool sparse, {_WHERE}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    f"embedding_bag_backward(Tensor grad, Tensor weight, {_BAGS}, Tensor? positions, {_HOW}, "
    f"bool needs_weight, bool needs_weights, {_WHERE}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    f"embedding_bag_gradient(Tensor grad, {_BAGS}, Tensor? positions, {_HOW}, int num_rows, "
    f"{_WHERE}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    f"embedding_bag_update(Tensor(a!) weight, Tensor(b!)[] state, Tensor grad, {_BAGS}, "
    f"Tensor? positions, {_HOW}, str rule, float[] settings, int step, {_WHERE}) -> ()"
)


# --- the public functions -------------------------------------------------------------------------


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
    dim = _check_weight(name, weight)
    _check_indices(name, indices, weight)
    out = _look_up(
        weight,
        indices.reshape(-1),
        None,
        None,
        "none",
        False,
        _padding(name, padding_idx, weight.shape[0]),
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
    return _look_up(
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
    if len(made) < 2 or not all(_is_plain(a[0], a[1]) for a in made):
        return [_look_up(*arguments) for arguments in made]
    with torch.no_grad():
        outputs = _forward_many(made)
    return [_look_up(*a, made=output) for a, output in zip(made, outputs, strict=True)]


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
    _check_weight(name, weight)
    bags = _check_bags(
        *(name, indices, weight, offsets, per_sample_weights, mode, include_last_offset)
    )
    return (
        weight,
        *bags,
        mode,
        bool(include_last_offset),
        _padding(name, padding_idx, weight.shape[0]),
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
        indices, offsets, mode, per_sample_weights, include_last_offset, padding_idx, backend,
            num_threads: as in :func:`embedding_bag`, and mode "none".

    Returns:
        (rows int64 [U], ascending; values [U, D] of grad's dtype).

    Raises:
        As :func:`embedding_bag`.
    """
    name = "embedding_bag_gradient"
    if not isinstance(grad, Tensor) or not grad.dtype.is_floating_point:
        raise TypeError(f"{name}: expected grad to be a floating point tensor; got {_what(grad)}")
    check.integer(name, "num_rows", num_rows, low=0, high=2**31 - 1)
    arguments = _check_bags(
        *(name, indices, grad, offsets, per_sample_weights, mode, include_last_offset)
    )
    grad = _check_grad(name, grad, arguments, mode, include_last_offset, grad.shape[-1])
    _check_positions(name, positions, mode, grad)
    return torch.ops.vecsmith.embedding_bag_gradient(
        grad,
        *arguments,
        positions,
        mode,
        bool(include_last_offset),
        _padding(name, padding_idx, num_rows),
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
        grad: as in :func:`embedding_bag_gradient`; finite.
        rule: what is done with the gradient of a row (:class:`UpdateRule`).
        Others: as in :func:`embedding_bag_gradient`.

    Raises:
        As :func:`embedding_bag`, and ValueError for a gradient that is not finite: before anything
        is changed.
    """
    name = "embedding_bag_update"
    if not isinstance(rule, UpdateRule):
        raise TypeError(f"{name}: expected rule to be an UpdateRule; got {type(rule).__name__}")
    check.table(name, "weight", weight)
    if not isinstance(grad, Tensor):
        raise TypeError(f"{name}: expected grad to be a torch.Tensor; got {_what(grad)}")
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
    arguments = _check_bags(
        *(name, indices, weight, offsets, per_sample_weights, mode, include_last_offset)
    )
    if grad.device != weight.device:
        raise ValueError(f"{name}: expected grad on {weight.device}; got it on {grad.device}")
    grad = _check_grad(name, grad, arguments, mode, include_last_offset, weight.shape[1])
    _check_positions(name, positions, mode, grad)
    bags = (*arguments, positions, mode, bool(include_last_offset))
    padding = _padding(name, padding_idx, weight.shape[0])
    where = (_threads(name, num_threads), backend or "")
    if _is_plain(weight, grad, indices):
        return _update(weight, list(state), grad, *bags, padding, rule, *where)
    tables = (weight.detach(), [t.detach() for t in state], grad.detach())
    how = (padding, rule.name, _settings(rule), rule.step)
    return torch.ops.vecsmith.embedding_bag_update(*tables, *bags, *how, *where)


# --- checks ---------------------------------------------------------------------------------------


def _what(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _check_weight(name: str, weight: Tensor) -> int:
    """D."""
    if isinstance(weight, Tensor) and weight.dtype == torch.uint8:
        check_packed(name, "weight", weight)
        return weight.shape[1] - 8
    check.table(name, "weight", weight)
    return weight.shape[1]


def _check_indices(name: str, indices: Tensor, like: Tensor) -> None:
    if not isinstance(indices, Tensor):
        raise TypeError(f"{name}: expected indices to be a torch.Tensor; got {_what(indices)}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected indices of int32 or int64; got {indices.dtype}")
    if indices.device != like.device:
        raise ValueError(f"{name}: expected indices on {like.device}; got them on {indices.device}")


def _check_bags(
    name: str,
    indices: Tensor,
    like: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(indices, offsets, per_sample_weights), contiguous. Their contents are checked later."""
    _check_indices(name, indices, like)
    none = mode == "none" and name not in ("embedding", "embedding_bag")
    if mode not in MODES and not none:
        raise ValueError(f"{name}: expected mode to be 'sum', 'mean' or 'max'; got {mode!r}")
    if none:
        if offsets is not None or per_sample_weights is not None:
            raise ValueError(f"{name}: expected no offsets and no weights with mode 'none'")
        return indices.reshape(-1), None, None
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
            raise TypeError(f"{name}: expected floating per_sample_weights; got {_what(weights)}")
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


def _bag_count(indices: Tensor, offsets: Tensor | None, include_last_offset: bool) -> int:
    if offsets is None:
        return indices.shape[0]
    return offsets.shape[0] - include_last_offset


def _check_grad(
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
    count = _bag_count(indices, offsets, include_last_offset)
    if grad.shape != (count, dim):
        raise ValueError(f"{name}: expected grad of shape [{count}, {dim}]; got {list(grad.shape)}")
    return grad.contiguous()


def _check_positions(name: str, positions: Tensor | None, mode: str, grad: Tensor) -> None:
    if mode == "max":
        if positions is None:
            raise ValueError(f"{name}: expected positions with mode 'max'; got None")
        check.tensor(name, "positions", positions, torch.int64, tuple(grad.shape), grad)


def _padding(name: str, padding_idx: int | None, rows: int) -> int:
    """In 0..rows-1; -1 for none."""
    if padding_idx is None:
        return -1
    check.integer(name, "padding_idx", padding_idx, low=-rows, high=rows - 1)
    return padding_idx + rows if padding_idx < 0 else padding_idx


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


_SETTINGS = (
    *("lr", "eps", "beta1", "beta2", "momentum", "dampening", "nesterov"),
    *("weight_decay", "lr_decay", "maximize"),
)


def _settings(rule: UpdateRule) -> list[float]:
    """The numbers of a rule, for the operator's schema."""
    return [float(getattr(rule, name)) for name in _SETTINGS]


def _rule(name: str, settings: list[float], step: int) -> UpdateRule:
    values: dict[str, Any] = dict(zip(_SETTINGS, settings, strict=True))
    values["nesterov"], values["maximize"] = bool(values["nesterov"]), bool(values["maximize"])
    return UpdateRule(name, step=step, **values)


def _check_contents(name: str, indices: Tensor, offsets: Tensor | None, last: bool, rows: int):
    """What the native binding checks in C++, for the backends that do not."""
    check.ids(name, "indices", indices, 0, rows)
    if offsets is not None and offsets.numel():
        if int(offsets[0]) != 0:
            raise ValueError(f"{name}: expected offsets to begin with 0; got {int(offsets[0])}")
        if bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"{name}: expected non-decreasing offsets")
        if int(offsets[-1]) > indices.numel():
            raise ValueError(
                f"{name}: expected offsets of at most {indices.numel()}; got {int(offsets[-1])}"
            )


# --- the registered operators ---------------------------------------------------------------------


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _workers(num_threads: int) -> int:
    return num_threads or torch.get_num_threads()


_NATIVE: set[tuple[str, torch.dtype]] = set()  # where the choice has been made before


def _choose(tensor: Tensor, backend: str) -> str:
    key = (tensor.device.type, tensor.dtype)
    if not backend and key in _NATIVE:
        return "native"
    chosen = choose(OPERATOR, *key, backend or None)
    if not backend and chosen == "native":
        _NATIVE.add(key)
    return chosen


def _bags(
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    include_last_offset: bool,
    padding_idx: int,
    rows: int,
) -> tuple[int, ...]:
    """The bags of a job as the native module takes them."""
    length = 1 if indices.dim() == 1 else indices.shape[1]
    return (
        _address(indices),
        indices.dtype == torch.int64,
        indices.numel(),
        _address(offsets),
        -1 if offsets is None else offsets.numel(),
        indices.shape[0] if offsets is None else offsets.numel() - include_last_offset,
        length,
        _address(per_sample_weights),
        0 if per_sample_weights is None else _TYPE[per_sample_weights.dtype],
        _MODE[mode],
        padding_idx,
        rows,
    )


def _forward(
    weight,
    indices,
    offsets,
    per_sample_weights,
    mode,
    include_last_offset,
    padding_idx,
    sparse,
    num_threads,
    backend,
):
    rows = weight.shape[0]
    chosen = _choose(weight, backend)
    if chosen == "native":
        job, output = _native_job(
            *(weight, indices, offsets, per_sample_weights),
            *(mode, include_last_offset, padding_idx),
        )
        native().embedding_bag([job], _workers(num_threads))
        return output
    _check_contents("embedding_bag", indices, offsets, include_last_offset, rows)
    if chosen == "triton":
        from vecsmith.kernels import embedding_bag as kernels

        return kernels.embedding_bag(
            *(weight, indices, offsets, per_sample_weights),
            mode=mode,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
    if mode == "none":
        return reference.embedding(weight, indices, padding_idx), torch.empty(
            0, dtype=torch.int64, device=weight.device
        )
    return reference.embedding_bag(
        weight, indices, offsets, per_sample_weights, mode, include_last_offset, padding_idx
    )


def _native_job(
    weight, indices, offsets, per_sample_weights, mode, include_last_offset, padding_idx
):
    """(a look-up as the native module takes it, (out, positions) that it will fill)."""
    quantized = weight.dtype == torch.uint8
    dim = weight.shape[1] - 8 * quantized
    count = _bag_count(indices, offsets, include_last_offset)
    out = torch.empty((count, dim), dtype=torch.float32 if quantized else weight.dtype)
    positions = torch.empty((count, dim) if mode == "max" else (0,), dtype=torch.int64)
    bags = _bags(
        *(indices, offsets, per_sample_weights),
        *(mode, include_last_offset, padding_idx, weight.shape[0]),
    )
    table = (weight.data_ptr(), _TYPE[weight.dtype], dim, weight.stride(0))
    return (bags, table, _address(out), _address(positions)), (out, positions)


def _forward_many(requests):
    """_forward of each; what the native module takes is one call."""
    if not all(_choose(r[0], r[9]) == "native" for r in requests):
        return [_forward(*request) for request in requests]
    jobs, outputs = zip(*(_native_job(*request[:7]) for request in requests), strict=True)
    native().embedding_bag(list(jobs), _workers(requests[0][8]))
    return list(outputs)


def _forward_fake(
    weight,
    indices,
    offsets,
    per_sample_weights,
    mode,
    include_last_offset,
    padding_idx,
    sparse,
    num_threads,
    backend,
):
    quantized = weight.dtype == torch.uint8
    shape = (
        _bag_count(indices, offsets, include_last_offset),
        weight.shape[1] - 8 * quantized,
    )
    out = weight.new_empty(shape, dtype=torch.float32 if quantized else weight.dtype)
    return out, indices.new_empty(shape if mode == "max" else (0,), dtype=torch.int64)


def _gradient_impl(
    grad,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    num_rows,
    num_threads,
    backend,
):
    chosen = _choose(grad, backend)
    if chosen == "native":
        rows, values = native().embedding_bag_gradient(
            _bags(
                *(indices, offsets, per_sample_weights),
                *(mode, include_last_offset, padding_idx, num_rows),
            ),
            (grad.data_ptr(), _TYPE[grad.dtype], grad.shape[1]),
            _address(positions),
            lambda count: _allocate(grad, count),
            _workers(num_threads),
        )
        return rows, values
    _check_contents("embedding_bag_gradient", indices, offsets, include_last_offset, num_rows)
    arguments = (grad, indices, offsets, per_sample_weights, positions)
    how = {
        "mode": mode,
        "include_last_offset": include_last_offset,
        "padding_idx": padding_idx,
    }
    if chosen == "triton":
        from vecsmith.kernels import embedding_bag as kernels

        grad, indices, *rest = arguments
        return kernels.embedding_bag_gradient(grad, indices, num_rows, *rest, **how)
    return reference.embedding_bag_gradient(*arguments, **how)


def _allocate(grad: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], int, int]:
    """Room for the gradients of ``count`` rows: the tensors and their addresses."""
    rows = torch.empty(count, dtype=torch.int64)
    values = torch.empty(count, grad.shape[1], dtype=grad.dtype)
    return (rows, values), rows.data_ptr(), values.data_ptr()


def _gradient_fake(
    grad,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    num_rows,
    num_threads,
    backend,
):
    count = torch.library.get_ctx().new_dynamic_size()
    rows = indices.new_empty((count,), dtype=torch.int64)
    return rows, grad.new_empty((count, grad.shape[1]))


def _backward_impl(
    grad,
    weight,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    needs_weight,
    needs_weights,
    num_threads,
    backend,
):
    """(dense gradient of weight, gradient of per_sample_weights); an empty tensor for what is not
    needed."""
    rows = weight.shape[0]
    grad = grad.contiguous()
    bags = (indices, offsets, per_sample_weights)
    how = (mode, include_last_offset, padding_idx)
    table, weights = grad.new_empty(0), grad.new_empty(0)
    chosen = _choose(grad, backend)
    if chosen == "native":
        job = _bags(*bags, *how, rows)
        source = (grad.data_ptr(), _TYPE[grad.dtype], grad.shape[1])
        if needs_weight:
            table = torch.zeros(rows, grad.shape[1], dtype=grad.dtype)
            native().embedding_bag_dense_gradient(
                *(job, source, _address(positions), _address(table), _workers(num_threads))
            )
        if needs_weights:
            weights = torch.empty(indices.shape, dtype=per_sample_weights.dtype)
            native().per_sample_weights_gradient(
                job,
                source,
                (weight.data_ptr(), _TYPE[weight.dtype], weight.shape[1], weight.stride(0)),
                (_address(weights), _TYPE[weights.dtype]),
                _workers(num_threads),
            )
        return table, weights
    if needs_weight:
        touched, values = _gradient_impl(
            *(grad, *bags, positions, *how, rows, num_threads, backend)
        )
        table = grad.new_zeros(rows, grad.shape[1]).index_copy_(0, touched, values)
    if needs_weights:
        if chosen == "triton":
            from vecsmith.kernels import embedding_bag as kernels
        else:
            kernels = reference
        weights = kernels.per_sample_weights_gradient(
            grad,
            weight,
            indices,
            offsets,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
        weights = weights.view(indices.shape).to(per_sample_weights.dtype)
    return table, weights


def _backward_fake(
    grad,
    weight,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    needs_weight,
    needs_weights,
    num_threads,
    backend,
):
    table = grad.new_empty((weight.shape[0], grad.shape[1]) if needs_weight else (0,))
    if not needs_weights:
        return table, grad.new_empty(0)
    return table, per_sample_weights.new_empty(indices.shape)


def _update_impl(*arguments):
    *tables, name, settings, step, num_threads, backend = arguments
    rule = _rule(name, settings, step)
    return _update(*tables, rule=rule, num_threads=num_threads, backend=backend)


def _update(
    weight,
    state,
    grad,
    indices,
    offsets,
    per_sample_weights,
    positions,
    mode,
    include_last_offset,
    padding_idx,
    rule,
    num_threads,
    backend,
):
    chosen = _choose(weight, backend)
    bags = (indices, offsets, per_sample_weights)
    if chosen == "native":
        native().embedding_bag_update(
            _bags(*bags, mode, include_last_offset, padding_idx, weight.shape[0]),
            (grad.data_ptr(), _TYPE[grad.dtype], grad.shape[1]),
            _address(positions),
            (weight.data_ptr(), _TYPE[weight.dtype], weight.shape[1], weight.stride(0)),
            [t.data_ptr() for t in state],
            rule.name,
            rule.numbers(),
            _workers(num_threads),
        )
    else:
        name = "embedding_bag_update"
        _check_contents(name, indices, offsets, include_last_offset, weight.shape[0])
        if not bool(torch.isfinite(grad).all()):
            raise ValueError(f"{name}: expected a finite grad; got NaN or infinity")
        if per_sample_weights is not None and not bool(torch.isfinite(per_sample_weights).all()):
            raise ValueError(f"{name}: expected finite per_sample_weights; got NaN or infinity")
        kernels: Any = reference
        if chosen == "triton":
            from vecsmith.kernels import embedding_bag as kernels
        run(
            kernels.embedding_bag_update,
            *(weight, state, indices, grad, offsets, per_sample_weights, positions),
            mode=mode,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            rule=rule,
        )
    torch.autograd.graph.increment_version([weight, *state])


def _update_fake(*arguments):
    return None


# --- autograd -------------------------------------------------------------------------------------


def _forward_context(ctx, inputs, output):
    weight, indices, offsets, weights, *how, sparse, threads, backend = inputs
    ctx.save_for_backward(weight, indices, offsets, weights, output[1])
    ctx.how, ctx.sparse, ctx.where = how, sparse, (threads, backend)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


class _Pooled(torch.autograd.Function):
    """The operator without torch's machinery around it, which takes longer than a small look-up."""

    @staticmethod
    def forward(ctx, made, *arguments):
        output = made or _forward(*arguments)
        _forward_context(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx, *grads):
        return None, *_forward_backward(ctx, *grads, first=1)


def _is_plain(*tensors: Tensor) -> bool:
    """Whether this is an eager call on ordinary tensors: not traced, faked or transformed."""
    return (
        not torch.compiler.is_compiling()
        and all(type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore
    )


def _look_up(weight, indices, offsets, per_sample_weights, *rest, made=None) -> Tensor:
    """made: (out, positions), where they have been computed already."""
    arguments = (weight, indices, offsets, per_sample_weights, *rest)
    if not _is_plain(weight, indices):
        return torch.ops.vecsmith.embedding_bag(*arguments)[0]
    trained = weight.requires_grad or (
        per_sample_weights is not None and per_sample_weights.requires_grad
    )
    if trained and torch.is_grad_enabled():
        return _Pooled.apply(made, *arguments)[0]  # pyright: ignore
    return (made or _forward(*arguments))[0]


def _forward_backward(ctx, grad, _, first=0):
    nothing = (None,) * 10
    if grad is None:
        return nothing
    weight, indices, offsets, weights, positions = ctx.saved_tensors
    if weight.dtype == torch.uint8:
        raise RuntimeError("embedding_bag: a quantized table has no gradient")
    needs_weight, needs_weights = ctx.needs_input_grad[first], ctx.needs_input_grad[first + 3]
    sparse = needs_weight and ctx.sparse
    table = None
    if sparse:
        if torch.is_grad_enabled() and grad.requires_grad:
            raise RuntimeError(
                "embedding_bag: a sparse gradient cannot be differentiated again: use sparse=False"
            )
        rows, values = torch.ops.vecsmith.embedding_bag_gradient(
            *(grad.contiguous(), indices, offsets, weights, positions, *ctx.how),
            *(weight.shape[0], *ctx.where),
        )
        table = torch.sparse_coo_tensor(
            rows[None], values, weight.shape, is_coalesced=True, check_invariants=False
        )
    if (needs_weight and not sparse) or needs_weights:
        dense, weights = torch.ops.vecsmith.embedding_bag_backward(
            *(grad, weight, indices, offsets, weights, positions, *ctx.how),
            *(needs_weight and not sparse, needs_weights, *ctx.where),
        )
        table = table if sparse else dense
    return (
        table if needs_weight else None,
        None,
        None,
        weights if needs_weights else None,
        *nothing[4:],
    )


def _backward_context(ctx, inputs, output):
    grad, weight, indices, offsets, weights, positions, *how, _, _, threads, backend = inputs
    ctx.save_for_backward(grad, weight, indices, offsets, weights, positions)
    ctx.how, ctx.where = how, (threads, backend)
    ctx.set_materialize_grads(False)


def _backward_backward(ctx, table, samples):
    """Of (gW, gw): both are linear in grad; gW in per_sample_weights, gw in the table."""
    grad, weight, indices, offsets, weights, positions = ctx.saved_tensors
    mode, last, padding = ctx.how

    def pooled(rows: Tensor, by: Tensor | None) -> Tensor:
        if mode == "max":
            flat = indices.reshape(-1)[positions.clamp(min=0)]
            picked = torch.gather(rows, 0, flat.long())
            return torch.where(positions < 0, 0, picked)
        out, _ = torch.ops.vecsmith.embedding_bag(
            rows, indices, offsets, by, mode, last, padding, False, *ctx.where
        )
        if mode == "none" and padding >= 0:
            out = torch.where((indices == padding).reshape(-1, 1), 0, out)
        return out

    to_grad = to_weight = to_weights = None
    if ctx.needs_input_grad[0]:
        parts = []
        if table is not None:
            parts.append(pooled(table.contiguous(), weights))
        if samples is not None:
            parts.append(pooled(weight, samples.contiguous()))
        to_grad = sum(parts) if parts else None
    by = (mode, last, padding)
    if ctx.needs_input_grad[1] and samples is not None:
        to_weight, _ = torch.ops.vecsmith.embedding_bag_backward(
            *(grad, weight, indices, offsets, samples.contiguous(), positions),
            *(*by, True, False, *ctx.where),
        )
    if ctx.needs_input_grad[4] and table is not None and weights is not None:
        _, to_weights = torch.ops.vecsmith.embedding_bag_backward(
            *(grad, table.contiguous(), indices, offsets, weights, positions),
            *(*by, False, True, *ctx.where),
        )
    return to_grad, to_weight, None, None, to_weights, *(None,) * 8


for _name, _impl, _fake in (
    ("embedding_bag", _forward, _forward_fake),
    ("embedding_bag_backward", _backward_impl, _backward_fake),
    ("embedding_bag_gradient", _gradient_impl, _gradient_fake),
    ("embedding_bag_update", _update_impl, _update_fake),
):
    _LIBRARY.impl(_name, _impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vecsmith::{_name}", _fake)
torch.library.register_autograd(
    "vecsmith::embedding_bag", _forward_backward, setup_context=_forward_context, lib=_LIBRARY
)
torch.library.register_autograd(
    "vecsmith::embedding_bag_backward",
    _backward_backward,
    setup_context=_backward_context,
    lib=_LIBRARY,
)
