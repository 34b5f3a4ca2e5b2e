"""Where NMF begins."""

from __future__ import annotations

import numpy as np

from vecsmith.models._matrix import Matrix
from vecsmith.models._range_finder import leading_triplets

_TRUNCATED = 1e-6  # what is below that part of the greatest is zero
INITS = ("random", "nndsvd", "nndsvda", "nndsvdar", "custom")


def start(
    matrix: Matrix, mean: float, rank: int, init: str | None, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """(W [m, rank], H [rank, n]), nonnegative, of the matrix's dtype.

    "random": |N(0, 1)| sqrt(mean / rank). "nndsvd": the singular triplets, of each the larger of
    its positive and its negative part; "nndsvda" fills the zeros with the mean of X, "nndsvdar"
    with small random numbers. None: "nndsvda" where rank <= min(m, n), else "random".

    Raises:
        ValueError: "nndsvd..." with rank > min(m, n).

    Source: Boutsidis and Gallopoulos 2008, "SVD Based Initialization: A Head Start for Nonnegative
    Matrix Factorization".
    """
    (m, n), dtype = matrix.shape, np.float32 if "32" in str(matrix.dtype) else np.float64
    fits = rank <= min(m, n)
    init = init or ("nndsvda" if fits else "random")
    if init == "random":
        scale = np.sqrt(mean / rank)
        h = np.abs(random.standard_normal((rank, n))) * scale
        w = np.abs(random.standard_normal((m, rank))) * scale
        return w.astype(dtype), h.astype(dtype)
    if not fits:
        raise ValueError(
            f"NMF: expected n_components <= min(n_samples, n_features)={min(m, n)} with "
            f"init={init!r}; got {rank}"
        )
    left, values, right = leading_triplets(matrix, rank, 4, 10, random)
    w, h = np.empty((m, rank), dtype), np.empty((rank, n), dtype)
    for r in range(rank):
        u, v = left[:, r], right[r]
        if r == 0:  # of one sign, but for rounding
            pairs = [(np.abs(u), np.abs(v))]
        else:
            pairs = [(np.maximum(s * u, 0), np.maximum(s * v, 0)) for s in (1, -1)]
        lengths = [(np.linalg.norm(a), np.linalg.norm(b)) for a, b in pairs]
        best = int(np.argmax([a * b for a, b in lengths]))
        share = lengths[best][0] * lengths[best][1]
        scale = np.sqrt(values[r] * share)
        w[:, r] = pairs[best][0] * (scale / (lengths[best][0] or 1))
        h[r] = pairs[best][1] * (scale / (lengths[best][1] or 1))
    for factor in (w, h):
        factor[factor < _TRUNCATED * factor.max()] = 0
        if init == "nndsvda":
            factor[factor == 0] = mean
        elif init == "nndsvdar":
            empty = factor == 0
            factor[empty] = np.abs(mean * random.standard_normal(int(empty.sum())) / 100)
    return w, h
