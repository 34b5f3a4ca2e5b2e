"""A sparse matrix times a dense one in Triton: what `vecsmith.reference.spmm` says, on a GPU.

What it computes
    out[u] = the sum over the cells (i, v) of row u of v dense[i]. Sums are of the dtype of the
    tables, addresses int64; no atomics, so the same input gives the same bits.

How the work is split
    A program has a row and BLOCK_D columns. UNROLL of its cells are looked up in one load, each
    with its row of the dense matrix (were they loads of their own, the compiler would have each
    wait for the one before), and summed at the end.

What bounds its speed
    Memory: the rows that cells name, BLOCK_D numbers each, and 8 to 16 bytes a cell. A very long
    row is one program's, and may be the last that ends.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _multiply(
    indptr,
    indices,
    values,
    dense,
    out,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,  # of dense
    UNROLL: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row of out, at BLOCK_D columns."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < WIDTH
    begin = tl.load(indptr + row).to(tl.int64)
    end = tl.load(indptr + row + 1).to(tl.int64)
    total = tl.zeros([UNROLL, BLOCK_D], out.dtype.element_ty)
    steps = tl.arange(0, UNROLL)
    for first in range(begin, end, UNROLL):
        at = first + steps
        live = at < end
        index = tl.load(indices + at, mask=live, other=0).to(tl.int64)
        value = tl.load(values + at, mask=live, other=0.0)
        place = dense + index[:, None] * STRIDE + d[None, :]
        # What is not a cell may not count where the dense matrix holds no number, either.
        x = tl.load(place, mask=live[:, None] & inside[None, :], other=0.0)
        total += value[:, None] * x
    tl.store(out + row * WIDTH + d, tl.sum(total, 0), mask=inside)


def spmm(indptr: Tensor, indices: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """C [rows, b] of ``dense`` [columns, b], of any strides, and cells: indptr [rows + 1] and
    indices [cells], int32 or int64; values [cells] of the dtype of ``dense``; all contiguous."""
    dense = dense if dense.stride(1) == 1 else dense.contiguous()
    rows, width = len(indptr) - 1, dense.shape[1]
    out = torch.empty(rows, width, dtype=dense.dtype, device=dense.device)
    if not out.numel():
        return out
    # At least 4: with both sides 1 the interpreter broadcasts garbage.
    block = min(max(triton.next_power_of_2(width), 4), 128)
    unroll = 1024 // block if block >= 64 else 16
    with torch.cuda.device_of(dense):
        _multiply[(rows, triton.cdiv(width, block))](
            *(indptr, indices, values, dense, out),
            WIDTH=width,
            STRIDE=dense.stride(0),
            UNROLL=unroll,
            BLOCK_D=block,
            num_warps=4 if block >= 64 else 2,
        )
    return out
