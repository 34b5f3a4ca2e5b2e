"""NMF of the cells that were observed: for each row a small problem of its own.

Row i has the cells j in O_i. With the other factor fixed, its part of the loss is a quadratic in
its k numbers w_i,

    1/2 w_i^T G_i w_i - b_i^T w_i,   G_i = sum_{j in O_i} h_j h_j^T,   b_i = sum_{j in O_i} x_ij h_j

which coordinate descent lowers number by number. The matrix is never written out, nor is WH.

Source: Kim, He and Park 2014, "Algorithms for Nonnegative Matrix and Tensor Factorizations: a
Unified View Based on Block Coordinate Descent Framework", on missing values: section 6.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vecsmith.models._nmf_updates import Cells, Penalties, Report, Stop, penalty

_NUMBERS = 1 << 22  # of a panel or of the Gram matrices that are in memory together
_SWEEPS = 3  # over a row, for each of its Gram matrices


class Panels(NamedTuple):
    """The rows of a CSR matrix, those of similar length together, and padded to one length.

    rows: int64 [R]; columns: int64 [R, L], padded with anything; values: [R, L], padded with 0;
    there: bool [R, L].
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    there: Tensor

    @classmethod
    def of(cls, indptr: Tensor, indices: Tensor, values: Tensor, k: int) -> list[Panels]:
        """All rows that have cells."""
        indptr, indices = indptr.long(), indices.long()
        begins, lengths = indptr[:-1], indptr.diff()
        order = torch.argsort(lengths, stable=True)
        order = order[lengths[order] > 0]
        found, at = [], len(order)
        while at:
            # From the longest down: as many as fit with their Gram matrices.
            longest = int(lengths[order[at - 1]])
            count = max(1, min(at, _NUMBERS // (max(longest, k) * k)))
            rows = order[at - count : at]
            at -= count
            offsets = torch.arange(longest)
            there = offsets < lengths[rows, None]
            places = torch.where(there, begins[rows, None] + offsets, 0)
            found.append(cls(rows, indices[places], values[places] * there, there))
        return found


class Swept(NamedTuple):
    """What sweeps came to.

    loss: half the squared error over the observed cells, less that of zeros, and the penalties of
    the factor that was swept; violation: the sum of |change| (G_i,rr + l2) over the first sweep;
    scale: what that would have been for zeros.
    """

    loss: float
    violation: float
    scale: float


def observed_sweeps(
    panels: list[Panels], own: Tensor, other: Tensor, l1: float, l2: float
) -> Swept:
    """Minimize each number of ``own`` [k, m] in turn, in place, over the observed cells, given
    ``other`` [k, n]: ``_SWEEPS`` times, with b_i and G_i of the module's formula.

        w_ir <- max(0, w_ir + (b_ir - l1 - l2 w_ir - (G_i w_i)_r) / (G_i,rr + l2))

    Exact for each number, so that no sweep raises the loss. A row without cells becomes zeros.
    """
    k = len(own)
    right, left = other.T.contiguous(), own.T.contiguous()
    total = violation = scale = 0.0
    empty = torch.ones(len(left), dtype=torch.bool)
    for panel in panels:
        empty[panel.rows] = False
        vectors = right[panel.columns] * panel.there[:, :, None]  # [R, L, k]
        gram = vectors.transpose(1, 2) @ vectors  # [R, k, k]
        linear = (vectors.transpose(1, 2) @ panel.values[:, :, None])[:, :, 0] - l1  # [R, k]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal += l2
        steps = torch.where(diagonal > 0, 1 / diagonal.clamp_min(torch.finfo(own.dtype).tiny), 0)
        scale += float(linear.clamp_min(0).sum(dtype=torch.float64))
        now = left[panel.rows]
        if l1:  # nothing is gained where the other side is zeros, and any value is paid for
            now[diagonal <= 0] = 0
        for sweep in range(_SWEEPS):
            for r in range(k):
                slope = linear[:, r] - (gram[:, r] * now).sum(1)
                change = (now[:, r] + slope * steps[:, r]).clamp_min(0) - now[:, r]
                now[:, r] += change
                if not sweep:
                    violation += float((change.abs() * diagonal[:, r]).sum(dtype=torch.float64))
        bent = (gram @ now[:, :, None])[:, :, 0]
        total += float((now * (bent / 2 - linear)).sum(dtype=torch.float64))
        left[panel.rows] = now
    left[empty] = 0
    own.copy_(left.T)
    return Swept(total, violation, scale)


def observed_descent(
    cells: Cells,
    w: Tensor,
    h: Tensor,
    penalties: Penalties,
    *,
    max_iter: int,
    tol: float,
    report: Report | None = None,
) -> int:
    """Alternate sweeps over W^T ``w`` [k, m] and ``h`` [k, n], in place, over the observed cells
    alone. Returns the number of iterations; ``tol`` and ``report`` as in
    :func:`vecsmith.models._nmf_updates.coordinate_descent`."""
    forward = Panels.of(*cells.forward.parts(), len(w))
    backward = Panels.of(*cells.backward.parts(), len(w))
    zeros = 0.5 * float(cells.values.double().square().sum())
    stop = Stop(tol, zeros)
    for iteration in range(1, max_iter + 1):
        observed_sweeps(forward, w, h, penalties.l1_w, penalties.l2_w)
        swept = observed_sweeps(backward, h, w, penalties.l1_h, penalties.l2_h)
        now = zeros + swept.loss + penalty(w, penalties.l1_w, penalties.l2_w)
        if report is not None:
            report(iteration, math.sqrt(2 * max(now, 0.0)))
        if stop.at(iteration, now):
            return iteration
    return max_iter


def fit_observed_rows(
    cells: Cells, w: Tensor, h: Tensor, penalties: Penalties, *, max_iter: int, tol: float
) -> int:
    """:func:`vecsmith.models._nmf_updates.fit_rows` over the observed cells alone."""
    panels = Panels.of(*cells.forward.parts(), len(w))
    for iteration in range(1, max_iter + 1):
        swept = observed_sweeps(panels, w, h, penalties.l1_w, penalties.l2_w)
        if swept.violation <= tol * swept.scale:
            return iteration
    return max_iter


def stored_cells(array: np.ndarray, missing: float):
    """The cells of a dense array that are not ``missing``, as a scipy CSR matrix; observed zeros
    are stored."""
    import scipy.sparse

    with np.errstate(over="ignore"):  # what is beyond the dtype is in no cell
        missing = array.dtype.type(missing)  # as it would stand in one
    there = ~np.isnan(array) if np.isnan(missing) else array != missing
    columns = np.nonzero(there)[1]
    indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return scipy.sparse.csr_matrix((array[there], columns, indptr), shape=array.shape)
