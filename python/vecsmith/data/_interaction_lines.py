"""Text files as blocks of whole lines. A line ends with a line feed, a carriage return, or both."""

from __future__ import annotations

import codecs
import contextlib
import lzma
import re
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np

from vecsmith.io._open import is_compressed, open_binary

BLOCK_BYTES = 1 << 22
_END = re.compile(rb"\r\n|\r|\n")


def blocks_of(path: str, encoding: str) -> Iterator[bytes]:
    """Whole lines as UTF-8, without a byte order mark. Raises ValueError for what is no text."""
    damage = _damage(path)
    utf8 = codecs.lookup(encoding).name == "utf-8"
    decoder = None if utf8 else codecs.getincrementaldecoder(encoding)()
    rest: list[bytes] = []
    at_start = True
    with open_binary(path) as file:
        while True:
            try:
                data = file.read(BLOCK_BYTES)
            except damage as error:
                raise ValueError(f"{path}: damaged or truncated ({error})") from None
            done = not data
            if decoder is not None:
                try:
                    data = decoder.decode(data, done).encode()
                except UnicodeError as error:
                    raise ValueError(f"{path}: expected {encoding}; got {error}") from None
            if at_start and data:
                data, at_start = data.removeprefix(codecs.BOM_UTF8), False
                if b"\0" in data[:4096]:
                    raise ValueError(
                        f"{path}: expected text, but it looks binary: it holds NUL (UTF-16 is read "
                        "with encoding='utf-16', compressed files by the end of their names)"
                    )
            end = data.rfind(b"\n") + 1
            if end:
                yield b"".join([*rest, data[:end]])
                rest = []
            rest.append(data[end:])
            if done:
                break
    if any(rest):
        yield b"".join(rest)


def _damage(path: str) -> tuple[type[Exception], ...]:
    """What reading a damaged file of that kind raises."""
    if not is_compressed(path):
        return ()
    errors: list[type[Exception]] = [EOFError, OSError, zlib.error, lzma.LZMAError]
    with contextlib.suppress(ImportError):
        import zstandard

        errors.append(zstandard.ZstdError)
    return tuple(errors)


def lines_of(path: str, encoding: str) -> Iterator[bytes]:
    for block in blocks_of(path, encoding):
        yield from block.splitlines(keepends=True)


def skip(blocks: Iterator[bytes], lines: int) -> Iterator[bytes]:
    """The blocks without the first lines."""
    for block in blocks:
        start = 0
        while lines and start < len(block):
            end = _END.search(block, start)
            start = len(block) if end is None else end.end()
            lines -= 1
        if start < len(block):
            yield block[start:]


class Stream:
    """Blocks of bytes as a file that is read from beginning to end."""

    closed = False

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._block = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not len(self._block):
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._block = memoryview(block)
        size = len(self._block) if size < 0 else size
        data, self._block = bytes(self._block[:size]), self._block[size:]
        return data

    def close(self) -> None:
        self.closed = True


# --- quotes ---------------------------------------------------------------------------------------


def has_open_quote(block: bytes, separator: str) -> bool:
    """True if a field of some line begins with a double quote that the line does not close.

    A quote opens at the beginning of a field alone (RFC 4180; elsewhere it is a letter), and two in
    a quoted field are one.
    """
    if b'"' not in block:
        return False
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    opening, closing = quotes[::2], quotes[1::2]
    if len(opening) == len(closing):
        # Most files quote whole fields: quotes in turn open and close, and no line ends between.
        before = data[np.maximum(opening - 1, 0)]
        at_start = (opening == 0) | np.isin(before, np.frombuffer(b'\n\r"', np.uint8))
        ends = np.flatnonzero((data == ord("\n")) | (data == ord("\r")))
        same_line = np.searchsorted(ends, opening) == np.searchsorted(ends, closing)
        if (at_start | (before == ord(separator))).all() and same_line.all():
            return False
    return _open_quote(separator).search(block) is not None


@cache
def _open_quote(separator: str) -> re.Pattern[bytes]:
    mark = re.escape(separator.encode())
    open_quote = rb'"[^"\r\n]*(?:""[^"\r\n]*)*'
    whole_field = rb"(?:" + open_quote + rb'"(?!")|(?!"))[^' + mark + rb"\r\n]*" + mark
    return re.compile(rb"(?<![^\r\n])(?:" + whole_field + rb")*" + open_quote + rb"(?![^\r\n])")
