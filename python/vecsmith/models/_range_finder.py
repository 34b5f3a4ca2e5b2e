"""The leading singular triplets of a matrix, by a block Krylov space or exactly.

Block Golub-Kahan: from a random block, multiply with the matrix and with its transpose in turn, and
keep an orthonormal basis of all that comes out. With V = [V_1 ... V_q] [n, d] and U [m, d] of
orthonormal columns and an upper triangular B [d, d],

    A V = U B,    A^T U_j = V_{<=j} C_j + V_{j+1} R_{j+1}

so that the singular triplets of B, carried over by U and V, are the best that span V holds
(Rayleigh-Ritz). Power iterations keep only the last block; all blocks together reach the same error
with less than half of the products: their polynomials are the best of their degree, as in
Chebyshev's, not the monomials.

Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness"; Musco and Musco 2015,
"Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value Decomposition";
Meyer, Musco and Musco 2024, "On the Unreasonable Effectiveness of Single Vector Krylov Methods for
Low-Rank Approximation" (why blocks narrower than the rank will do).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vecsmith.models._matrix import Matrix

Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]

_CANCELED = 0.25  # below this part of a column's norm, project once more ("twice is enough")
_SMALL = 500  # sides up to here are solved exactly
_WRITTEN = 1 << 22  # numbers up to which a sparse matrix is written out
_SPARSE_BLOCK, _DENSE_BLOCK, _LEAST_BLOCK = 16, 32, 8


def leading_triplets(
    matrix: Matrix, rank: int, n_iter: int, n_oversamples: int, random: np.random.RandomState
) -> Triplets:
    """(U [m, rank], s [rank] falling, V^T [rank, n]) of a matrix A; exact where that costs no more.
    A V = U S to rounding, and U and V are orthonormal, also where neither spans what it should.

    Signs: the greatest entry of each row of V^T by magnitude is positive.

    Args:
        rank: 1 .. min(m, n).
        n_iter: the error is to be that of so many power iterations of a block of rank +
            n_oversamples vectors.
        random: draws the first block.
    """
    m, n = matrix.shape
    block, depth = _plan(rank, n_iter, n_oversamples, matrix.sparse)
    if max(m, n) <= _SMALL or 2 * block * depth >= min(m, n):
        return exact_triplets(matrix, rank)
    return krylov_triplets(matrix, rank, block, depth, random)


def _plan(rank: int, n_iter: int, n_oversamples: int, sparse: bool) -> tuple[int, int]:
    """(columns of a block, number of blocks).

    How large a Krylov space is as good as n_iter power iterations was measured on singular values
    that fall like i^-1/4 .. i^-1, geometrically and in steps, and on those of random dense and
    sparse matrices, which take the most: with l = rank + n_oversamples and blocks of b columns,
    max((1.05 + 0.55 r) l, (0.7 + 0.55 r) l + 1.6 b) dimensions, r = sqrt(n_iter), and more than
    half of the degree. Narrow blocks go deeper for the same number of products. Dense matrices are
    read once for each block, so theirs are wider.
    """
    width, root = rank + n_oversamples, 0.55 * math.sqrt(n_iter)
    most = _SPARSE_BLOCK if sparse else _DENSE_BLOCK
    block = max(_LEAST_BLOCK, min(most, width // 4))
    dimensions = max((1.05 + root) * width, (0.7 + root) * width + 1.6 * block)
    return block, max(math.ceil(dimensions / block), 2 + math.ceil(0.7 * n_iter))


def exact_triplets(matrix: Matrix, rank: int) -> Triplets:
    """:func:`leading_triplets` by a full decomposition. A large sparse matrix is never written out
    but for blocks."""
    m, n = matrix.shape
    if matrix.sparse and m * n > _WRITTEN:
        return _triangle_triplets(matrix, rank)
    if n <= m:
        dense = matrix.times(torch.eye(n, dtype=matrix.dtype))
    else:
        dense = matrix.transposed_times(torch.eye(m, dtype=matrix.dtype)).T
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    return _flipped(left[:, :rank], values[:rank], right[:rank])


def _triangle_triplets(matrix: Matrix, rank: int) -> Triplets:
    """:func:`exact_triplets` from the triangle of A = Q R (A^T, where that is taller), which takes
    in one block of rows after another: as exact as from A itself, and Q is not needed."""
    triangle = torch.zeros(0, min(matrix.shape), dtype=matrix.dtype)
    for part in matrix.written_out():
        triangle = torch.linalg.qr(torch.cat([triangle, part]), mode="r")[1]
    axes = torch.linalg.svd(triangle)[2][:rank].T
    if matrix.shape[0] < matrix.shape[1]:
        axes = _of_span(matrix.transposed_times, axes, rank)[0]
    left, values, axes = _of_span(matrix.times, axes, rank)
    return _flipped(left, values, axes.T)


def krylov_triplets(
    matrix: Matrix, rank: int, block: int, depth: int, random: np.random.RandomState
) -> Triplets:
    """:func:`leading_triplets` from a Krylov space of ``depth`` blocks of ``block`` columns.

    Each new block is orthogonalized against all others on the shorter side, and against its
    neighbor alone on the longer one, where the others follow (Simon and Zha 2000, "Low-Rank Matrix
    Approximation Using the Lanczos Bidiagonalization Process", section 3: one side will do). What
    that leaves is measured in the end, and mended.

    A value that many singular vectors share is found once for each column of a block. Where the
    space ends early, there are few different values, and the search begins anew with blocks that
    hold as many copies as are asked for.
    """
    m, n = matrix.shape
    times, transposed_times = matrix.times, matrix.transposed_times
    if m < n:  # the transpose: V is the shorter side
        m, n, times, transposed_times = n, m, transposed_times, times
    width = block * depth
    # Columns one behind the other, as all blocks are: products of a few columns with many are twice
    # as fast so in float64, and LAPACK wants them so.
    left = torch.empty(width, m, dtype=matrix.dtype).T
    right = torch.empty(width, n, dtype=matrix.dtype).T
    inner = torch.zeros(width, width, dtype=torch.float64)  # B
    start = torch.from_numpy(random.standard_normal((m, block))).to(matrix.dtype)
    following = _by_columns(transposed_times(start))
    neighbor = start  # the last block of U; of the first there is none
    scale = 0.0  # about the greatest singular value: what rounding is measured by
    for j in range(depth):
        past, now = slice(0, j * block), slice(j * block, (j + 1) * block)
        right_basis, left_basis = right[:, past], left[:, past]
        known = (following.T @ right_basis).T
        following.T.addmm_(known.T, right_basis.T, alpha=-1)
        columns, triangle = _orthonormal(following, known, right_basis, scale, random)
        ended = triangle.diagonal().abs() <= math.sqrt(torch.finfo(matrix.dtype).eps) * scale
        if j and block < rank and bool(ended.all()):
            wide = rank + _LEAST_BLOCK
            if 2 * wide * (j + 1) >= n:
                return exact_triplets(matrix, rank)
            return krylov_triplets(matrix, rank, wide, j + 1, random)
        right[:, now] = columns
        product = _by_columns(times(columns))
        # U_i^T A V_j = (A^T U_i)^T V_j: R^T for the block before, 0 for those before that.
        known = torch.zeros(j * block, block, dtype=matrix.dtype)
        if j:
            known[-block:] = triangle.T
            product.T.addmm_(triangle, neighbor.T, alpha=-1)
        neighbor, triangle = _orthonormal(product, known, left_basis, scale, random)
        left[:, now] = neighbor
        inner[past, now], inner[now, now] = known.double(), triangle.double()
        scale = max(scale, float(torch.linalg.vector_norm(inner[:, now], dim=0).max()))
        if j + 1 < depth:
            following = _by_columns(transposed_times(neighbor))
    turn_left, values, turn_right = torch.linalg.svd(inner)
    found = (turn_left[:, :rank].T.to(matrix.dtype) @ left.T).T
    axes = (turn_right[:rank].to(matrix.dtype) @ right.T).T
    gram = found.T @ found
    off = float((gram - torch.eye(rank, dtype=matrix.dtype)).abs().max())
    if off > 1e3 * torch.finfo(matrix.dtype).eps:
        # U has lost its orthogonality: the singular triplets of A V, from A V itself.
        found, values, axes = _of_span(times, right, rank)
    else:
        values = values[:rank].to(matrix.dtype)
    if matrix.shape[0] < matrix.shape[1]:
        # That was A^T U = V S. The step to A V = U S makes both a little better.
        found, values, axes = _of_span(matrix.times, found, rank)
    return _flipped(found, values, axes.T)


def _by_columns(block: Tensor) -> Tensor:
    """With columns one behind the other in memory."""
    return block.T.contiguous().T


def _of_span(
    times: Callable[[Tensor], Tensor], right: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(U, s, V) of the leading triplets of A V V^T, for an orthonormal V ``right`` [n, d]."""
    unit, triangle = torch.linalg.qr(times(right.contiguous()))
    turn_left, values, turn_right = torch.linalg.svd(triangle)
    return unit @ turn_left[:, :rank], values[:rank], right @ turn_right[:rank].T


def _orthonormal(
    columns: Tensor, known: Tensor, basis: Tensor, scale: float, random: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """(Q, R) with ``columns`` = Q R, and Q [rows, b] orthonormal and orthogonal to the basis, which
    was taken off the columns already, with coefficients ``known``.

    Columns that hold nothing new (rounding, next to ``scale``) become random ones, with zeros in R:
    so a matrix of low rank, or with one value many times, has no bad ending.
    """
    unit, triangle = torch.linalg.qr(columns)
    left = torch.linalg.vector_norm(triangle, dim=0)
    taken = torch.linalg.vector_norm(known, dim=0)
    diagonal = triangle.diagonal().abs()
    scale = max(scale, float(left.max()))
    empty = diagonal <= 20 * torch.finfo(columns.dtype).eps * scale
    if bool(empty.any()):
        fresh = torch.from_numpy(random.standard_normal((len(columns), int(empty.sum()))))
        unit[:, empty] = fresh.to(columns.dtype) / math.sqrt(len(columns))
        triangle[empty] = 0
    if bool((left < _CANCELED * taken).any()) or bool(empty.any()):
        # Twice is enough: what is left of a column is small next to what was taken off it.
        for _ in range(2 if bool(empty.any()) else 1):
            unit -= basis @ (basis.T @ unit)
            unit, turn = torch.linalg.qr(unit)
            triangle = turn @ triangle
    return unit, triangle


def _flipped(left: Tensor, values: Tensor, right: Tensor) -> Triplets:
    """With the greatest entry of each row of ``right`` positive."""
    if right.numel():
        greatest = right.abs().argmax(dim=1, keepdim=True)
        signs = torch.where(right.gather(1, greatest) < 0, -1.0, 1.0).to(right.dtype)
        left, right = left * signs.T, right * signs
    return left.contiguous().numpy(), values.numpy(), right.contiguous().numpy()
