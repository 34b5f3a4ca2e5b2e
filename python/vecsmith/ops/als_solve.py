"""All normal equations of one half-step of alternating least squares."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _als_solve as registered
from vecsmith.ops import _checks as check
from vecsmith.ops._cells import Cells, cells_of
from vecsmith.ops._pages import empty_pages

# Rows of fewer cells than this many times the steps of conjugate gradients (and one) cost less when
# they are solved exactly: n^2 f / 2 products, many rows at a time, against 2 n f for each product
# with the matrix.
_CHEAPER = 8


def als_solve(
    matrix: Any,
    factors: Tensor,
    *,
    regularization: float | Tensor = 0.01,
    implicit: bool = True,
    alpha: float = 1.0,
    weights: Tensor | None = None,
    method: str = "cholesky",
    out: Tensor | None = None,
    steps: int | None = None,
    block_size: int = 128,
    exact_below: int | None = None,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """The factors x_u of all rows of a matrix, given those y_i of its columns: what minimizes

        implicit   sum_i c_ui (p_ui - <x_u, y_i>)^2 + l_u |x_u|^2    over all columns
        explicit   sum_i w_ui (r_ui - <x_u, y_i>)^2 + l_u |x_u|^2    over the observed cells

    With implicit feedback (Hu, Koren and Volinsky 2008, doi:10.1109/ICDM.2008.22) a cell r_ui has
    the confidence c = |alpha r| and the preference p = 1 (r > 0) or 0; cells that are not stored
    have c = 1 and p = 0. This is implicit's convention: ``alpha r`` is the confidence, not
    1 + alpha r. With explicit feedback (Zhou et al. 2008) cells that are not stored do not count.

    A row of n cells is solved as n x n system where that is less than f x f (Woodbury). A system
    that is not positive definite in float32 is solved again in float64, and if it is not even
    there, with the least of l_u + 1e-12, 1e-11, ... of the mean of its diagonal with which it is.
    On a GPU products of float32 follow torch.get_float32_matmul_precision().

    Args:
        matrix: the cells [rows, columns]: scipy.sparse or torch.sparse; CSR is read in place (int32
            or int64 indices; float32, float64 or integer values). Cells stored as 0 are cells;
            those that come twice are added up.
        factors: y [columns, f], float32 or float64.
        regularization: l >= 0, or l_u [rows].
        implicit: which of both.
        alpha: of implicit feedback.
        weights: w [cells] >= 0, float32, of explicit feedback, in the order of a canonical CSR.
        method: "cholesky": exactly; "cg": ``steps`` of conjugate gradients (3) from ``out``,
            preconditioned with Y^T Y + l I where feedback is implicit; "block": ``steps`` sweeps
            (1) over blocks of ``block_size`` numbers from ``out`` (iALS++, Rendle et al. 2021). The
            reference has the definitions.
        out: [rows, f], as factors, with rows apart; written in place. None: a new tensor, which
            begins with zeros.
        block_size: of "block".
        exact_below: with "cg", rows of fewer cells are solved exactly. None: where that is less
            work.
        backend: "native", "triton", "torch" or "reference" to force one.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        x [rows, f]; rows without cells are 0 (by "cg" and "block" on the way there).

    Raises:
        TypeError, ValueError: wrong types, shapes, devices, options; a value, weight, factor or
            regularization that is not finite, or negative where it may not be.
        RuntimeError: where a gradient would be lost: the result has none.
        BackendUnavailable: a forced backend that cannot run.
    """
    name = "als_solve"
    cells = cells_of(name, matrix)
    check.table(name, "factors", factors)
    if factors.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected factors of float32 or float64; got {factors.dtype}")
    rows, columns = cells.shape
    f = factors.shape[1]
    if factors.shape[0] != columns:
        raise ValueError(
            f"{name}: expected a factor for each of {columns} columns; got {factors.shape[0]}"
        )
    if cells.values.device != factors.device:
        raise ValueError(
            f"{name}: expected the matrix on {factors.device}; got it on {cells.values.device}"
        )
    if torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in (factors, out, weights, regularization)
    ):
        raise RuntimeError(
            f"{name}: expected tensors that require no gradient, or torch.no_grad(); "
            "the solution has none"
        )
    if not check.all_finite(factors):
        row = int((~factors.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"{name}: expected factors to be finite; row {row} is not")
    ridge, ridges = _regularization(name, regularization, rows, factors)
    alpha = _number(name, "alpha", alpha)
    if weights is not None:
        if implicit:
            raise ValueError(f"{name}: expected weights with explicit feedback alone; got implicit")
        check.tensor(name, "weights", weights, torch.float32, (len(cells),), like=factors)
        if not check.all_finite(weights) or not bool((weights >= 0).all()):
            raise ValueError(f"{name}: expected weights to be finite and >= 0")
    if method not in registered.METHODS:
        names = ", ".join(repr(m) for m in registered.METHODS)
        raise ValueError(f"{name}: expected method to be one of {names}; got {method!r}")
    if steps is None:
        steps = 3 if method == "cg" else 1
    check.integer(name, "steps", steps, low=0)
    check.integer(name, "block_size", block_size, low=1)
    if exact_below is None:
        exact_below = _CHEAPER * (steps + 1) if method == "cg" else 0
    check.integer(name, "exact_below", exact_below, low=0)
    if out is None:
        out = empty_pages(rows, f, dtype=factors.dtype, device=factors.device).zero_()
    else:
        check.table(name, "out", out, like=factors, rows=rows)
        check.distinct(name, out=out, factors=factors)
        if method != "cholesky" and not check.all_finite(out):
            raise ValueError(f"{name}: expected out to be finite where {method!r} begins with it")
    if factors.dtype == torch.float32:
        _check_range(name, cells, implicit, alpha, weights, ridge if ridges is None else ridges)
    torch.ops.vecsmith.als_solve(
        *(out, cells.indptr, cells.indices, cells.values, weights, factors, ridge, ridges),
        *(bool(implicit), alpha, method, steps, block_size, exact_below, backend or ""),
        0 if num_threads is None else check.threads(name, num_threads),
    )
    if not check.all_finite(out):
        row = int((~out.isfinite().all(1)).nonzero()[0])
        raise ValueError(
            f"{name}: expected values, factors and regularization whose solution {out.dtype} can "
            f"hold; row {row} is not finite"
        )
    return out


def _check_range(
    name: str,
    cells: Cells,
    implicit: bool,
    alpha: float,
    weights: Tensor | None,
    ridge: float | Tensor,
) -> None:
    """That float32 can hold what is computed of values and ridges."""
    most = torch.finfo(torch.float32).max
    largest = (
        max((abs(float(v)) for v in cells.values.aminmax()), default=0.0) if len(cells) else 0.0
    )
    if implicit:
        largest *= abs(alpha)
    elif weights is not None and len(weights):
        largest *= max(1.0, float(weights.max()))
    if largest > most:
        what = "alpha times the values" if implicit else "values and their weights"
        raise ValueError(f"{name}: expected {what} within float32; got {largest:.3g}")
    hardest = float(ridge.max()) if isinstance(ridge, Tensor) and len(ridge) else 0.0
    hardest = hardest if isinstance(ridge, Tensor) else ridge
    if hardest > most:
        raise ValueError(f"{name}: expected regularization within float32; got {hardest:.3g}")


def _number(name: str, what: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {what} to be a number; got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected {what} to be finite; got {value}")
    return float(value)


def _regularization(name: str, value: Any, rows: int, like: Tensor) -> tuple[float, Tensor | None]:
    """(for all rows, for each row or None)."""
    if not isinstance(value, Tensor):
        number = _number(name, "regularization", value)
        if number < 0:
            raise ValueError(f"{name}: expected regularization >= 0; got {number}")
        return number, None
    if value.shape != (rows,) or not value.is_floating_point() or value.device != like.device:
        raise ValueError(
            f"{name}: expected regularization to be a number, or floating point [{rows}] on "
            f"{like.device}; got {value.dtype} {list(value.shape)} on {value.device}"
        )
    if not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(f"{name}: expected regularization to be finite and >= 0")
    return 0.0, value.double().contiguous()


__all__ = ["Cells", "als_solve"]
