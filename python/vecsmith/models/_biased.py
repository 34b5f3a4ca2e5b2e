"""Ratings with a mean and biases, r_ui ~ m + b_u + b_i + <x_u, y_i>, in two tables of rows
[x_u, b_u] and [y_i, b_i]: the partner of a bias is 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models._cell_scores import cell_scores
from vecsmith.models._factor_table import FactorTable
from vecsmith.ops._cells import trusted_cells

_AT_ONCE = 1 << 20  # cells whose residuals are taken together
_IN_A_BLOCK = 1 << 21  # cells of the rows that are solved together

Bounds = tuple[float, float] | None


def partner(table: FactorTable) -> Tensor:
    """What a row of the other side is multiplied with: [y_i, 1], or the factors as they are."""
    if table.tensor.shape[1] == table.width:
        return table.tensor
    made = table.tensor.clone()
    made[:, table.width] = 1
    return made


def bias(table: FactorTable) -> Tensor | None:
    """[n], or None where there is none."""
    return table.tensor[:, table.width] if table.tensor.shape[1] > table.width else None


def blocks(cells: ops.Cells) -> Iterator[tuple[slice, ops.Cells]]:
    """Rows that stand together and their cells, some ``_IN_A_BLOCK`` at a time, so that what is
    made of the values of a block, such as :func:`residuals`, is small beside the matrix."""
    indptr = cells.indptr
    rows, columns = cells.shape
    first = 0
    while first < rows:
        most = torch.tensor(int(indptr[first]) + _IN_A_BLOCK, dtype=indptr.dtype)
        last = int(torch.searchsorted(indptr, most.to(indptr.device), right=True)) - 1
        last = min(max(last, first + 1), rows)
        begin, end = int(indptr[first]), int(indptr[last])
        part = trusted_cells(
            indptr[first : last + 1] - begin,
            *(cells.indices[begin:end], cells.values[begin:end], (last - first, columns)),
        )
        yield slice(first, last), part
        first = last


def residuals(cells: ops.Cells, mean: float, other: FactorTable) -> ops.Cells:
    """The cells with r_ui - m - b_i, which are left for the product of a row with its partners."""
    biases = bias(other)
    if biases is None:
        return cells
    values = torch.empty(len(cells), dtype=biases.dtype, device=biases.device)
    for first in range(0, len(cells), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        values[part] = cells.values[part]
        values[part] -= biases[cells.indices[part].long()] + mean
    return cells.with_values(values)


def pair_scores(
    users: FactorTable, items: FactorTable, mean: float, rows: Tensor, columns: Tensor
) -> Tensor:
    """What is predicted for user ``rows[n]`` and item ``columns[n]``, float64 [n]."""
    x, y = users.factors.index_select(0, rows), items.factors.index_select(0, columns)
    return torch.linalg.vecdot(x, y).double() + _offsets(users, items, mean, rows, columns)


def _offsets(
    users: FactorTable, items: FactorTable, mean: float, rows: Tensor, columns: Tensor
) -> Tensor | float:
    of_users, of_items = bias(users), bias(items)
    if of_users is None or of_items is None:
        return mean
    return of_users[rows].double() + of_items[columns].double() + mean


def squared_errors(
    cells: ops.Cells, users: FactorTable, items: FactorTable, mean: float, bounds: Bounds
) -> tuple[float, float]:
    """sum (r_ui - prediction)^2 over the cells, and the same with predictions within bounds."""
    raw = clipped = 0.0
    for part, rows, found in cell_scores(cells, users.factors, items.factors):
        columns = cells.indices[part].long()
        predicted = found.double() + _offsets(users, items, mean, rows, columns)
        values = cells.values[part].double()
        raw += float((values - predicted).square().sum())
        if bounds is not None:
            clipped += float((values - predicted.clamp(*bounds)).square().sum())
    return raw, raw if bounds is None else clipped


def root_mean(total: float, count: int) -> float:
    """Of a sum of so many squares."""
    return math.sqrt(total / count)


def ridge_rows(cells: ops.Cells, factors: Tensor, ridges: Tensor) -> Tensor:
    """For each row with n cells the x [columns] with the least

        sum_i (r_i - <x, y_i>)^2 + n sum_k ridges_k x_k^2,

    of several the shortest; 0 without cells. One row after the other, in float64.

    factors: y [items, columns]; ridges: [columns] >= 0, float64.
    """
    columns = factors.shape[1]
    out = factors.new_zeros(cells.shape[0], columns)
    bounds = cells.indptr.tolist()
    for row, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first == last:
            continue
        y = factors[cells.indices[first:last].long()].double()
        held = torch.diag((ridges * (last - first)).sqrt())
        wanted = torch.cat([cells.values[first:last].double(), held.new_zeros(columns)])
        system = torch.cat([y, held])
        out[row] = torch.linalg.lstsq(system, wanted[:, None], driver="gelsd").solution[:, 0]
    return out
