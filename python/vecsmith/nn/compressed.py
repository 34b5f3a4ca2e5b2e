"""Tables smaller than what they stand for: hashed, quotient-remainder, low-rank and tensor-train.

Each is a :class:`vecsmith.nn.table.Table`: it looks up and pools like a table [num_embeddings,
embedding_dim], stores a few small tables, and trains those.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vecsmith.nn._compressed_base import CompressedTable, check_rank
from vecsmith.nn._low_rank import LowRankTable
from vecsmith.nn._tensor_train import TensorTrainTable
from vecsmith.ops import _checks as check
from vecsmith.optim.in_backward import embedding as gather
from vecsmith.optim.in_backward import embedding_bag as gather_bags

__all__ = [
    "CompressedTable",
    "HashedTable",
    "LowRankTable",
    "QuotientRemainderTable",
    "TensorTrainTable",
]

_PRIME = 2**31 - 1
_DIGIT = 2**30


class HashedTable(CompressedTable):
    """Rows shared by hashing: with k hash functions h_j into ``buckets`` rows of one table T,

        row(i) = sum_j p[i, j] T[h_j(i)]       combine="sum",     T [buckets, D]
        row(i) = concat_j p[i, j] T[h_j(i)]    combine="concat",  T [buckets, D / k]

        h_j(i) = ((a_j (i mod 2^30) + c_j floor(i / 2^30) + b_j) mod (2^31 - 1)) mod buckets

    with a_j, c_j in 1..2^31-2 and b_j in 0..2^31-2 drawn from ``seed``: a universal family (two ids
    fall into one bucket with a probability of about 1 / buckets), in 64-bit integers that never
    overflow. p = 1, or a trained weight for each id and hash (``importance=True``: Hash
    Embeddings). With k >= 2 two ids share a row only where all of their hashes meet.

    The k look-ups of an entry are one call of the operator (entries of one bag), and pooling by sum
    and mean, and by max where blocks are concatenated, needs no row of its own.

    Args:
        num_embeddings: ids are 0..num_embeddings-1, up to 2^60: nothing is stored for each of them,
            unless ``importance``.
        embedding_dim: D.
        buckets: rows of T.
        num_hashes: k.
        combine: "sum" or "concat" (D must divide by k).
        importance: train p [num_embeddings, k], from 1.
        seed: of the hash functions. They are the buffer ``coefficients`` [k, 3] of the state_dict:
            loading brings the saved ones.
        device, dtype: of T and p.

    Attributes:
        weight: T, drawn so that a row has unit variance, as torch.nn.Embedding's.
        importance: p, or None.

    Raises:
        TypeError, ValueError: for wrong types and sizes.

    Sources: Carter and Wegman 1979 (Universal classes of hash functions); Weinberger et al. 2009
    (Feature hashing); Svenstrup, Hansen and Winther 2017 (Hash embeddings).
    """

    coefficients: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        buckets: int,
        num_hashes: int = 1,
        combine: str = "sum",
        *,
        importance: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        name = type(self).__name__
        check.integer(name, "buckets", buckets, low=1, high=_PRIME)
        check.integer(name, "num_hashes", num_hashes, low=1, high=64)
        if combine not in ("sum", "concat"):
            raise ValueError(f"{name}: expected combine to be 'sum' or 'concat'; got {combine!r}")
        if combine == "concat" and embedding_dim % num_hashes:
            raise ValueError(
                f"{name}: expected embedding_dim to divide by num_hashes={num_hashes} with "
                f"combine='concat'; got {embedding_dim}"
            )
        self.buckets = buckets
        self.num_hashes = num_hashes
        self.combine = combine
        width = embedding_dim // num_hashes if combine == "concat" else embedding_dim
        self.weight = nn.Parameter(torch.empty(buckets, width, device=device, dtype=dtype))
        self.register_parameter("importance", None)
        if importance:
            check.integer(
                name, "num_embeddings with importance", num_embeddings, low=1, high=_PRIME
            )
            shape = (num_embeddings, num_hashes)
            self.importance = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        generator = torch.Generator().manual_seed(check.seed(name, seed))
        draws = torch.randint(0, _PRIME - 1, (num_hashes, 3), generator=generator)
        draws += torch.tensor([1, 1, 0])
        self.register_buffer("coefficients", draws.to(device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw T anew; p = 1."""
        terms = self.num_hashes if self.combine == "sum" else 1
        nn.init.normal_(self.weight, std=1 / math.sqrt(terms))
        if self.importance is not None:
            nn.init.ones_(self.importance)

    def hashes(self, ids: Tensor) -> Tensor:
        """h_j(i) for int64 ids [*]: int64 [*, k]."""
        # Terms are below 2^31 * 2^30 and their sum below 2^63.
        low, high = (ids % _DIGIT).unsqueeze(-1), (ids // _DIGIT).unsqueeze(-1)
        a, c, b = self.coefficients.unbind(1)
        return (a * low + c * high + b) % _PRIME % self.buckets

    def _compose(self, ids: Tensor, sparse: bool) -> tuple[Tensor | None, Tensor]:
        hashes = self.hashes(ids)
        importance = None
        if self.importance is not None:
            importance = gather(ids, self.importance, sparse=sparse)
        if self.combine == "sum" and (self.num_hashes > 1 or importance is not None):
            return None, gather_bags(
                hashes, self.weight, mode="sum", per_sample_weights=importance, sparse=sparse
            )
        rows = gather(hashes, self.weight, sparse=sparse)  # [N, k, D / k]
        if importance is not None:
            rows = rows * importance.unsqueeze(-1)
        return None, rows.reshape(ids.numel(), self.embedding_dim)

    def _pool(
        self,
        ids: Tensor,
        offsets: Tensor,
        mode: str,
        per_sample_weights: Tensor | None,
        sparse: bool,
    ) -> Tensor:
        concat = self.combine == "concat" and self.num_hashes > 1
        summed = self.combine == "sum" and self.num_hashes > 1
        weighted = self.importance is not None
        if mode == "max" and (summed or weighted):
            return super()._pool(ids, offsets, mode, per_sample_weights, sparse)
        weights = None
        if per_sample_weights is not None:
            weights = per_sample_weights.unsqueeze(1).expand(-1, self.num_hashes)
        if self.importance is not None:
            importance = gather(ids, self.importance, sparse=sparse)
            weights = importance if weights is None else weights * importance
        hashes, bags, count = self.hashes(ids), offsets.numel() - 1, ids.numel()
        starts = offsets * self.num_hashes
        if concat:
            # [k, N]: the bags of h_0, then those of h_1, ... The entries behind the last bag (there
            # may be some, where the caller gives the last offset) are a bag that is dropped.
            hashes = hashes.t()
            weights = None if weights is None else weights.t()
            first = torch.arange(self.num_hashes, device=ids.device).unsqueeze(1) * count
            starts = torch.cat(((offsets + first).reshape(-1), first[-1] + count))
        pooled = gather_bags(
            hashes.reshape(-1),
            self.weight,
            starts,
            mode="sum" if weights is not None else mode,
            per_sample_weights=None if weights is None else weights.reshape(-1),
            include_last_offset=True,
            sparse=sparse,
        )
        if concat:
            pooled = pooled.view(self.num_hashes, bags + 1, -1)[:, :bags].transpose(0, 1)
            pooled = pooled.reshape(bags, self.embedding_dim)
        if mode == "mean" and weights is not None:
            return pooled / torch.diff(offsets).clamp(min=1).unsqueeze(1).to(pooled.dtype)
        if mode == "mean" and summed:  # the operator has divided by the entries of all hashes
            return pooled * self.num_hashes
        return pooled

    def extra_repr(self) -> str:
        return self._representation(
            f"buckets={self.buckets}",
            f"num_hashes={self.num_hashes}",
            f"combine={self.combine!r}",
            *(("importance=True",) if self.importance is not None else ()),
        )


class QuotientRemainderTable(CompressedTable):
    """Rows composed of two: one by the quotient and one by the remainder of the id,

        row(i) = Q[i // m] o R[i mod m],    Q [ceil(num_embeddings / m), .],  R [m, .],  m = buckets

    with o the elementwise product (operation="mult"), the sum ("add"), or concatenation ("concat":
    Q has D - D // 2 columns and R has D // 2). The pair (i // m, i mod m) is unique, so every id
    has a row of its own, of 2 sqrt(num_embeddings) stored rows at the least.

    "add" (by sum or mean) and "concat" (by each mode) pool the two tables first; "mult" composes
    the row of each entry.

    Args:
        num_embeddings, embedding_dim: of the table that is stood for.
        buckets: m (default: ceil(sqrt(num_embeddings)), the smallest pair of tables).
        operation: "mult", "add" or "concat".
        device, dtype: of both tables.

    Attributes:
        quotient_weight, remainder_weight: Q and R, drawn so that a row has unit variance.

    Raises:
        TypeError, ValueError: for wrong types and sizes.

    Source: Shi, Mudigere, Naumov and Yang 2020 (Compositional embeddings using complementary
    partitions for memory-efficient recommendation systems).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        buckets: int | None = None,
        operation: str = "mult",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        name = type(self).__name__
        if buckets is None:
            buckets = math.isqrt(num_embeddings - 1) + 1
        check_rank(name, "buckets", buckets, min(num_embeddings, _PRIME))
        if operation not in ("mult", "add", "concat"):
            raise ValueError(
                f"{name}: expected operation to be 'mult', 'add' or 'concat'; got {operation!r}"
            )
        if operation == "concat" and embedding_dim < 2:
            raise ValueError(
                f"{name}: expected embedding_dim >= 2 with operation='concat'; got {embedding_dim}"
            )
        quotients = -(-num_embeddings // buckets)
        if quotients > _PRIME:
            raise ValueError(
                f"{name}: expected num_embeddings / buckets to be below 2^31; got {quotients}"
            )
        self.buckets = buckets
        self.operation = operation
        right = embedding_dim // 2 if operation == "concat" else embedding_dim
        left = embedding_dim - right if operation == "concat" else embedding_dim
        self.quotient_weight = nn.Parameter(
            torch.empty(quotients, left, device=device, dtype=dtype)
        )
        self.remainder_weight = nn.Parameter(
            torch.empty(buckets, right, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables anew."""
        std = math.sqrt(0.5) if self.operation == "add" else 1.0
        nn.init.normal_(self.quotient_weight, std=std)
        nn.init.normal_(self.remainder_weight, std=std)

    def _combine(self, left: Tensor, right: Tensor) -> Tensor:
        if self.operation == "mult":
            return left * right
        return left + right if self.operation == "add" else torch.cat((left, right), dim=-1)

    def _compose(self, ids: Tensor, sparse: bool) -> tuple[Tensor | None, Tensor]:
        left = gather(ids // self.buckets, self.quotient_weight, sparse=sparse)
        right = gather(ids % self.buckets, self.remainder_weight, sparse=sparse)
        return None, self._combine(left, right)

    def _pool(
        self,
        ids: Tensor,
        offsets: Tensor,
        mode: str,
        per_sample_weights: Tensor | None,
        sparse: bool,
    ) -> Tensor:
        if self.operation == "mult" or (self.operation == "add" and mode == "max"):
            return super()._pool(ids, offsets, mode, per_sample_weights, sparse)
        left, right = (
            gather_bags(
                part,
                weight,
                offsets,
                mode=mode,
                per_sample_weights=per_sample_weights,
                include_last_offset=True,
                sparse=sparse,
            )
            for part, weight in (
                (ids // self.buckets, self.quotient_weight),
                (ids % self.buckets, self.remainder_weight),
            )
        )
        return self._combine(left, right)

    def extra_repr(self) -> str:
        return self._representation(f"buckets={self.buckets}", f"operation={self.operation!r}")
