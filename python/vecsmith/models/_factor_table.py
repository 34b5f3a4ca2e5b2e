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
from vecsmith.models._checkpoint import is_finite
from vecsmith.ops._cells import trusted_cells

_AT_ONCE = 1 << 21  # numbers that are made doubles together
# Of a table, as far as it is known: its version, its address, writes that had no version.
_State = tuple[int, int, int]
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
        """As :meth:`vecsmith.ops.PackedRows.search`, by the rows of the table: of equal products
        the lower row comes first."""
        alone = len(queries) * self._table.numel() < _ALONE
        self._packed.num_threads = 1 if alone else num_threads
        found = self._packed.search(
            queries,
            min(k + 1, len(self._table)),  # one more says whether the last one has an equal
            banned=None if banned is None else banned[self.order],
            exclude=None if exclude is None else self._renumbered(exclude),
        )
        values, there = found.values, found.indices >= 0
        indices = torch.where(there, self.order[found.indices.clamp_min(0)], -1)
        equal = (values[:, 1:] == values[:, :-1]) & there[:, 1:]
        ties = equal.any(1).nonzero()[:, 0]
        if len(ties):
            indices[ties] = _ordered_ties(values[ties], indices[ties])
        zeros = (queries == 0).all(1)
        # Which of the equals are found is decided among all of them, in the table's order. To a
        # query of zeros all are, by any column.
        beyond = equal[:, k - 1 :].any(1) & ~zeros
        values, indices = values[:, :k].contiguous(), indices[:, :k].contiguous()
        for rows, columns in ((beyond, None), (zeros, 1)):
            rows = rows.nonzero()[:, 0]
            if len(rows):
                own = None if exclude is None else cells_of_rows(exclude, rows)
                asked = (queries[rows, :columns], self._table[:, :columns], k)
                masks = {"banned": banned, "exclude": own}
                values[rows], indices[rows] = ops.cosine_topk(
                    *asked, metric="dot", num_threads=num_threads, **masks
                )
        return ops.TopK(values, indices)

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


def _ordered_ties(values: Tensor, indices: Tensor) -> Tensor:
    """Indices [n, k] of values that fall in each row, equal ones by the index."""
    by_index = indices.argsort(dim=1)
    by_value = values.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, by_index.gather(1, by_value))


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
    table. In-place operations of torch are seen by the table's version, another tensor as its
    ``.data`` by the address. NumPy counts nothing, but an array that was handed out can only be
    written to while somebody holds it, or a view of it: until it is gone every search reads the
    table once, to see whether its rows have the hashes that they had.
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
        self._near: tuple[_State, ops.PackedRows] | None = None
        self._ordered: tuple[_State, OrderedRows] | None = None
        self._gram: tuple[_State, Tensor, Tensor] | None = None
        # The hashes of the rows in a state of the parameter, and how often others were found in it.
        self._hashes: tuple[tuple[int, int], np.ndarray] | None = None
        self._writes = 0
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
        with self._lock:
            found = self.lent(part)
            if found is not None:
                return found
            tensor = self.factors if part == "factors" else self.tensor[:, self.width]
            array = tensor.cpu().numpy()
            if self.parameter.device.type != "cpu":
                array.flags.writeable = False
                return array
            made = (self._near, self._ordered, self._gram)
            if not self._lent and any(kept is not None for kept in made):
                self._rehash()  # as what was made knows the table
            self._lent[part] = weakref.ref(array)
            return array

    def lent(self, part: str) -> np.ndarray | None:
        """The array that was handed out, if somebody holds it."""
        reference = self._lent.get(part)
        return None if reference is None else reference()

    def _rehash(self, *, again: bool = False) -> None:
        """Brings the hashes up to date; ``again``: even where torch knows of no change."""
        version = _version(self.parameter)
        known = self._hashes is not None and self._hashes[0] == version
        if known and not again:
            return
        hashes = row_hashes(self.tensor)
        if known and self._hashes is not None and not np.array_equal(self._hashes[1], hashes):
            self._writes += 1
        self._hashes = version, hashes

    def _state(self) -> _State:
        """Another one where the table has changed, or may have."""
        if self._lent:
            # Who is gone now can have written before the hashes are taken, not after.
            self._lent = {part: held for part, held in self._lent.items() if held() is not None}
            self._rehash(again=True)
        return (*_version(self.parameter), self._writes)

    def near(self, num_threads: int | None = None) -> ops.PackedRows:
        """For searches by the cosine of the factors."""
        with self._lock:
            state = self._state()
            if self._near is None or self._near[0] != state:
                self._near = None  # not two of them at a time
                self._near = state, ops.PackedRows(self.factors)
            self._near[1].num_threads = num_threads
            return self._near[1]

    def ordered(self) -> OrderedRows:
        """For searches by the product with all columns."""
        with self._lock:
            state = self._state()
            if self._ordered is None or self._ordered[0] != state:
                self._ordered = None
                self._ordered = state, OrderedRows(self.tensor)
            return self._ordered[1]

    def gram(self) -> Tensor:
        """Y^T Y of all columns, float64."""
        with self._lock:
            state = self._state()
            if self._gram is None or self._gram[0] != state:
                # With the table: no other one comes to its address meanwhile.
                self._gram = state, self.tensor, gram_matrix(self.tensor)
            return self._gram[2]

    def extended(self, count: int) -> FactorTable:
        """A table of so many rows: these, and then zeros. Raises MemoryError."""
        columns = self.tensor.shape[1]
        try:
            table = self.tensor.new_zeros(count, columns)
        except RuntimeError as error:  # torch's word for it
            raise MemoryError(
                f"expected memory for {count} rows of {columns} numbers; got none ({error})"
            ) from None
        table[: len(self)] = self.tensor
        return FactorTable(table, self.width)


def check_given(name: str, table: Tensor) -> None:
    """Raises ValueError for a tensor [n, columns] that cannot be somebody's table."""
    good = table.layout == torch.strided
    good = good and (len(table) < 2 or table.stride(0) >= table.shape[1])
    if not good or (table.shape[1] > 1 and table.stride(1) != 1):
        got = f"strides {table.stride()}" if table.layout == torch.strided else str(table.layout)
        raise ValueError(
            f"expected {name} whose rows have memory of their own, each in one piece; got {got}"
        )
    if table.is_inference():
        raise ValueError(
            f"expected {name} that torch counts the changes of; got a tensor of inference mode "
            "(clone() it outside)"
        )
    for part in table.detach().split(max(1, _AT_ONCE // table.shape[1])):
        if not is_finite(part):
            raise ValueError(f"expected finite {name}; got nan or inf")


def gram_matrix(table: Tensor) -> Tensor:
    """table^T table [f, f] in float64, of a table [n, f] of which no copy is made."""
    f = table.shape[1]
    total = torch.zeros(f, f, dtype=torch.float64, device=table.device)
    for part in table.split(max(1, _AT_ONCE // max(f, 1))):
        rows = part.double()
        total += rows.T @ rows
    return total


def row_hashes(table: Tensor) -> np.ndarray:
    """uint64 [n]: of each row of a table [n, columns] on the CPU, with unit stride along its
    columns, sum_j w_j b_j modulo 2^64 with the words b_j of its bits. All w_j are odd: where one
    word has changed, the sum has."""
    array = table.numpy()
    whole = array.shape[1] * array.itemsize // 8 * 8 // array.itemsize
    weights = np.random.default_rng(0).integers(0, 1 << 64, whole + 1, np.uint64) | np.uint64(1)
    found = np.zeros(len(array), np.uint64)
    if len(array) and whole:
        words = array[:, :whole].view(np.uint64)
        found += words @ weights[: words.shape[1]]
    if len(array) and whole < array.shape[1]:
        found += array[:, whole].view(np.uint32) * weights[-1]
    return found


def _version(table: Tensor) -> tuple[int, int]:
    """Of a table's memory: how often torch has written to it, and where it is."""
    return 0 if table.is_inference() else table._version, table.data_ptr()
