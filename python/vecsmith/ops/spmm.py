"""The operator ``spmm``: a sparse matrix times a dense one.

What it computes is written down in :mod:`vecsmith.reference.spmm`; how torch knows it, and how the
native module is called, in ``_spmm.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops import _spmm as registered
from vecsmith.ops._cells import cells_of


def spmm(
    matrix: Any,
    dense: Tensor,
    values: Tensor | None = None,
    *,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """The product of a sparse matrix A [rows, columns] and a dense one X [columns, b]:

        C_u = sum over the cells (i, v) of row u of v x_i

    Sums are of the dtype of ``dense``, and the same bits whatever the number of threads, which
    share long rows. Differentiable in ``dense`` (A^T times the gradient) and in ``values`` (for
    each cell the product of the gradient's row and that of X), twice.

    Args:
        matrix: the cells: scipy.sparse, torch.sparse or :class:`Cells`; CSR is read in place (int32
            or int64 indices), once it was checked: :class:`Cells` are taken as they are. Cells that
            come twice are added up. Values of another dtype than that of ``dense`` are converted.
        dense: X, float32 or float64, of any strides, b >= 0.
        values: [cells] of the dtype of ``dense``, in place of those of the matrix, in the order of
            a canonical CSR; may be anything, also not finite.
        backend: "native", "triton" or "reference" to force one.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        C [rows, b].

    Raises:
        TypeError, ValueError: wrong types, shapes, devices; a value of the matrix that is not
            finite.
        RuntimeError: a torch.sparse matrix that requires a gradient; ``values`` can have one.
        BackendUnavailable: a forced backend that cannot run.
    """
    name = "spmm"
    if torch.is_grad_enabled() and isinstance(matrix, Tensor) and matrix.requires_grad:
        raise RuntimeError(
            f"{name}: expected a matrix that requires no gradient; got one that does (give its "
            "numbers as values)"
        )
    cells = cells_of(name, matrix)
    if not isinstance(dense, Tensor):
        raise TypeError(f"{name}: expected dense to be a torch.Tensor; got {type(dense).__name__}")
    if dense.layout != torch.strided:
        raise TypeError(f"{name}: expected dense to be a strided tensor; got {dense.layout}")
    if dense.dtype not in registered.DTYPES:
        raise TypeError(f"{name}: expected dense of float32 or float64; got {dense.dtype}")
    if dense.dim() != 2 or dense.shape[0] != cells.shape[1]:
        raise ValueError(
            f"{name}: expected dense of shape [{cells.shape[1]}, any]; got {list(dense.shape)}"
        )
    if cells.values.device != dense.device:
        raise ValueError(
            f"{name}: expected the matrix on {dense.device}; got it on {cells.values.device}"
        )
    if values is None:
        values = cells.values.to(dense.dtype)
    else:
        check.tensor(name, "values", values, dense.dtype, (len(cells),), like=dense)
    return torch.ops.vecsmith.spmm(
        *(cells.indptr, cells.indices, values, dense, backend or ""),
        0 if num_threads is None else check.threads(name, num_threads),
    )
