"""What the words of a sentence mean: the weighted mean of their vectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vecsmith.models.keyed_vectors import KeyedVectors

_WORDS = re.compile(r"[^\W\d_]+|\d+")
# Digits as the words of a text in which they are spelled out.
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {str(digit): name for digit, name in enumerate(_NAMES)}
_SMOOTH = 1e-4


class SentenceMeaning:
    """The mean of word vectors, weighted by how rare a word is (SIF).

        m = sum_w a / (a + p(w)) x_w - (its part along the common direction),   m / |m|,   a = 1e-4

    with p(w) the share of w among all words (Arora et al. 2017, openreview SyK00v5xx). x_w are the
    word vectors, projected to their first ``size`` principal axes (weighted alike) where that is
    fewer than they have. Words are looked up in lower case; those not there add nothing, and a
    sentence of none has 0.

    Args:
        words: W words, lower case.
        table: [W, size], a / (a + p(w)) x_w less the common direction.
    """

    def __init__(self, words: Sequence[str], table: Tensor) -> None:
        if table.dim() != 2 or len(table) != len(words):
            raise ValueError(
                f"expected a table of {len(words)} rows, one for each word; got {list(table.shape)}"
            )
        self.words, self.table = list(words), table.float()
        self.size = table.shape[1]
        self._rows = {word: row for row, word in enumerate(self.words)}

    @classmethod
    def from_vectors(cls, vectors: Any, size: int | None, vector_size: int) -> SentenceMeaning:
        """Of a KeyedVectors, or what has one as ``wv``. size: None for the smaller of its own and
        half of vector_size.

        Raises: TypeError, ValueError for what is none, or a size that is too large.
        """
        words = getattr(vectors, "wv", vectors)
        if not isinstance(words, KeyedVectors):
            raise TypeError(
                f"expected meaning to be a KeyedVectors or a model with one; got "
                f"{type(vectors).__name__}"
            )
        if not len(words):
            raise ValueError("expected word vectors for meaning; got none")
        table = words.weight.detach().double()
        own = table.shape[1]
        size = min(own, vector_size // 2) if size is None else size
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"expected meaning_size to be an integer; got {size!r}")
        if not 1 <= size <= own:
            raise ValueError(
                f"expected meaning_size in 1..{own}, the word vectors' own; got {size}"
            )
        share = _shares(words)
        weighted = (_SMOOTH / (_SMOOTH + share))[:, None] * table
        # The second moment of a sentence's mean, its words drawn independently: mean and
        # covariance.
        mean = share @ weighted
        moment = (weighted * share[:, None]).T @ weighted
        direction = nn.functional.normalize(mean, dim=0)
        weighted = weighted - (weighted @ direction)[:, None] * direction
        if size < own:
            keep = torch.eye(own, dtype=torch.float64) - torch.outer(direction, direction)
            axes = torch.linalg.eigh(keep @ moment @ keep).eigenvectors
            weighted = weighted @ axes[:, -size:].flip(1)
        return cls(words.index_to_key, weighted.float())

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """m of sentences: [B, size], rows of length 1 or 0."""
        rows, owners = [], []
        for index, sentence in enumerate(sentences):
            for word in words_of(sentence):
                row = self._rows.get(word)
                if row is not None:
                    rows.append(row)
                    owners.append(index)
        total = torch.zeros(len(sentences), self.size)
        total.index_add_(0, torch.tensor(owners, dtype=torch.int64), self.table[rows])
        return nn.functional.normalize(total, dim=1)


def words_of(sentence: str) -> list[str]:
    """Its words in lower case, digits as words."""
    found = []
    for word in _WORDS.findall(sentence.lower()):
        found += [_DIGITS.get(digit, digit) for digit in word] if word.isdigit() else [word]
    return found


def _shares(words: KeyedVectors) -> Tensor:
    """p(w); by Zipf's law where there are no counts (words are then in order of falling counts)."""
    counts = words.expandos.get("count")
    if counts is None:
        counts = 1.0 / (1.0 + torch.arange(len(words), dtype=torch.float64))
    shares = torch.as_tensor(counts, dtype=torch.float64)
    return shares / shares.sum()


def token_table(embeddings: Any, tokens: Any, seed: int) -> Tensor | None:
    """Frozen token vectors [V, E] from what was given, or None for the encoder's own.

    A matrix [V, E] is taken as it is. Of a KeyedVectors (or what has one as ``wv``), a token takes
    the vector of its text without spaces around, else of that in lower case; others are random, of
    the mean length of these.

    Raises: TypeError, ValueError for what does not fit.
    """
    if embeddings is None or (isinstance(embeddings, str) and embeddings == "random"):
        return None
    words = getattr(embeddings, "wv", embeddings)
    v = len(tokens)
    if not isinstance(words, KeyedVectors):
        try:
            table = torch.as_tensor(embeddings).detach().float()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                "expected token_embeddings to be 'random', a matrix or a KeyedVectors; got "
                f"{type(embeddings).__name__}"
            ) from None
        if table.dim() != 2 or table.shape[0] != v:
            raise ValueError(
                f"expected token_embeddings of {v} rows, one a token; got {list(table.shape)}"
            )
        return table
    table = words.weight.detach().float()
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(v, table.shape[1], generator=generator)
    length = float(table.norm(dim=1).mean()) if len(table) else 1.0
    found = nn.functional.normalize(found, dim=1) * length
    for token in range(v):
        text = tokens.decode([[token]])[0].strip()
        for key in (text, text.lower()):
            if key in words.key_to_index:
                found[token] = table[words.key_to_index[key]]
                break
    return found
