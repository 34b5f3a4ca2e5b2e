"""The recurrent sentence decoder: one vector in, the tokens of its sentence out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vecsmith.nn import _rotation_start as _start
from vecsmith.ops import _checks as check
from vecsmith.ops import cosine_topk

CELLS = ("rnn", "lstm", "gru", "residual_rnn")
METHODS = ("greedy", "multinomial")
# Of the cosines in the softmax: at 1, thousands of tokens would have even odds whatever is said.
_LOGIT_SCALE = 50.0


def _nearest(outputs: Tensor, embeddings: Tensor, excluded: Tensor | None = None) -> Tensor:
    """The row of embeddings [V, E] of the highest cosine to each of outputs [N, E]: [N] int64. Not
    one of ``excluded``, indices."""
    banned = None
    if excluded is not None:
        banned = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)
        banned[excluded] = True
    found = cosine_topk(outputs.detach(), embeddings.detach(), banned=banned)
    return found.indices.squeeze(1)


class RecurrentDecoder(torch.nn.Module):
    """A recurrent layer that writes a sentence from its vector, which it receives at every step.

        h_0 = I v,   h_t = cell(h_t-1, [e(a_t-1), v]),   y_t = O h_t + o
        a_t = argmax_w cos(y_t, e(w))

    with v the vector and e(a_0) = 0; an LSTM's cell begins at I v, with h_0 = s(2) tanh(I v). With
    ``feedback`` the cell is told which token it has just written, in training the right one
    (teacher forcing: Williams & Zipser 1989); without, [e(a_t-1), v] is v alone.

    It begins as the inverse of a :class:`RecurrentEncoder` of the same seed and decay: with I = g Q
    and O the transpose of P over the square of its scale, and for states as small as they then are,

        h_t = (g Q)^-1 (h_t-1 - P e(a_t-1)),   y_t = e(w_t) + crosstalk of the tokens to come

    Without feedback nothing is taken away, and all other tokens are in the way of each.

    Args:
        embedding: the token embeddings e [V, E], the module that the encoder has. It is not a part
            of this module: its weights are in the encoder's state_dict, and it moves with that.
        vector_size: D.
        cell: "rnn", "lstm", "gru" or "residual_rnn".
        eos: the token that ends a sentence.
        hidden_size: H, at least ``rotation_size``; None: D. Units beyond those that rotate begin at
            random and are not read at first.
        feedback: whether the last token is fed back.
        decay, seed: as the encoder's. Without feedback 1 is best: with less, the tokens before a
            token drown it.
        rotation_size: the encoder's; None: D.
        excluded: tokens that are never written: padding, say.
        start: "rotation" or "random", as the encoder's.

    Raises: ValueError, TypeError, IndexError for arguments that do not fit.
    """

    excluded: Tensor | None

    def __init__(
        self,
        embedding: torch.nn.Module,
        vector_size: int,
        cell: str = "rnn",
        *,
        eos: int,
        hidden_size: int | None = None,
        feedback: bool = True,
        decay: float | None = None,
        rotation_size: int | None = None,
        excluded: Sequence[int] = (),
        start: str = "rotation",
        seed: int = 1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self._embedding = (_start.check_embedding(name, embedding),)
        check.integer(name, "vector_size", vector_size, low=1)
        size = vector_size if rotation_size is None else rotation_size
        check.integer(name, "rotation_size", size, low=1, high=vector_size)
        hidden = vector_size if hidden_size is None else hidden_size
        check.integer(name, "hidden_size", hidden, low=size)
        self.cell = _start.check_one_of(name, "cell", cell, CELLS)
        self.decay = _start.check_decay(name, decay, size)
        _start.check_one_of(name, "start", start, ("rotation", "random"))
        tokens, width = self._table().shape
        for what, token in [("eos", eos), *(("excluded", token) for token in excluded)]:
            check.integer(name, what, token, low=0)
            if token >= tokens:
                raise IndexError(f"{name}: expected {what} in 0..{tokens - 1}; got {token}")
        if eos in excluded or len(set(excluded)) >= tokens - 1:
            raise ValueError(f"{name}: expected excluded to leave eos and a token; got {excluded}")
        self.vector_size, self.hidden_size, self.feedback, self.eos = (
            vector_size,
            hidden,
            feedback,
            eos,
        )
        banned = torch.tensor(list(excluded), dtype=torch.int64) if excluded else None
        self.register_buffer("excluded", banned, persistent=False)
        fed = width if feedback else 0
        self.initial = torch.nn.Linear(vector_size, hidden, bias=False)
        layer: Any = _start.LAYERS[cell]
        self.recurrence = layer(fed + vector_size, hidden, batch_first=True)
        self.readout = torch.nn.Linear(hidden, width)
        self.logit_scale = torch.nn.Parameter(torch.tensor(_LOGIT_SCALE))
        if start == "rotation":
            self._rotate(_start.Start(width, size, self.decay, seed), seed)

    @torch.no_grad()
    def _rotate(self, begin: _start.Start, seed: int) -> None:
        """First numbers: the inverse of the encoder, and at random what is beyond."""
        generator = torch.Generator().manual_seed(seed + 1)
        size, hidden, width = begin.rotation.shape[0], self.hidden_size, begin.projection.shape[1]
        initial = torch.zeros(hidden, self.vector_size)
        initial[:size, :size] = begin.decay * begin.rotation
        self.initial.weight.copy_(initial / (_start.OPEN if self.cell == "lstm" else 1.0))
        back = begin.rotation.T / begin.decay
        transition = torch.zeros(hidden, hidden)
        transition[:size, :size] = back
        projection = torch.zeros(hidden, self.recurrence.input_size)
        if hidden > size:
            rest = hidden - size
            transition[size:, size:] = begin.decay * _start.orthogonal(rest, rest, generator)
        if self.feedback:
            projection[:size, :width] = -back @ begin.projection
            if hidden > size:
                typical = begin.projection.norm() / (begin.projection.numel() ** 0.5)
                shape = (hidden - size, width)
                projection[size:, :width] = torch.randn(*shape, generator=generator) * typical
        _start.set_linear(self.recurrence, transition, projection)
        self.readout.weight.zero_()
        self.readout.weight[:, :size] = begin.readout
        self.readout.bias.zero_()

    @property
    def embedding(self) -> torch.nn.Module:
        """The token embeddings."""
        return self._embedding[0]

    def _table(self) -> Tensor:
        weight: Any = self.embedding.weight
        return weight

    def forward(self, vectors: Tensor, length: int, targets: Tensor | None = None) -> Tensor:
        """The outputs y: [B, T, E], in the space of the token embeddings.

        Args:
            vectors: [B, D].
            length: T.
            targets: [B, T] int64 or int32, the tokens that are fed back in place of those written;
                what stands behind a sentence's end does not matter. None: free running.

        Raises:
            TypeError, ValueError: for kinds and shapes.
            IndexError: for targets outside the embedding.
        """
        name = type(self).__name__
        _start.check_vectors(name, vectors, self.vector_size)
        check.integer(name, "length", length, low=1)
        if targets is not None:
            _start.check_ids(name, "targets", targets, self._table().shape[0])
            if list(targets.shape) != [vectors.shape[0], length]:
                raise ValueError(
                    f"{name}: expected targets of shape [{vectors.shape[0]}, {length}]; "
                    f"got {list(targets.shape)}"
                )
        if self.feedback and targets is None:
            return self._run(vectors, length, lambda outputs: self.nearest(outputs))[0]
        inputs = vectors[:, None].expand(-1, length, -1)
        if self.feedback:
            assert targets is not None
            before = functional.pad(self.embedding(targets[:, :-1]), (0, 0, 1, 0))
            inputs = torch.cat([before, inputs], 2)
        return self.readout(self.recurrence(inputs, self._first(vectors))[0])

    def nearest(self, outputs: Tensor) -> Tensor:
        """outputs [..., E] -> the token of the highest cosine to each: [...] int64."""
        flat = outputs.reshape(-1, outputs.shape[-1])
        return _nearest(flat, self._table(), self.excluded).view(outputs.shape[:-1])

    def logits(self, outputs: Tensor) -> Tensor:
        """outputs [..., E] -> [..., V]: the outputs times the token embeddings, both of length 1,
        times ``logit_scale``, a parameter; -inf for excluded tokens. So the likeliest token is the
        nearest, and an output that noise has made long is no surer of itself."""
        rows = functional.normalize(self._table(), dim=1)
        scores = self.logit_scale * (functional.normalize(outputs, dim=-1) @ rows.t())
        return scores if self.excluded is None else scores.index_fill(-1, self.excluded, -torch.inf)

    @torch.no_grad()
    def decode(
        self,
        vectors: Tensor,
        max_length: int,
        method: str = "greedy",
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The sentences of vectors [B, D], free running.

        Args:
            vectors: [B, D].
            max_length: how many tokens are written at most.
            method: "greedy" takes the nearest token by cosine, "multinomial" draws from
                softmax(logits / temperature).
            temperature: > 0; of "multinomial" alone.
            generator: of the draws; torch's own by default.

        Returns: ids [B, T] int64, T <= max_length as long as the longest: each row ends in ``eos``
            and is filled up with it; one that has not ended within max_length has none.

        Raises: TypeError, ValueError for arguments that do not fit.
        """
        name = type(self).__name__
        _start.check_vectors(name, vectors, self.vector_size)
        check.integer(name, "max_length", max_length, low=0)
        _start.check_one_of(name, "method", method, METHODS)
        check.rate(name, "temperature", temperature)
        if not temperature > 0:
            raise ValueError(f"{name}: expected temperature > 0; got {temperature}")

        def draw(outputs: Tensor) -> Tensor:
            scores = self.logits(outputs).float()
            # From the largest downwards, so that a low temperature leads to -inf and never to inf.
            scores = (scores - scores.amax(1, keepdim=True)) / max(temperature, 1e-30)
            return torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]

        return self._run(vectors, max_length, self.nearest if method == "greedy" else draw, True)[1]

    def _first(self, vectors: Tensor) -> Any:
        """The state before the first step."""
        state = self.initial(vectors)[None]
        return (_start.OPEN * state.tanh(), state) if self.cell == "lstm" else state

    def _run(
        self, vectors: Tensor, length: int, choose: Any, stop: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Free running: (outputs [B, T, E], ids [B, T]). ``stop``: as soon as every row has ended,
        rows are filled up with eos, and the outputs are not kept."""
        state = self._first(vectors)
        before = vectors.new_zeros(vectors.shape[0], self._table().shape[1])
        ended = torch.zeros(vectors.shape[0], dtype=torch.bool, device=vectors.device)
        outputs, written = [], []
        for _ in range(length):
            inputs = torch.cat([before, vectors], 1) if self.feedback else vectors
            rows, state = self.recurrence(inputs[:, None], state)
            output = self.readout(rows[:, 0])
            tokens = choose(output)
            before = self.embedding(tokens).to(vectors.dtype)
            if stop:
                tokens = tokens.masked_fill(ended, self.eos)
                ended |= tokens == self.eos
            else:
                outputs.append(output)
            written.append(tokens)
            if stop and bool(ended.all()):
                break
        stacked = torch.stack(outputs, 1) if outputs else vectors.new_zeros(0)
        none = ended.new_zeros((vectors.shape[0], 0), dtype=torch.int64)
        return stacked, torch.stack(written, 1) if written else none

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"{self.vector_size}, cell={self.cell!r}, hidden_size={self.hidden_size}, "
            f"feedback={self.feedback}, decay={self.decay:g}"
        )
