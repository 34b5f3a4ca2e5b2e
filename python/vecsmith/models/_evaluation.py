"""The measures of KeyedVectors, in gensim's form; :mod:`vecsmith.eval` computes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import nn

from vecsmith import eval as measures


class Evaluation:
    """The part of :class:`vecsmith.KeyedVectors` that says how good the vectors are."""

    if TYPE_CHECKING:  # what KeyedVectors, the store, has
        weight: nn.Parameter
        index_to_key: list[str]

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
