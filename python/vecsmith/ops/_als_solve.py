"""``als_solve`` as torch knows it: the registered operator with its fake, and the backends. The
arguments have been checked by :mod:`vecsmith.ops.als_solve`."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops import _torch_als_solve, _triton_als_solve
from vecsmith.ops._als_basis import basis_of, exact_gram_matrix
from vecsmith.ops._cells import TYPES
from vecsmith.ops._pages import empty_pages
from vecsmith.ops._registry import Backend, Operator, choose, native, register
from vecsmith.reference import als_solve as reference

METHODS = reference.METHODS
_FLOATS = (torch.float32, torch.float64)

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.define(
    "als_solve(Tensor(a!) out, Tensor indptr, Tensor indices, Tensor values, Tensor? weights, "
    "Tensor factors, float regularization, Tensor? regularizations, bool implicit, float alpha, "
    "str method, int steps, int block_size, int exact_below, str backend, int num_threads) -> ()"
)

OPERATOR = register(
    Operator(
        "als_solve",
        (
            Backend("native", "cpu", (torch.float32,)),
            Backend("triton", "cuda", (torch.float32,)),
            Backend("torch", "any", _FLOATS),
            Backend("reference", "any", _FLOATS),
        ),
        ("als_solve",),
    )
)

# csrc/cpu/als_solve.h: where a matrix has numbers that are not zero.
_FULL, _UPPER, _LOWER = range(3)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _table(rows: Tensor) -> tuple[int, int, int]:
    return _address(rows), rows.stride(0), rows.shape[1]


def _multiply(rows: Tensor, matrix: Tensor, shape: int, out: Tensor, num_threads: int) -> None:
    """out = rows @ matrix; it may be the rows."""
    matrix = matrix.float().contiguous()
    native().als_change_basis(
        *(_table(rows), len(rows), matrix.data_ptr(), shape),
        *(_address(out), out.stride(0), num_threads),
    )


def gram_matrix(factors: Tensor, num_threads: int) -> Tensor:
    """Y^T Y of factors [n, f] of float32, in float64."""
    f = factors.shape[1]
    gram = torch.empty(f, f, dtype=torch.float64)
    native().als_gram(
        (_address(factors), factors.stride(0), f), len(factors), gram.data_ptr(), num_threads
    )
    return gram


def _native(
    out: Tensor,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    weights: Tensor | None,
    factors: Tensor,
    regularization: float,
    regularizations: Tensor | None,
    implicit: bool,
    alpha: float,
    method: str,
    steps: int,
    block_size: int,
    exact_below: int,
    num_threads: int,
) -> int:
    """Returns how many rows were solved again in double precision."""
    f = factors.shape[1]
    made = None
    rows, ridge = factors, regularization
    if implicit:
        shared = regularizations is None
        gram = gram_matrix(factors, num_threads) if shared else exact_gram_matrix(factors)
        made = basis_of(gram, regularization, shared)
        # On huge pages: its rows will be read in no order.
        rows = empty_pages(len(factors), f, dtype=factors.dtype)
        shape, other = (_UPPER, _LOWER) if made.triangular else (_FULL, _FULL)
        _multiply(factors, made.change, shape, rows, num_threads)
        if made.triangular:
            ridge = 1.0
        if method != "cholesky":
            _multiply(out, made.forth, other, out, num_threads)
    rescued = native().als_solve(
        (
            *(_address(t) for t in (indptr, indices, values, weights)),
            indptr.dtype == torch.int64,
            indices.dtype == torch.int64,
            TYPES[values.dtype],
            len(out),
        ),
        _table(rows),
        (implicit, alpha, METHODS.index(method), steps, block_size, exact_below),
        (ridge, _address(regularizations), _address(made.spectrum if made else None)),
        _address(out),
        out.stride(0),
        num_threads,
    )
    if made is not None:
        _multiply(out, made.back, other, out, num_threads)
    return rescued


def _forward(
    out,
    indptr,
    indices,
    values,
    weights,
    factors,
    regularization,
    regularizations,
    implicit,
    alpha,
    method,
    steps,
    block_size,
    exact_below,
    backend,
    num_threads,
):
    cases = [backend.name for backend in OPERATOR.backends]
    if method == "cg" and factors.shape[1] > _triton_als_solve.MOST_CONJUGATE:
        cases.remove("triton")
    chosen = choose(OPERATOR, factors.device.type, factors.dtype, backend or None, among=cases)
    if not out.numel():
        return
    how = {"implicit": implicit, "alpha": alpha, "method": method, "steps": steps}
    how |= {"block_size": block_size, "exact_below": exact_below}
    if chosen == "native":
        _native(
            *(out, indptr, indices, values, weights, factors, regularization, regularizations),
            num_threads=num_threads or torch.get_num_threads(),
            **how,
        )
    elif chosen == "triton":
        _triton_als_solve.als_solve(
            *(out, indptr, indices, values, weights, factors),
            regularization=regularization,
            regularizations=regularizations,
            **how,
        )
    else:
        solve = _torch_als_solve.als_solve if chosen == "torch" else reference.als_solve
        found = solve(
            *(indptr, indices, values, factors),
            regularization=regularization if regularizations is None else regularizations,
            weights=weights,
            start=out,
            **how,
        )
        out.copy_(found)
    torch.autograd.graph.increment_version(out)


def _fake(*_):
    return None


_LIBRARY.impl("als_solve", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vecsmith::als_solve", _fake)
