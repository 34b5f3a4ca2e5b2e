"""A table as a tensor train: the row of an id is a chain of small matrices, one from each core."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith import ops
from vecsmith.nn._compressed_base import (
    CompressedTable,
    approximation_error,
    check_weight,
    integers,
)
from vecsmith.ops import _checks as check
from vecsmith.optim.in_backward import embedding as gather


def covering_factors(number: int, count: int) -> tuple[int, ...]:
    """``count`` factors of nearly one size whose product is the least that this finds >= number.

    Each is the rounded-up root of what is left, so 1,000,003 in three is 101 x 100 x 100.
    """
    factors = []
    for left in range(count, 0, -1):
        factor = max(1, round(number ** (1 / left)))
        while factor**left < number:
            factor += 1
        while factor > 1 and (factor - 1) ** left >= number:
            factor -= 1
        factors.append(factor)
        number = -(-number // factor)
    return tuple(factors)


def exact_factors(number: int, count: int) -> tuple[int, ...]:
    """``count`` factors, ascending, whose product is ``number``: its primes, the largest first,
    each to the smallest product so far. A prime number is 1 x ... x itself."""
    primes, rest, divisor = [], number, 2
    while divisor * divisor <= rest:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    if rest > 1:
        primes.append(rest)
    factors = [1] * count
    for prime in sorted(primes, reverse=True):
        factors[factors.index(min(factors))] *= prime
    return tuple(sorted(factors))


class TensorTrainTable(CompressedTable):
    """Rows as products of matrices, one from each of K small cores (TT-Rec):

        row(i)[j] = G_1[i_1, j_1] G_2[i_2, j_2] ... G_K[i_K, j_K]

    with i = (i_1, ..., i_K) the digits of the id in the mixed base n_1 x ... x n_K (the first is
    the most significant), j = (j_1, ..., j_K) those of the column in d_1 x ... x d_K, and
    G_k[i_k, j_k] a matrix [r_{k-1}, r_k] (r_0 = r_K = 1). It stores sum_k n_k r_{k-1} d_k r_k
    numbers for the V D of the table: a million rows of 64 at rank 16 are 556 times smaller.

    A call composes each distinct row once, and each distinct prefix of digits once: the chain is
    K - 1 batched matrix products over sorted prefixes, whose slices are gathered by
    :func:`vecsmith.ops.embedding`. Bags then pool the distinct rows.

    Args:
        num_embeddings: V <= n_1 ... n_K; ids are 0..V-1.
        embedding_dim: D = d_1 ... d_K.
        ranks: r_1, ..., r_{K-1}, or one number for all. Larger than the table can use (the lesser
            of the sizes of the two sides) is cut down.
        num_factors: K in 2..4.
        row_factors: n (default: nearly equal ones, rounded up).
        column_factors: d (default: the most even factors of D, ascending).
        device, dtype: of the cores.

    Attributes:
        cores: K parameters [n_k, r_{k-1} d_k r_k], drawn so that a row has unit variance.
        ranks: (1, r_1, ..., r_{K-1}, 1).
        approximation_error: after :meth:`from_pretrained`, ||table - weight|| / ||weight||.

    Raises:
        TypeError, ValueError: for wrong types, sizes, and factors that do not cover the table.

    Sources: Yin, Acun, Wu and Liu 2021 (TT-Rec: Tensor train compression for deep learning
    recommendation models); Oseledets 2011 (Tensor-train decomposition).
    """

    approximation_error: float | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        ranks: int | Sequence[int] = 16,
        *,
        num_factors: int = 3,
        row_factors: Sequence[int] | None = None,
        column_factors: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        name = type(self).__name__
        self.row_factors, self.column_factors = _factors(
            name, num_embeddings, embedding_dim, num_factors, row_factors, column_factors
        )
        self.ranks = _ranks(name, ranks, self.row_factors, self.column_factors)
        self.approximation_error = None
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(n, left * d * right, device=device, dtype=dtype))
            for n, d, left, right in zip(
                self.row_factors, self.column_factors, self.ranks, self.ranks[1:], strict=False
            )
        )
        self.reset_parameters()

    @classmethod
    def from_pretrained(
        cls,
        weight: Tensor,
        ranks: int | Sequence[int] | None = None,
        *,
        tolerance: float | None = None,
        num_factors: int = 3,
        row_factors: Sequence[int] | None = None,
        column_factors: Sequence[int] | None = None,
    ) -> TensorTrainTable:
        """The tensor train of ``weight`` [V, D] by TT-SVD (Oseledets 2011, algorithm 1): K - 1
        truncated singular value decompositions of its unfoldings, in float64. What is achieved is
        ``approximation_error``.

        Args:
            weight: [V, D], floating, finite. Rows that the factors have beyond V are taken as 0.
            ranks: the largest ranks to keep.
            tolerance: the largest relative error (Frobenius): the ranks are the smallest with which
                each decomposition drops at most tolerance / sqrt(K - 1) of the norm. Below 1e-7 or
                so it is the rounding of the cores that counts. With ``ranks`` these are the limit,
                and the error may be larger. One of the two must be given.
            num_factors, row_factors, column_factors: as for the class.

        Raises: TypeError, ValueError as the class, and for NaN or infinity in ``weight``.
        """
        name = cls.__name__
        weight = check_weight(name, weight)
        if ranks is None and tolerance is None:
            raise ValueError(f"{name}: expected ranks or tolerance; got neither")
        if tolerance is not None:
            check.rate(name, "tolerance", tolerance)
        size, dim = weight.shape
        rows, columns = _factors(name, size, dim, num_factors, row_factors, column_factors)
        limits = _ranks(name, 2**30 if ranks is None else ranks, rows, columns)
        cores = _tt_svd(weight, rows, columns, limits, tolerance or 0.0)
        table = cls(
            size,
            dim,
            [core.shape[-1] for core in cores[:-1]],
            num_factors=len(rows),
            row_factors=rows,
            column_factors=columns,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            for parameter, core in zip(table.cores, cores, strict=True):
                # [r_{k-1}, n_k, d_k, r_k] to the rows that are gathered
                parameter.copy_(core.transpose(0, 1).reshape(parameter.shape))
        table.approximation_error = approximation_error(table, weight)
        return table

    def reset_parameters(self) -> None:
        """Draw the cores anew. An entry of a row is a sum of r_1 ... r_{K-1} products."""
        terms = math.prod(self.ranks)
        for core in self.cores:
            nn.init.normal_(core, std=terms ** (-0.5 / len(self.cores)))

    def _compose(self, ids: Tensor, sparse: bool) -> tuple[Tensor | None, Tensor]:
        if torch.compiler.is_compiling():  # the number of distinct rows is not known
            distinct, positions = ids, None
        else:
            distinct, positions = _distinct(ids)
        return positions, self._chain(distinct, sparse, share=positions is not None)

    def _chain(self, ids: Tensor, sparse: bool, *, share: bool) -> Tensor:
        """[U, D]: the rows of ids [U]; where they ascend (``share``), equal prefixes are one."""
        # prefixes[k]: the distinct (i_1, ..., i_{k+1}); parents[k]: where the one before is.
        prefixes, parents = [ids], []
        for factor in self.row_factors[:0:-1]:
            shorter, parent = prefixes[0] // factor, None
            if share:
                shorter, parent = torch.unique_consecutive(shorter, return_inverse=True)
            prefixes.insert(0, shorter)
            parents.insert(0, parent)
        product = gather(prefixes[0], self.cores[0], sparse=sparse)  # [U_1, d_1 r_1]
        for k in range(1, len(self.cores)):
            prefix, parent = prefixes[k], parents[k - 1]
            if parent is not None:
                product = ops.embedding(parent, product)
            core = gather(prefix % self.row_factors[k], self.cores[k], sparse=sparse)
            count, left, right = prefix.shape[0], self.ranks[k], self.ranks[k + 1]
            width = math.prod(self.column_factors[:k])
            product = torch.bmm(
                product.view(count, width, left),
                core.view(count, left, self.column_factors[k] * right),
            ).view(count, width * self.column_factors[k] * right)
        return product

    def extra_repr(self) -> str:
        return self._representation(
            f"row_factors={self.row_factors}",
            f"column_factors={self.column_factors}",
            f"ranks={self.ranks[1:-1]}",
        )


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(the distinct ids, ascending; where each of ``ids`` is among them)."""
    if ids.device.type != "cpu":
        return torch.unique(ids, return_inverse=True)
    # torch.unique sorts positions along with the ids; to sort alone and search is 20 times faster.
    ascending = torch.from_numpy(np.sort(ids.numpy()))
    distinct = torch.unique_consecutive(ascending)
    return distinct, torch.searchsorted(distinct, ids.contiguous())


def _factors(
    name: str,
    num_embeddings: int,
    embedding_dim: int,
    num_factors: int,
    row_factors: Sequence[int] | None,
    column_factors: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    check.integer(name, "num_factors", num_factors, low=2, high=4)
    if row_factors is None:
        rows = covering_factors(num_embeddings, num_factors)
    else:
        rows = integers(name, "row_factors", row_factors, num_factors)
    if column_factors is None:
        columns = exact_factors(embedding_dim, num_factors)
    else:
        columns = integers(name, "column_factors", column_factors, num_factors)
    if math.prod(rows) < num_embeddings:
        raise ValueError(
            f"{name}: expected row_factors with a product >= {num_embeddings}; "
            f"got {rows}, {math.prod(rows)}"
        )
    if math.prod(columns) != embedding_dim:
        raise ValueError(
            f"{name}: expected column_factors with the product {embedding_dim}; "
            f"got {columns}, {math.prod(columns)}"
        )
    return rows, columns


def _ranks(
    name: str, ranks: int | Sequence[int], rows: tuple[int, ...], columns: tuple[int, ...]
) -> tuple[int, ...]:
    """(1, r_1, ..., r_{K-1}, 1): no rank above the size of either side of its unfolding."""
    if isinstance(ranks, int):
        check.integer(name, "ranks", ranks, low=1)
        ranks = [ranks] * (len(rows) - 1)
    inner = integers(name, "ranks", ranks, len(rows) - 1)
    sizes = [n * d for n, d in zip(rows, columns, strict=True)]
    before = list(itertools.accumulate(sizes, int.__mul__))
    limits = [min(size, before[-1] // size) for size in before[:-1]]
    return (1, *(min(rank, limit) for rank, limit in zip(inner, limits, strict=True)), 1)


def _tt_svd(
    weight: Tensor,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    limits: tuple[int, ...],
    tolerance: float,
) -> list[Tensor]:
    """Cores [r_{k-1}, n_k, d_k, r_k] in float64, each but the last with orthonormal columns: what
    later steps drop is the error, no more."""
    count = len(rows)
    rest = weight.new_zeros(math.prod(rows), weight.shape[1], dtype=torch.float64)
    rest[: weight.shape[0]] = weight
    drop = (tolerance * float(rest.norm())) ** 2 / (count - 1)  # squared, of each decomposition
    # [n_1, .., n_K, d_1, .., d_K] to [n_1, d_1, n_2, d_2, ..]
    order = [axis for k in range(count) for axis in (k, count + k)]
    rest = rest.view(*rows, *columns).permute(order).reshape(-1)
    cores, rank = [], 1
    for k in range(count - 1):
        rest = rest.view(rank * rows[k] * columns[k], -1)
        vectors, values = _left_singular(rest)
        # tail[r]: the squared norm of what is lost by keeping r
        tail = values.square().flip(0).cumsum(0).flip(0)
        kept = max(1, min(limits[k + 1], int((tail > drop).sum())))
        vectors = vectors[:, :kept]
        cores.append(vectors.reshape(rank, rows[k], columns[k], kept))
        rest, rank = vectors.t() @ rest, kept
    cores.append(rest.reshape(rank, rows[-1], columns[-1], 1))
    return cores


def _left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(U, S) of a matrix. A wide one is first its triangular factor: M^T = Q R, so M and R^T have
    the same U and S, and V, which nobody needs, is never made."""
    if matrix.shape[0] < matrix.shape[1]:
        matrix = torch.linalg.qr(matrix.t(), mode="r").R.t()
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return vectors, values
