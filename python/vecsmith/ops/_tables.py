"""Tables whose rows start on cache-line boundaries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LINE = 16  # float32 values in a cache line of 64 bytes


def empty_table(rows: int, dim: int, *, device: str | torch.device = "cpu") -> Tensor:
    """An uninitialised float32 table [rows, dim] whose rows start on 64-byte boundaries.

    It is a view of a buffer with row stride ``dim`` rounded up to 16, so that no vector load of the
    kernels crosses a cache line and a row is prefetched with the fewest lines.

    Raises: ValueError if rows < 0 or dim < 1.
    """
    if rows < 0 or dim < 1:
        raise ValueError(f"expected rows >= 0 and dim >= 1; got rows={rows}, dim={dim}")
    stride = -(-dim // _LINE) * _LINE
    size = rows * stride + _LINE
    if torch.device(device).type == "cpu":
        # From NumPy, which asks the system for huge pages: with small ones, half of the time of a
        # random row is the walk of the page table.
        buffer = torch.from_numpy(np.empty(size, dtype=np.float32))
    else:
        buffer = torch.empty(size, dtype=torch.float32, device=device)
    skip = -buffer.data_ptr() % 64 // 4
    return buffer[skip : skip + rows * stride].view(rows, stride)[:, :dim]
