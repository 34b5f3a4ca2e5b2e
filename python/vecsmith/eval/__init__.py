"""Measures of the quality of word vectors, on any matrix and its words."""

from __future__ import annotations

from vecsmith.eval._analogies import Analogies, Section, analogies, read_analogies
from vecsmith.eval._word_pairs import WordPairs, read_word_pairs, word_pairs

__all__ = [
    "Analogies",
    "Section",
    "WordPairs",
    "analogies",
    "read_analogies",
    "read_word_pairs",
    "word_pairs",
]
