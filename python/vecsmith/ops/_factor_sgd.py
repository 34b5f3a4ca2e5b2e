"""``factor_sgd`` as torch knows it: the registered operators with their fakes, and the backends.
The arguments have been checked by :mod:`vecsmith.ops.factor_sgd`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from vecsmith.ops import _triton_factor_sgd
from vecsmith.ops._registry import Backend, Operator, choose, native, register
from vecsmith.reference import factor_sgd as reference
from vecsmith.reference.skipgram import stream_key

DTYPES = (torch.float32, torch.float64)

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.define(
    "factor_sgd(Tensor(a!) user_factors, Tensor(b!) item_factors, Tensor(c!)? user_bias, "
    "Tensor(d!)? item_bias, Tensor(e!)? user_squares, Tensor(f!)? item_squares, Tensor users, "
    "Tensor items, Tensor values, Tensor offsets, float mean, float learning_rate, "
    "float regularization, float bias_learning_rate, float bias_regularization, int seed, "
    "int epoch, str backend, int num_threads) -> Tensor"
)
_LIBRARY.define(
    "factor_sgd_bpr(Tensor(a!) user_factors, Tensor(b!) item_factors, Tensor(c!)? item_bias, "
    "Tensor users, Tensor items, Tensor values, Tensor offsets, Tensor? indptr, Tensor? indices, "
    "float learning_rate, float regularization, int seed, int epoch, str backend, "
    "int num_threads) -> Tensor"
)

OPERATOR = register(
    Operator(
        "factor_sgd",
        (
            Backend("native", "cpu", (torch.float32,)),
            Backend("triton", "cuda", (torch.float32,)),
            Backend("reference", "any", DTYPES),
        ),
        ("factor_sgd", "factor_sgd_bpr"),
    )
)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _side(factors: Tensor, bias: Tensor | None, squares: Tensor | None) -> tuple[int, ...]:
    strides = (0 if t is None else t.stride(0) for t in (factors, bias, squares))
    return *(_address(t) for t in (factors, bias, squares)), *strides


def _blocks(cells: reference.Layout, seed: int, epoch: int) -> tuple[tuple[int, ...], Tensor]:
    """What the native module takes, and a tensor that must live as long."""
    bands = round((len(cells.offsets) - 1) ** 0.5)
    order = torch.tensor(reference.order(bands, seed, epoch), dtype=torch.int64)
    rows, columns = (row.data_ptr() for row in order)
    return (*(_address(t) for t in cells), rows, columns, len(cells.users), bands), order


def _forward(
    user_factors,
    item_factors,
    user_bias,
    item_bias,
    user_squares,
    item_squares,
    users,
    items,
    values,
    offsets,
    mean,
    learning_rate,
    regularization,
    bias_learning_rate,
    bias_regularization,
    seed,
    epoch,
    backend,
    num_threads,
):
    chosen = choose(OPERATOR, user_factors.device.type, user_factors.dtype, backend or None)
    cells = reference.Layout(users, items, values, offsets)
    if not len(users):
        return torch.zeros((), dtype=torch.float64)
    if chosen == "native":
        blocks, _alive = _blocks(cells, seed, epoch)
        loss = native().factor_sgd(
            _side(user_factors, user_bias, user_squares),
            _side(item_factors, item_bias, item_squares),
            user_factors.shape[1],
            blocks,
            (mean, learning_rate, regularization, bias_learning_rate, bias_regularization),
            num_threads or torch.get_num_threads(),
        )
        result = torch.tensor(loss, dtype=torch.float64)
    elif chosen == "triton":
        result = _triton_factor_sgd.factor_sgd(
            (user_factors, item_factors, user_bias, item_bias, user_squares, item_squares),
            cells,
            (mean, learning_rate, regularization, bias_learning_rate, bias_regularization),
            *(seed, epoch),
        )
    else:
        tables = (user_factors, item_factors, user_bias, item_bias, user_squares, item_squares)
        host = (user_factors.cpu(), item_factors.cpu(), *(_on_cpu(t) for t in tables[2:]))
        result = reference.factor_sgd(
            *(host[0], host[1], _layout_on_cpu(cells)),
            user_bias=host[2],
            item_bias=host[3],
            user_squares=host[4],
            item_squares=host[5],
            mean=mean,
            learning_rate=learning_rate,
            bias_learning_rate=bias_learning_rate,
            regularization=regularization,
            bias_regularization=bias_regularization,
            seed=seed,
            epoch=epoch,
        )
        _back(tables, host)
    _changed(user_factors, item_factors, user_bias, item_bias, user_squares, item_squares)
    return result


def _forward_bpr(
    user_factors,
    item_factors,
    item_bias,
    users,
    items,
    values,
    offsets,
    indptr,
    indices,
    learning_rate,
    regularization,
    seed,
    epoch,
    backend,
    num_threads,
):
    chosen = choose(OPERATOR, user_factors.device.type, user_factors.dtype, backend or None)
    cells = reference.Layout(users, items, values, offsets)
    if not len(users):
        return torch.zeros(3, dtype=torch.float64)
    if chosen == "native":
        blocks, _alive = _blocks(cells, seed, epoch)
        # The rows that are drawn may be anybody's: in order there is one worker alone.
        ordered = torch.are_deterministic_algorithms_enabled()
        found = native().factor_sgd_bpr(
            _side(user_factors, None, None),
            _side(item_factors, item_bias, None),
            user_factors.shape[1],
            blocks,
            (learning_rate, regularization),
            (_address(indptr), _address(indices)),
            stream_key(seed, epoch, reference.STREAM_DRAWS) & (2**64 - 1),
            1 if ordered else num_threads or torch.get_num_threads(),
        )
        result = torch.tensor(found, dtype=torch.float64)
    elif chosen == "triton":
        result = _triton_factor_sgd.factor_sgd_bpr(
            (user_factors, item_factors, item_bias),
            cells,
            (indptr, indices),
            (learning_rate, regularization),
            *(seed, epoch),
            ordered=torch.are_deterministic_algorithms_enabled(),
        )
    else:
        liked = None
        tables = (user_factors, item_factors, item_bias)
        host = (user_factors.cpu(), item_factors.cpu(), _on_cpu(item_bias))
        if indptr is not None:
            bounds = indptr.tolist()
            liked = [set(indices[begin:end].tolist()) for begin, end in itertools.pairwise(bounds)]
        result = reference.factor_sgd_bpr(
            *(host[0], host[1], _layout_on_cpu(cells), liked),
            item_bias=host[2],
            learning_rate=learning_rate,
            regularization=regularization,
            seed=seed,
            epoch=epoch,
        )
        _back(tables, host)
    _changed(user_factors, item_factors, item_bias)
    return result


def _on_cpu(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.cpu()


def _layout_on_cpu(cells: reference.Layout) -> reference.Layout:
    return reference.Layout(
        cells.users.cpu(), cells.items.cpu(), cells.values.cpu(), cells.offsets.cpu()
    )


def _back(tables: Sequence[Tensor | None], host: Sequence[Tensor | None]) -> None:
    """Copies to where the tables are what was changed on the CPU; on the CPU nothing is left to
    do."""
    for table, other in zip(tables, host, strict=True):
        if table is not None and other is not None and table.device != other.device:
            table.copy_(other)


def _changed(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)


def _fake(user_factors, *_):
    return torch.empty((), dtype=torch.float64)


def _fake_bpr(user_factors, *_):
    return torch.empty(3, dtype=torch.float64)


_LIBRARY.impl("factor_sgd", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("factor_sgd_bpr", _forward_bpr, "CompositeExplicitAutograd")
torch.library.register_fake("vecsmith::factor_sgd", _fake)
torch.library.register_fake("vecsmith::factor_sgd_bpr", _fake_bpr)
