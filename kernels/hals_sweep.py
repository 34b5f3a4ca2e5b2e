"""A sweep of hierarchical alternating least squares in Triton: what
`vecsmith.reference.hals_sweep` says, on a GPU.

What it computes
    w_t <- max(0, w_t + (n_t - l1 - sum_s g_ts w_s) / g_tt) for each component t in turn, in place,
    and the sum of |change| g_tt. Numbers are of the dtype of the tables, addresses int64; no
    atomics, so the same input gives the same bits.

How the work is split
    A program has ROWS rows and all of their components in registers, and goes through the
    components: a row of the Gram matrix is loaded for all of its rows, and their products summed.

What bounds its speed
    2 k^2 operations a row, and k reductions one after the other: other programs on the
    multiprocessor fill the waits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["rows"])
def _sweep(
    factor,
    numerator,
    gram,
    moved,  # float64 [programs]
    rows,
    l1,  # float64 [1]
    factor_row,
    factor_step,
    numerator_row,
    numerator_step,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of factor."""
    program = tl.program_id(0).to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)
    live = row < rows
    column = tl.arange(0, BLOCK)
    inside = live[:, None] & (column < DIM)[None, :]
    place = factor + (row * factor_row)[:, None] + (column * factor_step)[None, :]
    w = tl.load(place, mask=inside, other=0.0)
    total = tl.zeros([ROWS], w.dtype)
    penalty = tl.load(l1).to(w.dtype)
    for t in range(DIM):
        g = tl.load(gram + t * DIM + column, mask=column < DIM, other=0.0)
        scale = tl.load(gram + t * DIM + t)
        n = tl.load(numerator + row * numerator_row + t * numerator_step, mask=live, other=0.0)
        own = (column == t)[None, :]
        old = tl.sum(tl.where(own, w, 0.0), 1)
        slope = n - penalty - tl.sum(w * g[None, :], 1)
        new = old + slope / tl.where(scale <= 0, 1.0, scale)
        new = tl.where(new < 0, 0.0, new)  # nan stays nan
        new = tl.where(scale <= 0, old, new)
        total += tl.where(live, tl.abs(new - old) * scale, 0.0)
        w = tl.where(own, new[:, None], w)
    tl.store(place, w, mask=inside)
    tl.store(moved + program, tl.sum(total.to(tl.float64), 0))


def hals_sweep(factor: Tensor, numerator: Tensor, gram: Tensor, l1: float) -> Tensor:
    """Changes ``factor`` [m, k] in place, for ``numerator`` [m, k], both of any strides, and a
    contiguous ``gram`` [k, k]. Returns the violation, a float64 scalar."""
    m, k = factor.shape
    # At least 4: with both sides 1 the interpreter broadcasts garbage.
    block = max(triton.next_power_of_2(max(k, 1)), 4)
    rows = min(max(1024 // block, 1), 32)
    programs = triton.cdiv(m, rows)
    if not factor.numel():
        return torch.zeros((), dtype=torch.float64, device=factor.device)
    moved = torch.empty(programs, dtype=torch.float64, device=factor.device)
    penalty = torch.full((1,), l1, dtype=torch.float64, device=factor.device)
    with torch.cuda.device_of(factor):
        _sweep[(programs,)](
            *(factor, numerator, gram, moved, m, penalty, *factor.stride(), *numerator.stride()),
            DIM=k,
            ROWS=rows,
            BLOCK=block,
            num_warps=4,
        )
    return moved.sum()
