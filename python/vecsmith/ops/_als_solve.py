"""``als_solve`` as torch knows it: the registered operator with its fake, and the backends. The
arguments have been checked by :mod:`vecsmith.ops.als_solve`."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops import _torch_als_solve
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


def cholesky(gram: Tensor, ridge: float) -> Tensor:
    """L of L L^T = gram + ridge I, in float64; where it is singular the ridge is raised by 1e-12,
    1e-11, ... of the mean of the diagonal until it is not."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    more = 1e-12 * max(float(gram.diagonal().mean()) + ridge, 1e-30)
    while True:
        lower, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        least = lower.diagonal().square().min() if not failed else 0.0
        if not failed and least > 1e-14 * float(gram.diagonal().max()):
            return lower
        ridge, more = ridge + more, 10 * more


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
    forth = back = spectrum = None  # to the basis of the systems, and to that of the factors
    basis, ridge = factors, regularization
    if implicit:
        gram = gram_matrix(factors, num_threads)
        # On huge pages: its rows will be read in no order.
        basis = empty_pages(len(factors), f, dtype=factors.dtype)
        if regularizations is None:
            # A = L (I + Z^T (C - 1) Z) L^T with Z = Y L^-T: x = L^-T t.
            lower = cholesky(gram, regularization)
            eye = torch.eye(f, dtype=torch.float64)
            inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
            _multiply(factors, inverse.T, _UPPER, basis, num_threads)
            forth, back, ridge = (lower, _LOWER), (inverse, _LOWER), 1.0
        else:
            # Y^T Y = V S V^T: with Z = Y V every row has its own (S + ridge I) of the diagonal.
            spectrum, vectors = torch.linalg.eigh(gram)
            spectrum.clamp_(min=1e-12 * float(spectrum[-1].clamp_min(1e-30)))
            _multiply(factors, vectors, _FULL, basis, num_threads)
            forth, back = (vectors, _FULL), (vectors.T, _FULL)
    if forth is not None and method != "cholesky":
        _multiply(out, *forth, out, num_threads)
    rescued = native().als_solve(
        (
            *(_address(t) for t in (indptr, indices, values, weights)),
            indptr.dtype == torch.int64,
            indices.dtype == torch.int64,
            TYPES[values.dtype],
            len(out),
        ),
        _table(basis),
        (implicit, alpha, METHODS.index(method), steps, block_size, exact_below),
        (ridge, _address(regularizations), _address(spectrum)),
        _address(out),
        out.stride(0),
        num_threads,
    )
    if back is not None:
        _multiply(out, *back, out, num_threads)
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
    chosen = choose(OPERATOR, factors.device.type, factors.dtype, backend or None)
    if not out.numel():
        return
    if chosen == "native":
        _native(
            *(out, indptr, indices, values, weights, factors, regularization, regularizations),
            *(implicit, alpha, method, steps, block_size, exact_below),
            num_threads or torch.get_num_threads(),
        )
    else:
        solve = _torch_als_solve.als_solve if chosen == "torch" else reference.als_solve
        found = solve(
            *(indptr, indices, values, factors),
            regularization=regularization if regularizations is None else regularizations,
            implicit=implicit,
            alpha=alpha,
            weights=weights,
            method=method,
            start=out,
            steps=steps,
            block_size=block_size,
            exact_below=exact_below,
        )
        out.copy_(found)
    torch.autograd.graph.increment_version(out)


def _fake(*_):
    return None


_LIBRARY.impl("als_solve", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vecsmith::als_solve", _fake)
