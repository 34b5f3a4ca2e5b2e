"""Correlation of cosine similarities with human judgments of word pairs."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vecsmith.eval._vectors import as_matrix, cosine, known_words
from vecsmith.io._open import lines


@dataclass(frozen=True)
class WordPairs:
    """The outcome of :func:`word_pairs`.

    Attributes:
        pearson: correlation coefficient and its two-sided p-value (scipy's result; a tuple).
        spearman: rank correlation coefficient and its p-value (scipy's result; a tuple).
        oov_ratio: percentage of the pairs that hold an unknown word.
        pairs: number of pairs that were correlated.
        unknown: number of pairs with an unknown word.
        invalid: number of lines that are not a pair (comments and blank lines not counted).
    """

    pearson: Any
    spearman: Any
    oov_ratio: float
    pairs: int
    unknown: int
    invalid: int

    def __str__(self) -> str:
        return (
            f"Spearman {self.spearman[0]:.4f}, Pearson {self.pearson[0]:.4f} "
            f"({self.pairs} pairs, {self.oov_ratio:.1f}% with unknown words)"
        )


def parse_word_pair(line: str, delimiter: str | None) -> tuple[str, str, float] | None:
    """(word, word, score) of a line, or None if it is no pair. Columns behind these three (the
    judgments of each person, say) are left out."""
    fields = line.split(delimiter)
    if len(fields) < 3:
        return None
    try:
        score = float(fields[2])
    except ValueError:
        return None
    return (fields[0], fields[1], score) if math.isfinite(score) else None


def read_word_pairs(
    path: str | os.PathLike[str], *, delimiter: str | None = "\t", encoding: str = "utf8"
) -> tuple[list[tuple[str, str, float]], int]:
    """Read lines ``word<delimiter>word<delimiter>score``; ``#`` begins a comment line. Columns
    behind the score are left out (gensim skips such lines).

    Args:
        path: the file; .gz, .bz2, .xz and .zst are decompressed.
        delimiter: between the fields; None for any run of white space.
        encoding: of the file.

    Returns:
        The pairs with their scores, and the number of lines that are none (skipped).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not text in that encoding.
    """
    pairs: list[tuple[str, str, float]] = []
    invalid = 0
    for number, raw in enumerate(lines(path), 1):
        try:
            line = raw.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: line {number} is not {encoding}: {error}") from None
        if line.startswith("#"):
            continue
        pair = parse_word_pair(line, delimiter)
        if pair is not None:
            pairs.append(pair)
        else:
            invalid += bool(line.strip())
    return pairs, invalid


def word_pairs(
    vectors: Any,
    words: Sequence[str],
    path: str | os.PathLike[str],
    *,
    delimiter: str | None = "\t",
    encoding: str = "utf8",
    restrict_vocab: int | None = 300_000,
    case_insensitive: bool = True,
    dummy4unknown: bool = False,
) -> WordPairs:
    """Pearson and Spearman correlation of cos(u, v) with the scores of a file of word pairs.

    The protocol of gensim's ``evaluate_word_pairs``, and its numbers; the data sets are those of
    WordSim-353 (Finkelstein et al. 2002), SimLex-999 (Hill et al. 2015), MEN (Bruni et al. 2014)
    and their like.

    Args:
        vectors: [V, D], a tensor or array.
        words: the V words, most frequent first.
        path: lines ``word<delimiter>word<delimiter>score``; more columns are left out.
        delimiter: between the fields; None for any run of white space.
        encoding: of the file.
        restrict_vocab: only the first so many words are known; None for all.
        case_insensitive: compare upper-cased words; of several variants the first counts.
        dummy4unknown: pairs with an unknown word count as similarity 0 instead of being skipped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no pair (or a single one) is left to correlate.
    """
    matrix = as_matrix(vectors, words)
    table = matrix.numpy()
    known = known_words(words, restrict_vocab, case_insensitive)
    pairs, invalid = read_word_pairs(path, delimiter=delimiter, encoding=encoding)
    gold, model, unknown = [], [], 0
    for first, second, score in pairs:
        if case_insensitive:
            first, second = first.upper(), second.upper()
        u, v = known.get(first), known.get(second)
        if u is None or v is None:
            unknown += 1
            if dummy4unknown:
                gold.append(score)
                model.append(0.0)
            continue
        gold.append(score)
        model.append(cosine(table[u], table[v]))
    if len(gold) < 2:
        raise ValueError(
            f"{path}: expected at least two pairs of known words, got {len(gold)} "
            f"({unknown} pairs with unknown words, {invalid} invalid lines)"
        )
    from scipy import stats

    with warnings.catch_warnings():
        # A constant column has no correlation: the answer is nan, as in gensim.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        pearson, spearman = stats.pearsonr(gold, model), stats.spearmanr(gold, model)
    total = len(gold) if dummy4unknown else len(gold) + unknown
    return WordPairs(pearson, spearman, unknown / total * 100, len(gold), unknown, invalid)
