"""A matrix as low-rank factorizations see it: something that vectors are multiplied with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.ops._cells import cells_of

_CHUNK = 1 << 22  # numbers of a dense matrix that are centered together
_CELLS = 1 << 15  # and of a sparse one: they stay in the cache


def as_array(data: Any) -> Any:
    """What scikit-learn's checks take: of a torch tensor the NumPy array or scipy matrix (shared
    where dtype and device allow), of anything else itself."""
    if not isinstance(data, Tensor):
        return data
    data = data.detach().cpu()
    if data.dtype in (torch.bfloat16, torch.float16):
        data = data.float()
    if data.layout == torch.strided:
        return data.numpy()
    import scipy.sparse

    if data.dim() != 2:
        raise ValueError(f"expected a matrix; got a sparse tensor of {data.dim()} dimensions")
    if data.layout not in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        raise ValueError(f"expected a dense, COO, CSR or CSC tensor; got one of {data.layout}")
    data = data.coalesce() if data.layout == torch.sparse_coo else data
    if data.layout not in (torch.sparse_csr, torch.sparse_csc):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR layout beta
            data = data.to_sparse_csr()
    if data.layout == torch.sparse_csc:
        parts = (data.values(), data.row_indices(), data.ccol_indices())
        kind: Any = scipy.sparse.csc_matrix
    else:
        parts = (data.values(), data.col_indices(), data.crow_indices())
        kind = scipy.sparse.csr_matrix
    return kind(tuple(part.numpy() for part in parts), shape=tuple(data.shape))


def as_given(result: np.ndarray, data: Any) -> Any:
    """The answer, of the kind of the question: a tensor on the same device for a tensor."""
    return torch.from_numpy(result).to(data.device) if isinstance(data, Tensor) else result


class Matrix:
    """X - 1 c^T for a matrix X [m, n] and a row c [n] that is taken off every row, never written
    out.

    Args:
        data: an array, or a scipy CSR or CSC matrix; float32 or float64, finite.
        offset: c, of any float dtype, or None for zeros.

    Attributes:
        shape: (m, n).
        dtype: of the products.
        sparse: whether X is.
    """

    def __init__(self, data: Any, offset: np.ndarray | None = None) -> None:
        self.shape: tuple[int, int] = tuple(data.shape)
        self.sparse = not isinstance(data, np.ndarray)
        self._offset = None if offset is None else torch.from_numpy(offset.astype(data.dtype))
        # [the matrix, its transpose], as they are multiplied with
        self._ways: list[Any] = [None, None]
        if self.sparse:
            way = 0 if data.format == "csr" else 1
            self._ways[way], self._ways[1 - way] = _distinct_rows(data if way == 0 else data.T)
        else:
            if not data.flags.writeable or min(data.strides, default=0) < 0:
                data = data.copy()  # torch has neither
            dense = torch.from_numpy(data)
            self._ways = [dense, dense.T]
        self._data = data
        self.dtype: torch.dtype = torch.from_numpy(np.empty(0, data.dtype)).dtype

    @property
    def rows(self) -> Rows:
        """X by rows, where it is sparse."""
        return self._way(0)

    @property
    def dense(self) -> Tensor:
        """X, where it is dense; not to be written into."""
        return self._ways[0]

    def less(self, offset: np.ndarray) -> Matrix:
        """The same X with another c; what was made of X is shared."""
        other = copy.copy(self)
        other._offset = torch.from_numpy(offset.astype(self._data.dtype))
        return other

    def times(self, right: Tensor) -> Tensor:
        """(X - 1 c^T) right: [m, b] from [n, b]."""
        product = self._product(0, right)
        return product if self._offset is None else product.sub_(self._offset @ right)

    def transposed_times(self, left: Tensor) -> Tensor:
        """(X - 1 c^T)^T left: [n, b] from [m, b]."""
        product = self._product(1, left)
        if self._offset is not None:
            product.addr_(self._offset, left.sum(0), alpha=-1)
        return product

    def _product(self, way: int, right: Tensor) -> Tensor:
        if self.sparse:
            return csr_product(self._way(way), right)
        return self._ways[way] @ right

    def _way(self, way: int) -> Rows:
        """The sparse matrix (0) or its transpose (1), by rows."""
        if self._ways[way] is None:
            self._ways[way] = self._ways[1 - way].transposed()
        return self._ways[way]

    def column_means(self) -> np.ndarray:
        """Of X itself, [n] in its dtype, summed in float64."""
        m = self.shape[0]
        if not self.sparse:
            return self._data.mean(axis=0, dtype=np.float64).astype(self._data.dtype)
        back = self._way(1)
        sums = csr_product(back.with_values(back.values.double()), torch.ones(m, 1).double())
        return (sums[:, 0] / m).numpy().astype(self._data.dtype)

    def squared_norm(self) -> float:
        """|X - 1 c^T|_F^2, summed in float64."""
        m, n = self.shape
        offset = np.zeros(n) if self._offset is None else self._offset.double().numpy()
        if not self.sparse:
            squares, step = 0.0, max(1, _CHUNK // max(n, 1))
            for begin in range(0, m, step):
                part = self._data[begin : begin + step].astype(np.float64)
                part -= offset
                squares += float(np.vdot(part, part))
            return squares
        # Each (x - c)^2 of what is stored, and c^2 of what is not: nothing cancels.
        _, indices, values = self._way(0).parts()
        center, squares = torch.from_numpy(offset), 0.0
        for begin in range(0, len(values), _CELLS):
            part = values[begin : begin + _CELLS].double()
            if self._offset is not None:
                part = part - center[indices[begin : begin + _CELLS]]
            squares += float(part @ part)
        if self._offset is None:
            return squares
        counts = self._way(1).parts()[0].diff().double()
        return squares + float((m - counts) @ center.square())

    def gram(self) -> Tensor:
        """The product of X - 1 c^T with its transpose over the longer side, float64
        [min(m, n), min(m, n)], from blocks of at most some megabytes."""
        m, n = self.shape
        side = min(m, n)
        gram = torch.zeros(side, side, dtype=torch.float64)
        if not self.sparse:
            dense = self._ways[0] if n <= m else self._ways[1]  # [longer, shorter]
            step = max(1, _CHUNK // max(side, 1))
            for begin in range(0, dense.shape[0], step):
                part = dense[begin : begin + step].double()
                if self._offset is not None:
                    offset = self._offset.double()
                    part = part - (offset if n <= m else offset[begin : begin + step, None])
                gram.addmm_(part.T, part)
            return gram
        double = self._double()
        step = max(1, _CHUNK // max(m, n))
        for begin in range(0, side, step):
            end = min(begin + step, side)
            unit = torch.zeros(side, end - begin, dtype=torch.float64)
            unit[torch.arange(begin, end), torch.arange(end - begin)] = 1
            if n <= m:
                gram[:, begin:end] = double.transposed_times(double.times(unit))
            else:
                gram[:, begin:end] = double.times(double.transposed_times(unit))
        return (gram + gram.T) / 2

    def _double(self) -> Matrix:
        """The same sparse matrix with numbers of float64; shares where they are."""
        other = copy.copy(self)
        other.dtype = torch.float64
        other._offset = None if self._offset is None else self._offset.double()
        ways = (self._way(way) for way in (0, 1))
        other._ways = [way.with_values(way.values.double()) for way in ways]
        return other

    def written_out(self) -> Iterator[Tensor]:
        """The rows of a sparse X - 1 c^T, or of its transpose where that is the longer side, in
        blocks [b, min(m, n)] of at most some megabytes, but of four times as many rows as
        columns."""
        m, n = self.shape
        rows = self._way(0 if n <= m else 1).scipy()
        step = max(4 * min(m, n), _CHUNK // max(min(m, n), 1))
        for begin in range(0, max(m, n), step):
            part = torch.from_numpy(rows[begin : begin + step].toarray())
            if self._offset is not None:
                part -= self._offset if n <= m else self._offset[begin : begin + step, None]
            yield part


class Rows:
    """A CSR matrix [m, n] as ``spmm`` takes it: ``cells``, checked once, and its ``values`` [nnz].
    Shares memory with what it was made from."""

    def __init__(self, cells: ops.Cells, values: Tensor | None = None) -> None:
        self.cells = cells
        self.values = cells.values if values is None else values

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.cells.shape

    def with_values(self, values: Tensor) -> Rows:
        """Other values in the same cells."""
        return Rows(self.cells, values)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """(indptr, indices, values)."""
        return self.cells.indptr, self.cells.indices, self.values

    def transposed(self) -> Rows:
        """The transpose, columns sorted."""
        return Rows.of(self.scipy().T.tocsr())

    def scipy(self) -> Any:
        """The same as a scipy CSR matrix."""
        import scipy.sparse

        indptr, indices, values = (part.numpy() for part in self.parts())
        return scipy.sparse.csr_matrix((values, indices, indptr), shape=self.shape)

    @classmethod
    def of(cls, csr: Any, *, ordered: bool = True) -> Rows:
        """From a scipy CSR matrix of float32 or float64; ordered: as of ``cells_of``."""
        return cls(cells_of("Matrix", csr, ordered=ordered))


def _distinct_rows(csr: Any) -> tuple[Rows, Rows | None]:
    """A scipy CSR matrix in which no cell comes twice, and its transpose where that was made to see
    it. Columns may be in any order: products do not mind, and sorting costs more than they do."""
    if csr.has_canonical_format:
        return Rows.of(csr), None
    import scipy.sparse

    given = scipy.sparse.csr_matrix((csr.data, csr.indices, csr.indptr), csr.shape, copy=False)
    rows = Rows.of(given, ordered=False)
    turned = given.T.tocsr()  # which sorts
    if turned.has_canonical_format:
        return rows, Rows.of(turned)
    summed = csr.copy()
    summed.sum_duplicates()  # squares of pieces do not add up to those of cells
    return Rows.of(summed), None


def csr_product(rows: Rows, right: Tensor) -> Tensor:
    """[m, b] = rows [m, n] times ``right`` [n, b], both of one float dtype; over
    ``torch.get_num_threads()``."""
    return ops.spmm(rows.cells, right, rows.values)
