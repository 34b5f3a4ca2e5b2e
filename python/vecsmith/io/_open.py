"""Opening files that may be compressed, by their name."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

_COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """True if the name says .gz, .bz2, .xz or .zst."""
    return Path(path).suffix.lower() in {*_COMPRESSED, ".zst"}


def open_binary(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading bytes, decompressing .gz, .bz2, .xz and .zst by their names.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: for .zst where the package ``zstandard`` is missing.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ImportError(
                f"reading {path} needs the package zstandard: pip install 'vecsmith[zst]'"
            ) from None
        # read_across_frames: a .zst file may be several frames, as pzstd writes it.
        reader = zstandard.ZstdDecompressor().stream_reader(
            open(path, "rb"),  # noqa: SIM115 (closed with the reader)
            read_across_frames=True,
            closefd=True,
        )
        return cast("IO[bytes]", io.BufferedReader(cast("Any", reader)))
    if suffix in _COMPRESSED:
        return cast("IO[bytes]", _COMPRESSED[suffix](path, "rb"))
    return open(path, "rb")


def lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The lines of a file, decompressed by its name, without a byte order mark before the first.

    Raises: as :func:`open_binary`.
    """
    with open_binary(path) as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(codecs.BOM_UTF8)
