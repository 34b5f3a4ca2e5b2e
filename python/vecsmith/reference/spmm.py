"""What the operator ``spmm`` computes, in plain PyTorch: a sparse matrix, as compressed rows, times
a dense one,

    C_u = sum over the cells (i, v) of row u of v x_i.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(indptr: Tensor, cells: int) -> Tensor:
    """The row of each cell, int64 [cells]."""
    rows = torch.arange(len(indptr) - 1, device=indptr.device)
    return torch.repeat_interleave(rows, indptr.diff(), output_size=cells)


def spmm(indptr: Tensor, indices: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """C [rows, b] of x ``dense`` [columns, b] and the cells of a matrix: indptr [rows + 1] and
    indices [cells], int32 or int64; values [cells] of the dtype of ``dense``."""
    product = dense.new_zeros(len(indptr) - 1, dense.shape[1])
    terms = values[:, None] * dense[indices.long()]
    return product.index_add(0, rows_of(indptr, len(indices)), terms)
