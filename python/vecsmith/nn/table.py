"""The small interface behind which the rows of an embedding table are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vecsmith.optim.in_backward import load_parameters


class Table(nn.Module):
    """A table [num_embeddings, embedding_dim], wherever and however its rows are kept.

    ``vecsmith.nn.Embedding`` and ``EmbeddingBag`` take one (``table=``) in the place of their own
    weight, and know no more of it than this: rows by number, pooled or not, with gradients for
    whatever parameters the table has. Cached, compressed and sharded tables implement it.

    Attributes:
        num_embeddings: the number of rows, V.
        embedding_dim: the length of a row, D.
    """

    num_embeddings: int
    embedding_dim: int

    def embedding(
        self, indices: Tensor, *, padding_idx: int | None = None, sparse: bool = False
    ) -> Tensor:
        """The rows of ``indices``.

        Args:
            indices: [*] int32 or int64, in 0..V-1.
            padding_idx: entries of this number get no gradient.
            sparse: whether the table's parameters get sparse gradients.

        Returns: [*, D].

        Raises: IndexError for an index out of range, TypeError for a wrong dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement embedding()")

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
        """The rows of every bag, pooled, as :func:`vecsmith.ops.embedding_bag` does.

        Args:
            indices: [N] int32 or int64 with ``offsets``, or [B, L].
            offsets: [B], or [B + 1] with ``include_last_offset``; of the dtype of ``indices``.
            mode: "sum", "mean" or "max".
            per_sample_weights: like ``indices``; with "sum".
            include_last_offset: whether ``offsets`` ends with the end of the last bag.
            padding_idx: entries of this number are skipped.
            sparse: whether the table's parameters get sparse gradients.

        Returns: [B, D]; zeros for an empty bag.

        Raises: IndexError, TypeError, ValueError as :func:`vecsmith.ops.embedding_bag`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement embedding_bag()")

    def _load_from_state_dict(self, *arguments: Any) -> None:
        load_parameters(self, super()._load_from_state_dict, *arguments)

    def rows(self, indices: Tensor) -> Tensor:
        """A detached copy of rows: [*, D] for ``indices`` [*]. Raises: as :meth:`embedding`."""
        with torch.no_grad():
            return self.embedding(indices).detach().clone()

    def reset_parameters(self) -> None:
        """New random rows. Raises: NotImplementedError where a table cannot."""
        raise NotImplementedError(f"{type(self).__name__} does not implement reset_parameters()")

    def extra_repr(self) -> str:
        """The shape, as torch.nn.Embedding prints it."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
