"""Text as training reads it: words to numbers, sentences in memory-mapped files.

* :class:`Corpus`: a text, read once, counted and encoded (:meth:`Corpus.build`).
* :class:`Vocabulary`: its words, their counts, and the tables for sampling made from them.
* :func:`docstring_sentences`: real English without a download.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vecsmith.data.corpus import Corpus
from vecsmith.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vecsmith.data.docstrings import docstring_sentences

__all__ = ["Corpus", "Vocabulary", "docstring_sentences"]


def __getattr__(name: str) -> Any:
    if name == "docstring_sentences":
        from vecsmith.data.docstrings import docstring_sentences

        return docstring_sentences
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
