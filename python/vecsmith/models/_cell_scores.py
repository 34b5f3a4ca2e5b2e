"""What a factorization says about the observed cells, and the loss that it is trained for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models._factor_table import gram_matrix

_AT_ONCE = 1 << 21  # numbers that are gathered together
_CELLS = 1 << 18  # whose products are taken together


def cell_scores(cells: ops.Cells, x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(which cells, their rows, <x_u, y_i> of each in the dtype of x), in parts.

    x: [rows, f], y: [columns, f].
    """
    sampled = x.device.type == "cpu" and torch.backends.mkl.is_available()
    # torch's sampled product gathers nothing.
    at_once = _CELLS if sampled else max(1, _AT_ONCE // max(1, x.shape[1]))
    indptr, y = cells.indptr.long(), y.contiguous()
    for first in range(0, len(cells), at_once):
        part = slice(first, min(first + at_once, len(cells)))
        ends = torch.tensor([part.start, part.stop - 1], device=indptr.device)
        low, high = (torch.searchsorted(indptr, ends, right=True) - 1).tolist()
        bounds = indptr[low : high + 2].clamp(part.start, part.stop)
        rows = torch.arange(low, high + 1, device=x.device)
        rows = torch.repeat_interleave(rows, bounds.diff())
        columns = cells.indices[part].long()
        if sampled:
            found = _sampled(bounds - part.start, columns, x[low : high + 1], y)
        else:
            found = torch.linalg.vecdot(x.index_select(0, rows), y.index_select(0, columns))
        yield part, rows, found


def _sampled(indptr: Tensor, columns: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """<x_u, y_i> of the cells of compressed rows, by torch's sampled product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR layout beta
        cells = torch.sparse_csr_tensor(
            *(indptr, columns, torch.zeros(len(columns), dtype=x.dtype)),
            size=(len(x), len(y)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(cells, x, y.T, beta=0.0).values()


def squared_norms(table: Tensor, lengths: Tensor | None) -> float:
    """sum_u |x_u|^2, or sum_u n_u |x_u|^2 for lengths n [rows]."""
    total = 0.0
    step = max(1, _AT_ONCE // max(1, table.shape[1]))
    for first in range(0, len(table), step):
        rows = table[first : first + step].double().square().sum(1)
        if lengths is not None:
            rows = rows * lengths[first : first + step]
        total += float(rows.sum())
    return total


def implicit_loss(
    cells: ops.Cells,
    x: Tensor,
    y: Tensor,
    alpha: float,
    regularization: float,
    lengths: tuple[Tensor, Tensor] | None,
) -> float:
    """What implicit feedback is trained for, over all cells U x I, as a mean by confidence:

        (sum_ui c_ui (p_ui - <x_u, y_i>)^2 + l (sum_u |x_u|^2 + sum_i |y_i|^2)) / sum_ui c_ui

    with c and p as in :func:`vecsmith.ops.als_solve`. Cells that are not observed are those of
    <X^T X, Y^T Y>, less the observed ones. Products of two rows are of the tables' dtype; all sums
    are float64.

    lengths: n_u and n_i, the cells of each row and column, where l is multiplied by them.
    """
    total = confidence = 0.0
    for part, _, found in cell_scores(cells, x, y):
        scores = found.double()
        c = alpha * cells.values[part].double()
        errors = c.abs() * ((c > 0).double() - scores).square() - scores.square()
        total += float(errors.sum())
        confidence += float(c.abs().sum())
    total += float((gram_matrix(x) * gram_matrix(y)).sum())
    users, items = (None, None) if lengths is None else lengths
    total += regularization * (squared_norms(x, users) + squared_norms(y, items))
    return total / max(confidence + cells.shape[0] * cells.shape[1] - len(cells), 1.0)
