"""Documents as rows of weighted word counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vecsmith.data import Corpus

WEIGHTINGS = ("tfidf", "log_entropy", "count")
IDFS = ("smooth", "standard", "probabilistic")
_CHUNK = 1 << 22  # tokens that are counted together


def corpus_counts(corpus: Corpus, column: np.ndarray, width: int) -> Any:
    """How often each word is in each sentence of a corpus: a scipy CSR matrix, float32
    [sentences, width].

    Args:
        column: int64 [V], the column of each word of the corpus, -1 for one that is left out.
    """
    offsets, begin = corpus.offsets.numpy(), 0
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while begin < len(corpus):
        end = int(np.searchsorted(offsets, offsets[begin] + _CHUNK, side="right")) - 1
        end = min(max(end, begin + 1), len(corpus))
        tokens = corpus.tokens[offsets[begin] : offsets[end]].numpy()
        rows = np.repeat(np.arange(end - begin), np.diff(offsets[begin : end + 1]))
        columns = column[tokens]
        there = columns >= 0
        keys, counts = np.unique(rows[there] * width + columns[there], return_counts=True)
        lengths = np.bincount(keys // width, minlength=end - begin) if width else []
        parts.append((np.asarray(lengths, dtype=np.int64), keys % width, counts))
        begin = end
    return _matrix(parts, width)


def document_counts(documents: Iterable[Sequence[str]], index: dict[str, int]) -> Any:
    """The same of token lists; words that are not in the index are left out."""
    parts = []
    for tokens in documents:
        found = Counter(index[token] for token in tokens if token in index)
        columns = np.array(sorted(found), dtype=np.int64)
        counts = np.array([found[c] for c in columns.tolist()], dtype=np.int64)
        parts.append((np.array([len(columns)]), columns, counts))
    return _matrix(parts, len(index))


def _matrix(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], width: int) -> Any:
    import scipy.sparse

    empty = np.empty(0, dtype=np.int64)
    lengths, columns, counts = (
        np.concatenate([part[i] for part in parts] or [empty]) for i in range(3)
    )
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return scipy.sparse.csr_matrix(
        (counts.astype(np.float32), columns, indptr), shape=(len(lengths), width)
    )


def word_weights(
    counts: Any, weighting: str, idf: str, n_documents: int | None = None
) -> np.ndarray:
    """What a word counts for wherever it is, float32 [W], of the counts [N, W] of N documents; or
    of ``n_documents``, those without words among them.

    ``tfidf``, with a word in df of N documents:

        smooth         ln((1 + N) / (1 + df)) + 1      (scikit-learn's)
        standard       ln(N / df)                      (Sparck Jones 1972)
        probabilistic  max(0, ln((N - df) / df))       (Croft and Harper 1979)

    ``log_entropy``, with p_d the part of the word's occurrences that is in document d:

        1 + sum_d p_d ln p_d / ln N

    0 for a word that is spread evenly, 1 for one that is in one document (Dumais 1991, "Improving
    the Retrieval of Information from External Sources"). ``count``: 1.
    """
    documents, words = counts.shape
    documents = documents if n_documents is None else n_documents
    columns, values = counts.indices, counts.data.astype(np.float64)
    if weighting == "count":
        return np.ones(words, dtype=np.float32)
    if weighting == "log_entropy":
        if documents < 2:
            return np.ones(words, dtype=np.float32)
        totals = np.bincount(columns, values, minlength=words)
        parts = values / totals[columns]
        spread = np.bincount(columns, parts * np.log(parts), minlength=words)
        # Rounding may leave an evenly spread word a trace below nothing.
        return np.maximum(1 + spread / math.log(documents), 0).astype(np.float32)
    found = np.maximum(np.bincount(columns, minlength=words), 1).astype(np.float64)
    if idf == "smooth":
        weights = np.log((1 + documents) / (1 + found)) + 1
    elif idf == "standard":
        weights = np.log(documents / found)
    else:
        weights = np.log(np.maximum((documents - found) / found, 1.0))
    return weights.astype(np.float32)


def weighted(
    counts: Any, weights: np.ndarray, weighting: str, sublinear_tf: bool, norm: str | None
) -> Any:
    """The counts [N, W] times the weights of their words, a new matrix: counts as they are,
    1 + ln(count) (``sublinear_tf``), or ln(1 + count) (``log_entropy``); rows to unit length with
    ``norm="l2"``."""
    values = counts.data
    if weighting == "log_entropy":
        values = np.log1p(values)
    elif sublinear_tf:
        values = 1 + np.log(values)
    matrix = counts.copy()
    matrix.data = values * weights[counts.indices]
    if norm == "l2":
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        squares = matrix.data.astype(np.float64) ** 2
        lengths = np.sqrt(np.bincount(rows, squares, minlength=counts.shape[0]))
        matrix.data /= np.where(lengths > 0, lengths, 1)[rows].astype(np.float32)
    return matrix
