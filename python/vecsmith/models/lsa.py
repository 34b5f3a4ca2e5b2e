"""LSA: documents and their words as vectors of one space."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from vecsmith.data import Corpus, Vocabulary
from vecsmith.io._open import lines
from vecsmith.models import _estimator as check
from vecsmith.models import _lsa_files, _term_weights
from vecsmith.models._matrix import Matrix
from vecsmith.models._range_finder import leading_triplets
from vecsmith.models.keyed_vectors import KeyedVectors

_LONGEST = 2**31 - 1  # tokens of a document


class LSA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Latent semantic analysis: the leading singular triplets of weighted word counts.

        X ~ U S V^T,   X [documents, words]
        documents: X V S^(p - 1) ~ U S^p,   words: V S^p,   p = scaling

    A new document is folded in by its own counts: the vectors of the others stay. With p = 1
    products of documents are those of their rows of X, and products of words those of their
    columns; with p = 0.5 the product of a document and a word is the cell that they share.

    Documents are the lines of a text (a file, plain, .gz or .zst; a folder of such; "-" for
    standard input; an open binary file: lines without words are no documents), a
    :class:`vecsmith.data.Corpus`, or an iterable of strings or of token lists, each a document,
    empty ones too. Words are what ASCII whitespace separates, as they stand. A file is read once,
    and only counts are in memory.

        model = LSA(100, sublinear_tf=True, min_count=2).fit("articles.txt")
        model.word_vectors.most_similar("ocean")
        model.most_similar_documents("ships in a storm")

    Args:
        n_components: k, the size of the vectors.
        weighting: "tfidf"; "log_entropy" (Dumais 1991); "count".
        idf: of "tfidf": "smooth" (scikit-learn's), "standard" (ln(N / df)), "probabilistic".
        sublinear_tf: 1 + ln(count) in place of the count; log_entropy has its own, ln(1 + count).
        norm: "l2": rows of X have unit length; None.
        scaling: p, 0 .. 1.
        min_count: words that occur less often are left out.
        max_final_vocab: at most so many words, the most frequent ones; None: all.
        stop_words: words that are left out.
        n_iter, n_oversamples: as in :class:`vecsmith.TruncatedSVD`.
        random_state: an int gives the same vectors again. A ``RandomState`` is not saved: it comes
            back as None.

    Attributes:
        vocabulary: the words, with their counts, most frequent first.
        word_vectors: a :class:`vecsmith.KeyedVectors` of them.
        document_vectors: float32 [documents, k].
        components_: V^T, float32 [k, words].
        singular_values_: float32 [k], falling.
        word_weights_: float32 [words], the weight of each word wherever it is.

    Source: Deerwester, Dumais, Furnas, Landauer and Harshman 1990, "Indexing by Latent Semantic
    Analysis".
    """

    vocabulary: Vocabulary
    components_: np.ndarray
    singular_values_: np.ndarray
    word_weights_: np.ndarray
    document_vectors: np.ndarray

    def __init__(
        self,
        n_components: int = 100,
        *,
        weighting: str = "tfidf",
        idf: str = "smooth",
        sublinear_tf: bool = False,
        norm: str | None = "l2",
        scaling: float = 1.0,
        min_count: int = 1,
        max_final_vocab: int | None = None,
        stop_words: Collection[str] | None = None,
        n_iter: int = 5,
        n_oversamples: int = 10,
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.weighting = weighting
        self.idf = idf
        self.sublinear_tf = sublinear_tf
        self.norm = norm
        self.scaling = scaling
        self.min_count = min_count
        self.max_final_vocab = max_final_vocab
        self.stop_words = stop_words
        self.n_iter = n_iter
        self.n_oversamples = n_oversamples
        self.random_state = random_state

    # --- fit ----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> LSA:
        """Find the vectors of documents X and of their words. y is ignored.

        Raises:
            TypeError, ValueError: wrong options; no documents; no words left; k greater than the
                number of documents with words, or of words.
            FileNotFoundError, OSError: as :meth:`vecsmith.data.Corpus.build`.
        """
        rank, stop_words = self._check()
        corpus, rows, temporary = self._read(X)
        try:
            vocabulary, column = self._vocabulary(corpus, stop_words)
            counts = _term_weights.corpus_counts(corpus, column, len(vocabulary))
        finally:
            del corpus
            if temporary is not None:
                temporary.cleanup()
        documents = counts.shape[0] if rows is None else len(rows)
        if rank > min(counts.shape):
            raise ValueError(
                "LSA: expected n_components <= the number of documents with words, "
                f"{counts.shape[0]} of {documents}, and of words, {counts.shape[1]}; got {rank}"
            )
        weights = _term_weights.word_weights(counts, self.weighting, self.idf, documents)
        matrix = Matrix(self._weighted(counts, weights))
        left, values, right = leading_triplets(
            matrix, rank, self.n_iter, self.n_oversamples, check_random_state(self.random_state)
        )
        found = left * values ** np.float32(self.scaling) * (values > 1e-6 * values[0])
        vectors = found
        if rows is not None:  # those without words have no row in the corpus
            vectors = np.zeros((len(rows), rank), dtype=np.float32)
            vectors[rows] = found
        self._set(vocabulary, right, values, weights, vectors)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """:meth:`fit`, and a copy of ``document_vectors``."""
        return self.fit(X).document_vectors.copy()

    def _check(self) -> tuple[int, frozenset[str]]:
        """(k, the stop words). Raises TypeError, ValueError for wrong options."""
        rank = check.integer("n_components", self.n_components, 1)
        check.one_of("weighting", self.weighting, _term_weights.WEIGHTINGS)
        check.one_of("idf", self.idf, _term_weights.IDFS)
        check.boolean("sublinear_tf", self.sublinear_tf)
        if self.norm is not None:
            check.one_of("norm", self.norm, ("l2",))
        check.number("scaling", self.scaling, 0.0, 1.0)
        check.integer("min_count", self.min_count, 0)
        if self.max_final_vocab is not None:
            check.integer("max_final_vocab", self.max_final_vocab, 1)
        check.integer("n_iter", self.n_iter, 0)
        check.integer("n_oversamples", self.n_oversamples, 1)
        stop_words = self.stop_words
        if isinstance(stop_words, (str, bytes, Iterator)):
            raise TypeError(f"expected stop_words to be a collection of words; got {stop_words!r}")
        chosen = frozenset(() if stop_words is None else stop_words)
        for word in chosen:
            if not isinstance(word, str):
                raise TypeError(f"expected stop_words to be strings; got {word!r}")
        return rank, chosen

    def _read(self, documents: Any) -> tuple[Corpus, np.ndarray | None, Any]:
        """(the encoded text, which of the given documents have words (None: all), the temporary
        folder it is in)."""
        if isinstance(documents, Corpus):
            return documents, None, None
        filled: list[bool] | None = None
        source = documents
        if not isinstance(documents, (str, bytes, os.PathLike)) and not hasattr(documents, "read"):
            filled = []
            source = _noted(token_lists(documents), filled)
        folder = tempfile.TemporaryDirectory(prefix="vecsmith-")
        try:
            corpus = Corpus.build(source, folder.name, min_count=1, max_sentence_length=_LONGEST)
        except BaseException:
            folder.cleanup()
            raise
        return corpus, None if filled is None else np.array(filled), folder

    def _vocabulary(
        self, corpus: Corpus, stop_words: frozenset[str]
    ) -> tuple[Vocabulary, np.ndarray]:
        """The words that are kept, and the column of each word of the corpus, -1 for others."""
        words, counts = corpus.vocabulary.words, corpus.vocabulary.counts
        order = np.argsort(-counts, kind="stable")
        kept = [i for i in order.tolist() if counts[i] >= self.min_count]
        kept = [i for i in kept if words[i] not in stop_words][: self.max_final_vocab]
        if not kept:
            raise ValueError(
                f"LSA: expected words to be left, got none of {len(words)}: by "
                f"min_count={self.min_count} and {len(stop_words)} stop words"
            )
        column = np.full(len(words), -1, dtype=np.int64)
        column[kept] = np.arange(len(kept))
        chosen = Vocabulary([words[i] for i in kept], counts[kept], corpus.raw_words)
        return chosen, column

    def _weighted(self, counts: Any, weights: np.ndarray) -> Any:
        return _term_weights.weighted(
            counts, weights, self.weighting, bool(self.sublinear_tf), self.norm
        )

    def _set(
        self,
        vocabulary: Vocabulary,
        components: np.ndarray,
        singular_values: np.ndarray,
        weights: np.ndarray,
        document_vectors: np.ndarray,
    ) -> None:
        self.__dict__.pop("word_vectors", None)
        self.vocabulary = vocabulary
        self.components_, self.singular_values_ = components, singular_values
        self.word_weights_, self.document_vectors = weights, document_vectors

    # --- use ----------------------------------------------------------------------------------

    @cached_property
    def word_vectors(self) -> KeyedVectors:
        """The words, V S^p [words, k], with everything that :class:`vecsmith.KeyedVectors` can
        do."""
        check_is_fitted(self, "components_")
        vectors = self.components_.T * self.singular_values_ ** np.float32(self.scaling)
        return KeyedVectors(list(self.vocabulary.words), vectors, self.vocabulary.counts)

    def transform(self, X: Any) -> np.ndarray:
        """The vectors of documents, folded in: float32 [n, k], a row for each (of a file, for each
        line with words). One without known words is zeros.

        Args:
            X: a file, an open binary file, or an iterable of strings or token lists.
        """
        check_is_fitted(self, "components_")
        if isinstance(X, Corpus):
            X = iter(X)
        counts = _term_weights.document_counts(token_lists(X), self.vocabulary.index)
        rows = self._weighted(counts, self.word_weights_)
        values = self.singular_values_.astype(np.float64)
        # A direction that is rounding alone has no scale: it stays out.
        real = values > 1e-6 * values[0]
        scale = np.where(real, values, 1) ** (self.scaling - 1) * real
        axes = self.components_ * scale[:, None].astype(np.float32)
        return check.projected(rows, axes)

    def most_similar_documents(self, positive: Any, topn: int = 10) -> list[tuple[int, float]]:
        """The documents of the fit of greatest cosine to one of them, to a new one, or to a vector.

        Args:
            positive: the number of a document; a string or a list of tokens; or a vector [k].
            topn: how many.

        Returns:
            [(number, cosine)], falling, without the document itself; of equal ones the lower
            number first. Documents without known words are left out.

        Raises:
            IndexError: there is no such document. ValueError: a vector of another size, or of
                zeros.
        """
        check_is_fitted(self, "components_")
        vectors = self.document_vectors.astype(np.float64)
        itself = -1
        if isinstance(positive, Integral):
            itself = int(positive)
            if not 0 <= itself < len(vectors):
                raise IndexError(f"expected a document in 0..{len(vectors) - 1}, got {itself}")
        query = self._vector(positive)
        lengths = np.linalg.norm(vectors, axis=1)
        cosines = vectors @ query / np.where(lengths > 0, lengths, 1) / np.linalg.norm(query)
        order = np.argsort(-cosines, kind="stable")
        order = order[(order != itself) & (lengths[order] > 0)][: max(topn, 0)]
        return [(int(i), float(cosines[i])) for i in order]

    def most_similar_words(self, positive: Any, topn: int = 10) -> list[tuple[str, float]]:
        """The words of greatest cosine to a document; arguments as in
        :meth:`most_similar_documents`."""
        check_is_fitted(self, "components_")
        return self.word_vectors.most_similar(
            [self._vector(positive).astype(np.float32)], topn=topn
        )

    def _vector(self, given: Any) -> np.ndarray:
        """float64 [k] of a document of the fit, a new one, or a vector. Raises IndexError,
        ValueError."""
        size = len(self.components_)
        if isinstance(given, Integral):
            if not 0 <= int(given) < len(self.document_vectors):
                last = len(self.document_vectors) - 1
                raise IndexError(f"expected a document in 0..{last}, got {given}")
            vector = self.document_vectors[int(given)]
        elif isinstance(given, np.ndarray):
            if given.shape != (size,):
                raise ValueError(f"expected a vector of shape [{size}], got {list(given.shape)}")
            vector = given
        else:
            vector = self.transform([given])[0]
        vector = vector.astype(np.float64)
        if not np.linalg.norm(vector) > 0:
            raise ValueError(f"expected a document with known words; got {given!r}")
        return vector

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder: ``config.json``, ``vocab.txt``, ``model.safetensors``. All
        files of an older one are replaced together, or none.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        check_is_fitted(self, "components_")
        _lsa_files.save(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> LSA:
        """The model of a folder.

        Raises:
            FileNotFoundError: there is none. ValueError: it is damaged, or another kind of model.
        """
        return _lsa_files.load(cls, folder)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "components_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def token_lists(documents: Any) -> Iterator[Sequence[str]]:
    """The tokens of each document of a file (its lines with words) or an iterable. Raises
    TypeError."""
    if isinstance(documents, (str, os.PathLike)):
        if not Path(documents).is_file():
            raise FileNotFoundError(f"expected a text file, got {documents}: no such file")
        yield from (_split(line) for line in lines(documents) if line.strip())
        return
    if isinstance(documents, (bytes, bytearray)):
        raise TypeError("expected documents; got bytes (text in memory: io.BytesIO(text))")
    if hasattr(documents, "read"):
        yield from (_split(line) for line in documents if line.strip())
        return
    if not isinstance(documents, Iterable):
        raise TypeError(f"expected documents; got {type(documents).__name__}")
    for number, document in enumerate(documents):
        if isinstance(document, str):
            yield _split(document.encode("utf-8", "surrogatepass"))
            continue
        if isinstance(document, (bytes, bytearray)) or not isinstance(document, Iterable):
            raise TypeError(
                f"expected document {number} to be a string or a list of tokens; "
                f"got {type(document).__name__}"
            )
        tokens = list(document)
        for token in tokens:
            if not isinstance(token, str):
                raise TypeError(f"expected tokens of document {number} as strings; got {token!r}")
        yield tokens


def _split(line: bytes) -> list[str]:
    """At ASCII whitespace, as the native reader does."""
    return [word.decode("utf-8", "replace") for word in line.split()]


def _noted(documents: Iterator[Sequence[str]], filled: list[bool]) -> Iterator[Sequence[str]]:
    """The same documents; whether each has tokens is noted. Raises ValueError where none has."""
    for tokens in documents:
        filled.append(len(tokens) > 0)
        yield tokens
    if not any(filled):
        raise ValueError(f"LSA: expected documents with words; got {len(filled)} with none")
