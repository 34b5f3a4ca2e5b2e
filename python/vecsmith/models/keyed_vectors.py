"""Words and their vectors: look-up, neighbors, measures, files. Speaks like gensim's."""

from __future__ import annotations

import json
import math
import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith import eval as measures
from vecsmith import io
from vecsmith.eval._vectors import cosine, unit
from vecsmith.io._checks import refuse_nonfinite
from vecsmith.io.word2vec_format import load_counts

_FORMAT = "vecsmith.KeyedVectors"
_VERSION = 1
_VECTORS = "vectors"


class KeyedVectors:
    """V words and their vectors, one row of a table [V, D] each.

    The names, argument conventions and answers are those of gensim's ``KeyedVectors``. A *key* is a
    word, or an int that is no word and is taken as a row.

    ``weight`` is the table as an :class:`torch.nn.Parameter` (without gradient), ``vectors`` is the
    same memory as a NumPy array, and :meth:`to_embedding` gives an :class:`torch.nn.Embedding` on
    it: nothing is copied, and a change to one is a change to all.

    Norms of the rows are cached, and computed anew whenever the table may have changed: by an
    in-place operation of torch on the table or anything that shares its version counter
    (``weight``, an embedding that an optimizer trains), by NumPy through ``vectors`` (while such an
    array is alive, nothing is cached), and always where the table was given as a NumPy array, which
    its owner may write into. What torch cannot see either (``weight.data``, raw pointers, a NumPy
    array made from the original tensor) needs ``fill_norms(force=True)`` afterwards.

    Args:
        vocabulary_words: the V words, all different, usually most frequent first. An int D gives an
            empty table of that vector size, as in gensim.
        vectors: [V, D], a CPU tensor or array. float32 is kept by reference, with any row stride
            (the values of a row must be adjacent); other floating types are copied to float32.
        counts: V occurrence counts, or None; :meth:`get_vecattr` finds them as "count".

    Attributes:
        index_to_key: the words by row.
        key_to_index: the rows by word.
        weight: the table, an ``nn.Parameter`` [V, D].

    Raises:
        TypeError: if words are not strings, or vectors not floating-point.
        ValueError: if a word is there twice, or shapes do not fit.
    """

    def __init__(
        self,
        vocabulary_words: Sequence[str] | int,
        vectors: Tensor | np.ndarray | None = None,
        counts: Any = None,
    ) -> None:
        words = vocabulary_words
        if isinstance(words, (int, np.integer)):
            if vectors is not None or int(words) < 1:
                raise ValueError(
                    f"expected words and vectors, or one vector size >= 1; got {words}"
                )
            vectors = torch.empty(0, int(words))
            words = []
        if isinstance(words, str):
            raise TypeError("expected a list of words, got one string")
        if vectors is None:
            raise TypeError("expected vectors [V, D] for the words")
        self._set_words(list(words))
        self._set_table(vectors)
        self.expandos: dict[str, np.ndarray] = {}
        if counts is not None:
            counts = np.asarray(counts)
            if counts.shape != (len(self),) or counts.dtype.kind not in "iu":
                raise ValueError(
                    f"expected {len(self)} integer counts, "
                    f"got shape {counts.shape} of {counts.dtype}"
                )
            self.expandos["count"] = counts.astype(np.int64)

    # --- the table and its words ---------------------------------------------------------------

    def _set_words(self, words: list[str]) -> None:
        self.index_to_key = words
        self.key_to_index = {word: row for row, word in enumerate(words)}
        if not all(isinstance(word, str) for word in words):
            wrong = next(word for word in words if not isinstance(word, str))
            raise TypeError(f"expected words as strings, got {wrong!r}")
        if len(self.key_to_index) != len(words):
            twice = next(word for row, word in enumerate(words) if self.key_to_index[word] != row)
            raise ValueError(f"expected different words, got {twice!r} twice")

    def _set_table(self, vectors: Tensor | np.ndarray) -> None:
        foreign = isinstance(vectors, np.ndarray)
        if isinstance(vectors, np.ndarray):
            if vectors.dtype.kind != "f":
                raise TypeError(f"expected floating-point vectors, got {vectors.dtype}")
            borrowed = (
                vectors.dtype == np.float32
                and vectors.dtype.isnative
                and vectors.flags.writeable
                and all(stride >= 0 and stride % 4 == 0 for stride in vectors.strides)
            )
            if not borrowed:  # also read-only arrays: torch has no read-only tensors
                foreign = False
                vectors = vectors.astype(np.float32)
            table = torch.from_numpy(vectors)
        elif isinstance(vectors, Tensor):
            table = vectors.detach()
            if not table.is_floating_point():
                raise TypeError(f"expected floating-point vectors, got {table.dtype}")
            if table.device.type != "cpu":
                raise ValueError(f"expected vectors on the CPU, got them on {table.device}")
            table = table.to(torch.float32)
        else:
            raise TypeError(f"expected vectors as a tensor or array, got {type(vectors).__name__}")
        if table.dim() != 2 or table.shape[0] != len(self.index_to_key) or table.shape[1] < 1:
            raise ValueError(
                f"expected vectors of shape [{len(self.index_to_key)}, D >= 1] for "
                f"{len(self.index_to_key)} words, got {list(table.shape)}"
            )
        if table.shape[1] > 1 and table.stride(1) != 1:
            table, foreign = table.contiguous(), False
        self.weight = nn.Parameter(table, requires_grad=False)
        self._foreign = foreign  # an array whose owner may write into it
        self._norms: np.ndarray | None = None
        self._norms_version = -1
        self._lent: list[weakref.ref[np.ndarray]] = []

    @property
    def vectors(self) -> np.ndarray:
        """The table [V, D] as a NumPy array on the memory of ``weight``. May be written into."""
        for reference in self._lent:
            array = reference()
            if array is not None and array.ctypes.data == self.weight.data_ptr():
                return array
        array = self._table()
        self._lent.append(weakref.ref(array))
        self._norms = None
        return array

    @vectors.setter
    def vectors(self, vectors: Tensor | np.ndarray) -> None:
        self._set_table(vectors)

    def _table(self) -> np.ndarray:
        """The table for our own reading: does not count as lent."""
        return self.weight.detach().numpy()

    @property
    def vector_size(self) -> int:
        """D, the length of a vector."""
        return self.weight.shape[1]

    @property
    def norms(self) -> np.ndarray:
        """[V]: the Euclidean norms of the rows, as they are now. Set to None to forget them."""
        return self._filled_norms()

    @norms.setter
    def norms(self, norms: None) -> None:
        if norms is not None:
            raise ValueError("expected None: norms are computed, not set")
        self._norms = None

    def fill_norms(self, force: bool = False) -> None:
        """Compute the norms unless the cached ones are known to be right (or ``force``)."""
        self._filled_norms(force)

    def _filled_norms(self, force: bool = False) -> np.ndarray:
        self._lent = [reference for reference in self._lent if reference() is not None]
        norms = self._norms
        stale = self._foreign or bool(self._lent) or self._norms_version != self.weight._version
        if norms is None or stale or force:
            norms = torch.linalg.vector_norm(self.weight.detach(), dim=1).numpy()
            # Not kept while somebody may write into the table unseen, and be gone when we look.
            self._norms = None if self._foreign or self._lent else norms
            self._norms_version = self.weight._version
        return norms

    def __len__(self) -> int:
        return len(self.index_to_key)

    def __contains__(self, key: object) -> bool:
        return self._row(key) >= 0

    def __repr__(self) -> str:
        return f"KeyedVectors<vector_size={self.vector_size}, {len(self)} keys>"

    def _row(self, key: object) -> int:
        row = self.key_to_index.get(key, -1)  # type: ignore[call-overload]
        if row < 0 and isinstance(key, Integral) and 0 <= int(key) < len(self):
            return int(key)
        return row

    def has_index_for(self, key: str | int) -> bool:
        """Is the key known?"""
        return self._row(key) >= 0

    def get_index(self, key: str | int, default: int | None = None) -> int:
        """The row of a key; ``default``, if given, for an unknown one.

        Raises:
            KeyError: if the key is unknown and there is no default.
        """
        row = self._row(key)
        if row >= 0:
            return row
        if default is not None:
            return default
        raise KeyError(f"Key '{key}' not present")

    def get_vector(self, key: str | int, norm: bool = False) -> np.ndarray:
        """The vector [D] of a key, read-only; scaled to unit length if ``norm``.

        Raises:
            KeyError: if the key is unknown.
        """
        row = self.get_index(key)
        vector = self._table()[row]
        if norm:
            with np.errstate(invalid="ignore"):  # a zero vector has no direction: nan
                vector = vector / np.float32(torch.linalg.vector_norm(self.weight[row]).item())
        vector.flags.writeable = False
        return vector

    def __getitem__(self, key_or_keys: Any) -> np.ndarray:
        """The vector [D] of one key (read-only), or the vectors [N, D] of several.

        Raises:
            KeyError: if a key is unknown.
        """
        if isinstance(key_or_keys, (str, Integral)):
            return self.get_vector(key_or_keys)  # type: ignore[arg-type]
        rows = [self.get_index(key) for key in key_or_keys]
        return self._table()[rows]

    def __setitem__(self, keys: Any, weights: Any) -> None:
        """Set the vectors of keys; unknown ones are added (see :meth:`add_vectors`)."""
        if not isinstance(keys, list):
            keys = [keys]
            weights = np.asarray(weights).reshape(1, -1)
        self.add_vectors(keys, weights, replace=True)

    def add_vectors(self, keys: Any, weights: Any, replace: bool = False) -> None:
        """Append words with their vectors. ``weight`` and ``vectors`` become new objects then.

        Args:
            keys: the words (or one). Of a known word the old vector is kept unless ``replace``.
            weights: their vectors, [N, D].
            replace: write the vectors of known words into their rows, in place.

        Raises:
            TypeError: if a new key is not a string.
            ValueError: if the shapes do not fit.
        """
        if isinstance(keys, (str, Integral)):
            keys, weights = [keys], np.asarray(weights).reshape(1, -1)
        keys = list(keys)
        given = np.asarray(weights, dtype=np.float32)
        if given.shape != (len(keys), self.vector_size):
            raise ValueError(
                f"expected vectors of shape [{len(keys)}, {self.vector_size}], "
                f"got {list(given.shape)}"
            )
        added: dict[str, int] = {}
        kept: list[tuple[int, int]] = []
        for at, key in enumerate(keys):
            row = self._row(key)
            if row >= 0:
                kept.append((row, at))
            elif not isinstance(key, str):
                raise TypeError(f"expected a word, got {key!r}")
            elif replace:
                added[key] = at
            else:
                added.setdefault(key, at)
        if replace and kept:
            rows, source = (torch.tensor(list(column)) for column in zip(*kept, strict=True))
            self.weight[rows] = torch.from_numpy(given)[source]
        if added:
            new = torch.from_numpy(given[list(added.values())])
            self.index_to_key.extend(added)
            for key in added:
                self.key_to_index[key] = len(self.key_to_index)
            self._set_table(torch.cat((self.weight.detach(), new)))
            for name, values in self.expandos.items():
                padding = np.zeros(len(added), dtype=values.dtype)
                self.expandos[name] = np.concatenate((values, padding))

    def add_vector(self, key: str, vector: Any) -> int:
        """Append one word (or keep a known one's vector); its row. Copies the whole table."""
        self.add_vectors([key], np.asarray(vector).reshape(1, -1))
        return self.get_index(key)

    def get_vecattr(self, key: str | int, attr: str) -> Any:
        """An attribute of a key: its "count", or what :meth:`set_vecattr` has set.

        Raises:
            KeyError: if the key is unknown, or there is no such attribute.
        """
        row = self.get_index(key)
        if attr not in self.expandos:
            raise KeyError(f"no attribute {attr!r}: expected one of {sorted(self.expandos)}")
        return self.expandos[attr][row]

    def set_vecattr(self, key: str | int, attr: str, val: Any) -> None:
        """Set an attribute of a key; other keys begin with 0 (or None)."""
        row = self.get_index(key)
        if attr not in self.expandos:
            kind = np.asarray(val).dtype
            if kind.kind not in "iufb":
                kind = np.dtype(object)
            self.expandos[attr] = np.zeros(len(self), dtype=kind)
        self.expandos[attr][row] = val

    def to_embedding(self, freeze: bool = True) -> nn.Embedding:
        """An :class:`torch.nn.Embedding` [V, D] whose weight is this table: no copy is made.

        Args:
            freeze: the embedding does not train. False: it does, and its training changes
                these vectors.
        """
        return nn.Embedding.from_pretrained(self.weight.detach(), freeze=freeze)

    def get_normed_vectors(self) -> np.ndarray:
        """[V, D]: the vectors scaled to unit length; a copy. A zero vector gives nan."""
        with np.errstate(invalid="ignore"):
            return self._table() / self.norms[:, None]

    def unit_normalize_all(self) -> None:
        """Scale every vector to unit length, in place. Zero vectors stay."""
        norms = torch.from_numpy(self.norms)
        self.weight.div_(torch.where(norms > 0, norms, 1.0)[:, None])

    def sort_by_descending_frequency(self) -> None:
        """Sort words, vectors (into a new table) and attributes by descending count.

        Raises:
            KeyError: if there are no counts.
        """
        if "count" not in self.expandos:
            raise KeyError("no attribute 'count': these vectors came without counts")
        order = np.argsort(-self.expandos["count"], kind="stable")
        table = self.weight.detach()[torch.from_numpy(order)]
        self._set_words([self.index_to_key[row] for row in order.tolist()])
        self._set_table(table)
        self.expandos = {name: values[order] for name, values in self.expandos.items()}

    # --- neighbors -----------------------------------------------------------------------------

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

    def vectors_for_all(self, keys: Iterable[Any]) -> KeyedVectors:
        """The known ones of ``keys``, each once, with copies of their vectors and counts."""
        rows = [self.key_to_index[key] for key in dict.fromkeys(keys) if key in self.key_to_index]
        counts = self.expandos.get("count")
        return KeyedVectors(
            [self.index_to_key[row] for row in rows],
            self.weight.detach()[torch.tensor(rows, dtype=torch.int64)],
            None if counts is None else counts[rows],
        )

    # --- measures ------------------------------------------------------------------------------

    def evaluate_word_pairs(
        self,
        pairs: str | os.PathLike[str],
        delimiter: str | None = "\t",
        encoding: str = "utf8",
        restrict_vocab: int | None = 300_000,
        case_insensitive: bool = True,
        dummy4unknown: bool = False,
    ) -> tuple[Any, Any, float]:
        """gensim's (pearson, spearman, percentage of pairs with unknown words).

        The first two are scipy's results, (coefficient, p-value). See
        :func:`vecsmith.eval.word_pairs` for the arguments and errors.
        """
        result = measures.word_pairs(
            self.weight,
            self.index_to_key,
            pairs,
            delimiter=delimiter,
            encoding=encoding,
            restrict_vocab=restrict_vocab,
            case_insensitive=case_insensitive,
            dummy4unknown=dummy4unknown,
        )
        return result.pearson, result.spearman, result.oov_ratio

    def evaluate_word_analogies(
        self,
        analogies: str | os.PathLike[str],
        restrict_vocab: int | None = 300_000,
        case_insensitive: bool = True,
        dummy4unknown: bool = False,
    ) -> tuple[float, list[dict[str, Any]]]:
        """gensim's (score, sections), the last section being 'Total accuracy'.

        A section is a dict of 'section' (its name), 'correct' and 'incorrect' (lists of questions).
        See :func:`vecsmith.eval.analogies` for the arguments and errors.
        """
        result = measures.analogies(
            self.weight,
            self.index_to_key,
            analogies,
            restrict_vocab=restrict_vocab,
            case_insensitive=case_insensitive,
            dummy4unknown=dummy4unknown,
        )
        total = result.total
        return total.score, [section.as_dict() for section in [*result.sections, total]]

    # --- files ---------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, vocab.txt, model.safetensors; all of them or none.

        Other files in the folder are left alone. See :func:`vecsmith.io.atomic_folder`.

        Raises:
            ValueError: if a vector holds nan or infinity.
            OSError: if the disk is full, or the folder cannot be written.
        """
        refuse_nonfinite(self.weight.detach(), self.index_to_key, "these vectors")
        config = {
            "format": _FORMAT,
            "version": _VERSION,
            "words": len(self),
            "vector_size": self.vector_size,
        }
        with io.atomic_folder(folder) as staging:
            io.save_words(staging / "vocab.txt", self.index_to_key, self.expandos.get("count"))
            io.save_safetensors(staging / "model.safetensors", {_VECTORS: self.weight})
            (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], mmap: bool = True) -> KeyedVectors:
        """Load from a folder that :meth:`save` (or another model of vecsmith) has written.

        Args:
            folder: the folder.
            mmap: map the vectors instead of reading them into memory. Writing into them changes
                memory only, never the file.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, the files do not belong together, or a vector holds
                nan or infinity.
        """
        with io.read_folder(folder) as find:
            path = find("config.json")
            if not path.exists():
                raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json")
            try:
                config = json.loads(path.read_text())
                words_expected, size = int(config["words"]), int(config["vector_size"])
                form, version = str(config["format"]), int(config["version"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: not a model's config.json ({error!r})") from None
            if not form.startswith("vecsmith.") or version > _VERSION:
                raise ValueError(
                    f"{path}: expected a vecsmith model of version <= {_VERSION}, "
                    f"got {form!r} of version {version}"
                )
            for name in ("vocab.txt", "model.safetensors"):
                if not find(name).exists():
                    raise FileNotFoundError(f"{folder} is not a whole model: it has no {name}")
            words, counts = io.load_words(find("vocab.txt"))
            tensors, _ = io.load_safetensors(find("model.safetensors"), mmap=mmap)
        path = find("model.safetensors")
        vectors = tensors.get(_VECTORS)
        if vectors is None:
            raise ValueError(f"{path}: expected a tensor {_VECTORS!r}, got {sorted(tensors)}")
        if vectors.dtype != torch.float32 or list(vectors.shape) != [words_expected, size]:
            raise ValueError(
                f"{path}: expected {_VECTORS!r} as float32 [{words_expected}, {size}], "
                f"got {vectors.dtype} {list(vectors.shape)}"
            )
        if len(words) != words_expected:
            raise ValueError(f"{folder}: expected {words_expected} words, got {len(words)}")
        refuse_nonfinite(vectors, words, str(path))
        try:
            return cls(words, vectors, counts)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def save_word2vec_format(
        self,
        fname: str | os.PathLike[str],
        fvocab: str | os.PathLike[str] | None = None,
        binary: bool = False,
        write_header: bool = True,
        prefix: str = "",
        sort_attr: str = "count",
    ) -> None:
        """Write word2vec's text or binary format, atomically; .gz and the like are compressed.

        Args:
            fname: the file.
            fvocab: a file for ``word count`` lines, or None.
            binary: the format; see :func:`vecsmith.io.save_word2vec_format`.
            write_header: begin with the line ``V D``; without it (text only) it is GloVe's format.
            prefix: before every word.
            sort_attr: write in descending order of this attribute where there is one.

        Raises:
            ValueError: before anything is written, if a word is empty or holds white space, a
                vector holds nan or infinity, or ``fvocab`` is wanted and there are no counts.
            OSError: if the disk is full, or a file cannot be written.
        """
        values, order = self.expandos.get(sort_attr), None
        if values is not None:
            order = np.argsort(-values, kind="stable")
        elif fvocab is not None:
            raise ValueError(f"expected an attribute {sort_attr!r} to write to {fvocab}, got none")
        io.save_word2vec_format(
            fname,
            self.index_to_key,
            self.weight,
            binary=binary,
            write_header=write_header,
            prefix=prefix,
            order=order,
        )
        if fvocab is not None and values is not None and order is not None:
            with io.atomic_file(fvocab) as file:
                for row in order.tolist():
                    file.write(f"{prefix}{self.index_to_key[row]} {values[row]}\n".encode())

    @classmethod
    def load_word2vec_format(
        cls,
        fname: str | os.PathLike[str],
        fvocab: str | os.PathLike[str] | None = None,
        binary: bool | None = False,
        encoding: str = "utf8",
        unicode_errors: str = "strict",
        limit: int | None = None,
        no_header: bool = False,
        allow_nonfinite: bool = False,
    ) -> KeyedVectors:
        """Read word2vec's text or binary format (or GloVe's, with ``no_header``).

        Args:
            fname: the file; .gz, .bz2, .xz and .zst are decompressed.
            fvocab: a file of ``word count`` lines. Without it the counts are made up, as gensim
                does: V, V - 1, ...
            binary: the format; None looks at the file.
            encoding: of the words.
            unicode_errors: what to do with words that do not decode.
            limit: read only the first so many words.
            no_header: text without the first line.
            allow_nonfinite: take vectors with nan or infinity as they are.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a whole file in the format; see
                :func:`vecsmith.io.load_word2vec_format`.
        """
        known: dict[str, int] = {}
        if fvocab is not None:
            known = load_counts(fvocab, encoding=encoding, unicode_errors=unicode_errors)
        words, vectors = io.load_word2vec_format(
            fname,
            binary=binary,
            encoding=encoding,
            unicode_errors=unicode_errors,
            limit=limit,
            no_header=no_header,
            allow_nonfinite=allow_nonfinite,
        )
        if fvocab is None:
            counts = np.arange(len(words), 0, -1)
        else:
            missing = [word for word in words if word not in known]
            if missing:
                warnings.warn(
                    f"{fvocab}: no count for {len(missing)} words, taken as 0: {missing[:5]}",
                    stacklevel=2,
                )
            counts = np.array([known.get(word, 0) for word in words], dtype=np.int64)
        return cls(words, vectors, counts)


def _top(scores: Tensor, number: int) -> Tensor:
    """The indices of the greatest scores, descending; ties by index; nan last."""
    scores = torch.nan_to_num(scores, nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    if number >= len(scores):
        return torch.argsort(scores, descending=True, stable=True)
    least = torch.topk(scores, number).values[-1]
    candidates = torch.nonzero(scores >= least).squeeze(1)
    order = torch.argsort(scores[candidates], descending=True, stable=True)
    return candidates[order[:number]]
