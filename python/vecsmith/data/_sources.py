"""Where text comes from: files (plain, .gz, .zst), folders, streams, token lists. Each kind is read
once, front to back, into a native ``CorpusReader``.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

# Per block: enough to keep several threads busy, little enough to be no matter of memory.
BLOCK_BYTES = 8 << 20
SENTENCES_AT_A_TIME = 4096

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16
# Bytes that text in any ASCII-compatible encoding does without (ESC and \b occur in logs).
_NOT_TEXT = bytes(b for b in range(32) if b not in b"\b\t\n\v\f\r\x1b") + b"\x7f"

Progress = Callable[[int, "int | None", int], Any]


class Reader(Protocol):
    """What a source needs of the native reader."""

    raw_words: int

    def feed(self, block: memoryview) -> None: ...
    def end_file(self) -> None: ...
    def add_sentences(self, sentences: Iterator[Any], first: int, limit: int) -> int: ...


class Source(Protocol):
    """A text that can be read once. ``identity`` tells it from others; None if nothing can."""

    name: str
    identity: list[Any] | None

    def read_into(self, reader: Reader, progress: Progress | None) -> None: ...


def open_source(
    source: Any, cache_dir: Path, exclude: Sequence[str | os.PathLike[str]] = ()
) -> Source:
    """The source of that kind. Files are looked at, but nothing is read yet. In a folder of text,
    ``cache_dir`` and the folders of ``exclude`` are no text.

    Raises:
        TypeError, ValueError, FileNotFoundError: what was given is no text.
    """
    if isinstance(source, str) and source == "-":
        if sys.stdin is None:
            raise ValueError("expected a text on standard input; got one that is closed")
        return TextStream(sys.stdin.buffer, "standard input")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not isinstance(path, str):
            raise TypeError(f"expected a path that is a str, got {path!r}")
        return TextFiles(path, cache_dir, exclude)
    if isinstance(source, (bytes, bytearray, memoryview)):
        raise TypeError(
            "expected a path, an open binary file or an iterable of token lists, got "
            f"{type(source).__name__} (text in memory: io.BytesIO(text))"
        )
    if hasattr(source, "read"):
        if isinstance(source, io.TextIOBase):
            raise TypeError(
                f"expected a file open in binary mode ('rb'), got {type(source).__name__}"
            )
        name = getattr(source, "name", None)
        return TextStream(source, name if isinstance(name, str) else type(source).__name__)
    try:
        iterator = iter(source)
    except TypeError:
        raise TypeError(
            "expected a path, an open binary file or an iterable of token lists, got "
            f"{type(source).__name__}"
        ) from None
    return TokenLists(iterator, type(source).__name__)


class TextFiles:
    """One file, or all files of a folder and the folders in it, in sorted order."""

    def __init__(
        self, path: str, cache_dir: Path, exclude: Sequence[str | os.PathLike[str]]
    ) -> None:
        self.name = path
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"expected a text file or folder, got {path!r}: it does not exist"
            ) from None
        self._folder = stat.S_ISDIR(status.st_mode)
        files = [(os.path.abspath(path), status)]
        if self._folder:
            files = list(_walk(path, cache_dir, exclude))
            if not files:
                raise ValueError(f"expected a folder with text files in it, got {path!r} with none")
        self._paths = [name for name, _ in files]
        self._total: int | None = None
        self.identity: list[Any] | None = None
        # A named pipe, or /dev/stdin: to be read, but not to be known again.
        if all(stat.S_ISREG(s.st_mode) for _, s in files):
            self._total = sum(s.st_size for _, s in files)
            self.identity = [[name, s.st_size, s.st_mtime_ns] for name, s in files]

    def read_into(self, reader: Reader, progress: Progress | None) -> None:
        done = 0
        for path in self._paths:
            with open(path, "rb", buffering=0) as file:
                counted = _Counted(file, done)
                regular = self._total is not None
                _feed(counted, path, reader, progress, self._total, read_ahead=regular)
                done = counted.bytes


class TextStream:
    """An open binary file, from where it stands to its end."""

    identity: list[Any] | None = None

    def __init__(self, file: Any, name: str) -> None:
        self.name, self._file = name, file

    def read_into(self, reader: Reader, progress: Progress | None) -> None:
        _feed(_Counted(self._file, 0), self.name, reader, progress, None, read_ahead=False)


class TokenLists:
    """Sentences that are lists of tokens."""

    identity: list[Any] | None = None

    def __init__(self, sentences: Iterator[Iterable[str]], name: str) -> None:
        self.name, self._sentences = name, sentences

    def read_into(self, reader: Reader, progress: Progress | None) -> None:
        first = 0
        while True:
            # One at a time in there: the next sentence may reuse the list of the one before.
            read = reader.add_sentences(self._sentences, first, SENTENCES_AT_A_TIME)
            first += read
            if progress is not None and read:
                progress(0, None, reader.raw_words)
            if read < SENTENCES_AT_A_TIME:
                return


def _walk(
    folder: str, cache_dir: Path, exclude: Sequence[str | os.PathLike[str]]
) -> Iterator[tuple[str, os.stat_result]]:
    written = {os.path.realpath(path): "an output" for path in exclude}
    written[os.path.realpath(cache_dir)] = "a cache"
    kind = written.get(os.path.realpath(folder))
    if kind is not None:
        raise ValueError(
            f"expected {kind} folder other than the folder of the text, got {folder!r} for both"
        )

    def fail(error: OSError) -> None:
        raise error

    for at, folders, names in os.walk(os.path.abspath(folder), onerror=fail):
        # What this run, or the one before it, has written is not text.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(at, name)) not in written
        )
        for name in sorted(names):
            path = os.path.join(at, name)
            if name.startswith("."):
                continue
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                yield path, status


# --- from a file to blocks of text ----------------------------------------------------------------


class _Counted:
    """A binary file, whatever it has of read and readinto, and the bytes read so far."""

    def __init__(self, file: Any, before: int) -> None:
        self._file = file
        self._readinto = getattr(file, "readinto", None)
        self.bytes = before

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if data is None:
            raise ValueError("expected a file that blocks, got one in non-blocking mode")
        if not isinstance(data, (bytes, bytearray)):
            raise TypeError(
                "expected a file open in binary mode ('rb'), got one that reads "
                f"{type(data).__name__}"
            )
        self.bytes += len(data)
        return bytes(data)

    def fill(self, view: memoryview) -> int:
        """Read until ``view`` is full or the file ends. A pipe gives a little at a time."""
        filled = 0
        while filled < len(view):
            if self._readinto is not None:
                size = self._readinto(view[filled:])
                if size is None:
                    raise ValueError("expected a file that blocks, got one in non-blocking mode")
                self.bytes += size
            else:
                data = self.read(len(view) - filled)
                size = len(data)
                view[filled : filled + size] = data
            if not size:
                break
            filled += size
        return filled


class _Gzip:
    """Members of gzip data, one after the other, as one text."""

    _INPUT_BYTES = 1 << 18

    def __init__(self, file: _Counted, name: str, head: bytes) -> None:
        self._file, self._name, self._input = file, name, head
        self._member = zlib.decompressobj(wbits=31)

    def fill(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            if self._member.eof and not self._next_member():
                break
            ended = not self._input and not self._more()
            try:
                text = self._member.decompress(self._input, len(view) - filled)
            except zlib.error as error:
                raise ValueError(f"{self._name}: damaged gzip data: {error}") from None
            self._input = self._member.unconsumed_tail
            view[filled : filled + len(text)] = text
            filled += len(text)
            if ended and not text and not self._member.eof:
                raise ValueError(f"{self._name}: truncated: the gzip data ends before its end mark")
        return filled

    def _more(self) -> bool:
        self._input = self._file.read(self._INPUT_BYTES)
        return bool(self._input)

    def _next_member(self) -> bool:
        # Members may be padded with zeros (tapes, block devices).
        rest = self._member.unused_data.lstrip(b"\0")
        while len(rest) < 2:
            if not self._more():
                break
            rest = (rest + self._input).lstrip(b"\0")
        if not rest:
            return False
        if not rest.startswith(_GZIP_MAGIC):
            raise ValueError(f"{self._name}: damaged gzip data: something else follows its end")
        self._input, self._member = rest, zlib.decompressobj(wbits=31)
        return True


class _Zstd:
    """Frames of Zstandard data, one after the other, as one text."""

    # Small: what comes out of a piece of input is not limited otherwise.
    _INPUT_BYTES = 1 << 14

    def __init__(self, file: _Counted, name: str, head: bytes) -> None:
        try:
            import zstandard
        except ImportError:
            raise ImportError(
                f"reading {name} needs the package zstandard: pip install 'vecsmith[zst]'"
            ) from None
        self._file, self._name, self._input = file, name, head
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._text = memoryview(b"")

    def fill(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            if self._text:
                size = min(len(self._text), len(view) - filled)
                view[filled : filled + size] = self._text[:size]
                self._text = self._text[size:]
                filled += size
                continue
            if self._frame is None:
                if not self._input and not self._more():
                    break
                self._frame = self._decompressor.decompressobj()
            if not self._input and not self._more():
                raise ValueError(f"{self._name}: truncated: the Zstandard data ends inside a frame")
            try:
                self._text = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise ValueError(f"{self._name}: damaged Zstandard data: {error}") from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        return filled

    def _more(self) -> bool:
        self._input = self._file.read(self._INPUT_BYTES)
        return bool(self._input)


def _is_zstd(head: bytes) -> bool:
    skippable = len(head) == 4 and 0x50 <= head[0] <= 0x5F and head[1:] == b"\x2a\x4d\x18"
    return head == _ZSTD_MAGIC or skippable


def _check_text(head: memoryview, name: str) -> None:
    data = bytes(head[:_HEAD_BYTES])
    odd = len(data) - len(data.translate(None, _NOT_TEXT))
    if odd >= 4 and odd > 0.02 * len(data):
        raise ValueError(
            f"{name}: expected text (UTF-8; or that in .gz, .zst), but it looks binary: {odd} of "
            f"its first {len(data)} bytes are control characters, {data.count(0)} of them NUL"
        )


def _feed(
    file: _Counted,
    name: str,
    reader: Reader,
    progress: Progress | None,
    total: int | None,
    read_ahead: bool,
) -> None:
    """Feed a file to the reader, decompressed if it begins as compressed data does."""
    buffers = [memoryview(bytearray(BLOCK_BYTES))]
    filled = file.fill(buffers[0][:4])
    head = bytes(buffers[0][:filled])
    suffix = os.path.splitext(name)[1].lower()
    text: _Counted | _Gzip | _Zstd = file
    if head.startswith(_GZIP_MAGIC):
        text, filled = _Gzip(file, name, head), 0
    elif _is_zstd(head):
        text, filled = _Zstd(file, name, head), 0
    elif suffix in (".gz", ".zst"):
        kind = "gzip" if suffix == ".gz" else "Zstandard"
        found = f"bytes {head.hex(' ')}" if head else "an empty file"
        raise ValueError(f"{name}: expected {kind} data, as its name says, got {found}")
    filled += text.fill(buffers[0][filled:])
    _check_text(buffers[0][:filled], name)
    block = buffers[0][:filled]
    if block[:3] == _BYTE_ORDER_MARK:
        block = block[3:]

    def report() -> None:
        if progress is not None:
            progress(file.bytes, total, reader.raw_words)

    if text is file or not read_ahead or filled < BLOCK_BYTES:
        while filled:
            reader.feed(block)
            report()
            filled = text.fill(buffers[0])
            block = buffers[0][:filled]
    else:
        # Decompression has one thread to itself, beside those that count.
        buffers.append(memoryview(bytearray(BLOCK_BYTES)))
        with ThreadPoolExecutor(1, "vecsmith-decompress") as executor:
            while filled:
                buffers.reverse()
                ahead = executor.submit(text.fill, buffers[0])
                reader.feed(block)
                report()
                filled = ahead.result()
                block = buffers[0][:filled]
    reader.end_file()
