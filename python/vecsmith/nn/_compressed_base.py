"""What the compressed tables share: arguments, padding, pooling of composed rows, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.nn.table import Table
from vecsmith.ops import _checks as check

_MODES = ("sum", "mean", "max")


def check_padding(name: str, padding_idx: int | None, num_embeddings: int) -> int | None:
    """``padding_idx`` from 0, as torch.nn reads it: a negative one counts from the end."""
    if padding_idx is None:
        return None
    check.integer(name, "padding_idx", padding_idx, low=-num_embeddings, high=num_embeddings - 1)
    return padding_idx % num_embeddings


def approximation_error(table: Table, weight: Tensor, chunk: int = 65536) -> float:
    """||table - weight|| / ||weight|| (Frobenius), in float64, a chunk of rows at a time."""
    distance = norm = 0.0
    for start in range(0, weight.shape[0], chunk):
        part = weight[start : start + chunk].detach().double()
        ids = torch.arange(start, start + part.shape[0], device=weight.device)
        distance += float((table.rows(ids).double() - part).square().sum())
        norm += float(part.square().sum())
    return math.sqrt(distance / norm) if norm else math.sqrt(distance)


class CompressedTable(Table):
    """A table [num_embeddings, embedding_dim] whose rows are composed from a few small tables.

    A subclass says how a row is composed (:meth:`_compose`) and, where pooling can go before
    composition, how (:meth:`_pool`). Everything is gathered by :mod:`vecsmith.ops`: the gradients
    of the small tables are dense, sparse (``sparse=True``) or, after
    :func:`vecsmith.optim.apply_optimizer_in_backward`, applied in backward.

    Rows share parameters, so no row can be kept at zero: where ``padding_idx`` is given, its
    entries are taken as absent. They are zeros in :meth:`embedding`, they are skipped in bags, and
    they have no gradient.

    What is looked up is hashes, remainders or digits, which are always in range. So ids are checked
    here, but not under torch.compile: there an id out of range gives the row of another.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        name = type(self).__name__
        check.integer(name, "num_embeddings", num_embeddings, low=1, high=2**60)
        check.integer(name, "embedding_dim", embedding_dim, low=1, high=2**31 - 1)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim

    # --- what a subclass provides -----------------------------------------------------------------

    def _compose(self, ids: Tensor, sparse: bool) -> tuple[Tensor | None, Tensor]:
        """(positions, rows): entry n of ``ids`` [N] is ``rows[positions[n]]`` ([N] int64, [U, D]);
        positions None means ``rows[n]``."""
        raise NotImplementedError

    def _pool(
        self,
        ids: Tensor,
        offsets: Tensor,
        mode: str,
        per_sample_weights: Tensor | None,
        sparse: bool,
    ) -> Tensor:
        """[B, D]: bag b pools the entries ``offsets[b]:offsets[b + 1]`` ([B + 1]) of ``ids``."""
        positions, rows = self._compose(ids, sparse)
        if positions is None:
            positions = torch.arange(ids.numel(), device=ids.device)
        return ops.embedding_bag(
            positions,
            rows,
            offsets,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=True,
        )

    # --- the interface of a table -----------------------------------------------------------------

    def embedding(
        self, indices: Tensor, *, padding_idx: int | None = None, sparse: bool = False
    ) -> Tensor:
        """The rows of ``indices`` (int32 or int64, [*]): [*, D], as torch.nn.functional.embedding.
        Entries of ``padding_idx`` are zeros without a gradient.

        Raises: TypeError, ValueError, IndexError for what cannot be looked up.
        """
        self._check_indices(indices)
        if padding_idx is None:
            positions, rows = self._compose(indices.reshape(-1).long(), sparse)
            if positions is not None:
                rows = ops.embedding(positions, rows)
        else:  # bags of one entry, which padding leaves empty
            flat = indices.reshape(-1, 1)
            rows = self.embedding_bag(flat, mode="sum", padding_idx=padding_idx, sparse=sparse)
        return rows.view(*indices.shape, self.embedding_dim)

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
        """Pooled rows, as torch.nn.functional.embedding_bag.

        Args:
            indices: int32 or int64, [N] with ``offsets``, or [B, L] without.
            offsets: [B], where each bag starts; [B + 1] with ``include_last_offset``.
            mode: "sum", "mean" or "max". An empty bag is 0.
            per_sample_weights: weights of the entries, of ``indices``' shape; mode "sum" only.
            padding_idx: entries of this id are skipped (eager only: the number of entries that are
                left is not known while tracing).
            sparse: sparse gradients of the small tables.

        Returns: [B, D].

        Raises: TypeError, ValueError, IndexError for what cannot be looked up.
        """
        name = type(self).__name__
        self._check_indices(indices)
        if mode not in _MODES:
            raise ValueError(f"{name}: expected mode to be one of {_MODES}; got {mode!r}")
        if per_sample_weights is not None:
            if mode != "sum":
                raise ValueError(
                    f"{name}: expected mode 'sum' with per_sample_weights; got {mode!r}"
                )
            if not isinstance(per_sample_weights, Tensor) or not (
                per_sample_weights.dtype.is_floating_point
            ):
                got = getattr(per_sample_weights, "dtype", type(per_sample_weights).__name__)
                raise TypeError(f"{name}: expected floating per_sample_weights; got {got}")
            if per_sample_weights.shape != indices.shape:
                raise ValueError(
                    f"{name}: expected per_sample_weights of shape {tuple(indices.shape)}; "
                    f"got {tuple(per_sample_weights.shape)}"
                )
            per_sample_weights = per_sample_weights.reshape(-1)
        padding_idx = check_padding(name, padding_idx, self.num_embeddings)
        offsets = self._bag_offsets(indices, offsets, include_last_offset)
        ids = indices.reshape(-1).long()
        if padding_idx is not None:
            kept = ids != padding_idx
            before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))  # kept entries before each
            ids, offsets = ids[kept], before[offsets]
            if per_sample_weights is not None:
                per_sample_weights = per_sample_weights[kept]
        return self._pool(ids, offsets, mode, per_sample_weights, sparse)

    # --- sizes ------------------------------------------------------------------------------------

    @property
    def parameter_count(self) -> int:
        """The numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def compression_ratio(self) -> float:
        """num_embeddings * embedding_dim / parameter_count: how many times smaller it is."""
        return self.num_embeddings * self.embedding_dim / self.parameter_count

    def _representation(self, *parts: str) -> str:
        sizes = (f"{self.num_embeddings}", f"{self.embedding_dim}")
        return ", ".join((*sizes, *parts, f"compression={self.compression_ratio:.3g}x"))

    # --- arguments --------------------------------------------------------------------------------

    def _check_indices(self, indices: Any) -> None:
        name = type(self).__name__
        if not isinstance(indices, Tensor):
            raise TypeError(
                f"{name}: expected indices to be a torch.Tensor; got {type(indices).__name__}"
            )
        if indices.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: expected indices to be int32 or int64; got {indices.dtype}")
        # Here, since what the operator is given is a hash, a remainder or a digit: always in range.
        if not torch.compiler.is_compiling():
            check.ids(name, "indices", indices, 0, self.num_embeddings)

    def _bag_offsets(
        self, indices: Tensor, offsets: Tensor | None, include_last_offset: bool
    ) -> Tensor:
        """int64 [B + 1]: bag b is ``offsets[b]:offsets[b + 1]`` of the flat indices."""
        name = type(self).__name__
        if offsets is None and include_last_offset:
            raise ValueError(f"{name}: expected offsets with include_last_offset; got None")
        if indices.dim() == 2:
            if offsets is not None:
                raise ValueError(f"{name}: expected no offsets with indices [B, L]; got a tensor")
            bags, length = indices.shape
            return torch.arange(bags + 1, device=indices.device) * length
        if indices.dim() != 1 or offsets is None:
            raise ValueError(
                f"{name}: expected offsets and indices of shape [N], or indices of shape [B, L]; "
                f"got indices of shape {list(indices.shape)} and offsets "
                f"{getattr(offsets, 'shape', None)}"
            )
        if not isinstance(offsets, Tensor):
            raise TypeError(
                f"{name}: expected offsets to be a torch.Tensor; got {type(offsets).__name__}"
            )
        if offsets.dtype != indices.dtype or offsets.dim() != 1:
            raise TypeError(
                f"{name}: expected offsets to be {indices.dtype} of one dimension, as indices; "
                f"got {offsets.dtype} of shape {tuple(offsets.shape)}"
            )
        if offsets.device != indices.device:
            raise ValueError(
                f"{name}: expected offsets on {indices.device}; got them on {offsets.device}"
            )
        count = indices.numel()
        if include_last_offset and offsets.numel() == 0:
            raise ValueError(f"{name}: expected offsets of at least 1 entry; got none")
        if not torch.compiler.is_compiling() and offsets.numel():
            steps = torch.diff(offsets)
            if int(offsets[0]) != 0 or (steps.numel() and int(steps.min()) < 0):
                raise ValueError(
                    f"{name}: expected offsets that start at 0 and do not decrease; "
                    f"got {offsets.tolist() if offsets.numel() < 9 else offsets[:8].tolist()}"
                )
            if int(offsets[-1]) > count:
                raise ValueError(
                    f"{name}: expected offsets up to {count}, the number of indices; "
                    f"got {int(offsets[-1])}"
                )
        offsets = offsets.long()
        if include_last_offset:
            return offsets
        return torch.cat((offsets, offsets.new_full((1,), count)))


def check_rank(name: str, argument: str, rank: Any, limit: int) -> int:
    """A rank in 1..limit."""
    check.integer(name, argument, rank, low=1, high=limit)
    return rank


def check_weight(name: str, weight: Any) -> Tensor:
    """A floating table [V, D] with no NaN or infinity, detached."""
    check.table(name, "weight", weight)
    weight = weight.detach()
    if weight.shape[0] < 1:
        raise ValueError(f"{name}: expected weight of at least one row; got {tuple(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{name}: expected weight to be finite; got NaN or infinity")
    return weight


def integers(name: str, argument: str, values: Any, length: int | None = None) -> tuple[int, ...]:
    """A sequence of positive ints, of this length."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(
            f"{name}: expected {argument} to be a sequence of ints; got {type(values).__name__}"
        )
    if length is not None and len(values) != length:
        raise ValueError(f"{name}: expected {argument} of {length} entries; got {len(values)}")
    for value in values:
        check.integer(name, f"an entry of {argument}", value, low=1)
    return tuple(values)
