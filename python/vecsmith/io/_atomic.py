"""Writing so that a crash, a full disk or Ctrl-C never costs what was saved before.

One file: write a temporary file beside it, fsync, rename over it, fsync the folder. Several files
that belong together (a model folder): a redo log, see :func:`atomic_folder`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # no flock: two simultaneous saves into one folder are then not serialized
    fcntl = None  # type: ignore[assignment]

_STAGING = ".vecsmith-staging-"
_COMMIT = ".vecsmith-commit"
_REMOVE = ".remove.json"
_FULL = {errno.ENOSPC: "no space left on the disk", errno.EFBIG: "file size limit reached"}
if hasattr(errno, "EDQUOT"):
    _FULL[errno.EDQUOT] = "disk quota exceeded"


def _explained(error: OSError, path: Path) -> OSError:
    """The same error, saying what could not be written and that nothing was lost."""
    reason = _FULL.get(error.errno or 0)
    if reason is None:
        return error
    return OSError(
        error.errno,
        f"{reason} while writing {path} (the unfinished file was removed; "
        "what was there before is unchanged)",
    )


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; the rename is still atomic.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def missing_folders(folder: Path) -> list[Path]:
    """A folder and those it lies in, innermost first, as far as they do not exist."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that hold nothing."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()


def _default_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str], mode: str = "wb", *, encoding: str | None = None
) -> Iterator[IO[Any]]:
    """Open a file that appears under ``path`` only when the ``with`` block ends without an error.

    The data goes to a temporary file in the same folder, which is fsynced and renamed over
    ``path``; then the folder is fsynced. Whatever happens before the rename (an exception, a full
    disk, SIGKILL), the old file stays as it was. A symbolic link is followed: its target is
    replaced. The permissions of a file that is replaced are kept.

    Args:
        path: the file to write. Its folder must exist.
        mode: "wb", "w" or "w+b"/"wb+": the file is always written from the beginning.
        encoding: of text modes; UTF-8 if None. Newlines are written as they are.

    Raises:
        ValueError: for a mode that reads or appends.
        IsADirectoryError: if ``path`` is a folder.
        FileNotFoundError: if its folder does not exist.
        OSError: if the disk is full (the message says so), or the file cannot be written.
    """
    if "w" not in mode or set(mode) - set("wb+t"):
        raise ValueError(f"expected mode 'wb', 'w' or 'wb+', got {mode!r}")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"expected a file to write, got the folder {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"the folder of {target} does not exist")
    try:
        permissions = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        permissions = _default_mode()
    # Not longer than the name itself may be: long names get a cut one.
    temporary = target.parent / f".{target.name[:64]}.{secrets.token_hex(6)}.tmp"
    text: dict[str, Any] = {} if "b" in mode else {"encoding": encoding or "utf-8", "newline": ""}
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, permissions)
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # the umask may have narrowed them; not worth failing
            os.chmod(temporary, permissions)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            explained = _explained(error, target)
            if explained is not error:
                raise explained from error
        raise
    _fsync_path(target.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the folder's advisory lock: the kernel drops it when the holder dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            # A file system without locks is served unlocked.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_name(name: str) -> None:
    if name != os.path.basename(name) or name in ("", ".", "..") or name.startswith("."):
        raise ValueError(f"expected a plain file name, got {name!r}")


def _roll_forward(folder: Path) -> bool:
    """Finish a save whose commit point was passed. The caller holds the lock."""
    commit = folder / _COMMIT
    if not commit.is_dir():
        return False
    with contextlib.suppress(FileNotFoundError):
        for name in json.loads((commit / _REMOVE).read_text()):
            _check_name(name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / name)
    # config.json last: a reader that does not know of the log finds the old one until the end.
    names = sorted(entry.name for entry in commit.iterdir() if entry.name != _REMOVE)
    for name in sorted(names, key=lambda name: name == "config.json"):
        os.replace(commit / name, folder / name)
    _fsync_path(folder)
    shutil.rmtree(commit)
    _fsync_path(folder)
    return True


def _sweep_staging(folder: Path) -> None:
    """Remove what savers that died before their commit point have left."""
    if fcntl is None:
        return
    for entry in folder.glob(f"{_STAGING}*"):
        try:
            descriptor = os.open(entry, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # its saver is alive
        else:
            shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str], *, remove: Sequence[str] = ()) -> Iterator[Path]:
    """Replace several files of a folder together: all of them, or none.

    Yields an empty staging folder (inside ``folder``). Write the files there, under the names that
    they shall have. When the block ends without an error they are fsynced, and the staging folder
    is renamed to a *commit* folder: that one rename is the commit point. Then each file is moved
    into place, ``config.json`` last. Killed before the commit point, the folder holds what it held;
    killed after it, the next load (:func:`read_folder`) or save finishes the moves. Files that are
    not named are never touched, so a folder may hold anything else beside the model.

    Args:
        folder: the folder; made if it does not exist (its parent must).
        remove: names of files that are deleted at the commit, where they exist and are not written.

    Raises:
        NotADirectoryError: if ``folder`` is a file.
        FileNotFoundError: if its parent does not exist.
        ValueError: if the staging folder holds anything but plain files with plain names.
        OSError: if the disk is full (the message says so), or the folder cannot be written.
    """
    folder = Path(folder)
    for name in remove:
        _check_name(name)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"expected a folder, got the file {folder}")
    made = not folder.exists()
    if made:
        if not folder.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"the folder {folder.parent} does not exist")
        folder.mkdir(exist_ok=True)
    staging = folder / f"{_STAGING}{secrets.token_hex(6)}"
    held = -1
    committed = False
    try:
        with _locked(folder):
            _roll_forward(folder)
            _sweep_staging(folder)
            staging.mkdir()
            held = os.open(staging, os.O_RDONLY)
            if fcntl is not None:
                with contextlib.suppress(OSError):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield staging
        written = []
        for entry in staging.iterdir():
            _check_name(entry.name)
            if not entry.is_file() or entry.is_symlink():
                raise ValueError(f"expected plain files to save, got {entry.name!r}")
            _fsync_path(entry)
            written.append(entry.name)
        gone = sorted(set(remove) - set(written))
        if gone:
            (staging / _REMOVE).write_text(json.dumps(gone))
            _fsync_path(staging / _REMOVE)
        _fsync_path(staging)
        with _locked(folder):
            _roll_forward(folder)  # another saver may have been killed meanwhile
            os.rename(staging, folder / _COMMIT)
            committed = True
            _fsync_path(folder)
            _roll_forward(folder)
    except BaseException as error:
        if not committed:
            shutil.rmtree(staging, ignore_errors=True)
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if isinstance(error, OSError):
            explained = _explained(error, folder)
            if explained is not error:
                raise explained from error
        raise
    finally:
        if held >= 0:
            os.close(held)


@contextlib.contextmanager
def read_folder(folder: str | os.PathLike[str]) -> Iterator[Callable[[str], Path]]:
    """Open a folder that :func:`atomic_folder` writes; yields ``name -> path``.

    First finishes a save that was killed after its commit point. While the block runs, no other
    process can commit a save into the folder, so the files that are read belong together (files
    that were mapped stay as they are afterwards, too). Where the folder cannot be written (a
    read-only mount), an unfinished save is read from where it lies.

    Raises:
        FileNotFoundError: if there is no such folder.
        NotADirectoryError: if it is a file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, f"the folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"expected a folder, got the file {folder}")

    def find(name: str) -> Path:
        _check_name(name)
        committed = folder / _COMMIT / name
        return committed if committed.exists() else folder / name

    with _locked(folder) as descriptor:
        try:
            _roll_forward(folder)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        if fcntl is not None:  # from here on, other readers may come in
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield find
