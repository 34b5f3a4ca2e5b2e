"""The neighbor queries of KeyedVectors: most similar words, similarities, ranks. As gensim's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith.eval._vectors import cosine, unit


class Neighbors:
    """The part of :class:`vecsmith.KeyedVectors` that asks which words are near which."""

    if TYPE_CHECKING:  # what KeyedVectors, the store, has
        weight: nn.Parameter
        index_to_key: list[str]

        @property
        def vector_size(self) -> int: ...
        @property
        def norms(self) -> np.ndarray: ...
        def get_index(self, key: str | int, default: int | None = None) -> int: ...
        def get_vector(self, key: str | int, norm: bool = False) -> np.ndarray: ...
        def _row(self, key: object) -> int: ...
        def _table(self) -> np.ndarray: ...
        def __len__(self) -> int: ...
        def __contains__(self, key: object) -> bool: ...

    def _as_vector(self, value: Any) -> np.ndarray | None:
        """A vector [D] given by the caller, or None if it is not one."""
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            return None
        if value.shape != (self.vector_size,):
            raise ValueError(
                f"expected a vector of shape [{self.vector_size}], got {list(value.shape)}"
            )
        return value

    def _weighted(self, given: Any, weight: float) -> list[tuple[Any, float]]:
        """gensim's forms of ``positive`` and ``negative`` as (key or vector, weight)."""
        if given is None:
            return []
        if isinstance(given, Tensor):
            given = given.detach().cpu().numpy()
        if isinstance(given, (str, Integral)) or (
            isinstance(given, np.ndarray) and given.ndim == 1
        ):
            given = [given]
        items = []
        for item in given:
            key, scale = item, weight
            if isinstance(item, (tuple, list)):
                if len(item) != 2 or not isinstance(item[1], Real):
                    raise TypeError(f"expected (key, weight), got {item!r}")
                key, scale = item[0], float(item[1])
            vector = self._as_vector(key)
            if vector is None and not isinstance(key, (str, Integral)):
                raise TypeError(f"expected a word, an index or a vector, got {key!r}")
            items.append((key if vector is None else vector, scale))
        return items

    def get_mean_vector(
        self,
        keys: Any,
        weights: Any = None,
        pre_normalize: bool = True,
        post_normalize: bool = False,
        ignore_missing: bool = True,
    ) -> np.ndarray:
        """The weighted mean sum_i w_i v_i / sum_i |w_i| of the vectors of keys, [D].

        Args:
            keys: words, rows or vectors [D].
            weights: one number per key; 1 if None.
            pre_normalize: scale the vectors of words and rows to unit length first.
            post_normalize: scale the mean to unit length.
            ignore_missing: skip unknown words.

        Raises:
            ValueError: if there are no keys, or not one weight per key.
            KeyError: if a word is unknown and ``ignore_missing`` is false.
        """
        if len(keys) == 0:
            raise ValueError("cannot compute mean with no input")
        if weights is None:
            weights = np.ones(len(keys), dtype=np.float32)
        elif isinstance(weights, (list, tuple)):
            weights = np.array(weights, dtype=np.float32)
        if len(weights) != len(keys):
            raise ValueError(f"expected {len(keys)} weights, got {len(weights)}")
        # fp32 sums and an fp64 quotient: gensim's rounding, so that its answers are ours.
        mean = np.zeros(self.vector_size, dtype=np.float32)
        total = 0
        for key, weight in zip(keys, weights, strict=True):
            vector = self._as_vector(key)
            if vector is None:
                if self._row(key) < 0:
                    if ignore_missing:
                        continue
                    raise KeyError(f"Key '{key}' not present in vocabulary")
                vector = self.get_vector(key, norm=pre_normalize)
            mean += weight * vector
            total += abs(weight)
        if total > 0:
            mean = mean / total
        if post_normalize:
            mean = unit(mean).astype(np.float32)
        return mean

    def _cosines(self, query: np.ndarray, start: int | None, stop: int | None) -> Tensor:
        """cos(row, query) for rows start:stop; nan for rows that are zero. The query is unit."""
        norms = torch.from_numpy(self.norms)[start:stop]
        table = self.weight.detach()[start:stop]
        return torch.mv(table, torch.from_numpy(query)) / norms

    def most_similar(
        self,
        positive: Any = None,
        negative: Any = None,
        topn: int | None = 10,
        clip_start: int = 0,
        clip_end: int | None = None,
        restrict_vocab: int | None = None,
    ) -> Any:
        """The words w of greatest cosine to the mean of what is given.

            cos(w, q),   q = sum_i s_i v_i   (v_i of unit length; s_i = 1, or -1 if negative)

        Args:
            positive: words, rows, vectors [D] (not scaled), (one of these, weight), or a list.
            negative: the same; their default weight is -1.
            topn: how many; 0 gives [], None the cosines of all rows that are searched.
            clip_start: first row that is searched.
            clip_end: row after the last one that is searched.
            restrict_vocab: search only the first so many rows (instead of clip_start, clip_end).

        Returns:
            [(word, cosine)], descending, without the words that were given; of equal cosines the
            lower row first. A row of zeros has no direction: its cosine is nan, and it comes last.
            For ``topn=None`` an array of the cosines.

        Raises:
            KeyError: if a word is unknown.
            ValueError: if nothing is given, or a vector has the wrong size.
            TypeError: for anything else.
        """
        if isinstance(topn, Integral) and int(topn) < 1:
            return []
        items = self._weighted(positive, 1.0) + self._weighted(negative, -1.0)
        keys = [key for key, _ in items]
        mean = self.get_mean_vector(
            keys,
            np.array([weight for _, weight in items]),
            post_normalize=True,
            ignore_missing=False,
        )
        given = [self._row(key) for key in keys if not isinstance(key, np.ndarray)]
        if restrict_vocab:
            clip_start, clip_end = 0, restrict_vocab
        start, stop, _ = slice(clip_start, clip_end or len(self)).indices(len(self))
        scores = self._cosines(mean, start, stop)
        if topn is None:
            return scores.numpy()
        best = _top(scores, int(topn) + len(given))
        barred = set(given)
        values = scores.numpy()
        found = [
            (self.index_to_key[row + start], float(values[row]))
            for row in best.tolist()
            if row + start not in barred
        ]
        return found[: int(topn)]

    def similar_by_key(
        self, key: str | int, topn: int | None = 10, restrict_vocab: int | None = None
    ) -> Any:
        """:meth:`most_similar` to one key."""
        return self.most_similar(positive=[key], topn=topn, restrict_vocab=restrict_vocab)

    similar_by_word = similar_by_key

    def similar_by_vector(
        self, vector: Any, topn: int | None = 10, restrict_vocab: int | None = None
    ) -> Any:
        """:meth:`most_similar` to one vector [D]."""
        return self.most_similar(
            positive=[np.asarray(vector)], topn=topn, restrict_vocab=restrict_vocab
        )

    def most_similar_cosmul(
        self,
        positive: Any = None,
        negative: Any = None,
        topn: int | None = 10,
        restrict_vocab: int | None = None,
    ) -> Any:
        """The words of greatest 3CosMul score (Levy and Goldberg 2014, equation 4).

            prod_p (1 + cos(w, p)) / 2   /   (prod_n (1 + cos(w, n)) / 2 + 1e-6)

        Args:
            positive: words, rows or vectors (of unit length).
            negative: the same.
            topn: how many; None gives the scores of all rows.
            restrict_vocab: search only the first so many rows.

        Raises:
            KeyError: if a word is unknown.
            ValueError: if there is no positive one.
        """
        if isinstance(topn, Integral) and int(topn) < 1:
            return []
        groups = [self._weighted(positive, 1.0), self._weighted(negative, 1.0)]
        if not groups[0]:
            raise ValueError("cannot compute similarity with no input")
        given, products = [], []
        for items in groups:
            product = torch.ones(len(self))[:restrict_vocab]
            for key, _ in items:
                if not isinstance(key, np.ndarray):
                    given.append(self.get_index(key))
                    key = self.get_vector(key, norm=True)
                cosines = self._cosines(np.array(key, dtype=np.float32), None, restrict_vocab)
                product = product * ((1 + cosines) / 2)
            products.append(product)
        scores = products[0] / (products[1] + 0.000001)
        if topn is None:
            return scores.numpy()
        best, values = _top(scores, int(topn) + len(given)).tolist(), scores.numpy()
        found = [(self.index_to_key[row], float(values[row])) for row in best if row not in given]
        return found[: int(topn)]

    def similarity(self, w1: str | int, w2: str | int) -> float:
        """cos(w1, w2); 0 if one of them is a zero vector. Raises KeyError for an unknown key."""
        return cosine(self.get_vector(w1), self.get_vector(w2))

    def distance(self, w1: str | int, w2: str | int) -> float:
        """1 - :meth:`similarity`."""
        return 1 - self.similarity(w1, w2)

    def n_similarity(self, ws1: Sequence[Any], ws2: Sequence[Any]) -> float:
        """The cosine of the mean vectors of two lists of keys. Unknown words are skipped.

        Raises:
            ValueError: if a list is empty.
            KeyError: if a list has unknown words only.
        """
        means = []
        for words in (ws1, ws2):
            if len(words) == 0:
                raise ValueError("expected at least one word in each list, got none")
            if all(self._as_vector(word) is None and word not in self for word in words):
                raise KeyError(f"Key '{words[0]}' not present in vocabulary")
            means.append(self.get_mean_vector(words, pre_normalize=False))
        return cosine(*means)

    @staticmethod
    def cosine_similarities(vector_1: np.ndarray, vectors_all: np.ndarray) -> np.ndarray:
        """The cosines [N] of a vector [D] to each of some vectors [N, D]."""
        norms = np.linalg.norm(vectors_all, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.dot(vectors_all, vector_1) / (np.linalg.norm(vector_1) * norms)

    def distances(self, word_or_vector: Any, other_words: Sequence[Any] = ()) -> np.ndarray:
        """1 - cosine of a key or vector [D] to each of ``other_words`` (to all rows if empty).

        Raises:
            KeyError: if a word is unknown.
        """
        vector = self._as_vector(word_or_vector)
        if vector is None:
            vector = self.get_vector(word_or_vector)
        table = self._table()
        if len(other_words):
            table = table[[self.get_index(word) for word in other_words]]
        return 1 - self.cosine_similarities(vector, table)

    def closer_than(self, key1: str | int, key2: str | int) -> list[str]:
        """The words that are closer to ``key1`` than ``key2`` is."""
        distances = self.distances(key1)
        own, limit = self.get_index(key1), distances[self.get_index(key2)]
        return [self.index_to_key[row] for row in np.where(distances < limit)[0] if row != own]

    def rank(self, key1: str | int, key2: str | int) -> int:
        """The place of ``key2`` among the neighbors of ``key1``, from 1."""
        return len(self.closer_than(key1, key2)) + 1

    def most_similar_to_given(self, key1: str | int, keys_list: Sequence[Any]) -> Any:
        """The one of ``keys_list`` that is most similar to ``key1``."""
        return keys_list[int(np.argmax([self.similarity(key1, key) for key in keys_list]))]

    def rank_by_centrality(
        self, words: Sequence[Any], use_norm: bool = True
    ) -> list[tuple[float, Any]]:
        """The words with their cosines to the mean of all of them, the most central first.

        Unknown words are left out, with a warning.

        Raises:
            ValueError: if no word is known.
        """
        known = [word for word in words if word in self]
        if len(known) != len(words):
            missing = [word for word in words if word not in self]
            warnings.warn(f"unknown words are left out: {missing}", stacklevel=2)
        if not known:
            raise ValueError("expected at least one known word, got none")
        vectors = np.vstack([self.get_vector(word, norm=use_norm) for word in known])
        mean = self.get_mean_vector(list(vectors), post_normalize=True)
        return sorted(
            zip((float(score) for score in np.dot(vectors, mean)), known, strict=True),
            reverse=True,
        )

    def doesnt_match(self, words: Sequence[Any]) -> Any:
        """The word that is farthest from the mean of all of them.

        Unknown words are left out, with a warning.

        Raises:
            ValueError: if no word is known.
        """
        return self.rank_by_centrality(words)[-1][1]

    def relative_cosine_similarity(self, wa: str, wb: str, topn: int = 10) -> float:
        """cos(wa, wb) / sum of the cosines of wa's ``topn`` neighbors (Leeuwenberg et al. 2016)."""
        neighbors = self.similar_by_key(wa, topn)
        if not neighbors:
            raise ValueError("expected topn >= 1 and more than one word")
        return self.similarity(wa, wb) / sum(score for _, score in neighbors)


def _top(scores: Tensor, number: int) -> Tensor:
    """The indices of the greatest scores, descending; ties by index; nan last."""
    scores = torch.nan_to_num(scores, nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    if number >= len(scores):
        return torch.argsort(scores, descending=True, stable=True)
    least = torch.topk(scores, number).values[-1]
    candidates = torch.nonzero(scores >= least).squeeze(1)
    order = torch.argsort(scores[candidates], descending=True, stable=True)
    return candidates[order[:number]]
