"""Tables of fixed-size rows that a crash cannot tear: a file, or memory with the same interface."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import _native

_ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)
_FILLS = ("constant", "normal", "uniform")
_FULL = {errno.ENOSPC: "no space left on the disk", errno.EFBIG: "file size limit reached"}
if hasattr(errno, "EDQUOT"):
    _FULL[errno.EDQUOT] = "disk quota exceeded"


@contextlib.contextmanager
def _explained(path: Path, doing: str) -> Iterator[None]:
    """Errors of the native file, with the file's name and what to do."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        if code == errno.EWOULDBLOCK:
            raise BlockingIOError(
                code,
                f"expected to have {path} alone, but it is in use: close the other table first "
                "(many may read it, or one write it)",
            ) from None
        if code in _FULL:
            raise OSError(
                code, f"{_FULL[code]} while {doing} {path} (nothing was changed)"
            ) from None
        if code == errno.EEXIST:
            raise FileExistsError(code, f"expected a new file, but {path} exists") from None
        raise OSError(code, f"{os.strerror(code)} while {doing} {path}") from None
    except _native.RowFileError as error:
        raise ValueError(f"{path}: {error}") from None


class RowFile:
    """A table [rows, dim] in a file, with optimizer state beside every row.

    The file is read and written through a memory map, and always is what the last :meth:`flush`
    left, whenever the process or the machine dies: a row is never written over its flushed value
    but to a second place beside it, and a flush ends with one checksummed record by which all of
    them come to count. All space (twice the rows) is allocated when the file is made, so that a
    full disk is an error there and nowhere else. (On file systems that copy on write, as btrfs,
    that is not promised: switch it off for the folder, ``chattr +C``.) One process may write a
    file, or many may read it. A fork of the process that writes it has no part in it: there all
    but :meth:`close`, which then leaves the file alone, raises RuntimeError.

    Rows that were never written are drawn when they are read, from (``seed``, row, column).

    Made by :meth:`create`, :meth:`open` and, with the same interface but no file,
    :meth:`in_memory`.
    """

    def __init__(self, native: Any, path: Path | None) -> None:
        self._native = native
        self.path = path
        self._lock = threading.Lock()
        layout = native.layout()
        self.dim: int = layout["dim"]
        self.dtype: torch.dtype = _ELEMENTS[layout["element"]]
        self.rows: int = native.rows
        self.states: tuple[tuple[int, float], ...] = tuple(layout["states"])

    @staticmethod
    def _layout(
        rows: int,
        dim: int,
        dtype: torch.dtype,
        states: Sequence[tuple[int, float]],
        init: tuple[str, float, float],
        seed: int,
        zero_row: int | None,
    ) -> dict[str, Any]:
        for name, value, most in (("rows", rows, 2**31), ("dim", dim, 2**24)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"expected {name} to be an int; got {type(value).__name__}")
            if not 1 <= value <= most:
                raise ValueError(f"expected {name} in 1..{most}; got {value}")
        if dtype not in _ELEMENTS:
            raise TypeError(f"expected dtype float32, float16 or bfloat16; got {dtype}")
        if len(init) != 3 or init[0] not in _FILLS:
            raise ValueError(
                "expected init to be ('normal', mean, deviation), ('uniform', low, high) or "
                f"('constant', value, 0); got {init!r}"
            )
        if not all(np.isfinite(value) and abs(value) <= 65504 for value in init[1:]):
            raise ValueError(f"expected finite numbers in init; got {init!r}")
        if zero_row is not None and not 0 <= zero_row < rows:
            raise ValueError(f"expected zero_row in 0..{rows - 1}; got {zero_row}")
        return {
            "rows": rows,
            "dim": dim,
            "element": _ELEMENTS.index(dtype),
            "fill": _FILLS.index(init[0]),
            "a": float(init[1]),
            "b": float(init[2]),
            "seed": seed % 2**64,
            "zero_row": -1 if zero_row is None else zero_row,
            "states": [(int(floats), float(value)) for floats, value in states],
        }

    def _check_process(self) -> None:
        """Before the lock is asked for, which a fork may find held for ever."""
        native = self._native
        if native.forked and native.in_file and not native.read_only:
            raise RuntimeError(
                f"expected the process that opened {self.path}; got a fork of it (a fork may open "
                "a file itself)"
            )

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        rows: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        states: Sequence[tuple[int, float]] = (),
        label: bytes = b"",
        init: tuple[str, float, float] = ("constant", 0.0, 0.0),
        seed: int = 0,
        zero_row: int | None = None,
    ) -> RowFile:
        """A new file, open for writing. It appears under its name when it is whole.

        Args:
            path: where; its folder must exist.
            rows: up to 2^31.
            dim: values of a row.
            dtype: of the row: float32, float16 or bfloat16.
            states: (fp32 values, value in rows never written) of each piece of state of a row.
            label: any bytes to find again, at most 1024.
            init: what rows are that were never written: ("normal", mean, deviation),
                ("uniform", low, high) or ("constant", value, 0).
            seed: of those rows.
            zero_row: a row that is zero at first.

        Raises:
            FileExistsError: if there is such a file.
            OSError: if the disk is too full for all of it; no file is left then.
            ValueError, TypeError: for arguments out of range.
        """
        layout = cls._layout(rows, dim, dtype, states, init, seed, zero_row)
        with _explained(Path(path), "making"):
            native = _native.RowFile.create(_name(path), label=label, **layout)
        return cls(native, Path(path))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False) -> RowFile:
        """A file that is there, as its last flush left it.

        Raises:
            FileNotFoundError: if there is none.
            BlockingIOError: if somebody writes it, or, to write, has it open at all.
            ValueError: if it is not such a file, of another version, cut short or damaged.
        """
        with _explained(Path(path), "opening"):
            native = _native.RowFile.open(_name(path), read_only=read_only)
        return cls(native, Path(path))

    @classmethod
    def in_memory(
        cls,
        rows: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        states: Sequence[tuple[int, float]] = (),
        init: tuple[str, float, float] = ("constant", 0.0, 0.0),
        seed: int = 0,
        zero_row: int | None = None,
    ) -> RowFile:
        """The same without a file: rows in ordinary memory, taken as rows are written. Raises: as
        :meth:`create`; MemoryError where the system refuses so much."""
        layout = cls._layout(rows, dim, dtype, states, init, seed, zero_row)
        try:
            return cls(_native.RowFile.in_memory(**layout), None)
        except OSError as error:
            raise MemoryError(
                f"expected memory for {rows} rows of {dim} values; {error.strerror}"
            ) from None

    # --- what it is ---------------------------------------------------------------------------

    @property
    def label(self) -> bytes:
        """What it was made with."""
        return self._native.label

    @property
    def metadata(self) -> bytes:
        """What the last :meth:`flush` was given."""
        return self._native.metadata

    @property
    def flushes(self) -> int:
        """How often it was flushed, by all processes."""
        return self._native.flushes

    @property
    def read_only(self) -> bool:
        """Whether it was opened to read alone."""
        return self._native.read_only

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._native.closed

    @property
    def size_in_bytes(self) -> int:
        """Of the file, or of the memory that would be taken if every row was written."""
        return self._native.size_in_bytes

    def part_shapes(self, count: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of the tensors for ``count`` rows: the rows, then each state."""
        shapes: list[tuple[tuple[int, ...], torch.dtype]] = [((count, self.dim), self.dtype)]
        shapes += [((count, floats), torch.float32) for floats, _ in self.states]
        return shapes

    # --- rows ---------------------------------------------------------------------------------

    def _indices(self, indices: Tensor | np.ndarray | Sequence[int]) -> np.ndarray:
        array = np.asarray(indices)
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"expected integer indices; got {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"expected indices of shape [N]; got {list(array.shape)}")
        return np.ascontiguousarray(array, dtype=np.int64)

    def _addresses(self, count: int, parts: Sequence[Tensor]) -> list[int]:
        shapes = self.part_shapes(count)
        if not 1 <= len(parts) <= len(shapes):
            raise ValueError(f"expected 1..{len(shapes)} parts; got {len(parts)}")
        for part, (shape, dtype) in zip(parts, shapes, strict=False):
            flat = shape[1] == 1 and part.dim() == 1
            if tuple(part.shape) != (shape[:1] if flat else shape) or part.dtype != dtype:
                raise ValueError(
                    f"expected a part {list(shape)} of {dtype}; "
                    f"got {list(part.shape)} of {part.dtype}"
                )
            if part.device.type != "cpu" or not part.is_contiguous():
                raise ValueError("expected contiguous parts on the CPU")
        return [part.data_ptr() for part in parts]

    def read(
        self, indices: Tensor | np.ndarray | Sequence[int], parts: int | Sequence[Tensor] = 1
    ) -> list[Tensor]:
        """Rows, and state.

        Args:
            indices: [N], in 0..rows-1.
            parts: how many of them: 1 is the rows alone, 1 + k also the first k states. Or tensors
                to read into, contiguous, on the CPU: [N, dim] of ``dtype``, [N, values] float32.

        Returns: the tensors. Raises: IndexError; ValueError for other tensors, or when closed.
        """
        self._check_process()
        wanted = self._indices(indices)
        if isinstance(parts, int):
            shapes = self.part_shapes(len(wanted))[:parts]
            parts = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]
        addresses = self._addresses(len(wanted), parts)
        self._native.read(wanted, addresses, threads=_threads(len(wanted)))
        return list(parts)

    def write(self, indices: Tensor | np.ndarray | Sequence[int], parts: Sequence[Tensor]) -> None:
        """Writes rows; what is not given of their state stays. It counts from the next flush on.

        Args:
            indices: [N], distinct, in 0..rows-1.
            parts: as :meth:`read` has them.

        Raises:
            IndexError: an index that is no row. Nothing is written then, nor with this:
            ValueError: indices that come twice, other tensors, a file that is closed or read-only.
        """
        self._check_process()
        wanted = self._indices(indices)
        addresses = self._addresses(len(wanted), parts)
        with self._lock:
            self._native.write(wanted, addresses, threads=_threads(len(wanted)))

    def flush(self, metadata: bytes = b"") -> None:
        """When it returns, all that was written is on the disk and counts; until then, none of it.

        Args:
            metadata: any bytes that belong to this state, at most 1024.

        Raises:
            OSError: the system could not write (also later: open the file anew then, as the last
                flush left it).
            ValueError: too many bytes, or a file that is read-only.
        """
        if self.read_only:
            raise ValueError(f"expected a file open for writing; {self.path} is open to read")
        if self.closed:
            raise ValueError("expected an open table, got a closed one")
        self._check_process()
        with self._lock, _explained(self.path or Path(), "flushing"):
            self._native.flush(metadata)

    def with_states(self, states: Sequence[tuple[int, float]], label: bytes = b"") -> RowFile:
        """The same rows with other state behind them, in a file that takes this one's place. State
        that begins as this one's keeps its values; what is flushed and what is not stays so. This
        one is closed. Raises: as :meth:`create`; it is left as it was then."""
        self._check_process()
        with self._lock, _explained(self.path or Path(), "rewriting"):
            native = self._native.with_states(
                [(int(floats), float(value)) for floats, value in states], label=label
            )
            self._native.close()
        return RowFile(native, self.path)

    def close(self) -> None:
        """Gives the file up. What was not flushed is lost. May be called twice."""
        # A fork closes what it has of the file alone, and may find the lock held for ever.
        with contextlib.nullcontext() if self._native.forked else self._lock:
            if not self._native.closed:
                self._native.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _threads(rows: int) -> int:
    return max(1, min(torch.get_num_threads(), rows // 256))


def _name(path: str | os.PathLike[str]) -> bytes:
    """Absolute, so that a change of folder does not change where this file is, and of no link: a
    file that takes its place comes into the place of the file, not of the link."""
    return os.fsencode(os.path.realpath(path))
