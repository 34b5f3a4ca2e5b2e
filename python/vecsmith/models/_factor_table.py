"""The factors of one side of a matrix factorization: a Parameter, the array that shares its memory,
and what is kept of them for searching."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith import ops
from vecsmith.ops._cells import trusted_cells

_AT_ONCE = 1 << 21  # numbers that are made doubles together
# So many products are computed before a second thread has begun.
_ALONE = 1 << 23


class OrderedRows:
    """A table [n, columns] for searches by product, packed in another order: rows far from the mean
    first. No other row can have the greatest products, so that what it takes to be among the best
    is known early, and most rows are dropped at first sight. The sorted copy is what is packed."""

    def __init__(self, table: Tensor) -> None:
        mean = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
        parts = table.split(max(1, _AT_ONCE // max(table.shape[1], 1)))
        for part in parts:
            mean += part.double().sum(0)
        mean = mean / max(len(table), 1)
        far = torch.cat([(part.double() - mean).square().sum(1) for part in parts])
        self.order = far.argsort(descending=True, stable=True)
        self._ranks = torch.empty_like(self.order)
        self._ranks[self.order] = torch.arange(len(table), device=table.device)
        self._table = table
        self._packed = ops.PackedRows(table[self.order], metric="dot")

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        banned: Tensor | None,
        exclude: ops.Cells | None,
        num_threads: int | None,
    ) -> ops.TopK:
        """As :meth:`vecsmith.ops.PackedRows.search`, by the rows of the table."""
        alone = len(queries) * self._table.numel() < _ALONE
        self._packed.num_threads = 1 if alone else num_threads
        found = self._packed.search(
            queries,
            k,
            banned=None if banned is None else banned[self.order],
            exclude=None if exclude is None else self._renumbered(exclude),
        )
        indices = torch.where(found.indices >= 0, self.order[found.indices.clamp_min(0)], -1)
        zeros = (queries == 0).all(1).nonzero()[:, 0]
        if len(zeros):
            # All rows are as good: the first ones are asked for, not the first in this order.
            own = None if exclude is None else cells_of_rows(exclude, zeros)
            some = (queries[zeros, :1], self._table[:, :1], k)
            masks = {"banned": banned, "exclude": own}
            indices[zeros] = ops.cosine_topk(*some, metric="dot", **masks).indices
        return ops.TopK(found.values, indices)

    def _renumbered(self, cells: ops.Cells) -> ops.Cells:
        """With the columns that are rows of the table at their place in this order."""
        from scipy import sparse

        columns = self._ranks[cells.indices.long()].to(torch.int32).cpu().numpy()
        # sort_indices sorts in place.
        parts = (np.empty(len(columns), np.int8), columns, cells.indptr.cpu().numpy())
        matrix = sparse.csr_matrix(parts, shape=cells.shape, copy=False)
        matrix.has_sorted_indices = False
        matrix.sort_indices()
        indices = torch.from_numpy(matrix.indices).to(cells.indices.device)
        return trusted_cells(cells.indptr, indices, cells.values, cells.shape)


def cells_of_rows(cells: ops.Cells, rows: Tensor) -> ops.Cells:
    """The cells of these rows, in their order."""
    starts = cells.indptr.long()
    lengths = starts.diff()[rows]
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    at = torch.arange(int(indptr[-1]), device=rows.device)
    at = at + torch.repeat_interleave(starts[rows] - indptr[:-1], lengths)
    shape = (len(rows), cells.shape[1])
    return trusted_cells(indptr, cells.indices[at], cells.values[at], shape)


class FactorTable:
    """A table [n, columns], of whose columns the first ``width`` are factors; the others belong to
    the row, too (a bias).

    What is packed for searches is made when it is asked for, and again after a change of the
    table. In-place operations of torch are seen by the table's version. NumPy counts nothing, but
    an array that was handed out can only be written to while somebody holds it, or a view of it:
    until it is gone whatever is kept is made anew each time.
    """

    def __init__(self, table: Tensor, width: int | None = None) -> None:
        if not isinstance(table, nn.Parameter):
            # NumPy's arrays of no rows have strides of 0.
            table = table.detach() if len(table) else table.new_empty(table.shape)
            table = nn.Parameter(table)
        self.parameter = table
        self.width = table.shape[1] if width is None else width
        # weakref.ref of the arrays that were handed out, by the name of their part
        self._lent: dict[str, weakref.ref[np.ndarray]] = {}
        self._near: ops.PackedRows | None = None
        self._ordered: tuple[int, OrderedRows] | None = None
        self._gram: tuple[int, Tensor] | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"parameter": self.parameter, "width": self.width}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["parameter"], state["width"])

    def __len__(self) -> int:
        return len(self.parameter)

    @property
    def tensor(self) -> Tensor:
        """[n, columns], the parameter's memory, without gradients."""
        return self.parameter.detach()

    @property
    def factors(self) -> Tensor:
        """[n, width], the parameter's memory, without gradients."""
        return self.tensor[:, : self.width]

    def array(self, part: str) -> np.ndarray:
        """ "factors" [n, width], or "biases" [n]: over the parameter's memory; from a GPU a copy
        that cannot be written to."""
        found = self.lent(part)
        if found is not None:
            return found
        tensor = self.factors if part == "factors" else self.tensor[:, self.width]
        array = tensor.cpu().numpy()
        if self.parameter.device.type == "cpu":
            self._lent[part] = weakref.ref(array)
        else:
            array.flags.writeable = False
        return array

    def lent(self, part: str) -> np.ndarray | None:
        """The array that was handed out, if somebody holds it."""
        reference = self._lent.get(part)
        return None if reference is None else reference()

    def _forget(self) -> None:
        """Lets go of what may have changed without a trace."""
        if self._lent:
            self._near = self._ordered = self._gram = None
            self._lent = {part: held for part, held in self._lent.items() if held() is not None}

    def near(self, num_threads: int | None = None) -> ops.PackedRows:
        """For searches by the cosine of the factors."""
        with self._lock:
            self._forget()
            if self._near is None:
                self._near = ops.PackedRows(self.factors)
            self._near.num_threads = num_threads
            return self._near

    def ordered(self) -> OrderedRows:
        """For searches by the product with all columns."""
        with self._lock:
            self._forget()
            version = _version(self.parameter)
            if self._ordered is None or self._ordered[0] != version:
                self._ordered = None  # not two of them at a time
                self._ordered = version, OrderedRows(self.tensor)
            return self._ordered[1]

    def gram(self) -> Tensor:
        """Y^T Y of all columns, float64."""
        with self._lock:
            self._forget()
            version = _version(self.parameter)
            if self._gram is None or self._gram[0] != version:
                self._gram = version, gram_matrix(self.tensor)
            return self._gram[1]

    def extended(self, count: int) -> FactorTable:
        """A table of so many rows: these, and then zeros."""
        table = self.tensor.new_zeros(count, self.tensor.shape[1])
        table[: len(self)] = self.tensor
        return FactorTable(table, self.width)


def gram_matrix(table: Tensor) -> Tensor:
    """table^T table [f, f] in float64, of a table [n, f] of which no copy is made."""
    f = table.shape[1]
    total = torch.zeros(f, f, dtype=torch.float64, device=table.device)
    for part in table.split(max(1, _AT_ONCE // max(f, 1))):
        rows = part.double()
        total += rows.T @ rows
    return total


def _version(table: Tensor) -> int:
    return 0 if table.is_inference() else table._version
