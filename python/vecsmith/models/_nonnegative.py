"""Least squares whose factors may not be negative: projected coordinate descent on the normal
equations of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith import ops

_AT_ONCE = 1 << 20  # numbers that are gathered, or stand in systems, together


def nonnegative_solve(
    cells: ops.Cells,
    factors: Tensor,
    out: Tensor,
    regularization: Tensor,
    free: int = 0,
    sweeps: int = 10,
) -> None:
    """Lower sum_i (r_ui - <x_u, y_i>)^2 + l_u |x_u|^2 over the observed cells for each row x_u of
    ``out``, with x_u >= 0, in place: ``sweeps`` times over its numbers, each put where the loss is
    least while the others stand (Franc, Hlavac and Navara 2005, doi:10.1007/11556121_50; for
    factorizations Hsieh and Dhillon 2011, doi:10.1145/2020408.2020577):

        x_k = max(0, x_k + (b_k - <A_k, x>) / A_kk)     A = sum_i y_i y_i^T + l I, b = sum_i r_i y_i

    Every step lowers the loss or leaves it, from wherever ``out`` is (at least 0, but for its last
    ``free`` numbers, which may be of any sign). Rows without cells are 0.

    factors: y [columns, f]; regularization: l_u [rows] >= 0, float64.
    """
    f = factors.shape[1]
    indptr = cells.indptr.long()
    lengths = indptr.diff()
    out[lengths == 0] = 0
    order = lengths.argsort(descending=True, stable=True)
    order = order[lengths[order] > 0]
    sizes = lengths[order].tolist()
    first = 0
    while first < len(order):
        longest = sizes[first]
        rows = order[first : first + max(1, _AT_ONCE // (f * max(longest, f)))]
        # No row is padded to more than twice its length.
        rows = rows[lengths[rows] * 2 >= longest]
        first += len(rows)
        places = torch.arange(longest, device=factors.device)
        real = places < lengths[rows, None]
        at = (indptr[rows, None] + places).where(real, 0)
        y = factors[cells.indices[at].long()].double() * real[:, :, None]  # [B, n, f]
        r = cells.values[at].double()
        a = y.transpose(1, 2) @ y
        a.diagonal(dim1=1, dim2=2).add_(regularization[rows, None])
        b = (r[:, None] @ y)[:, 0]
        out[rows] = _descend(a, b, out[rows].double(), free, sweeps).to(out.dtype)


def _descend(a: Tensor, b: Tensor, x: Tensor, free: int, sweeps: int) -> Tensor:
    """a [B, f, f], b [B, f], x [B, f]: the first f - free numbers of x are kept at least 0."""
    f = x.shape[1]
    curve = a.diagonal(dim1=1, dim2=2)
    # A column that is all 0 says nothing: its number stays.
    inverse = torch.where(curve > 0, 1 / curve.clamp_min(1e-300), 0.0)
    left = b - (a @ x[:, :, None])[:, :, 0]
    for _ in range(sweeps):
        for k in range(f):
            new = x[:, k] + left[:, k] * inverse[:, k]
            if k < f - free:
                new = new.clamp_min(0)
            left -= a[:, :, k] * (new - x[:, k])[:, None]
            x[:, k] = new
    return x
