"""The updates of NMF where every cell counts: coordinate descent and multiplicative ones.

Factors are kept with a row for each component: W^T [k, m] and H [k, n], so that a coordinate sweep
runs along memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models._matrix import Matrix, Rows, csr_product

_ENOUGH = 0.1  # a sweep that moves less than this part of the first is the last


class Penalties(NamedTuple):
    """What is added to the loss: l1 |F|_1 + l2 / 2 |F|_F^2 of both factors."""

    l1_w: float
    l1_h: float
    l2_w: float
    l2_h: float


Report = Callable[[int, float], None]


def coordinate_descent(
    matrix: Matrix,
    w: Tensor,
    h: Tensor,
    penalties: Penalties,
    *,
    max_iter: int,
    tol: float,
    order: np.random.RandomState | None = None,
    report: Report | None = None,
) -> int:
    """Alternate sweeps over W^T ``w`` [k, m] and ``h`` [k, n], in place, both accelerated: the
    factors that a sweep begins from, and that the other one is fitted to, are F + beta (F -
    previous F). The loss of each iteration is compared, and one that raises it is taken back and
    gone again without a step ahead: no iteration raises it. Returns the number of iterations.

    A product with X costs more than a sweep, so each is used for several (Gillis and Glineur 2012,
    "Accelerated Multiplicative Updates and Hierarchical ALS Algorithms", section 3): at most
    1 + rho / 2, with rho the ratio of the two costs, and until a sweep moves little.

    Args:
        tol: stop where ten iterations lower the error by less than that part of it.
        order: draws the order of the components for each sweep.
        report: called with the iteration and the square root of twice its loss.

    Source: Ang and Gillis 2019, "Accelerating Nonnegative Matrix Factorization Algorithms Using
    Extrapolation".
    """
    cells, (m, n), k = _stored(matrix), matrix.shape, len(w)
    sweeps_w, sweeps_h = _sweeps(cells, n, m, k), _sweeps(cells, m, n, k)
    squares = matrix.squared_norm()
    step, beta = _Step(), 0.0  # of this iteration: the first has nothing to go by
    numerator = _by_components(matrix.times, h)
    best = _objective(squares, w, h, numerator, penalties)
    stop = Stop(tol, best)
    start_w, end_h = w.clone(), h.clone()  # where W begins, and where H came to
    for iteration in range(1, max_iter + 1):
        new_w = start_w.clone()
        _descend(new_w, h, numerator, penalties.l1_w, penalties.l2_w, sweeps_w, order)
        next_w = _extrapolated(new_w, w, beta)
        new_h = h.clone()
        back = _by_components(matrix.transposed_times, next_w)
        _descend(new_h, next_w, back, penalties.l1_h, penalties.l2_h, sweeps_h, order)
        next_h = _extrapolated(new_h, end_h, beta)
        new_numerator = _by_components(matrix.times, next_h)
        now = _objective(squares, new_w, next_h, new_numerator, penalties)
        if now > best and beta:
            beta, start_w = step.back(), w.clone()
        else:
            w.copy_(new_w)
            h.copy_(next_h)
            start_w, end_h, numerator, best = next_w, new_h, new_numerator, min(now, best)
            beta = step.on()
        if report is not None:
            report(iteration, math.sqrt(2 * max(best, 0.0)))
        if stop.at(iteration, best):
            return iteration
    return max_iter


class Stop:
    """Whether ten iterations have lowered the error, the square root of the loss, by less than a
    part of it."""

    _WINDOW = 10

    def __init__(self, tol: float, loss: float) -> None:
        self._tol, self._last = tol, math.sqrt(max(loss, 0.0))

    def at(self, iteration: int, loss: float) -> bool:
        """After that iteration, counted from 1."""
        if self._tol <= 0 or iteration % self._WINDOW:
            return False
        error = math.sqrt(max(loss, 0.0))
        last, self._last = self._last, error
        return last - error <= self._tol * error


def fit_rows(
    matrix: Matrix,
    w: Tensor,
    h: Tensor,
    penalties: Penalties,
    *,
    max_iter: int,
    tol: float,
    order: np.random.RandomState | None = None,
) -> int:
    """Sweeps over W^T ``w`` [k, m] alone, in place, for a fixed ``h``: one product with X in all.
    Returns their number.

    Args:
        tol: stop where the violation is below that part of what W = 0 would have.
    """
    numerator = _by_components(matrix.times, h)
    scale = float((numerator - penalties.l1_w).clamp_min(0).sum(dtype=torch.float64))
    for sweep in range(1, max_iter + 1):
        violation = _descend(w, h, numerator, penalties.l1_w, penalties.l2_w, 1, order)
        if violation <= tol * scale:
            return sweep
    return max_iter


class _Step:
    """How far ahead to go: further while it helps, less far after it did not."""

    def __init__(self) -> None:
        self.beta, self.most = 0.5, 1.0

    def on(self) -> float:
        used = self.beta
        self.beta = min(self.most, 1.05 * self.beta)
        self.most = min(1.0, 1.01 * self.most)
        return used

    def back(self) -> float:
        self.most, self.beta = self.beta, self.beta / 1.5
        return 0.0


def _extrapolated(new: Tensor, before: Tensor, beta: float) -> Tensor:
    return torch.lerp(before, new, 1 + beta).clamp_min_(0) if beta else new


def _by_components(product: Callable[[Tensor], Tensor], factor: Tensor) -> Tensor:
    return product(factor.T).T


def _objective(
    squares: float, w: Tensor, h: Tensor, numerator: Tensor, penalties: Penalties
) -> float:
    """1/2 |X - WH|_F^2 and the penalties, with ``numerator`` = H X^T, summed in float64."""
    gram_w, gram_h = (w @ w.T).double(), (h @ h.T).double()
    both = float((w * numerator).sum(dtype=torch.float64))
    value = 0.5 * (squares + float((gram_w * gram_h).sum())) - both
    return (
        value
        + penalty(w, penalties.l1_w, penalties.l2_w)
        + penalty(h, penalties.l1_h, penalties.l2_h)
    )


def penalty(factor: Tensor, l1: float, l2: float) -> float:
    """l1 |F|_1 + l2 / 2 |F|_F^2 of a factor >= 0, in float64."""
    value = l1 * float(factor.sum(dtype=torch.float64)) if l1 else 0.0
    return value + (0.5 * l2 * float(factor.double().square().sum()) if l2 else 0.0)


def _stored(matrix: Matrix) -> int:
    return matrix.rows.values.numel() if matrix.sparse else math.prod(matrix.shape)


def _sweeps(cells: int, other: int, own: int, k: int) -> int:
    """How many sweeps over a factor of ``own`` columns a product is used for."""
    return 1 + int((1 + (cells + other * k) / (own * k + own)) / 2)


def _descend(
    factor: Tensor,
    other: Tensor,
    numerator: Tensor,
    l1: float,
    l2: float,
    sweeps: int,
    order: np.random.RandomState | None,
) -> float:
    """Up to so many sweeps. Returns the violation of the first."""
    gram = other @ other.T
    gram.diagonal().add_(l2)
    if l1:  # nothing is gained where the other side is zeros, and any value is paid for
        factor[gram.diagonal() <= 0] = 0
    first = 0.0
    for sweep in range(sweeps):
        if order is None:
            moved = float(ops.hals_sweep(factor.T, numerator.T, gram, l1))
        else:
            turn = torch.from_numpy(order.permutation(len(factor)))
            shuffled = factor[turn]
            within = numerator[turn].T, gram[turn][:, turn]
            moved = float(ops.hals_sweep(shuffled.T, *within, l1))
            factor[turn] = shuffled
        first = first if sweep else moved
        if moved <= _ENOUGH * first and sweep:
            break
    return first


# --- multiplicative -------------------------------------------------------------------------------


class Cells(NamedTuple):
    """The stored cells of a matrix, by rows and by columns.

    rows, columns: int64 [nnz], in the order of the rows; values: [nnz]; by_columns: the places
    of the cells in the order of the columns; forward, backward: their structure as CSR matrices,
    X and X^T.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    by_columns: Tensor
    forward: Rows
    backward: Rows

    @classmethod
    def of(cls, csr) -> Cells:
        """From a scipy CSR matrix in canonical form."""
        import scipy.sparse

        places = scipy.sparse.csr_matrix(
            (np.arange(csr.nnz), csr.indices, csr.indptr), shape=csr.shape
        )
        rows = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
        turned = places.T.tocsr()
        backward = scipy.sparse.csr_matrix(
            (csr.data[turned.data], turned.indices, turned.indptr), shape=turned.shape
        )
        return cls(
            torch.from_numpy(rows),
            torch.from_numpy(csr.indices.astype(np.int64)),
            torch.from_numpy(np.ascontiguousarray(csr.data)),
            torch.from_numpy(turned.data),
            Rows.of(csr),
            Rows.of(backward),
        )

    def product(self, w: Tensor, h: Tensor) -> Tensor:
        """(W H)_ij of these cells, [nnz], from W^T [k, m] and H [k, n]."""
        left, right = w.T.contiguous(), h.T.contiguous()
        found = torch.empty_like(self.values)
        step = max(1, (1 << 22) // max(len(w), 1))
        for begin in range(0, len(found), step):
            part = slice(begin, begin + step)
            found[part] = (left[self.rows[part]] * right[self.columns[part]]).sum(1)
        return found

    def times(self, values: Tensor, right: Tensor) -> Tensor:
        """The matrix of these values [nnz] times ``right`` [n, b]."""
        return csr_product(self.forward.with_values(values), right)

    def transposed_times(self, values: Tensor, left: Tensor) -> Tensor:
        """Its transpose times ``left`` [m, b]."""
        return csr_product(self.backward.with_values(values[self.by_columns]), left)


def multiplicative(
    matrix: Matrix,
    cells: Cells | None,
    w: Tensor,
    h: Tensor,
    penalties: Penalties,
    *,
    kullback_leibler: bool,
    observed: bool,
    max_iter: int,
    tol: float,
    update_h: bool = True,
    report: Report | None = None,
) -> int:
    """Lee and Seung's updates of W^T ``w`` [k, m] and ``h`` [k, n], in place:

        F <- F numerator / (denominator + l1 + l2 F)

    with X H^T and W H H^T for the squared error, (X / WH) H^T and 1 H^T for the Kullback-Leibler
    divergence; cells that are not observed are left out of all of them. Returns the number of
    iterations; ``tol`` as in :func:`coordinate_descent`.

    Args:
        cells: the stored cells; needed where not all are observed and for a sparse
            Kullback-Leibler divergence.
        observed: whether the stored cells alone count.

    Source: Lee and Seung 2001, "Algorithms for Non-negative Matrix Factorization"; Fevotte and
    Idier 2011, "Algorithms for Nonnegative Matrix Factorization with the Beta-Divergence".
    """

    def update(factor: Tensor, other: Tensor, back: bool, l1: float, l2: float) -> None:
        right = other.T.contiguous()
        if kullback_leibler:
            above, below = _divergence_parts(matrix, cells, w, h, right, back, observed)
        elif observed:
            assert cells is not None
            times = cells.transposed_times if back else cells.times
            above = times(cells.values, right).T
            below = times(cells.product(w, h), right).T
        else:
            above = (matrix.transposed_times if back else matrix.times)(right).T
            below = (other @ other.T) @ factor
        below = below + l1
        if l2:
            below = below + l2 * factor
        # Nothing may be added to what is small because the data are. Where the denominator is 0, so
        # is the number, or its numerator.
        kind = torch.finfo(factor.dtype)
        factor *= (above / below.clamp_min(kind.tiny)).clamp_max_(kind.max)

    def error() -> float:
        return loss(matrix, cells, w, h, kullback_leibler, observed)

    stop = Stop(tol, error() ** 2)
    for iteration in range(1, max_iter + 1):
        update(w, h, False, penalties.l1_w, penalties.l2_w)
        if update_h:
            update(h, w, True, penalties.l1_h, penalties.l2_h)
        if iteration % 10 == 0:
            now = error()
            if report is not None:
                report(iteration, now)
            if stop.at(iteration, now**2):
                return iteration
    return max_iter


def _divergence_parts(
    matrix: Matrix,
    cells: Cells | None,
    w: Tensor,
    h: Tensor,
    right: Tensor,
    back: bool,
    observed: bool,
) -> tuple[Tensor, Tensor]:
    """((X / WH) other^T)^T and (1 other^T)^T, [k, own] or [k, 1]."""
    if cells is None:
        dense = matrix.dense
        ratio = dense / (w.T @ h).clamp_min(_least(dense, w.dtype))
        return ((ratio.T if back else ratio) @ right).T, right.sum(0)[:, None]
    times = cells.transposed_times if back else cells.times
    least = _least(cells.values, w.dtype)
    above = times(cells.values / cells.product(w, h).clamp_min(least), right).T
    if observed:
        return above, times(torch.ones_like(cells.values), right).T
    return above, right.sum(0)[:, None]


def _least(values: Tensor, dtype: torch.dtype) -> float:
    """What stands for 0 in a denominator WH: so far below the values, whatever their scale, that
    only zeros are replaced (they stay zeros), and far enough above 0 that no quotient overflows."""
    kind = torch.finfo(dtype)
    return max(float(values.max()) * kind.eps**4 if values.numel() else 0.0, kind.tiny)


def loss(
    matrix: Matrix,
    cells: Cells | None,
    w: Tensor,
    h: Tensor,
    kullback_leibler: bool = False,
    observed: bool = False,
) -> float:
    """sqrt(2 D(X | WH)) without penalties, in float64: for the squared error |X - WH|_F."""
    w, h = w.double(), h.double()
    if kullback_leibler:
        return math.sqrt(2 * max(_divergence(matrix, cells, w, h, observed), 0.0))
    if observed:
        assert cells is not None
        off = cells.values.double() - cells._replace(values=cells.values.double()).product(w, h)
        return float(torch.linalg.vector_norm(off))
    if not matrix.sparse:
        dense, total = matrix.dense, 0.0
        step = max(1, (1 << 22) // max(dense.shape[1], 1))
        for begin in range(0, len(dense), step):
            part = dense[begin : begin + step].double()
            off = torch.addmm(part, w[:, begin : begin + step].T, h, alpha=-1)
            total += float(off.square().sum())
        return math.sqrt(total)
    rows = matrix.rows.with_values(matrix.rows.values.double())
    values = matrix.rows.values.double()
    both = float((csr_product(rows, h.T.contiguous()) * w.T).sum())
    model = float(((w @ w.T) * (h @ h.T)).sum())
    return math.sqrt(max(float(values @ values) - 2 * both + model, 0.0))


def _divergence(matrix: Matrix, cells: Cells | None, w: Tensor, h: Tensor, observed: bool) -> float:
    """sum x log(x / p) - x + p over the cells that count, p = WH."""
    given = matrix.dense if cells is None else cells.values
    least, total = _least(given, torch.float64), 0.0
    if cells is None:
        dense = matrix.dense
        step = max(1, (1 << 22) // max(dense.shape[1], 1))
        for begin in range(0, len(dense), step):
            given = dense[begin : begin + step].double()
            model = (w[:, begin : begin + step].T @ h).clamp_min(least)
            total += float((torch.xlogy(given, given / model) - given + model).sum())
        return total
    given = cells.values.double()
    model = cells._replace(values=given).product(w, h).clamp_min(least)
    total = float((torch.xlogy(given, given / model) - given).sum())
    return total + (float(model.sum()) if observed else float(w.sum(1) @ h.sum(1)))
