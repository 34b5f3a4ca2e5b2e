"""Checkpoints of a training run: one file, written atomically, that a killed run goes on from.

The file is a safetensors file (``checkpoint.safetensors``): the tables, and in its metadata the
format version, the state as JSON (settings, fingerprint of the corpus, cursor) and a CRC-32 of the
state and the tables. A new checkpoint is written beside the old one, fsynced and renamed over it,
so that at every moment one whole checkpoint is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor

from vecsmith.io import load_safetensors, save_safetensors
from vecsmith.io._atomic import missing_folders, remove_empty

try:
    import fcntl
except ImportError:  # no flock here: two runs into one folder are not told apart
    fcntl = None  # type: ignore[assignment]

NAME = "checkpoint.safetensors"
FORMAT = "vecsmith.word2vec.checkpoint"
VERSION = "1"
_LOCK = ".vecsmith-run.lock"
_BLOCK_BYTES = 4 << 20
# A checkpoint at the end of an epoch is left out where the one before it is younger than this.
EPOCH_CHECKPOINT_SECONDS = 10.0


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, or of another run. Nothing was changed."""


class FolderInUseError(RuntimeError):
    """Another run is writing into the same folder."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal, between two chunks of the corpus.

    checkpoint: the file that holds the state, or None if it could not be written.
    signum: the signal's number.
    """

    def __init__(self, signum: int, checkpoint: Path | None) -> None:
        self.signum = signum
        self.checkpoint = checkpoint
        where = f"its state is in {checkpoint}" if checkpoint else "no checkpoint could be written"
        super().__init__(f"training stopped by {signal.Signals(signum).name}; {where}")


class Checkpoint:
    """The checkpoint of one run, in one folder.

    format: what the file calls itself: the checkpoint of another kind of model is refused.
    folder: created if needed; locked (flock) while a run holds it.
    every: seconds of training between two checkpoints; 0: after every chunk of the corpus.
    resume: go on from a checkpoint that is already there. False: start anew; the old checkpoint
        stays until the first new one replaces it.
    """

    format = FORMAT
    # What keeps training from diverging.
    remedy = "a smaller alpha"

    def __init__(
        self, folder: str | os.PathLike[str], every: float = 60.0, resume: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self.every = every
        self.resume = resume
        # True once this object has written the file or gone on from it: it is ours to replace.
        self.owned = False
        # True once the present run has done so, where its model has set it to False before.
        self.current = False
        self._holders = 0
        self._made: list[Path] = []
        self._lock: int | None = None

    @contextlib.contextmanager
    def hold(self) -> Iterator[Checkpoint]:
        """Lock the folder for this run; may be nested.

        Raises: FolderInUseError if another run holds it, in this process or any other.
        """
        if self._holders == 0:
            self._take()
        self._holders += 1
        try:
            yield self
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._release()

    def _take(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, f"expected a folder; got the file {self.folder}"
            )
        self._made = missing_folders(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire(self.folder / _LOCK)
            # What a run that was killed while writing has left.
            for debris in self.folder.glob(f".{NAME}.*.tmp"):
                debris.unlink(missing_ok=True)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        """Raises nothing: where the folder went away, that has an error of its own."""
        if self._lock is not None:
            # While it is still locked: nobody can have taken it who would lose it.
            with contextlib.suppress(OSError):
                (self.folder / _LOCK).unlink()
            os.close(self._lock)
            self._lock = None
        remove_empty(self._made)  # a run that failed before it wrote anything leaves nothing

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The state and the tables (memory-mapped) of the checkpoint in the folder, its checksum
        verified; None if there is none.

        Raises: CheckpointError if it is damaged or of an unknown version.
        """
        try:
            tables, metadata = load_safetensors(self.path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise damaged(self.path, str(error)) from None
        if metadata.get("format") != self.format:
            raise damaged(
                self.path, f"expected the format {self.format}; got {metadata.get('format')!r}"
            )
        if metadata.get("version") != VERSION:
            raise damaged(self.path, f"expected version {VERSION}; got {metadata.get('version')!r}")
        for name, table in tables.items():
            if table.dtype != torch.float32 or table.dim() != 2:
                got = f"{name!r} of {table.dtype} {list(table.shape)}"
                raise damaged(self.path, f"expected float32 tables [rows, D]; got {got}")
        text = metadata.get("state")
        if not isinstance(text, str) or metadata.get("checksum") != _checksum_all(text, tables):
            raise damaged(self.path, "expected the checksum in its header; got another")
        try:
            state = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged(self.path, f"expected a state that is JSON ({error})") from None
        if not isinstance(state, dict):
            raise damaged(self.path, f"expected a state of names and values; got {text[:60]!r}")
        return state, tables

    def pending(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What :meth:`read` gives, if training is to go on from it; else None."""
        return self.read() if self.resume and not self.owned else None

    def load(self, found: dict[str, Tensor], tables: dict[str, Tensor]) -> None:
        """Copy the tables of a checkpoint into ``tables`` ([rows, D] float32 each).

        Raises: CheckpointError, before anything is changed, if names or shapes differ, or a table
        holds nan or infinity.
        """
        theirs = {name: tuple(table.shape) for name, table in found.items()}
        ours = {name: tuple(table.shape) for name, table in tables.items()}
        if theirs != ours:
            raise damaged(self.path, f"expected tables {ours}; got {theirs}")
        for name, table in found.items():
            if not is_finite(table):
                raise damaged(self.path, f"expected finite tables; got nan or inf in {name!r}")
        for name, table in tables.items():
            table.copy_(found[name])
        self.owned = self.current = True

    def write(self, tables: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write tables and state, atomically.

        Raises: OSError (disk full, no permission ...), and ValueError where a table holds nan or
        infinity: training has diverged. The checkpoint before it is still there.
        """
        for name, table in tables.items():
            if not is_finite(table):
                raise ValueError(
                    f"expected finite tables; got nan or inf in {name!r}: training has diverged. "
                    f"{self.path} was left as it was; start again with {self.remedy}"
                )
        text = json.dumps(state)
        metadata = {"format": self.format, "version": VERSION, "state": text}
        metadata["checksum"] = _checksum_all(text, tables)
        save_safetensors(self.path, tables, metadata)
        self.owned = self.current = True

    def remove(self) -> None:
        """Delete the checkpoint: what it held is saved elsewhere now."""
        self.path.unlink(missing_ok=True)


class Writer:
    """Writes the checkpoints of a run when they are due, and warns once where it cannot.

    checkpoint: None: there are none.
    cursor: how far training has come; its fields are written. Its ``seconds`` are brought up to
        date: those of this run and of those before it.
    tables: called for what is written with it.
    state: what a later run must agree in.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        cursor: Any,
        tables: Callable[[], dict[str, Tensor]],
        state: dict[str, Any],
    ) -> None:
        self._checkpoint, self._cursor = checkpoint, cursor
        self._tables, self._state = tables, state
        self._started = self._written = time.monotonic()
        self._already, self._warned = cursor.seconds, False

    def count_seconds(self) -> None:
        """Brings the cursor's seconds up to date."""
        self._cursor.seconds = self._already + time.monotonic() - self._started

    def write(self) -> Path | None:
        """Writes now. Returns the file; None where there is no checkpoint, or no room for it."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            return None
        self.count_seconds()
        path, kept = checkpoint.path, checkpoint.owned
        try:
            checkpoint.write(self._tables(), {**self._state, "cursor": vars(self._cursor)})
        except OSError as error:
            if not self._warned:
                warn_not_written(path, error, kept)
            self._warned, path = True, None
        self._written = time.monotonic()
        return path

    def write_if_due(self, epoch_ended: bool = False) -> None:
        """Writes where the last checkpoint is old enough; the end of an epoch is a good place."""
        if self._checkpoint is None:
            return
        every = self._checkpoint.every
        every = min(every, EPOCH_CHECKPOINT_SECONDS) if epoch_ended else every
        if time.monotonic() - self._written >= every:
            self.write()

    def stop(self, signum: int) -> NoReturn:
        """Raises TrainingInterrupted, after a last checkpoint."""
        raise TrainingInterrupted(signum, self.write())


def _acquire(path: Path) -> int | None:
    """An open, locked file at ``path``; None where the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise FolderInUseError(
                    f"expected {path.parent} to be free; got a folder that another run is writing "
                    "into: wait for it to end, or give another folder"
                ) from None
            return None
        # The run before may have removed the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        os.close(lock)


def check_settings(path: Path, found: Any, expected: dict[str, Any], what: str) -> None:
    """Raises CheckpointError that names the entries in which the two differ."""
    if not isinstance(found, dict):
        raise damaged(path, f"expected the {what} it was written with; got none")
    different = [k for k in {**expected, **found} if found.get(k) != expected.get(k)]
    if different:
        theirs = ", ".join(f"{k}={found.get(k)!r}" for k in different)
        ours = ", ".join(f"{k}={expected.get(k)!r}" for k in different)
        raise CheckpointError(
            f"expected the checkpoint {path} to have been written with the same {what} as this run "
            f"({ours}); got one with {theirs}. Give these again to go on from it, or another "
            "folder, or resume=False (--no-resume) to start anew"
        )


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error for a checkpoint whose content is wrong."""
    return CheckpointError(
        f"cannot go on from the checkpoint {path}: {reason}. Delete it, or give resume=False "
        "(--no-resume), to start anew"
    )


def checksum(*tensors: Tensor, start: int = 0) -> str:
    """CRC-32 over the values of CPU or CUDA tensors, row-major, in eight hexadecimal digits.
    Strided and memory-mapped ones are read in blocks, never copied whole."""
    crc = start
    for tensor in tensors:
        if not tensor.numel():
            continue
        row = tensor[0].numel() * tensor.element_size()
        for rows in tensor.detach().split(max(1, _BLOCK_BYTES // row)):
            crc = zlib.crc32(rows.cpu().contiguous().numpy(), crc)  # type: ignore[arg-type]
    return f"{crc:08x}"


def is_finite(table: Tensor) -> bool:
    """Whether a table holds neither nan nor infinity."""
    # A sum in fp64 is finite unless a value is not.
    return math.isfinite(table.sum(dtype=torch.float64).item())


def _checksum_all(state: str, tables: dict[str, Tensor]) -> str:
    ordered = [tables[name] for name in sorted(tables)]
    return checksum(*ordered, start=zlib.crc32(state.encode("utf-8", "surrogatepass")))


# --- signals --------------------------------------------------------------------------------------


def interrupt_on_terminate(signum: int, frame: FrameType | None) -> None:
    """A handler for SIGTERM that stops a command as Ctrl-C does."""
    raise KeyboardInterrupt


class Interrupts:
    """Turns SIGINT and SIGTERM into a flag while training runs, so that training stops between two
    chunks with a state that can be written. A second signal stops at once.

    Handlers that somebody else has set are left alone, and so is every thread but the main one.
    """

    def __init__(self, enabled: bool) -> None:
        self.signum: int | None = None
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Interrupts:
        ours = (signal.default_int_handler, signal.SIG_DFL, interrupt_on_terminate)
        if self._enabled:
            for signum in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(signum)
                if before in ours:
                    self._before[signum] = before
                    signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum


def warn_not_written(path: Path, error: OSError, kept: bool) -> None:
    """The one warning for a checkpoint that could not be written."""
    before = "the one before it is whole" if kept else "there is none yet"
    warnings.warn(
        f"the checkpoint {path} could not be written ({error.strerror or error}); {before}; "
        "training goes on",
        RuntimeWarning,
        stacklevel=4,
    )
