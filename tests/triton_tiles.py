"""A kernel that writes down the tiles of vecsmith.kernels.als_solve, for
tests/test_als_solve_triton.py (imported only where Triton's interpreter or a GPU was chosen)."""

from __future__ import annotations

import triton
import triton.language as tl
from vecsmith.kernels import als_solve

_tile_of = als_solve._tile_of


@triton.jit
def tiles(out, COUNT: tl.constexpr):
    number = tl.arange(0, COUNT)
    i, j = _tile_of(number)
    tl.store(out + number, i)
    tl.store(out + COUNT + number, j)
