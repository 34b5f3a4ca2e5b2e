"""Recurrent sentence encoders: tokens in, the last state out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.nn import _rotation_start as _start
from vecsmith.nn._recurrent_lengths import check_lengths
from vecsmith.ops import _checks as check

CELLS = ("rnn", "lstm", "bilstm", "gru", "residual_rnn")


class RecurrentEncoder(torch.nn.Module):
    """A sentence as the last state of a recurrent layer that reads it from its end to its start.

        h_T+1 = 0,   h_t = cell(h_t+1, e(w_t)),   s = h_1

    so that the first token, with which a decoder begins, is the last that is read. "bilstm" has a
    second layer that reads from the start; s is both last states, each of vector_size / 2.

    It begins as a rotation (:class:`RecurrentDecoder` begins as its inverse): for entries as small
    as they then are, with Q orthogonal, g the decay and P a projection,

        s = sum_t (g Q)^(t-1) P e(w_t)

    Args:
        embedding: the token embeddings e [V, E], a module shared with the decoder; it should have
            rows of length about 1.
        vector_size: D.
        cell: "rnn", "lstm", "bilstm", "gru" or "residual_rnn".
        decay: g in (0, 1]: a token at t is g^(t-1) of the first. Less separates tokens better, more
            survives more noise. None: g^2 / (1 - g^2) = min(R / 50, (R / 20)^(1/2)) for R =
            ``rotation_size``: 0.85 for 128, 0.94 for 1,024.
        start: "rotation", or "random" for the layers' own first numbers, from torch's generator.
        seed: of Q and P.

    Attributes:
        rotation_size: how many entries of the vector, its first, rotate: D, for "bilstm" D / 2.
        typical_norm: the length of a sentence's vector, by which one may scale it: a buffer.

    Raises: ValueError, TypeError for arguments that do not fit.
    """

    def __init__(
        self,
        embedding: torch.nn.Module,
        vector_size: int,
        cell: str = "rnn",
        *,
        decay: float | None = None,
        start: str = "rotation",
        seed: int = 1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.embedding = _start.check_embedding(name, embedding)
        check.integer(name, "vector_size", vector_size, low=1)
        self.vector_size = vector_size
        self.cell = _start.check_one_of(name, "cell", cell, CELLS)
        _start.check_one_of(name, "start", start, ("rotation", "random"))
        both = cell == "bilstm"
        if both and vector_size % 2:
            raise ValueError(
                f"{name}: expected an even vector_size for 'bilstm'; got {vector_size}"
            )
        self.rotation_size = vector_size // 2 if both else vector_size
        self.decay = _start.check_decay(name, decay, self.rotation_size)
        size = self._table().shape[1]
        layer: Any = _start.LAYERS["lstm" if both else cell]
        self.recurrence = layer(size, self.rotation_size, batch_first=True, bidirectional=both)
        if start == "rotation":
            begin = _start.Start(size, self.rotation_size, self.decay, seed)
            _start.set_linear(self.recurrence, self.decay * begin.rotation, begin.projection)
        self.typical_norm: Tensor
        self.register_buffer("typical_norm", torch.tensor(_start.typical_norm(vector_size)))

    def _table(self) -> Tensor:
        weight: Any = self.embedding.weight
        return weight

    def forward(self, ids: Tensor, lengths: Tensor | list[int]) -> Tensor:
        """ids [B, T] int64 or int32, lengths [B] in 1..T -> vectors [B, D].

        Raises:
            TypeError, ValueError: for kinds and shapes.
            IndexError: for ids outside the embedding.
        """
        ids = _start.check_ids(type(self).__name__, "ids", ids, self._table().shape[0])
        return self.encode_embeddings(self.embedding(ids), lengths)

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor | list[int]) -> Tensor:
        """embeddings [B, T, E] (of tokens, or mixtures of them), lengths [B] -> vectors [B, D]."""
        name, size = type(self).__name__, self._table().shape[1]
        if not isinstance(embeddings, Tensor):
            raise TypeError(
                f"{name}: expected embeddings to be a torch.Tensor; got {type(embeddings).__name__}"
            )
        if embeddings.dim() != 3 or embeddings.shape[1] < 1 or embeddings.shape[2] != size:
            raise ValueError(
                f"{name}: expected embeddings of shape [B, T >= 1, {size}]; "
                f"got {list(embeddings.shape)}"
            )
        batch, steps = embeddings.shape[:2]
        counts = check_lengths(name, lengths, steps, batch, embeddings.device)
        # Each sentence turned around in its place; what is behind its end stays.
        places = torch.arange(steps).expand(batch, steps)
        places = torch.where(places < counts[:, None], counts[:, None] - 1 - places, places)
        rows = torch.arange(batch)[:, None] * steps + places
        flat = embeddings.reshape(batch * steps, size)
        turned = flat.index_select(0, rows.reshape(-1).to(embeddings.device))
        _, last = self.recurrence(turned.view(batch, steps, size), lengths=counts)
        h = last[0] if isinstance(last, tuple) else last
        return h.transpose(0, 1).reshape(batch, self.vector_size)

    def extra_repr(self) -> str:
        """The options."""
        return f"{self.vector_size}, cell={self.cell!r}, decay={self.decay:g}"
