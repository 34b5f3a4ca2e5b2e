"""The observed cells of a matrix as compressed rows, checked once: what ``als_solve`` reads."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vecsmith.ops import _checks as check

if TYPE_CHECKING:
    from scipy import sparse

# csrc/cpu/als_solve_driver.h
TYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.int8: 2,
    torch.int16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.uint8: 6,
}
_AT_ONCE = 1 << 20  # cells that are looked at together


@dataclass(frozen=True)
class Cells:
    """Cells (row, column, value): those of row u are begin = indptr[u] .. indptr[u + 1] - 1, with
    columns indices[begin:end] and values[begin:end]. No cell comes twice.

    Args:
        indptr: int32 or int64 [rows + 1], rising from 0 to the number of cells.
        indices: int32 or int64 [cells], rising within each row.
        values: [cells], real and finite numbers.
        shape: (rows, columns).

    Raises: TypeError, ValueError: something else.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        op, parts = "Cells", (self.indptr, self.indices, self.values)
        for what, part in zip(("indptr", "indices", "values"), parts, strict=True):
            if not isinstance(part, Tensor):
                raise TypeError(f"{op}: expected {what} to be a tensor; got {type(part).__name__}")
            if part.dim() != 1 or part.device != self.indptr.device:
                raise ValueError(
                    f"{op}: expected {what} in one dimension on {self.indptr.device}; got "
                    f"{list(part.shape)} on {part.device}"
                )
            if what != "values" and part.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"{op}: expected {what} of int32 or int64; got {part.dtype}")
        if len(self.values) != len(self.indices):
            raise ValueError(
                f"{op}: expected a value for each of {len(self.indices)} cells; "
                f"got {len(self.values)}"
            )
        if not _canonical(op, *parts, self.shape):
            raise ValueError(f"{op}: expected the columns of each row to rise")
        found = _checked(op, *parts, self.shape)
        object.__setattr__(self, "values", found.values)

    def __len__(self) -> int:
        return len(self.values)

    def with_values(self, values: Tensor) -> Cells:
        """Other values, finite ones of a dtype in ``TYPES``, in the same cells."""
        return trusted_cells(self.indptr, self.indices, values, self.shape)

    def to(self, device: torch.device) -> Cells:
        """The cells on a device."""
        parts = (self.indptr.to(device), self.indices.to(device), self.values.to(device))
        return trusted_cells(*parts, self.shape)

    def transposed(self) -> Cells:
        """The cells as compressed columns, in memory of their own, sorted."""
        from scipy import sparse

        matrix = sparse.csr_matrix(
            tuple(t.cpu().numpy() for t in (self.values, self.indices, self.indptr)),
            shape=self.shape,
            copy=False,
        )
        back = matrix.T.tocsr()
        indptr, indices, values = map(torch.from_numpy, (back.indptr, back.indices, back.data))
        rows, columns = self.shape
        return trusted_cells(indptr, indices, values, (columns, rows)).to(self.values.device)


def trusted_cells(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Cells:
    """Cells that are known to be what they must be: nothing is looked at."""
    cells = object.__new__(Cells)
    given = {"indptr": indptr, "indices": indices, "values": values, "shape": shape}
    for name, value in given.items():
        object.__setattr__(cells, name, value)
    return cells


def cells_of(op: str, matrix: Any, *, ordered: bool = True) -> Cells:
    """The cells of a scipy.sparse matrix or array, or a torch.sparse tensor, without a copy where
    it is CSR and canonical (sorted columns, none twice). Cells that come twice are added up; those
    that are stored as 0 are cells.

    ordered: False: the cells of a scipy CSR matrix as they lie, in any order, some perhaps twice,
    for those that do not mind.

    Raises:
        TypeError: another kind of matrix, or values that are no real numbers.
        ValueError: rows, columns or values that cannot be; a value that is not finite.
    """
    if isinstance(matrix, Cells):
        return matrix
    if isinstance(matrix, Tensor):
        if matrix.layout == torch.sparse_coo:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
                matrix = matrix.coalesce().to_sparse_csr()
        if matrix.layout != torch.sparse_csr:
            raise TypeError(
                f"{op}: expected a scipy.sparse matrix or a torch.sparse_csr tensor; "
                f"got a tensor of {matrix.layout}"
            )
        if matrix.dim() != 2:
            raise ValueError(f"{op}: expected a matrix; got shape {list(matrix.shape)}")
        indptr, indices = matrix.crow_indices(), matrix.col_indices()
        values = matrix.values().detach()
        if not _canonical(op, indptr, indices, values, matrix.shape):
            from scipy import sparse

            parts = (t.cpu().numpy() for t in (values, indices, indptr))
            cells = cells_of(op, sparse.csr_matrix(tuple(parts), shape=tuple(matrix.shape)))
            return cells.to(matrix.device)
        return _checked(op, indptr, indices, values, (matrix.shape[0], matrix.shape[1]))
    from scipy import sparse

    if not sparse.issparse(matrix):
        raise TypeError(
            f"{op}: expected a scipy.sparse matrix or a torch.sparse_csr tensor; "
            f"got {type(matrix).__name__}"
        )
    if matrix.ndim != 2:
        raise ValueError(f"{op}: expected a matrix; got shape {list(matrix.shape)}")
    found: Any = matrix.tocsr()
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{op}: expected values to be real numbers; got {found.dtype}")
    indptr, indices = (_index_tensor(op, part) for part in (found.indptr, found.indices))
    values = _tensor(found.data)
    # What scipy remembers of a matrix is not true any more where its arrays were written into.
    if not ordered:
        _check_structure(op, indptr, indices, found.shape)
    elif not _canonical(op, indptr, indices, values, found.shape):
        found = _summed(found)
        indptr, indices, values = (_tensor(p) for p in (found.indptr, found.indices, found.data))
    return _checked(op, indptr, indices, values, (int(found.shape[0]), int(found.shape[1])))


def _summed(matrix: Any) -> sparse.csr_matrix:
    """A copy with sorted columns, in which no cell comes twice."""
    from scipy import sparse

    # Sums of a narrow type would go round.
    kind = {"b": np.int64, "i": np.int64, "u": np.float64}.get(matrix.dtype.kind, matrix.dtype)
    parts = (matrix.data.astype(kind), matrix.indices.copy(), matrix.indptr.copy())
    matrix = sparse.csr_matrix(parts, shape=matrix.shape)
    matrix.sum_duplicates()
    return matrix


def _index_tensor(op: str, array: np.ndarray) -> Tensor:
    """Row bounds or columns as a tensor of int32 or int64."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: expected indices that are integers; got {array.dtype}")
    if array.dtype.kind == "u" or array.dtype.itemsize < 4:
        if array.dtype.itemsize == 8 and len(array) and int(array.max()) >= 2**63:
            raise ValueError(f"{op}: expected columns below 2^63; got {int(array.max())}")
        array = array.astype(np.int64)
    return _tensor(array)


def _tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor, over the same memory where torch has its dtype."""
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.float64 if array.dtype.itemsize > 2 else np.int32)
    elif array.dtype == np.longdouble:
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        # It is read alone: memory that is mapped read-only will do.
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.from_numpy(array)


def _check_structure(op: str, indptr: Tensor, indices: Tensor, shape: Any) -> None:
    rows, columns = (int(n) for n in shape)
    if len(indptr) != rows + 1:
        raise ValueError(f"{op}: expected indptr of rows + 1 = {rows + 1}; got {len(indptr)}")
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices) or bool((indptr.diff() < 0).any()):
        raise ValueError(
            f"{op}: expected indptr to rise from 0 to the number of cells, {len(indices)}"
        )
    least, most = _extremes(indices)
    if least < 0 or most >= columns:
        wrong = indices[(indices < 0) | (indices >= columns)]
        raise ValueError(f"{op}: expected columns in 0..{columns - 1}; got {int(wrong[0])}")


def _extremes(numbers: Tensor) -> tuple[float, float]:
    """(least, greatest), nan where there is one, in one pass; (0, -1) of none."""
    if not len(numbers):
        return 0, -1
    least, most = torch.aminmax(numbers)
    return least.item(), most.item()


def _canonical(op: str, indptr: Tensor, indices: Tensor, values: Tensor, shape: Any) -> bool:
    """Whether the columns of each row rise."""
    if values.dim() != 1:
        raise ValueError(f"{op}: expected a number in each cell; got {list(values.shape[1:])}")
    _check_structure(op, indptr, indices, shape)
    starts = indptr.long()
    for first in range(1, len(indices), _AT_ONCE):
        part = indices[first : first + _AT_ONCE]
        falls = (part <= indices[first - 1 : first - 1 + len(part)]).nonzero()[:, 0] + first
        # Columns may fall where a row begins, and nowhere else.
        if not bool((starts[torch.searchsorted(starts, falls)] == falls).all()):
            return False
    return True


def _checked(
    op: str, indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]
) -> Cells:
    if values.is_complex():
        raise TypeError(f"{op}: expected values to be real numbers; got {values.dtype}")
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    elif values.dtype not in TYPES:
        values = values.float()
    if values.is_floating_point() and not check.all_finite(values):
        at = int((~values.isfinite()).nonzero()[0])
        place = torch.tensor(at, dtype=indptr.dtype, device=indptr.device)
        row = int(torch.searchsorted(indptr, place, right=True)) - 1
        raise ValueError(
            f"{op}: expected values to be finite; got {float(values[at])} in row {row}, column "
            f"{int(indices[at])}"
        )
    return trusted_cells(indptr.contiguous(), indices.contiguous(), values.contiguous(), shape)
