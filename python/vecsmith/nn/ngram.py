"""An n-gram language model of tokens: interpolated Kneser-Ney, counted once, asked in batches."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vecsmith.ops import _checks as check

_KEY_BITS = 62


class NGramLanguageModel(nn.Module):
    """p(w | the n - 1 tokens before it), by interpolated Kneser-Ney smoothing.

    With c_k(h w) the counts of the k-grams (of the highest order: how often h w occurs; below: how
    many different tokens come before h w), N(h) the number of different tokens behind h,

        p_k(w | h) = max(c_k(h w) - d_k, 0) / c_k(h) + d_k N(h) / c_k(h) p_{k-1}(w | h')

    with h' = h without its first token, p_0 = 1 / V, d_k = n_1 / (n_1 + 2 n_2) where n_j is the
    number of k-grams seen j times (Kneser and Ney 1995; Chen and Goodman 1999,
    doi:10.1006/csla.1999.0128). An h never seen leaves all to the shorter one.

    The tables are buffers: for each order the contexts as sorted numbers, and behind each its
    tokens. An answer starts from p_1 for all V tokens at once and adds what each longer context
    knows.

    Args:
        num_embeddings: V.
        order: n.
        bos: the token that stands n - 1 times before every sentence.

    Raises: ValueError if V ** (n - 1) does not fit an integer of 62 bits.
    """

    def __init__(self, num_embeddings: int, order: int = 4, *, bos: int = 2) -> None:
        super().__init__()
        name = type(self).__name__
        check.integer(name, "num_embeddings", num_embeddings, low=1)
        check.integer(name, "order", order, low=1)
        check.integer(name, "bos", bos, low=0)
        if bos >= num_embeddings:
            raise ValueError(f"{name}: expected bos < {num_embeddings}; got {bos}")
        if num_embeddings ** (order - 1) >= 1 << _KEY_BITS:
            raise ValueError(
                f"{name}: expected num_embeddings ** (order - 1) < 2 ** {_KEY_BITS}; got "
                f"{num_embeddings} ** {order - 1}"
            )
        self.num_embeddings, self.order, self.bos = num_embeddings, order, bos
        self.register_buffer("unigram", torch.full((num_embeddings,), 1 / num_embeddings))
        for k in range(2, order + 1):
            self._set(k, *(torch.zeros(0, dtype=torch.int64) for _ in range(2)))

    unigram: Tensor

    def _set(
        self,
        k: int,
        contexts: Tensor,
        tokens: Tensor,
        offsets: Tensor | None = None,
        shares: Tensor | None = None,
        rest: Tensor | None = None,
    ) -> None:
        """The table of order k: contexts [C] sorted, the share of probability that each leaves to
        the shorter one (rest [C]); tokens and shares [offsets[C]], offsets [C + 1]."""
        self.register_buffer(f"contexts_{k}", contexts)
        self.register_buffer(f"tokens_{k}", tokens.to(torch.int32))
        self.register_buffer(
            f"offsets_{k}", torch.zeros(1, dtype=torch.int64) if offsets is None else offsets
        )
        self.register_buffer(f"shares_{k}", torch.zeros(0) if shares is None else shares)
        self.register_buffer(f"rest_{k}", torch.zeros(0) if rest is None else rest)

    @torch.no_grad()
    def fit(self, sentences: Iterable[Any]) -> NGramLanguageModel:
        """Count the sentences (lists or tensors of tokens, each with its eos; no bos) and replace
        what was counted before.

        Raises: ValueError if there is no token at all, IndexError for one outside the vocabulary.
        """
        v, pad, device = self.num_embeddings, self.order - 1, self.unigram.device
        rows = [row.tolist() if isinstance(row, Tensor) else list(row) for row in sentences]
        tokens = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int64)
        if not len(tokens):
            raise ValueError("expected sentences with tokens; got none")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= v:
            raise IndexError(f"expected tokens in 0..{v - 1}; got {low if low < 0 else high}")
        sizes = torch.tensor([len(row) for row in rows])
        row_of = torch.repeat_interleave(torch.arange(len(rows)), sizes)
        at = torch.arange(len(tokens)) + pad * (row_of + 1)
        flat = torch.full((len(tokens) + pad * len(rows),), self.bos)
        flat[at] = tokens
        # grams: [M, order], the distinct n-grams; every shorter one is the tail of a longer one.
        grams = torch.stack([flat[at - pad + n] for n in range(self.order)], 1)
        grams, counts = _distinct(grams, v)
        levels = {self.order: (grams, counts)}
        for k in range(self.order - 1, 0, -1):
            grams, counts = _distinct(grams[:, 1:], v)
            levels[k] = (grams, counts)
        base = torch.zeros(v, dtype=torch.float64)
        discount = _discount(levels[1][1])
        base[levels[1][0][:, 0]] = (levels[1][1] - discount).clamp(min=0).double()
        total = float(levels[1][1].sum())
        # What the discount took goes to all V alike.
        self.unigram = (base / total + (total - float(base.sum())) / total / v).float()
        for k in range(2, self.order + 1):
            grams, counts = levels[k]
            keys, sizes = torch.unique_consecutive(_key(grams[:, :-1], v), return_counts=True)
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
            owner = torch.repeat_interleave(torch.arange(len(keys)), sizes)
            totals = torch.zeros(len(keys), dtype=torch.float64).index_add_(
                0, owner, counts.double()
            )
            kept = (counts - _discount(counts)).clamp(min=0).double()
            shares = kept / totals[owner]
            rest = 1 - torch.zeros(len(keys), dtype=torch.float64).index_add_(0, owner, shares)
            self._set(k, keys, grams[:, -1], offsets, shares.float(), rest.float())
        return self.to(device)

    @torch.no_grad()
    def log_probabilities(self, contexts: Tensor) -> Tensor:
        """log p(. | context) for the last tokens of each row of contexts [N, L >= order - 1] (bos
        in front where the sentence is young): [N, V]."""
        v, device = self.num_embeddings, contexts.device
        # What is left of p_1, by row; and exactly, the tokens that some longer context knows: those
        # of the shortest, since what follows a context has followed its end.
        left = torch.ones(len(contexts), device=device)
        flat = torch.zeros(0, dtype=torch.int64, device=device)
        values = torch.zeros(0, device=device)
        for k in range(2, self.order + 1):
            known = getattr(self, f"contexts_{k}")
            keys = _key(contexts[:, contexts.shape[1] - k + 1 :], v)
            place = torch.searchsorted(known, keys)
            row = (place < len(known)).nonzero()[:, 0]
            row = row[known[place[row]] == keys[row]]
            if not len(row):
                break  # nor is a longer one there
            place = place[row]
            offsets = getattr(self, f"offsets_{k}")
            sizes = offsets[place + 1] - offsets[place]
            entry = torch.arange(int(sizes.sum()), device=device)
            entry += torch.repeat_interleave(offsets[place] - (sizes.cumsum(0) - sizes), sizes)
            tokens = getattr(self, f"tokens_{k}")[entry].long()
            found = torch.repeat_interleave(row, sizes) * v + tokens
            shares = getattr(self, f"shares_{k}")[entry]
            rest = torch.ones_like(left).index_copy_(0, row, getattr(self, f"rest_{k}")[place])
            left *= rest
            if k == 2:
                owner = torch.repeat_interleave(row, sizes)
                flat, values = found, self.unigram[tokens] * rest[owner] + shares
            else:
                values *= rest[owner]
                values.index_add_(0, torch.searchsorted(flat, found), shares)
        answer = self.unigram.log() + left.log()[:, None]
        answer.view(-1).index_copy_(0, flat, values.log())
        return answer

    def forward(self, contexts: Tensor) -> Tensor:
        """:meth:`log_probabilities`."""
        return self.log_probabilities(contexts)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # How long the tables are depends on what was counted.
        for name, buffer in list(self.named_buffers(recurse=False)):
            found = state_dict.get(prefix + name)
            if found is not None and name != "unigram" and found.dim() == 1:
                self.register_buffer(name, buffer.new_empty(found.shape))
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        error_msgs += [
            f"{prefix}offsets_{k} and the other tables of order {k} do not belong together"
            for k in range(2, self.order + 1)
            if not self._is_sound(k)
        ]

    def _is_sound(self, k: int) -> bool:
        """Whether the table of order k can be looked up: what was loaded may be anything."""
        contexts, tokens, offsets, shares, rest = (
            getattr(self, f"{name}_{k}")
            for name in ("contexts", "tokens", "offsets", "shares", "rest")
        )
        if not len(contexts) == len(rest) == len(offsets) - 1 or len(tokens) != len(shares):
            return False
        steps = offsets.diff()
        whole = int(offsets[0]) == 0 and int(offsets[-1]) == len(tokens)
        known = not len(tokens) or 0 <= int(tokens.min()) <= int(tokens.max()) < self.num_embeddings
        if not (whole and known and bool((steps > 0).all())):
            return False
        owner = torch.repeat_interleave(torch.arange(len(contexts), device=steps.device), steps)
        rising = (owner * self.num_embeddings + tokens).diff() > 0
        return bool(rising.all()) and bool((contexts.diff() > 0).all())

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, order={self.order}"


def _key(grams: Tensor, v: int) -> Tensor:
    """Each row [k] as one number to the base V, so that their order is the rows' order."""
    key = torch.zeros(len(grams), dtype=torch.int64, device=grams.device)
    for n in range(grams.shape[1]):
        key = key * v + grams[:, n]
    return key


def _distinct(grams: Tensor, v: int) -> tuple[Tensor, Tensor]:
    """The distinct rows of grams [M, k] in order, and how often each is there."""
    order = torch.argsort(grams[:, -1], stable=True)
    order = order[torch.argsort(_key(grams[order, :-1], v), stable=True)]
    grams = grams[order]
    changes = torch.ones(len(grams), dtype=torch.bool)
    changes[1:] = (grams[1:] != grams[:-1]).any(1)
    first = changes.nonzero()[:, 0]
    counts = torch.diff(first, append=torch.tensor([len(grams)]))
    return grams[first], counts


def _discount(counts: Tensor) -> float:
    """n_1 / (n_1 + 2 n_2), and 1/2 where no k-gram was seen once or twice (Chen and Goodman)."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5
