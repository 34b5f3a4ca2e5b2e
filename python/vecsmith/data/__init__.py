"""Data as training reads it: texts as numbers in memory-mapped files, ratings as sparse matrices.

* :class:`Corpus`: a text, read once, counted and encoded (:meth:`Corpus.build`).
* :class:`Vocabulary`: its words, their counts, and the tables for sampling made from them.
* :class:`Interactions`: users, items and ratings of files, frames and matrices; their splits.
* :func:`docstring_sentences`: real English without a download.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vecsmith.data.corpus import Corpus
from vecsmith.data.interactions import Interactions
from vecsmith.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vecsmith.data.docstrings import docstring_sentences

__all__ = ["Corpus", "Interactions", "Vocabulary", "docstring_sentences"]


def __getattr__(name: str) -> Any:
    if name == "docstring_sentences":
        from vecsmith.data.docstrings import docstring_sentences

        return docstring_sentences
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
