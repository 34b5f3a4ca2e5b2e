"""Measures of sentences that came back, and of the meaning that their vectors keep."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from vecsmith.io._open import lines

_PIECES = re.compile(r"\w+|[^\w\s]")


def token_accuracy(expected: Iterable[Sequence[Any]], decoded: Iterable[Sequence[Any]]) -> float:
    """The share of the expected tokens that were decoded at their place, over all sentences.

    Args:
        expected: the sentences, each a sequence of tokens (numbers or strings) without padding.
        decoded: as many; a token that is missing at the end is wrong, one too many counts nothing.

    Raises: ValueError for numbers of sentences that differ, and if there is no expected token.
    """
    right = total = 0
    for want, have in _paired(expected, decoded):
        total += len(want)
        right += sum(a == b for a, b in zip(want, have, strict=False))
    if not total:
        raise ValueError("expected at least one token; got none")
    return right / total


def exact_match(expected: Iterable[Any], decoded: Iterable[Any]) -> float:
    """The share of the sentences that are equal to what was decoded.

    Args: as :func:`token_accuracy`; sentences may be strings, too.

    Raises: ValueError for numbers of sentences that differ, and if there is none.
    """
    pairs = _paired(expected, decoded)
    if not pairs:
        raise ValueError("expected at least one sentence; got none")
    return sum(_plain(want) == _plain(have) for want, have in pairs) / len(pairs)


def bleu(expected: Iterable[Any], decoded: Iterable[Any], max_order: int = 4) -> float:
    """Corpus BLEU with one reference for each sentence, 0 to 1, not smoothed.

        BLEU = min(1, exp(1 - r / h)) exp(mean_n log p_n),   n = 1 .. max_order

    with p_n the share of the decoded n-grams that are in their reference (each at most as often as
    there), r and h the numbers of tokens expected and decoded (Papineni et al. 2002,
    doi:10.3115/1073083.1073135). Orders of which no sentence has an n-gram are left out; if some
    p_n is 0, so is BLEU.

    Args:
        expected, decoded: as many sentences, each a string (its words and its marks are tokens: the
            matches of ``\\w+|[^\\w\\s]``, with case) or a sequence of tokens.
        max_order: the longest n-grams.

    Raises: ValueError for numbers of sentences that differ, and if there is none.
    """
    if max_order < 1:
        raise ValueError(f"expected max_order >= 1; got {max_order}")
    pairs = _paired(expected, decoded)
    if not pairs:
        raise ValueError("expected at least one sentence; got none")
    matches, totals = [0] * max_order, [0] * max_order
    reference = hypothesis = 0
    possible = 0
    for want, have in pairs:
        want, have = _pieces(want), _pieces(have)
        reference, hypothesis = reference + len(want), hypothesis + len(have)
        possible = max(possible, len(want))
        for n in range(1, max_order + 1):
            there, found = _ngrams(want, n), _ngrams(have, n)
            matches[n - 1] += sum((there & found).values())
            totals[n - 1] += max(len(have) - n + 1, 0)
    orders = min(max_order, possible)
    if not orders:
        return float(not hypothesis)
    if not all(matches[:orders]):
        return 0.0
    precision = sum(math.log(matches[n] / totals[n]) for n in range(orders)) / orders
    return math.exp(min(0.0, 1 - reference / hypothesis) + precision)


def read_sts(path: str | os.PathLike[str]) -> list[tuple[str, str, float]]:
    """The pairs of a file of the STS benchmark (Cer et al. 2017, arXiv:1708.00055): lines ``genre,
    file, year, id, score, sentence, sentence`` with tabs between; more columns are left out.

    Args:
        path: the file; .gz, .bz2, .xz and .zst are decompressed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no such pair, or no UTF-8.
    """
    pairs = []
    for number, raw in enumerate(lines(path), 1):
        try:
            fields = raw.decode("utf8").rstrip("\r\n").split("\t")
            score, first, second = float(fields[4]), fields[5], fields[6]
            if not math.isfinite(score):
                raise ValueError(f"a score of {score}")
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path}: line {number} is not a pair of sentences ({error})"
            ) from None
        pairs.append((first, second, score))
    return pairs


def sts(
    encode: Callable[[list[str]], Any],
    pairs: str | os.PathLike[str] | Iterable[tuple[str, str, float]],
) -> float:
    """Spearman's rank correlation of cos(encode(a), encode(b)) with people's scores of (a, b).

    Args:
        encode: sentences -> vectors [B, D], a tensor or an array: a model's ``encode``.
        pairs: (a, b, score), or a file for :func:`read_sts`.

    Returns: -1 to 1; nan where all cosines are the same. A vector that is 0 has the cosine 0.

    Raises: ValueError for fewer than two pairs.
    """
    if isinstance(pairs, (str, os.PathLike)):
        pairs = read_sts(pairs)
    firsts, seconds, scores = [], [], []
    for first, second, score in pairs:
        firsts.append(first)
        seconds.append(second)
        scores.append(float(score))
    if len(scores) < 2:
        raise ValueError(f"expected at least two pairs; got {len(scores)}")
    first, second = (torch.as_tensor(encode(side)).double().cpu() for side in (firsts, seconds))
    cosines = torch.nn.functional.cosine_similarity(first, second, dim=1).numpy()
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        outcome: Any = stats.spearmanr(scores, cosines)
        return float(outcome[0])


def _paired(expected: Iterable[Any], decoded: Iterable[Any]) -> list[tuple[Any, Any]]:
    want, have = list(expected), list(decoded)
    if len(want) != len(have):
        raise ValueError(f"expected as many sentences as references; got {len(have)}, {len(want)}")
    return list(zip(want, have, strict=True))


def _plain(sentence: Any) -> Any:
    return sentence if isinstance(sentence, str) else list(sentence)


def _pieces(sentence: Any) -> list[Any]:
    return _PIECES.findall(sentence) if isinstance(sentence, str) else list(sentence)


def _ngrams(tokens: list[Any], n: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
