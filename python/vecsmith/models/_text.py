"""The text of a Word2Vec: which one was given, what is kept of it until it is trained on, and which
of its words make the vocabulary."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import GeneratorType
from typing import Any

from vecsmith.data import Corpus, Vocabulary
from vecsmith.data._sources import open_source

# gensim's answers of a trim rule.
RULE_DEFAULT, RULE_DISCARD, RULE_KEEP = 0, 1, 2


class KeptText:
    """An encoded text, kept from build_vocab to train, and the temporary folder it may be in.

    corpus: the text; None: there is none. identity: what :func:`identity` says of its files.
    """

    def __init__(self) -> None:
        self.corpus: Corpus | None = None
        self.identity: Any = None
        self._temporary: weakref.finalize | None = None

    def folder(self, cache_dir: Path | None) -> Path:
        """The folder for encoded text: ``cache_dir``, or a temporary one until :meth:`forget`."""
        if cache_dir is not None:
            return cache_dir
        if self._temporary is None or not self._temporary.alive:
            folder = tempfile.mkdtemp(prefix="vecsmith-")
            self._temporary = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._temporary_folder = Path(folder)
        return self._temporary_folder

    def forget(self) -> None:
        """Let go of the text, and remove the temporary folder."""
        self.corpus = self.identity = None
        if self._temporary is not None:
            self._temporary()
            self._temporary = None


def one_of(corpus_iterable: Any, sentences: Any) -> Any:
    """The one that was given of an argument's two names, or None."""
    if corpus_iterable is not None and sentences is not None:
        raise TypeError("expected one of corpus_iterable and sentences; got both")
    return sentences if corpus_iterable is None else corpus_iterable


def source_of(sentences: Any, corpus_file: Any) -> Any:
    """The one text that was given, as Corpus.build takes it."""
    if sentences is None and corpus_file is None:
        raise TypeError("expected sentences or a corpus_file; got neither")
    if sentences is not None and corpus_file is not None:
        raise TypeError("expected either sentences or a corpus_file; got both")
    if sentences is not None:
        if isinstance(sentences, (str, bytes, os.PathLike)):
            raise TypeError(
                f"expected sentences to be an iterable of lists of words; got {sentences!r} "
                "(a file goes into corpus_file)"
            )
        if not isinstance(sentences, (Corpus, Iterable)):
            raise TypeError(
                f"expected sentences to be an iterable of lists of words; got {sentences!r}"
            )
        return sentences
    if hasattr(corpus_file, "read"):
        return corpus_file
    if isinstance(corpus_file, (str, os.PathLike)):
        path = os.fspath(corpus_file)
        if path != "-" and not os.path.exists(path):
            raise FileNotFoundError(f"expected a text file or folder; got {path}: no such file")
        return path
    raise TypeError(f"expected corpus_file to be a path or an open file; got {corpus_file!r}")


def identity(source: Any, cache_dir: Path, exclude: Sequence[Path]) -> Any:
    """Path, size and time of the files of a text; None for what cannot be known again."""
    if isinstance(source, str) and source != "-":
        return open_source(source, cache_dir, exclude).identity
    return None


def read_once(source: Any) -> bool:
    """Whether a second reading would find nothing."""
    return (
        source == "-"
        if isinstance(source, str)
        else isinstance(source, GeneratorType) or hasattr(source, "read") or iter(source) is source
    )


def trimmed(
    counted: Vocabulary,
    min_count: int,
    max_final_vocab: int | None,
    rule: Callable[[str, int, int], int] | None,
    keep: Vocabulary | None = None,
) -> tuple[Vocabulary, int]:
    """What min_count, max_final_vocab and the rule leave of counted words, and the least count
    that this came to. The words of ``keep`` stay in any case."""
    least = min_count
    if max_final_vocab is not None and max_final_vocab < len(counted):
        least = max(least, int(counted.counts[max_final_vocab]) + 1)
    kept = []
    for i, (word, count) in enumerate(zip(counted.words, counted.counts.tolist(), strict=True)):
        answer = RULE_DEFAULT if rule is None else rule(word, count, least)
        if answer not in (RULE_DEFAULT, RULE_DISCARD, RULE_KEEP, None):
            raise ValueError(
                f"expected trim_rule to return 0 (default), 1 (discard) or 2 (keep); got {answer!r}"
            )
        wanted = count >= least if answer in (RULE_DEFAULT, None) else answer == RULE_KEEP
        if wanted or (keep is not None and word in keep):
            kept.append(i)
    words = [counted.words[i] for i in kept]
    return Vocabulary(words, counted.counts[kept], raw_words=counted.raw_words), least
