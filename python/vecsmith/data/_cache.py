"""The folder an encoded corpus lies in.

``corpus.json`` names the other files and is written last, by a rename: that is the moment at which
the new corpus takes the place of an older one, whose files are only then removed. Whenever a build
dies, the folder holds the older corpus or the newer one, and at most unnamed files that the next
build sweeps away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vecsmith.io import atomic_file
from vecsmith.io._atomic import missing_folders, remove_empty

try:
    import fcntl
except ImportError:  # no flock here: two builds into one folder are not kept apart
    fcntl = None  # type: ignore[assignment]

MANIFEST = "corpus.json"
FORMAT = 2
_KINDS = ("tokens", "offsets", "vocabulary")
_BLOCK_BYTES = 4 << 20
_LOCK = "corpus.lock"
_OURS = re.compile(r"corpus-[0-9a-f]{16}\.\w+|\.corpus(-[0-9a-f]{16})?\.\w+\.[0-9a-f]+\.tmp")
_FULL = {errno.ENOSPC: "no space left on the disk", errno.EFBIG: "file size limit reached"}
if hasattr(errno, "EDQUOT"):
    _FULL[errno.EDQUOT] = "disk quota exceeded"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the folder holds; None if it holds no corpus.

    Raises:
        ValueError: if its ``corpus.json`` is damaged, or of another version or byte order.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a corpus of format {FORMAT}, got something else")
    if manifest.get("byteorder") != sys.byteorder:
        raise ValueError(f"{path}: written on a machine of other byte order; build it again here")
    for key in ("tokens", "sentences", "raw_words", "bad_bytes", "vocabulary_raw_words"):
        if not isinstance(manifest.get(key), int) or manifest[key] < 0:
            raise ValueError(
                f"{path}: damaged: expected a number {key!r}, got {manifest.get(key)!r}"
            )
    files, checksums = manifest.get("files"), manifest.get("checksums")
    if (
        not isinstance(files, dict)
        or not isinstance(checksums, dict)
        or not isinstance(manifest.get("fingerprint"), str)
        or not set(_KINDS) == set(files) == set(checksums)
        or not all(isinstance(name, str) and _OURS.fullmatch(name) for name in files.values())
    ):
        raise ValueError(f"{path}: damaged: it does not name the corpus's files")
    return manifest


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Read the files that a manifest names, and compare their checksums: a bad sector is found
    here, not in the vectors.

    Raises:
        ValueError: one of them is damaged.
        FileNotFoundError: one of them is gone.
    """
    for kind in _KINDS:
        path = folder / manifest["files"][kind]
        found, expected = _checksum(path), manifest["checksums"][kind]
        if found != expected:
            raise ValueError(f"{path}: damaged: expected the checksum {expected}, got {found}")


def _checksum(path: Path) -> str:
    """CRC-32 of a file, in eight hexadecimal digits."""
    crc, block = 0, memoryview(bytearray(_BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            crc = zlib.crc32(block[:size], crc)
    return f"{crc:08x}"


@contextlib.contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other builds out of it; a dead process holds no lock.

    Raises:
        BlockingIOError: another build is under way.
        NotADirectoryError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a cache folder, got the file {folder}")
    made = missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(folder / _LOCK, folder)
        try:
            yield
        finally:
            # Removed while it is held: who waits for this file finds out that it is gone.
            with contextlib.suppress(OSError):
                os.unlink(folder / _LOCK)
            os.close(descriptor)
    except BaseException:
        remove_empty(made)
        raise


def _lock(path: Path, folder: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BlockingIOError(
                        f"another run is building a corpus in {folder}: wait for it, or give "
                        "another cache folder"
                    ) from None
                except OSError as error:
                    # A file system without locks is served unlocked.
                    if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                        raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it meanwhile


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """OSErrors of a full disk, as one sentence."""
    try:
        yield
    except OSError as error:
        reason = _FULL.get(error.errno or 0)
        if reason is None:
            raise
        raise OSError(
            error.errno,
            f"{reason} while writing the encoded corpus into {folder} (about 4 bytes for each word "
            "read; the unfinished files were removed, what was there before is unchanged)",
        ) from None


class Draft:
    """The files of a corpus that is being built, open. Under :func:`build_lock`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stem = f"corpus-{secrets.token_hex(8)}"
        self._open: dict[str, int] = {}
        self._committed = False

    def __enter__(self) -> Draft:
        _sweep(self._folder)
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        if not self._committed:
            for kind in [*self._open, "vocabulary"]:
                with contextlib.suppress(OSError):
                    os.unlink(self.path(kind))

    def path(self, kind: str) -> Path:
        return self._folder / f"{self._stem}.{kind}"

    def open(self, kind: str) -> int:
        """A new file of that kind, open for reading and writing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._open[kind] = os.open(self.path(kind), flags, 0o666)
        return self._open[kind]

    def discard(self, kind: str) -> None:
        os.close(self._open.pop(kind))
        os.unlink(self.path(kind))

    def manifest(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What ``corpus.json`` will say, once all files are written."""
        return {
            "format": FORMAT,
            "byteorder": sys.byteorder,
            "files": {kind: self.path(kind).name for kind in _KINDS},
            "checksums": {kind: _checksum(self.path(kind)) for kind in _KINDS},
            **facts,
        }

    def commit(self, manifest: dict[str, Any]) -> None:
        """Sync the files, then name them in ``corpus.json``; the older corpus's are removed."""
        for descriptor in self._open.values():
            os.fsync(descriptor)
        with atomic_file(self._folder / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode() + b"\n")
            # From the rename on these are the corpus: an interrupt must not remove them.
            self._committed = True
        with contextlib.suppress(OSError):
            _sweep(self._folder)


def _sweep(folder: Path) -> None:
    """Remove files of ours that ``corpus.json`` does not name."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        manifest = None
    named = set(manifest["files"].values()) if manifest else set()
    for entry in os.scandir(folder):
        if _OURS.fullmatch(entry.name) and entry.name not in named:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
