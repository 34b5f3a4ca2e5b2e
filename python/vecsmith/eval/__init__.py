"""Measures of quality: of word vectors, on any matrix and its words; of sentence vectors; of
recommended items and predicted ratings."""

from __future__ import annotations

from vecsmith.eval._analogies import Analogies, Section, analogies, read_analogies
from vecsmith.eval._ranking import RankingMeasures, evaluate_ranking, ranking_measures
from vecsmith.eval._ratings import CrossValidation, cross_validate, evaluate_ratings, mae, rmse
from vecsmith.eval._sentences import bleu, exact_match, read_sts, sts, token_accuracy
from vecsmith.eval._word_pairs import WordPairs, read_word_pairs, word_pairs

__all__ = [
    "Analogies",
    "CrossValidation",
    "RankingMeasures",
    "Section",
    "WordPairs",
    "analogies",
    "bleu",
    "cross_validate",
    "evaluate_ranking",
    "evaluate_ratings",
    "exact_match",
    "mae",
    "ranking_measures",
    "read_analogies",
    "read_sts",
    "read_word_pairs",
    "rmse",
    "sts",
    "token_accuracy",
    "word_pairs",
]
