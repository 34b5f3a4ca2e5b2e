"""What is refused on the way in and on the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def refuse_nonfinite(vectors: Tensor, words: Sequence[str] | None, what: str) -> None:
    """Raise ValueError naming the first word (row, where there are no words) whose vector [D] holds
    nan or infinity."""
    rows = max(1, (1 << 20) // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows]
        # A sum in fp64 is finite unless a value is not; only then look closely.
        if math.isfinite(block.sum(dtype=torch.float64).item()):
            continue
        bad = torch.nonzero(~torch.isfinite(block).all(dim=1))
        if len(bad):
            row = start + int(bad[0])
            name = f"row {row}" if words is None else f"the vector of {words[row]!r} (row {row})"
            raise ValueError(f"{what}: {name} holds nan or inf")
