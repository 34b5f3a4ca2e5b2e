"""The words of a corpus, their counts, and what sampling needs to know of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vecsmith import _native
from vecsmith.io import load_words, save_words


class Vocabulary:
    """Words with ids 0..V-1 and their counts.

    A vocabulary made by :meth:`vecsmith.data.Corpus.build` is sorted by falling count, and words of
    equal count by their first appearance in the text, the later one first: gensim's order, word
    for word. A :meth:`merged` one keeps the ids of the older.

    Args:
        words: V different str, by id. Kept by reference.
        counts: int64 [V], each at least 0.
        raw_words: how many tokens were read when these were counted, those of dropped words
            included; the sum of ``counts`` if None.

    Raises:
        ValueError: if words repeat, lengths differ, or a count is negative.
        TypeError: if a word is not a str, or counts are not integers.
    """

    def __init__(
        self, words: Sequence[str], counts: np.ndarray | Sequence[int], raw_words: int | None = None
    ) -> None:
        self.words: list[str] = words if isinstance(words, list) else list(words)
        array = np.asarray(counts)
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"expected counts that are integers, got dtype {array.dtype}")
        array = np.ascontiguousarray(array, dtype=np.int64)
        if array.shape != (len(self.words),):
            raise ValueError(
                f"expected counts of shape [{len(self.words)}], one for each word, "
                f"got {list(array.shape)}"
            )
        if array.size and array.min() < 0:
            at = int(array.argmin())
            raise ValueError(
                f"expected counts of at least 0, got {array[at]} for {self.words[at]!r}"
            )
        for word in self.words:
            if not isinstance(word, str):
                raise TypeError(f"expected words that are str, got {type(word).__name__} {word!r}")
        self.counts: np.ndarray = array
        self.raw_words = int(array.sum()) if raw_words is None else int(raw_words)
        if len(self.index) != len(self.words):
            seen: set[str] = set()
            word = next(w for w in self.words if w in seen or seen.add(w))
            raise ValueError(f"expected different words, got {word!r} more than once")

    @cached_property
    def index(self) -> dict[str, int]:
        """From word to id."""
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.index

    def __getitem__(self, word: str) -> int:
        """The id of a word. Raises KeyError if it is not in the vocabulary."""
        return self.index[word]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words, counted {int(self.counts.sum())} times)"

    # --- sampling -----------------------------------------------------------------------------

    def keep_probabilities(self, sample: float) -> Tensor | None:
        """The probability with which sub-sampling keeps a token of each word.

            p(w) = min(1, (sqrt(c(w) / t) + 1) * t / c(w)),   t = sample * sum of counts

        word2vec's formula (its code; the paper's differs). With ``sample`` >= 1, as in gensim,
        t = int(sample * (3 + sqrt 5) / 2): words with more than ``sample`` occurrences are thinned.

        Args:
            sample: word2vec's threshold, e.g. 1e-3; 0 for no sub-sampling.

        Returns:
            float32 [V], or None for ``sample`` = 0.

        Raises:
            ValueError: if ``sample`` is negative or not finite.

        Source: Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their
        Compositionality", section 2.3; word2vec.c.
        """
        if not np.isfinite(sample) or sample < 0:
            raise ValueError(f"expected a sample that is finite and at least 0, got {sample}")
        if sample == 0:
            return None
        if sample < 1:
            threshold = sample * float(self.counts.sum())
        else:
            threshold = int(sample * (3 + np.sqrt(5)) / 2)
        # A word that never occurred has nothing to thin.
        counts = np.maximum(self.counts, 1)
        keep = np.minimum((np.sqrt(counts / threshold) + 1) * (threshold / counts), 1.0)
        keep[self.counts == 0] = 1.0
        return torch.from_numpy(keep.astype(np.float32))

    def alias_table(self, ns_exponent: float = 0.75) -> Tensor:
        """An alias table of the distribution count ** ns_exponent, for drawing negatives.

        Draw i uniformly from 0..V-1 and b from 0..2^31-1; the word is i if b < table[i, 0], else
        table[i, 1]. Probabilities are right to 2^-31 / V for each word. A word with count 0
        is never drawn. The table is a function of the counts alone.

        Returns:
            int32 [V, 2]: thresholds in 0..2^31-1, and aliases.

        Raises:
            ValueError: if no word has a count, or the powers overflow.

        Source: Walker 1977, "An Efficient Method for Generating Discrete Random Variables with
        General Distributions"; Vose 1991.
        """
        if not np.isfinite(ns_exponent):
            raise ValueError(f"expected a finite ns_exponent, got {ns_exponent}")
        return torch.from_numpy(_native.alias_table(self.counts, float(ns_exponent)))

    def huffman_tree(self) -> tuple[Tensor, Tensor, Tensor]:
        """The binary Huffman tree over the counts, for hierarchical softmax.

        Word w's path is ``nodes[offsets[w]:offsets[w+1]]``, inner nodes from the root (V-2) down,
        and ``codes`` are the branches taken there. word2vec's construction with its way of breaking
        ties; where no counts tie it is gensim's tree too. One word has an empty path.

        Returns:
            offsets int64 [V+1], nodes int32 [P] in 0..V-2, codes uint8 [P] of 0 and 1.

        Source: Huffman 1952; Mikolov et al. 2013, "Efficient Estimation of Word Representations in
        Vector Space"; CreateBinaryTree of word2vec.c.
        """
        offsets, nodes, codes = _native.huffman_tree(self.counts)
        return torch.from_numpy(offsets), torch.from_numpy(nodes), torch.from_numpy(codes)

    # --- more text, and files -----------------------------------------------------------------

    def merged(self, other: Vocabulary) -> Vocabulary:
        """This vocabulary with the counts of ``other`` added and its new words appended.

        Ids of this one stay what they are; the new words follow in the order of ``other``.
        """
        new = [i for i, word in enumerate(other.words) if word not in self.index]
        counts = np.concatenate([self.counts, other.counts[new]])
        known = np.ones(len(other), dtype=bool)
        known[new] = False
        at = np.array([self.index.get(word, -1) for word in other.words], dtype=np.int64)
        counts[at[known]] += other.counts[known]
        words = self.words + [other.words[i] for i in new]
        return Vocabulary(words, counts, raw_words=self.raw_words + other.raw_words)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``word<TAB>count`` lines in UTF-8 under a header line; a backslash, tab, newline or
        carriage return in a word is escaped. Atomic. ``raw_words`` is not in the file.
        """
        save_words(path, self.words, self.counts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what :meth:`save` wrote; ``raw_words`` is then the sum of the counts.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or holds no counts.
        """
        words, counts = load_words(path)
        if counts is None:
            raise ValueError(f"{os.fspath(path)}: expected words with counts, got words alone")
        try:
            return cls(words, counts)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
