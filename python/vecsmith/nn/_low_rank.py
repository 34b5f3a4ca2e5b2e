"""A table as a product of two thin matrices, alone or on top of a frozen table (LoRA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vecsmith import ops
from vecsmith.nn._compressed_base import (
    CompressedTable,
    approximation_error,
    check_rank,
    check_weight,
)
from vecsmith.nn.table import Table
from vecsmith.ops import _checks as check
from vecsmith.optim.in_backward import embedding as gather
from vecsmith.optim.in_backward import embedding_bag as gather_bags

_CHUNK = 65536  # rows of a table that are worked on at once


class LowRankTable(CompressedTable):
    """A frozen base and a trained product of rank r, or that product alone (base=None):

        row(i) = base[i] + (alpha / r) A[i] B,        A [num_embeddings, r],  B [r, D]

    Bags pool first and multiply after: sum_n w_n A[i_n] B = (sum_n w_n A[i_n]) B, for sums and
    means; with "max" the row of each entry is composed.

    With a base one factor starts at zero, so the table starts as its base. zero="A" (default): rows
    that are never looked up stay exactly the base's. zero="B": what B
    learns reaches every row. The other factor is drawn so that its product with a unit vector has
    variance 1 / r. Entries of ``padding_idx`` have no low-rank term: in :meth:`embedding` they are
    the base's row (zeros without a base).

    Args:
        num_embeddings, embedding_dim: V and D.
        rank: r in 1..min(V, D).
        base: what is adapted, frozen: a floating tensor [V, D] (kept as the buffer ``base``,
            sharing its memory), the uint8 rows [V, D + 8] of :func:`vecsmith.ops.quantize_rows`, or
            a :class:`~vecsmith.nn.table.Table`. None: A B alone, with rows of unit variance.
        alpha: the product is scaled by alpha / r (default: r, so by 1).
        zero: "A" or "B", with a base.
        device, dtype: of A and B (default: the base's; float32 for a uint8 base).

    Attributes:
        A, B: the factors. ``parameter_count`` and ``compression_ratio`` count these alone.
        approximation_error: after :meth:`from_pretrained`, ||A B - W|| / ||W||.

    Raises:
        TypeError, ValueError: for wrong types and sizes.

    Sources: Hu et al. 2021 (LoRA: Low-rank adaptation of large language models); Eckart and Young
    1936 (The approximation of one matrix by another of lower rank).
    """

    base: Tensor | Table | None
    approximation_error: float | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        *,
        base: Tensor | Table | None = None,
        alpha: float | None = None,
        zero: str = "A",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        name = type(self).__name__
        check.integer(name, "num_embeddings", num_embeddings, low=1, high=2**31 - 1)
        check_rank(name, "rank", rank, min(num_embeddings, embedding_dim))
        if zero not in ("A", "B"):
            raise ValueError(f"{name}: expected zero to be 'A' or 'B'; got {zero!r}")
        alpha = float(rank) if alpha is None else alpha
        check.rate(name, "alpha", alpha)
        if alpha == 0:
            raise ValueError(f"{name}: expected alpha > 0; got {alpha}")
        self.rank = rank
        self.alpha = float(alpha)
        self.scaling = self.alpha / rank
        self.zero = zero
        self.approximation_error = None
        like = self._set_base(base)
        if like is not None:
            device = like.device if device is None else device
            if dtype is None:
                dtype = like.dtype if like.dtype.is_floating_point else torch.float32
        self.A = nn.Parameter(torch.empty(num_embeddings, rank, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(rank, embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def _set_base(self, base: Tensor | Table | None) -> Tensor | None:
        """Keeps the base, and returns a tensor whose device and dtype the factors take."""
        name = type(self).__name__
        if base is None:
            self.register_buffer("base", None)
            return None
        if isinstance(base, Table):
            shape = [base.num_embeddings, base.embedding_dim]
            like = next(base.parameters(), None)
            self.base = base.requires_grad_(False)
        else:
            if not isinstance(base, Tensor):
                raise TypeError(
                    f"{name}: expected base to be a torch.Tensor, a Table or None; "
                    f"got {type(base).__name__}"
                )
            if base.dtype == torch.uint8:
                shape = [base.shape[0], base.shape[1] - 8] if base.dim() == 2 else list(base.shape)
            else:
                check.table(name, "base", base)
                shape = list(base.shape)
            like = base
            self.register_buffer("base", base.detach())
        if shape != [self.num_embeddings, self.embedding_dim]:
            raise ValueError(
                f"{name}: expected base of [{self.num_embeddings}, {self.embedding_dim}]; "
                f"got {shape}"
            )
        return like

    @classmethod
    def from_pretrained(
        cls, weight: Tensor, rank: int, *, alpha: float | None = None
    ) -> LowRankTable:
        """The best table of this rank (base=None) for ``weight`` [V, D], in the Frobenius norm: its
        truncated singular value decomposition U S V^T, split as A = U sqrt(S), B = sqrt(S) V^T
        (over the scaling). The relative error is ``approximation_error``.

        Raises: TypeError, ValueError for a wrong weight, one with NaN or infinity, or a rank out of
        1..min(V, D).
        """
        weight = check_weight(cls.__name__, weight)
        rows, dim = weight.shape
        table = cls(rows, dim, rank, alpha=alpha, device=weight.device, dtype=weight.dtype)
        # By the D x D matrix W^T W, in chunks: no float64 copy of the whole table.
        square = torch.zeros(dim, dim, dtype=torch.float64, device=weight.device)
        for chunk in weight.split(_CHUNK):
            square.addmm_(chunk.double().t(), chunk.double())
        values, vectors = torch.linalg.eigh(square)  # ascending
        right = vectors[:, -rank:].flip(1)
        singular = values[-rank:].flip(0).clamp(min=0).sqrt()
        # Directions that W does not have are not blown up by 1 / sqrt(S).
        root = singular.clamp(min=float(singular[0]) * 1e-8 or 1.0).sqrt()
        with torch.no_grad():
            table.B.copy_((right * root).t() / table.scaling)
            for part, chunk in zip(table.A.split(_CHUNK), weight.split(_CHUNK), strict=True):
                part.copy_(chunk.double() @ (right / root))
        table.approximation_error = approximation_error(table, weight)
        return table

    def reset_parameters(self) -> None:
        """Draw A and B anew; with a base the one that ``zero`` names is 0."""
        std = 1 / math.sqrt(self.rank)
        if self.base is None:
            nn.init.normal_(self.A)
            nn.init.normal_(self.B, std=std / self.scaling)
            return
        zero, drawn = (self.A, self.B) if self.zero == "A" else (self.B, self.A)
        nn.init.zeros_(zero)
        nn.init.normal_(drawn, std=std)

    @torch.no_grad()
    def merge(self) -> None:
        """Add (alpha / r) A B to the base, in place (in the tensor that was given), and start the
        factors anew, so that the table's rows stay what they are. An optimizer's state for A and B
        is stale afterwards. A uint8 base is quantized again.

        Raises: TypeError where the base is not a tensor.
        """
        base = self.base
        if not isinstance(base, Tensor):
            raise TypeError(
                f"{type(self).__name__}: expected base to be a torch.Tensor to merge into; "
                f"got {type(base).__name__}"
            )
        for start in range(0, self.num_embeddings, _CHUNK):
            part = base[start : start + _CHUNK]
            update = self.scaling * (self.A[start : start + _CHUNK].float() @ self.B.float())
            if base.dtype == torch.uint8:
                part.copy_(ops.quantize_rows(ops.dequantize_rows(part) + update))
            else:
                part.add_(update.to(part.dtype))
        self.reset_parameters()

    @property
    def parameter_count(self) -> int:
        """The numbers that are trained: A and B."""
        return self.A.numel() + self.B.numel()

    # --- looking up -------------------------------------------------------------------------------

    def _product(self, pooled: Tensor, like: Tensor | None, sparse: bool) -> Tensor:
        """(alpha / r) A[.] B, added to the base's part where there is one."""
        # B is looked up too, all of it: with sparse=True or an optimizer in backward it then has
        # the gradient that the optimizers of tables take, and one optimizer is enough for both.
        every = torch.arange(self.rank, device=self.B.device)
        product = self.scaling * (pooled @ gather(every, self.B, sparse=sparse))
        return product if like is None else like + product.to(like.dtype)

    def _base_rows(self, indices: Tensor, padding_idx: int | None = None) -> Tensor | None:
        with torch.no_grad():
            if isinstance(self.base, Table):
                return self.base.embedding(indices, padding_idx=padding_idx)
            return None if self.base is None else ops.embedding(indices, self.base)

    def _base_bags(self, indices: Tensor, offsets: Tensor | None, **how) -> Tensor | None:
        """The base's bags: no gradient for the base, but one for the weights of the entries."""
        if isinstance(self.base, Table):
            return self.base.embedding_bag(indices, offsets, **how)
        return None if self.base is None else ops.embedding_bag(indices, self.base, offsets, **how)

    def _compose(self, ids: Tensor, sparse: bool) -> tuple[Tensor | None, Tensor]:
        return None, self._product(gather(ids, self.A, sparse=sparse), self._base_rows(ids), sparse)

    def embedding(
        self, indices: Tensor, *, padding_idx: int | None = None, sparse: bool = False
    ) -> Tensor:
        self._check_indices(indices)
        rows = gather(indices, self.A, padding_idx=padding_idx, sparse=sparse)
        if padding_idx is not None:
            absent = indices == padding_idx % self.num_embeddings
            rows = rows.masked_fill(absent.unsqueeze(-1), 0)
        return self._product(rows, self._base_rows(indices, padding_idx), sparse)

    def embedding_bag(
        self,
        indices: Tensor,
        offsets: Tensor | None = None,
        *,
        mode: str = "mean",
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        sparse: bool = False,
    ) -> Tensor:
        how = {
            "mode": mode,
            "per_sample_weights": per_sample_weights,
            "include_last_offset": include_last_offset,
            "padding_idx": padding_idx,
        }
        # Quantized rows give no gradient to the weights of entries; rows that were composed do.
        quantized = isinstance(self.base, Tensor) and self.base.dtype == torch.uint8
        learned = per_sample_weights is not None and per_sample_weights.requires_grad
        if mode == "max" or (quantized and learned):
            return super().embedding_bag(indices, offsets, sparse=sparse, **how)
        self._check_indices(indices)
        pooled = gather_bags(indices, self.A, offsets, sparse=sparse, **how)
        return self._product(pooled, self._base_bags(indices, offsets, **how), sparse)

    def extra_repr(self) -> str:
        base = self.base
        kind = "None" if base is None else type(base).__name__
        if isinstance(base, Tensor):
            kind = str(base.dtype).removeprefix("torch.")
        return self._representation(
            f"rank={self.rank}", f"alpha={self.alpha:g}", f"base={kind}", f"zero={self.zero!r}"
        )
