"""What every measure shares: the vectors and words it is given, and gensim's cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def as_matrix(vectors: Any, words: Sequence[str]) -> torch.Tensor:
    """Vectors [V, D] as a floating-point CPU tensor that shares their memory where it can."""
    if isinstance(vectors, np.ndarray):
        # torch has no read-only tensors, and none with negative strides.
        borrowed = vectors.flags.writeable and all(stride >= 0 for stride in vectors.strides)
        matrix = torch.from_numpy(vectors if borrowed else vectors.copy())
    elif isinstance(vectors, torch.Tensor):
        matrix = vectors.detach().cpu()
    else:
        raise TypeError(f"expected vectors as a tensor or array, got {type(vectors).__name__}")
    if matrix.dim() != 2 or matrix.shape[0] != len(words):
        raise ValueError(
            f"expected vectors of shape [{len(words)}, D] for {len(words)} words, "
            f"got {list(matrix.shape)}"
        )
    if not matrix.is_floating_point():
        raise TypeError(f"expected floating-point vectors, got {matrix.dtype}")
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()
    return matrix


def known_words(
    words: Sequence[str], restrict_vocab: int | None, case_insensitive: bool
) -> dict[str, int]:
    """Rows by (upper-cased) word among the first ``restrict_vocab``; the first variant wins."""
    known = words[:restrict_vocab]
    rows = range(len(known) - 1, -1, -1)
    if case_insensitive:
        return {known[row].upper(): row for row in rows}
    return {known[row]: row for row in rows}


def unit(vector: np.ndarray) -> np.ndarray:
    """vector / |vector|_2, with the norm and the product in fp64; a zero vector as it is."""
    wide = vector.astype(np.float64)
    # One BLAS call, as gensim makes it: the same rounding.
    norm = float(_nrm2(wide)) if wide.size else 0.0
    if not norm > 0.0:
        return vector
    return (wide * (1.0 / norm)).astype(vector.dtype)


def _nrm2(vector: np.ndarray) -> float:
    from scipy.linalg import blas

    return blas.dnrm2(vector)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine of two vectors [D]; 0 where one of them is zero."""
    return float(np.dot(unit(first), unit(second)))
