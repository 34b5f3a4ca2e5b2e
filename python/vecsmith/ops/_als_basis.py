"""The choice of the factors' basis in which what is known of cells that are not there, Y^T Y + l I,
is the identity or diagonal, and the least ridge with which a matrix can be factored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Basis(NamedTuple):
    """Z = Y change, and of a row x in the factors' basis t = x forth, x = t back; all [f, f] of
    float64. triangular: change is upper, forth and back are lower triangular. spectrum: float64 [f]
    or None: A is (spectrum + l_u) of the diagonal, or I. Directions in which Y has nothing are
    columns of zeros beside a spectrum: no solution has a part there."""

    change: Tensor
    forth: Tensor
    back: Tensor
    triangular: bool
    spectrum: Tensor | None


# Of the largest eigenvalue of Y^T Y: below it float32 factors hold nothing but their rounding.
_NOTHING = 1e-12


_AT_ONCE = 1 << 21  # numbers that are float64 together


def exact_gram_matrix(factors: Tensor) -> Tensor:
    """Y^T Y of factors [n, f], in sums of float64: small eigenvalues are right, too."""
    f = factors.shape[1]
    gram = factors.new_zeros(f, f, dtype=torch.float64)
    for part in factors.split(max(1, _AT_ONCE // max(f, 1))):
        rows = part.double()
        gram += rows.T @ rows
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


def basis_of(gram: Tensor, ridge: float, shared: bool) -> Basis:
    """Of Y^T Y [f, f] of float64; shared: all rows have this ridge.

    Raises: ValueError: it is not finite.
    """
    if not bool(gram.isfinite().all()):
        raise ValueError(
            "als_solve: expected factors whose squares can be added up; got sums that overflow"
        )
    if shared:
        # A = L (I + Z^T (C - 1) Z) L^T with Z = Y L^-T: x = L^-T t.
        lower = cholesky(gram, ridge)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        return Basis(inverse.T, lower, inverse, True, None)
    # Y^T Y = V S V^T: with Z = Y V every row has its own (S + ridge I) of the diagonal.
    spectrum, vectors = torch.linalg.eigh(gram)
    least = _NOTHING * float(spectrum[-1].clamp_min(1e-30))
    vectors[:, spectrum < least] = 0
    spectrum.clamp_(min=least)
    return Basis(vectors, vectors, vectors.T, False, spectrum)
