"""A table that is packed once and searched often."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops import _cosine_topk as registered
from vecsmith.ops._cells import Cells
from vecsmith.ops._registry import BackendUnavailable, native
from vecsmith.ops.cosine_topk import TopK, _check_tables, cosine_topk, exclusions


class PackedRows:
    """A vocabulary [V, D] for :func:`cosine_topk`, packed for the first pass: what is asked again
    and again need not read the whole table.

    On the CPU the packed copy (bytes, bfloat16 or float32, what the processor multiplies fastest
    and the rows allow) takes a quarter, a half or all of a float32 table's memory. The table itself
    is kept by reference: scores come from its rows. Elsewhere, and without the native module,
    nothing is packed and searches are those of :func:`cosine_topk`.

    Rows may change. In-place operations of torch on the table, or on what shares its version
    counter, are seen: the next search packs all rows anew, unless :meth:`repack` was told which.
    What torch does not see (``.data``, NumPy, raw pointers, tensors made in inference mode) has to
    be told. Any number of threads may search at once, but not while rows change.

    Args:
        table: [V, D] of float32, float64, bfloat16 or float16, V >= 1, with unit stride along D.
        metric: "cosine", "dot" or "l2".
        banned: bool [V], rows that are never found and may hold anything; kept by reference. After
            a change, :meth:`repack` those rows.
        num_threads: default ``torch.get_num_threads()``.

    Raises:
        TypeError, ValueError: wrong types, shapes, metric.
    """

    def __init__(
        self,
        table: Tensor,
        *,
        metric: str = "cosine",
        banned: Tensor | None = None,
        num_threads: int | None = None,
    ) -> None:
        if metric not in registered.METRICS:
            names = ", ".join(repr(m) for m in registered.METRICS)
            raise ValueError(f"PackedRows: expected metric to be one of {names}; got {metric!r}")
        if num_threads is not None:
            check.threads("PackedRows", num_threads)
        self.metric, self.num_threads = metric, num_threads
        self._lock = threading.RLock()  # of what is packed
        self._set_table(table, banned)
        self._forget()

    def _set_table(self, table: Tensor, banned: Tensor | None) -> None:
        check.table("PackedRows", "table", table)
        _check_tables("PackedRows", table[:0], table)
        if banned is not None:
            check.tensor("PackedRows", "banned", banned, torch.bool, (len(table),), like=table)
        self.table, self.banned = table.detach(), banned

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _forget(self) -> None:
        self._unit, self._level = -1, ""
        self._panels = self._center = torch.empty(0)
        self._seen: int | None = None

    # --- what is packed -----------------------------------------------------------------------

    @property
    def can_be_packed(self) -> bool:
        """Whether there is a native module for these rows."""
        if self.table.device.type != "cpu":
            return False
        try:
            native()
        except BackendUnavailable:
            return False
        return True

    @property
    def is_packed(self) -> bool:
        """Whether the packed rows are those of the table, as far as torch sees its changes, and
        made for the ISA level that is used now."""
        return (
            self._unit >= 0
            and self._seen == _version(self.table)
            and self._level == native().isa_level()
        )

    @property
    def unit(self) -> str | None:
        """ "float32", "bfloat16" or "int8", what the first pass multiplies; None: not packed."""
        return (*_UNITS, None)[self._unit]

    @property
    def nbytes(self) -> int:
        """Of the packed rows, the table apart."""
        return self._panels.numel()

    @property
    def layout(self) -> dict[str, Any]:
        """What another process has to have in common to use the packed rows (:meth:`adopt`)."""
        return self._layout(self._unit, self._level)

    def _layout(self, unit: int, level: str) -> dict[str, Any]:
        rows, words, size = native().cosine_topk_layout(unit, self.table.shape[1])
        return {
            "version": _LAYOUT_VERSION,
            "level": level,
            "unit": _UNITS[unit],
            "panel_rows": rows,
            "panel_words": words,
            "panel_bytes": size,
        }

    def _vocabulary(self, first: int = 0, panels: int = 0) -> tuple[Any, ...]:
        """The rows from the first one on, as the native module takes them."""
        banned = None if self.banned is None else self.banned[first:]
        return (
            registered.rows_of(self.table[first:]),
            registered.METRICS.index(self.metric),
            registered.address(banned),
            panels,
            registered.address(self._center),
            max(self._unit, 0),
        )

    def _threads(self) -> int:
        return self.num_threads or torch.get_num_threads()

    # --- packing ------------------------------------------------------------------------------

    def pack(self, *, unit: str | None = None, room: int = 0) -> None:
        """Pack all rows. Nothing, where :attr:`can_be_packed` is false.

        Args:
            unit: force "float32", "bfloat16" or "int8".
            room: rows that memory is set aside for; :meth:`extend` uses it.

        Raises:
            ValueError: a row that is not finite, by its index; with dot and l2 a row longer than
                1e18. Nothing is packed then.
        """
        if unit is not None and unit not in _UNITS:
            raise ValueError(f"PackedRows: expected unit to be one of {_UNITS}; got {unit!r}")
        if unit == "int8" and self.table.shape[1] > _MOST_BYTES:
            raise ValueError(
                f"PackedRows: expected unit 'int8' with D of at most {_MOST_BYTES}, whose sums fit "
                f"32 bits; got D={self.table.shape[1]}"
            )
        with self._lock:
            self._forget()
            if self.can_be_packed:
                self._pack(unit, room)

    def _pack(self, unit: str | None, room: int) -> None:
        seen = _version(self.table)
        try:
            self._center = torch.zeros((self.table.shape[1] + 127) // 64 * 64)
            chosen = native().cosine_topk_choose(self._vocabulary())
            self._unit = chosen if unit is None else _UNITS.index(unit)
            self._level = native().isa_level()
            layout = self.layout
            count = -(-max(room, len(self.table)) // layout["panel_rows"])
            self._panels = torch.empty(count * layout["panel_bytes"], dtype=torch.uint8)
            self._pack_from(0)
        except BaseException:
            self._forget()
            raise
        self._seen = seen

    def _pack_from(self, first: int) -> None:
        """All rows of the panel that holds row `first`, and those behind it."""
        layout = self.layout
        panel = first // layout["panel_rows"]
        at = self._panels.data_ptr() + panel * layout["panel_bytes"]
        given = self._vocabulary(panel * layout["panel_rows"], at)
        native().cosine_topk_pack(given, 0, 0, self._threads())

    def repack(self, rows: Tensor) -> None:
        """Pack these rows of the table again, and take all others for unchanged.

        Args:
            rows: int64 [n], contiguous, on the CPU; any order, some twice.

        Raises:
            IndexError: a row that the table has not.
            ValueError: as :meth:`pack`; no row is packed then.
        """
        like = torch.empty(0, dtype=torch.int64)
        check.tensor("PackedRows.repack", "rows", rows, torch.int64, (None,), like=like)
        check.ids("PackedRows.repack", "rows", rows, 0, len(self.table))
        with self._lock:
            if self._unit < 0 or self._level != native().isa_level():
                return  # all of them will be packed
            seen = _version(self.table)
            if len(rows):
                given = self._vocabulary(0, self._panels.data_ptr())
                try:
                    native().cosine_topk_pack(given, rows.data_ptr(), len(rows), self._threads())
                except ValueError:
                    self._forget()
                    raise
            self._seen = seen

    def extend(self, table: Tensor, banned: Tensor | None = None) -> None:
        """Put a longer table in this one's place, whose first rows are the same. Only the rows
        behind them are packed where there is room; else all, with room for half as many again.

        Raises:
            ValueError: a table that is shorter, or of other D or dtype; as :meth:`pack`.
        """
        with self._lock:
            self._extend(table, banned)

    def _extend(self, table: Tensor, banned: Tensor | None) -> None:
        before, packed, old = len(self.table), self.is_packed, self.table
        if len(table) < before or table.shape[1:] != old.shape[1:] or table.dtype != old.dtype:
            raise ValueError(
                f"PackedRows.extend: expected at least {before} rows of D={old.shape[1]}, "
                f"{old.dtype}; got {list(table.shape)}, {table.dtype}"
            )
        self._set_table(table, banned)
        if not packed:
            return self._forget()
        if len(table) == before:
            self._seen = _version(self.table)
            return
        layout = self.layout
        if -(-len(table) // layout["panel_rows"]) * layout["panel_bytes"] > len(self._panels):
            return self.pack(room=len(table) + len(table) // 2)
        seen = _version(self.table)
        try:
            self._pack_from(before)
        except ValueError:
            self._forget()
            raise
        self._seen = seen

    def state(self) -> dict[str, Tensor]:
        """The packed rows, for :meth:`adopt`; empty where nothing is packed."""
        if not self.is_packed:
            return {}
        return {"panels": self._panels[: self._panel_bytes(self.layout)], "center": self._center}

    def _panel_bytes(self, layout: dict[str, Any]) -> int:
        return -(-len(self.table) // layout["panel_rows"]) * layout["panel_bytes"]

    def adopt(self, state: dict[str, Tensor], layout: dict[str, Any]) -> bool:
        """Take packed rows that :meth:`state` has given elsewhere, of the same table and metric.

        Returns:
            Whether their layout is that of this machine; else nothing is changed.

        Raises:
            ValueError: they are not what that layout says.
        """
        if not self.can_be_packed or layout.get("unit") not in _UNITS:
            return False
        unit = _UNITS.index(layout["unit"])
        if layout != self._layout(unit, native().isa_level()):
            return False
        center = (self.table.shape[1] + 127) // 64 * 64
        expected = {
            "panels": (torch.uint8, (self._panel_bytes(layout),)),
            "center": (torch.float32, (center,)),
        }
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        if found != expected:
            raise ValueError(f"PackedRows.adopt: expected {expected}; got {found}")
        self._panels, self._center = state["panels"], state["center"]
        self._unit, self._level = unit, layout["level"]
        self._seen = _version(self.table)
        return True

    # --- searching ----------------------------------------------------------------------------

    @torch.no_grad()
    def search(
        self,
        queries: Tensor,
        k: int = 1,
        *,
        banned: Tensor | None = None,
        exclude: Tensor | Sequence[Sequence[int]] | Cells | None = None,
    ) -> TopK:
        """As :func:`cosine_topk`, without gradients. Rows that are not packed yet are packed now.

        Args:
            queries: [..., D]; k: 1..V; exclude: all as there.
            banned: bool [V], besides those of the constructor.
        """
        name = "PackedRows.search"
        if banned is not None:
            check.tensor(name, "banned", banned, torch.bool, (len(self.table),), like=self.table)
            banned = banned if self.banned is None else banned | self.banned
        else:
            banned = self.banned
        if not self.can_be_packed:
            return cosine_topk(
                *(queries, self.table, k),
                metric=self.metric,
                banned=banned,
                exclude=exclude,
                num_threads=self.num_threads,
            )
        _check_tables(name, queries, self.table)
        check.integer(name, "k", k, low=1)
        if k > len(self.table):
            raise ValueError(f"{name}: expected k of at most V={len(self.table)} rows; got {k}")
        offsets, excluded = exclusions(name, exclude, queries, len(self.table))
        with self._lock:
            if not self.is_packed:
                self.pack()
            # These stay alive, and what they are, should somebody else pack meanwhile.
            panels, center, unit = self._panels, self._center, self._unit
        values, indices = registered.search_native(
            queries.reshape(-1, queries.shape[-1]),
            *(self.table, k, self.metric, banned, offsets, excluded, self._threads()),
            packed=(panels.data_ptr(), center.data_ptr(), unit),
        )
        shape = (*queries.shape[:-1], k)
        return TopK(values.view(shape), indices.view(shape))


# What packed rows mean; to be raised when the native module packs them otherwise.
_LAYOUT_VERSION = 1
_MOST_BYTES = 65536
_UNITS = ("float32", "bfloat16", "int8")


def _version(table: Tensor) -> int:
    """Counts in-place operations on a table."""
    return 0 if table.is_inference() else table._version
