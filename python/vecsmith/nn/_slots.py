"""The slots of a cached table: which rows are in them, and how rows get in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith.io import RowFile
from vecsmith.io._row_cache import PREFETCH, READ, UPDATE, CacheFullError, RowCache

__all__ = ["PREFETCH", "READ", "UPDATE", "Slots", "Ticket"]

_CHUNK_ROWS = 1 << 16


class Ticket:
    """Rows of a batch stay in their slots until it is released, or forgotten."""

    __slots__ = ("_cache", "_number")

    def __init__(self, cache: Any, number: int) -> None:
        self._cache = cache
        self._number = number

    def release(self) -> None:
        """Rows may go. May be called twice."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.release(self._number)

    def discard(self) -> None:
        """Rows may go, and the batch does not count: it was refused."""
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.discard(self._number)

    def keep(self) -> None:
        """It does not matter any more whether this object lives."""
        self._cache = None

    @property
    def released(self) -> bool:
        """Whether the rows may have gone."""
        return self._cache is None

    def __del__(self) -> None:
        self.release()


class Slots:
    """Slots for some of the rows of a :class:`RowFile`.

    What is in the slots are parts, as the file has them: the rows [slots, D], and the optimizer's
    state [slots, n] or [slots], of which there may be none. Where they are on the CPU the native
    code moves rows between them and the file; elsewhere they are gathered and scattered by torch.

    Args:
        rows, slots: how many.
        file: of this many rows.
    """

    def __init__(self, rows: int, slots: int, file: RowFile) -> None:
        self.native = RowCache(rows, slots)
        self.file = file
        self.by_copies = False  # also on the CPU (tests)

    def _in_place(self, parts: Sequence[Tensor]) -> bool:
        return parts[0].device.type == "cpu" and not self.by_copies

    def look_up(self, indices: Tensor, use: int, parts: Sequence[Tensor]) -> tuple[Tensor, Ticket]:
        """The slots of the rows of a batch, int32, where they are until the ticket is released.

        Raises: IndexError; ValueError for more distinct rows than slots. No row is changed then,
        and the batch does not count.
        """
        ids = indices.detach().to(device="cpu").contiguous()
        slots = torch.empty(ids.shape, dtype=torch.int32)
        batch = (ids.data_ptr(), ids.numel(), ids.dtype == torch.int64)
        threads = 1 if use == PREFETCH else torch.get_num_threads()
        try:
            if self._in_place(parts):
                addresses = [part.data_ptr() for part in parts]
                number = self.native.begin(
                    *batch, slots.data_ptr(), use, self.file._native, addresses, threads
                )
            else:
                number = self._by_copies(batch, slots, use, parts, threads)
        except CacheFullError:
            raise ValueError(
                f"expected at most {self.native.slots} distinct rows in a batch and those that "
                "wait for their backward pass; got more (make cache_rows larger or the batches "
                "smaller)"
            ) from None
        return slots.to(parts[0].device), Ticket(self.native, number)

    def _by_copies(
        self,
        batch: tuple[int, int, bool],
        slots: Tensor,
        use: int,
        parts: Sequence[Tensor],
        threads: int,
    ) -> int:
        device = parts[0].device
        number, changed, leave, loaded, come = self.native.plan(*batch, use, threads)
        try:
            if len(changed):
                self.file.write(changed, self.gather(parts, leave))
            rows = self.file.read(loaded, len(parts)) if len(loaded) else []
            places = torch.from_numpy(come).long().to(device)
            rows = [row.to(device) for row in rows]
        except BaseException:
            self.native.cancel(number)
            raise
        for part, row in zip(parts, rows, strict=False):
            # With .data the version stays: what a waiting batch has looked up is in other slots.
            part.data.view(len(part), -1).index_copy_(0, places, row)
        self.native.finish(number, *batch, slots.data_ptr())
        return number

    def gather(self, parts: Sequence[Tensor], slots: np.ndarray) -> list[Tensor]:
        """What is in these slots, on the CPU: [N, ...] each."""
        places = torch.from_numpy(slots).long().to(parts[0].device)
        return [part.detach().index_select(0, places).cpu() for part in parts]

    def write_changed(self, parts: Sequence[Tensor]) -> None:
        """Writes the rows that have changed since they were loaded or written."""
        if self.file.read_only:
            return
        if self._in_place(parts):
            addresses = [part.data_ptr() for part in parts]
            self.native.write_changed(self.file._native, addresses, torch.get_num_threads())
            return
        ids, slots = self.native.changed()
        for start in range(0, len(ids), _CHUNK_ROWS):
            end = start + _CHUNK_ROWS
            self.file.write(ids[start:end], self.gather(parts, slots[start:end]))
        self.native.cleaned(ids)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The slots of rows [N], int32; -1 where they are not here. Raises: IndexError."""
        return self.native.find(ids)

    def set_rows(self, ids: np.ndarray, rows: Tensor, values: Tensor) -> None:
        """Sets those of the rows that are here: ids [N], values [N, D] for ``rows`` [slots, D]."""
        slots = self.find(ids)
        here = np.flatnonzero(slots >= 0)
        if len(here):
            places = torch.from_numpy(slots[here]).long().to(rows.device)
            chosen = values[torch.from_numpy(here).to(values.device)]
            rows.index_copy_(0, places, chosen.to(rows.device))
            self.native.touch_changed(ids[here])
