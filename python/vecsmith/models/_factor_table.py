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

_AT_ONCE = 1 << 21  # numbers that are made doubles together


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
        self._packed: dict[str, ops.PackedRows] = {}
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
            self._packed.clear()
            self._gram = None
            self._lent = {part: held for part, held in self._lent.items() if held() is not None}

    def packed(self, metric: str, num_threads: int | None = None) -> ops.PackedRows:
        """For searches by "dot" (all columns) or by "cosine" (the factors)."""
        with self._lock:
            self._forget()
            if metric not in self._packed:
                rows = self.tensor if metric == "dot" else self.factors
                self._packed[metric] = ops.PackedRows(rows, metric=metric)
            packed = self._packed[metric]
            packed.num_threads = num_threads
            return packed

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
