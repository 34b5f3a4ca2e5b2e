"""Lists of words in a file, one a line, whatever the words hold."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vecsmith.io._atomic import atomic_file

_HEADER = "# vecsmith vocabulary 1"
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_PLAIN = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}


def escape_word(word: str) -> str:
    """The word with backslash, tab, newline and carriage return as two characters each."""
    if not _SPECIAL.search(word):
        return word
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], word)


def unescape_word(text: str) -> str:
    """The inverse of :func:`escape_word`. Raises ValueError for an unknown escape."""
    if "\\" not in text:
        return text

    def plain(match: re.Match[str]) -> str:
        try:
            return _PLAIN[match[1]]
        except KeyError:
            raise ValueError(f"unknown escape \\{match[1]} in {text!r}") from None

    return _ESCAPED.sub(plain, text)


def save_words(
    path: str | os.PathLike[str], words: Sequence[str], counts: np.ndarray | None
) -> None:
    """Write ``word<TAB>count`` lines (count 0 where ``counts`` is None), atomically."""
    numbers = [0] * len(words) if counts is None else counts.tolist()
    lines = [f"{_HEADER} words={len(words)} counts={'no' if counts is None else 'yes'}\n"]
    lines.extend(f"{escape_word(word)}\t{n}\n" for word, n in zip(words, numbers, strict=True))
    with atomic_file(path) as file:
        # surrogatepass: a word may hold what a lossy decoding left.
        file.write("".join(lines).encode("utf-8", "surrogatepass"))


def load_words(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray | None]:
    """Read what :func:`save_words` wrote: the words, and their counts (None if it had none).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error.reason} at {error.start}") from None
    header, newline, body = text.partition("\n")
    match = re.fullmatch(rf"{re.escape(_HEADER)} words=(\d+) counts=(yes|no)", header)
    if not match or not newline:
        raise ValueError(f"{path}: expected the header {_HEADER!r}, got {header[:60]!r}")
    if body and not body.endswith("\n"):
        raise ValueError(f"{path}: truncated: the last line does not end")
    lines = body.split("\n")[:-1]
    if len(lines) != int(match[1]):
        raise ValueError(f"{path}: expected {match[1]} words, got {len(lines)}")
    words, numbers = [], []
    for row, line in enumerate(lines):
        word, tab, number = line.partition("\t")
        if not tab or not number.isascii() or not number.isdigit() or len(number) > 18:
            raise ValueError(f"{path}: line {row + 2}: expected word<TAB>count, got {line[:60]!r}")
        words.append(word)
        numbers.append(number)
    if "\\" in body:
        try:
            words = [unescape_word(word) for word in words]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    counts = np.array(numbers, dtype=np.int64) if match[2] == "yes" else None
    return words, counts
