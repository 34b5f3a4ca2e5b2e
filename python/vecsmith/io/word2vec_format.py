"""word2vec's text and binary files, parsed and formatted by the native module.

A file begins with a line ``words dimensions``. Binary: for each word its bytes, a space and D
little-endian float32, with a newline behind (word2vec.c) or without (gensim). Text: a line for each
word, with D numbers behind it. GloVe's files are the text format without the first line.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import lzma
import mmap
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import _native
from vecsmith.io._atomic import atomic_file
from vecsmith.io._checks import refuse_nonfinite
from vecsmith.io._open import is_compressed, lines, open_binary

_MOST_DIMENSIONS = 1_000_000
_HEADER_BYTES = 256
_CHUNK = 16 << 20
_BLOCK_BYTES = 8 << 20
_WHITESPACE = re.compile(r"[ \t\n\r\v\f]")
_REASONS = {
    "no_space": "no space ends the word (is this the binary format?)",
    "bad_number": "a field is no number (is this the text format?)",
    "too_few": "fewer numbers than dimensions",
}


def load_word2vec_format(
    path: str | os.PathLike[str],
    *,
    binary: bool | None = False,
    encoding: str = "utf8",
    unicode_errors: str = "strict",
    limit: int | None = None,
    no_header: bool = False,
    allow_nonfinite: bool = False,
    num_threads: int | None = None,
) -> tuple[list[str], Tensor]:
    """Read word vectors in word2vec's text or binary format.

    A plain file is mapped and parsed in place, by all threads; a compressed one is decompressed as
    a stream into the same parser. Of a word that is there twice the first vector is kept, with a
    warning. In text, a word may hold blanks if the last D fields of its line are its numbers.

    Args:
        path: the file; .gz, .bz2, .xz and .zst are decompressed.
        binary: the format; None looks at the first bytes after the header.
        encoding: of the words.
        unicode_errors: what to do with words that do not decode: "strict", "replace", "ignore" or
            another name that :func:`codecs.register_error` knows.
        limit: read only the first so many words; then it does not matter what follows them.
        no_header: text without the first line (GloVe's).
        allow_nonfinite: take vectors with nan or infinity as they are.
        num_threads: of the parser; ``torch.get_num_threads()`` if None.

    Returns:
        The V words and their vectors, float32 [V, D].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not in the format, is truncated, holds more or fewer vectors than
            its header says, a vector with nan or infinity (named), or a word that does not decode
            (then a UnicodeDecodeError).
    """
    path = Path(path)
    threads = torch.get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"expected num_threads >= 1, got {threads}")
    if limit is not None and limit < 1:
        raise ValueError(f"expected limit >= 1 or None, got {limit}")
    if no_header and binary:
        raise ValueError("expected a header in the binary format: no_header is for text only")
    if path.is_dir():
        raise IsADirectoryError(f"expected a file in word2vec format, got the folder {path}")
    reader = _Reader(path, encoding, unicode_errors, allow_nonfinite, threads)
    with open_binary(path) as file:
        # A compressed stream says little about its size; a pipe nothing.
        mapped = not is_compressed(path) and stat.S_ISREG(os.stat(path).st_mode)
        try:
            if mapped:
                words, table = reader.read_mapped(file, binary, limit, no_header)
            else:
                words, table = reader.read_stream(file, binary, limit, no_header)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: damaged or truncated: {error}") from None
        except OSError as error:
            if error.errno is None:  # bz2 has no error class of its own
                raise ValueError(f"{path}: damaged or truncated: {error}") from None
            raise
        except Exception as error:
            if type(error).__name__ == "ZstdError":
                raise ValueError(f"{path}: damaged or truncated: {error}") from None
            raise
    return _without_duplicates(path, words, table)


class _Reader:
    """One reading of one file: the parser's results become words, rows and errors."""

    def __init__(
        self, path: Path, encoding: str, errors: str, allow_nonfinite: bool, threads: int
    ) -> None:
        self.path = path
        self.encoding = encoding
        self.errors = errors
        self.allow_nonfinite = allow_nonfinite
        self.threads = threads
        self.words: list[str] = []
        self.header_lines = 1

    def refuse(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {what}")

    def sizes(self, line: bytes) -> tuple[int, int]:
        """The numbers of words and dimensions that a header promises."""
        fields = line.removeprefix(codecs.BOM_UTF8).split()
        if not line:
            raise self.refuse("expected word vectors, got an empty file")
        if (
            len(fields) != 2
            or not line.endswith(b"\n")
            or not all(re.fullmatch(rb"[0-9]{1,18}", field) for field in fields)
        ):
            raise self.refuse(
                f"expected a header 'words dimensions' (or no_header=True), got {line[:60]!r}"
            )
        words, dim = (int(field) for field in fields)
        if not 1 <= dim <= _MOST_DIMENSIONS:
            raise self.refuse(f"expected 1 to {_MOST_DIMENSIONS} dimensions, got {dim}")
        return words, dim

    def dimensions(self, line: bytes) -> int:
        """The number of dimensions of the first line of a file without header."""
        dim = len(line.split()) - 1
        if not 1 <= dim <= _MOST_DIMENSIONS:
            raise self.refuse(f"expected lines of a word and numbers, got {line[:60]!r}")
        return dim

    def parse(
        self, data: Any, offset: int, table: Tensor, binary: bool, last: bool
    ) -> dict[str, Any]:
        """Parse one piece into the rows of a table; adds its words; raises what is wrong with it.

        The words are decoded before the numbers are judged, so that errors can name them.
        """
        parsed = _native.word2vec_parse(data, offset, table.numpy(), binary, last, self.threads)
        before = len(self.words)
        if parsed["error"]:
            row = before + parsed["error_row"]
            where = f"vector {row}" if binary else f"line {row + 1 + self.header_lines}"
            begin = offset + parsed["error_at"]
            raise self.refuse(
                f"{where}: {_REASONS[parsed['error']]}: {bytes(data[begin : begin + 40])!r}"
            )
        try:
            _native.word2vec_decode(
                data,
                offset,
                parsed["starts"],
                parsed["lengths"],
                self.encoding,
                self.errors,
                self.words,
            )
        except UnicodeDecodeError as error:
            row = len(self.words)
            reason = (
                f"{error.reason} (the word in row {row} of {self.path}; "
                "unicode_errors='replace' or 'ignore' reads it)"
            )
            raise UnicodeDecodeError(
                error.encoding, error.object, error.start, error.end, reason
            ) from None
        bad = parsed["nonfinite_row"]
        if bad >= 0 and not self.allow_nonfinite:
            raise self.refuse(
                f"the vector of {self.words[before + bad]!r} (row {before + bad}) holds nan or "
                "infinity (allow_nonfinite=True reads it)"
            )
        if not binary and before == 0 and self.words and _ends_in_number(self.words[0]):
            raise self.refuse(
                f"expected {table.shape[1]} numbers in a line, got more: {self.words[0][:40]!r} ..."
            )
        return parsed

    def incomplete(self, wanted: int, binary: bool) -> ValueError:
        kind = "" if binary is False else " (is this the binary format?)"
        return self.refuse(
            f"truncated: the header promises {wanted} vectors, the file ends after "
            f"{len(self.words)}{kind}"
        )

    def check_rest(self, rest: bytes, wanted: int) -> None:
        if rest.strip():
            raise self.refuse(
                f"expected {wanted} vectors as the header says, got more data behind them "
                f"({rest[:40]!r}); wrong dimensions or format? limit={wanted} reads just these"
            )

    def read_mapped(
        self, file: IO[bytes], binary: bool | None, limit: int | None, no_header: bool
    ) -> tuple[list[str], Tensor]:
        size = os.fstat(file.fileno()).st_size
        if no_header:
            if not size:
                raise self.refuse("expected word vectors, got an empty file")
            start, self.header_lines = 0, 0
        else:
            promised, dim = self.sizes(file.readline(_HEADER_BYTES))
            start = file.tell()
        if size == start and not no_header:
            if promised:
                raise self.incomplete(promised, bool(binary))
            return [], torch.empty(0, dim)
        with contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            if hasattr(data, "madvise"):
                data.madvise(mmap.MADV_SEQUENTIAL)
            if binary is None:
                binary = not no_header and _looks_binary(data[start : start + 4096])
            if no_header:
                end = data.find(b"\n", 0, 64 * _MOST_DIMENSIONS)
                dim = self.dimensions(data[: end if end >= 0 else 64 * _MOST_DIMENSIONS])
                promised = _native.word2vec_count_text(data, 0, self.threads)
                start = _mark(data)
            wanted = promised if limit is None else min(promised, limit)
            # Before anything is allocated: can so many vectors be in this file at all? A line of
            # text is at least a blank and a digit per number, and a newline but for the last.
            least = wanted * (4 * dim + 1) if binary else wanted * (2 * dim + 1) - 1
            if size - start < least:
                raise self.refuse(
                    f"truncated: the header promises {promised} vectors of {dim} dimensions, "
                    f"at least {least} bytes; {size - start} follow it"
                )
            table = _new_table(wanted, dim)
            parsed = self.parse(data, start, table, binary, True)
            if len(self.words) < wanted:
                raise self.incomplete(wanted, binary)
            if limit is None:
                end = start + parsed["consumed"]
                self.check_rest(_first_black(data, end), wanted)
        return self.words, table

    def read_stream(
        self, file: IO[bytes], binary: bool | None, limit: int | None, no_header: bool
    ) -> tuple[list[str], Tensor]:
        carry = b""
        if no_header:
            self.header_lines = 0
            carry = file.readline(64 * _MOST_DIMENSIONS)
            carry = carry[_mark(carry) :]
            promised, dim = None, self.dimensions(carry)
        else:
            promised, dim = self.sizes(file.readline(_HEADER_BYTES))
        wanted = promised if limit is None else min(limit, limit if promised is None else promised)
        # The header is not believed: the table grows with what is read.
        rows = max(1, _CHUNK // (4 * dim))
        table = torch.empty(rows if wanted is None else min(rows, wanted), dim)
        longest = max(_CHUNK, 64 * dim) + (1 << 20)
        last = False
        while not last and (wanted is None or len(self.words) < wanted):
            chunk = file.read(_CHUNK)
            last = not chunk
            carry += chunk
            if binary is None:
                binary = not no_header and _looks_binary(carry[:4096])
            at = 0
            while True:
                done = len(self.words)
                if done == len(table) and (wanted is None or done < wanted):
                    grown = 2 * max(1, len(table))
                    if wanted is not None:
                        grown = min(grown, wanted)
                    table = torch.cat((table, torch.empty(grown - len(table), dim)))
                parsed = self.parse(carry, at, table[done:], bool(binary), last)
                at += parsed["consumed"]
                if not parsed["rows"] or len(self.words) == wanted:
                    break
            carry = carry[at:]
            if len(carry) > longest:
                raise self.refuse(f"no vector ends within {longest} bytes: {carry[:40]!r}")
        if wanted is not None and len(self.words) < wanted:
            raise self.incomplete(wanted, bool(binary))
        if limit is None and wanted is not None:
            while True:
                self.check_rest(carry.lstrip()[:64], wanted)
                carry = file.read(_CHUNK)
                if not carry:
                    break
        return self.words, table[: len(self.words)]


def _new_table(rows: int, dim: int) -> Tensor:
    """An uninitialized table. From NumPy, which asks for huge pages: most of the time of a load is
    the first touch of fresh memory."""
    return torch.from_numpy(np.empty((rows, dim), dtype=np.float32))


def _mark(data: Any) -> int:
    """The size of a byte order mark at the beginning; U+FEFF as a word of its own is none."""
    marked = data[:3] == codecs.BOM_UTF8 and data[3:4] not in (b" ", b"\t")
    return len(codecs.BOM_UTF8) if marked else 0


def _looks_binary(sample: bytes) -> bool:
    """Are these the first bytes of binary records? Text has no control characters."""
    return any(byte < 9 or 13 < byte < 32 for byte in sample)


def _first_black(data: mmap.mmap, at: int) -> bytes:
    """Some bytes from the first that is not white space, at or after ``at``."""
    while at < len(data):
        rest = data[at : at + _CHUNK].lstrip()
        if rest:
            return rest[:64]
        at += _CHUNK
    return b""


def _ends_in_number(word: str) -> bool:
    fields = word.split()
    if len(fields) < 2:
        return False
    try:
        float(fields[-1])
    except ValueError:
        return False
    return True


def _without_duplicates(path: Path, words: list[str], table: Tensor) -> tuple[list[str], Tensor]:
    first = dict(zip(reversed(words), range(len(words) - 1, -1, -1), strict=True))
    if len(first) == len(words):
        return words, table
    keep = np.fromiter(first.values(), np.int64, len(first))
    keep.sort()
    extra = np.ones(len(words), dtype=bool)
    extra[keep] = False
    some = ", ".join(repr(words[row]) for row in np.flatnonzero(extra)[:5])
    warnings.warn(
        f"{path}: {len(words) - len(keep)} duplicate words, all but the first are ignored: {some}",
        stacklevel=3,
    )
    rows = torch.from_numpy(keep)
    step = max(1, _BLOCK_BYTES // (4 * table.shape[1]))
    for start in range(0, len(keep), step):  # in place: a kept row never lies before its new place
        part = rows[start : start + step]
        table[start : start + len(part)] = table[part]
    return [words[row] for row in keep.tolist()], table[: len(keep)]


def save_word2vec_format(
    path: str | os.PathLike[str],
    words: Sequence[str],
    vectors: Tensor,
    *,
    binary: bool = False,
    write_header: bool = True,
    prefix: str = "",
    order: np.ndarray | None = None,
    num_threads: int | None = None,
) -> None:
    """Write word vectors in word2vec's text or binary format, atomically.

    Text has the shortest digits that read back as the same float32; binary files are those of
    gensim, byte for byte.

    Args:
        path: the file; .gz, .bz2, .xz and .zst are compressed.
        words: the V words.
        vectors: float32 [V, D] on the CPU, with any row stride.
        binary: the format.
        write_header: begin with the line ``V D``. Without it (text only) the file is GloVe's.
        prefix: before every word.
        order: the rows in the order in which they are written; all, as they are, if None.
        num_threads: ``torch.get_num_threads()`` if None.

    Raises:
        ValueError: before anything is written, if a word is empty, holds ASCII white space (which
            separates the fields) or cannot be encoded, or a vector holds nan or infinity.
        OSError: if the disk is full, or the file cannot be written.
    """
    path = Path(path)
    threads = torch.get_num_threads() if num_threads is None else num_threads
    table = vectors.detach()
    if table.dtype != torch.float32 or table.dim() != 2 or len(table) != len(words):
        raise ValueError(
            f"expected float32 vectors [{len(words)}, D] for {len(words)} words, "
            f"got {table.dtype} {list(table.shape)}"
        )
    if binary and not write_header:
        raise ValueError("expected a header in the binary format: write_header=False is for text")
    if _WHITESPACE.search(prefix) or _WHITESPACE.search("".join(words)):
        for word in (prefix, *words):
            if _WHITESPACE.search(word):
                raise ValueError(
                    f"the word2vec format cannot hold words with white space, got {word!r}"
                )
    if not prefix and not all(words):
        raise ValueError(f"the word2vec format cannot hold an empty word, got row {_empty(words)}")
    try:
        encoded = [(prefix + word).encode("utf-8") for word in words]
    except UnicodeEncodeError as error:
        raise ValueError(f"expected words that are Unicode, got {error.object!r}") from None
    refuse_nonfinite(table, words, str(path))
    offsets = np.zeros(len(words) + 1, dtype=np.int64)
    np.cumsum([len(word) for word in encoded], out=offsets[1:])
    block = b"".join(encoded)
    del encoded
    rows = np.arange(len(words)) if order is None else np.asarray(order, dtype=np.int64)
    step = max(1, _BLOCK_BYTES // (4 * table.shape[1]))
    with atomic_file(path) as raw, _compressing(path, raw) as file:
        if write_header:
            file.write(b"%d %d\n" % (len(rows), table.shape[1]))
        for start in range(0, len(rows), step):
            for piece in _native.word2vec_format(
                table.numpy(), block, offsets, rows[start : start + step], binary, threads
            ):
                file.write(piece)


def _empty(words: Sequence[str]) -> int:
    return next(row for row, word in enumerate(words) if not word)


@contextlib.contextmanager
def _compressing(path: Path, raw: IO[bytes]) -> Iterator[Any]:
    """The file itself, or one that compresses into it, as its name says."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as file:
            yield file
    elif suffix == ".bz2":
        with bz2.BZ2File(raw, "wb") as file:
            yield file
    elif suffix == ".xz":
        with lzma.LZMAFile(raw, "wb") as file:
            yield file
    elif suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ImportError(
                f"writing {path} needs the package zstandard: pip install 'vecsmith[zst]'"
            ) from None
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as file:
            yield file
    else:
        yield raw


def load_counts(
    path: str | os.PathLike[str], *, encoding: str = "utf8", unicode_errors: str = "strict"
) -> dict[str, int]:
    """Read the vocabulary file of word2vec.c's ``-save-vocab``: ``word count`` lines.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is not a word and a count.
    """
    counts: dict[str, int] = {}
    for number, raw in enumerate(lines(path), 1):
        # The last blank separates: a word may hold what Unicode calls white space.
        word, _, count = raw.decode(encoding, unicode_errors).strip(" \t\r\n").rpartition(" ")
        try:
            counts[word] = int(count)
        except ValueError:
            raise ValueError(
                f"{path}: line {number}: expected 'word count', got {raw[:60]!r}"
            ) from None
    return counts
