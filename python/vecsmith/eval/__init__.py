"""Measures of the quality of word vectors, on any matrix and its words, and of sentence vectors."""

from __future__ import annotations

from vecsmith.eval._analogies import Analogies, Section, analogies, read_analogies
from vecsmith.eval._sentences import bleu, exact_match, read_sts, sts, token_accuracy
from vecsmith.eval._word_pairs import WordPairs, read_word_pairs, word_pairs

__all__ = [
    "Analogies",
    "Section",
    "WordPairs",
    "analogies",
    "bleu",
    "exact_match",
    "read_analogies",
    "read_sts",
    "read_word_pairs",
    "sts",
    "token_accuracy",
    "word_pairs",
]
