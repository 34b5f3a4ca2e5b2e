"""Matrices and images of low rank: the best approximation of each rank, and what it costs.

The nearest matrix of rank r, in the Frobenius norm and in the spectral norm, is the sum of the
first r singular triplets, and its error is what was dropped (Eckart and Young 1936; Mirsky 1960):

    |A - A_r|_F = sqrt(sum_{i > r} sigma_i^2)

An image [H, W] is a matrix; one with channels [H, W, C] is C of them, all of the same rank, and
their errors add up in squares. Pictures: :mod:`vecsmith.plot_low_rank`. For sparse matrices, and
for the first few triplets of large ones: :class:`vecsmith.TruncatedSVD`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith.models._matrix import as_array

__all__ = [
    "LowRank",
    "approximate",
    "compression_ratio",
    "principal_angles",
    "rank_errors",
    "singular_values",
    "smallest_rank",
]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix of rank r by its factors, and how far it is from the one it stands for. Two are
    equal where all their numbers are.

    Attributes:
        left: U, float64 [..., m, r] with orthonormal columns; ... is the channels C, where there
            are any.
        values: sigma [..., r], falling.
        right: V^T [..., r, n] with orthonormal rows.
        error: |A - A_r|_F, from the singular values that were dropped.
        relative_error: that, in parts of |A|_F; 0 for a matrix of zeros.
        shape: of the matrix or image.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray
    error: float
    relative_error: float
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """r."""
        return self.values.shape[-1]

    @property
    def numbers(self) -> int:
        """How many numbers the factors are: r (m + n + 1), for each channel."""
        return self.left.size + self.values.size + self.right.size

    @property
    def compression_ratio(self) -> float:
        """Numbers of the matrix for each number of the factors; inf for rank 0."""
        return math.prod(self.shape) / self.numbers if self.numbers else math.inf

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LowRank):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    def to_array(self) -> np.ndarray:
        """A_r written out, float64, in the shape of the matrix or image."""
        planes = (self.left * self.values[..., None, :]) @ self.right
        return np.moveaxis(planes, 0, -1) if len(self.shape) == 3 else planes


def _planes(matrix: Any) -> tuple[Tensor, tuple[int, ...]]:
    """(float64 [..., m, n], the shape that was given). Raises TypeError, ValueError."""
    given = as_array(matrix)
    if hasattr(given, "toarray"):
        raise TypeError(
            "expected a dense matrix; got a sparse one (vecsmith.TruncatedSVD takes those)"
        )
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected a matrix of numbers; got {array.dtype}")
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            "expected a matrix [m, n] or an image [H, W, C], not empty; "
            f"got shape {list(array.shape)}"
        )
    planes = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    if not bool(planes.isfinite().all()):
        raise ValueError("expected finite numbers; got nan or infinity")
    return (planes.movedim(-1, 0) if array.ndim == 3 else planes), array.shape


def singular_values(matrix: Any) -> np.ndarray:
    """All of them, falling: float64 [min(m, n)], or [C, min(H, W)] of an image with channels.

    Args:
        matrix: [m, n], or an image [H, W, C]: an array, tensor or nested list of numbers.

    Raises:
        TypeError, ValueError: a sparse, empty or non-numeric matrix, nan, infinity.
    """
    return torch.linalg.svdvals(_planes(matrix)[0]).numpy()


def rank_errors(matrix: Any, relative: bool = False) -> np.ndarray:
    """The error of the best approximation of each rank r = 0, 1, ... min(m, n):

        sqrt(sum_{i > r} sigma_i^2)

    Args:
        matrix: as in :func:`singular_values`.
        relative: in parts of the error of rank 0, which is |A|_F.

    Returns:
        float64 [min(m, n) + 1], falling to 0. All zeros for a matrix of zeros.
    """
    return _errors(singular_values(matrix), relative)


def _errors(values: np.ndarray, relative: bool) -> np.ndarray:
    # In parts of the greatest, whose square may be no number.
    scale = float(values.max()) or 1.0
    squares = (np.atleast_2d(values / scale) ** 2).sum(axis=0)
    # From the smallest up, so that the small ones are not lost next to the great ones.
    errors = np.sqrt(np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]]))
    return errors / (errors[0] or 1.0) if relative else errors * scale


def smallest_rank(matrix: Any, relative_error: float) -> int:
    """The least r whose best approximation is within that part of |A|_F, in 0 .. min(m, n).

    Args:
        matrix: as in :func:`singular_values`.
        relative_error: 0 .. 1; 0.05 for 5 %.

    Raises:
        ValueError: a relative error that is not in 0 .. 1.
    """
    if not 0 <= relative_error <= 1:
        raise ValueError(f"expected relative_error in 0 .. 1; got {relative_error}")
    errors = rank_errors(matrix, relative=True)
    return int(np.argmax(errors <= relative_error))


def _check_rank(rank: Any, most: int) -> None:
    """Raises TypeError, ValueError."""
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
        raise TypeError(f"expected rank to be an int; got {rank!r}")
    if not 0 <= rank <= most:
        raise ValueError(f"expected rank in 0 .. {most}; got {rank}")


def approximate(matrix: Any, rank: int) -> LowRank:
    """The matrix of that rank that is nearest to a matrix.

    Args:
        matrix: as in :func:`singular_values`.
        rank: 0 .. min(m, n).

    Raises:
        TypeError, ValueError: as :func:`singular_values`; another rank.
    """
    planes, shape = _planes(matrix)
    _check_rank(rank, min(planes.shape[-2:]))
    left, values, right = torch.linalg.svd(planes, full_matrices=False)
    return LowRank(
        left[..., :rank].numpy().copy(),
        values[..., :rank].numpy().copy(),
        right[..., :rank, :].numpy().copy(),
        error=float(_errors(values.numpy(), relative=False)[rank]),
        relative_error=float(_errors(values.numpy(), relative=True)[rank]),
        shape=shape,
    )


def compression_ratio(shape: Sequence[int], rank: int) -> float:
    """How many numbers of a matrix [m, n] (or image [H, W, C]) there are for each number that its
    factors of that rank store: m n / (r (m + n + 1)). Below 1 nothing is gained; inf for rank 0.

    Raises:
        TypeError, ValueError: another shape; a rank that is not in 0 .. min(m, n).
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"expected a shape [m, n] or [H, W, C]; got {list(shape)}")
    m, n = shape[:2]
    _check_rank(rank, min(m, n))
    return m * n / (rank * (m + n + 1)) if rank else math.inf


def principal_angles(first: Any, second: Any) -> np.ndarray:
    """The angles between two subspaces, rising, in radians 0 .. pi/2: float64 [min(p, q)].

    All are 0 where the smaller lies in the other. Small ones are taken from their sines, great ones
    from their cosines, so that both are exact to rounding.

    Args:
        first, second: [p, d], [q, d], whose rows span them, linearly independent.

    Source: Bjorck and Golub 1973, "Numerical Methods for Computing Angles Between Linear
    Subspaces".
    """
    bases = []
    for rows in (first, second):
        planes, shape = _planes(rows)
        if planes.dim() != 2 or shape[0] > shape[1]:
            raise ValueError(f"expected rows [p, d] with p <= d; got {list(shape)}")
        bases.append(torch.linalg.qr(planes.T)[0])
    if bases[0].shape[0] != bases[1].shape[0]:
        raise ValueError(
            f"expected rows of one size; got {bases[0].shape[0]} and {bases[1].shape[0]}"
        )
    large, small = sorted(bases, key=lambda basis: -basis.shape[1])
    inner = large.T @ small
    cosines = torch.linalg.svdvals(inner).clamp(max=1)
    sines = torch.linalg.svdvals(small - large @ inner).clamp(max=1).flip(0)
    return torch.where(cosines > math.sqrt(0.5), sines.asin(), cosines.acos()).numpy()
