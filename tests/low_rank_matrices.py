"""Matrices of known spectra, for the tests of the low-rank models."""

from __future__ import annotations

import numpy as np
import scipy.sparse


def with_spectrum(m: int, n: int, values, seed: int = 0) -> np.ndarray:
    """[m, n] with these singular values (the rest 0) and random singular vectors."""
    generator = np.random.default_rng(seed)
    values = np.asarray(values, dtype=float)
    left = np.linalg.qr(generator.standard_normal((m, len(values))))[0]
    right = np.linalg.qr(generator.standard_normal((n, len(values))))[0]
    return (left * values) @ right.T


def random_sparse(m: int, n: int, density: float, seed: int = 0) -> scipy.sparse.csr_matrix:
    """[m, n] with positive numbers in so many of its cells, of rows and columns of unequal size."""
    generator = np.random.default_rng(seed)
    weight = np.outer(generator.random(m) ** 2, generator.random(n) ** 2)
    there = generator.random((m, n)) < np.minimum(1, weight * density / weight.mean())
    return scipy.sparse.csr_matrix(there * generator.integers(1, 6, (m, n)).astype(float))


def random_blocks(m: int, n: int, seed: int = 7) -> scipy.sparse.csr_matrix:
    """[m, n] of rank 12 at most: twelve groups of equal rows, of unequal size."""
    generator = np.random.default_rng(seed)
    chances = np.arange(1.0, 13) / 78
    groups = np.sort(generator.choice(12, m, p=chances))
    columns = generator.random((12, n)) < 0.15
    return scipy.sparse.csr_matrix(columns[groups].astype(float))


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The principal angles between the spans of the rows, in radians, by their sines."""
    first, second = (np.linalg.qr(np.asarray(rows, float).T)[0] for rows in (first, second))
    sines = np.linalg.svd(second - first @ (first.T @ second), compute_uv=False)
    return np.arcsin(np.minimum(sines, 1))


def assert_residual_at_most(X, components, rank: int, excess: float, mean=0.0) -> None:
    """|X - X V V^T|_F is within that part of the least that any rank allows."""
    dense = (X.toarray() if scipy.sparse.issparse(X) else np.asarray(X)).astype(float) - mean
    V = np.asarray(components, float)
    least = np.sqrt((np.linalg.svd(dense, compute_uv=False)[rank:] ** 2).sum())
    residual = np.linalg.norm(dense - dense @ V.T @ V)
    assert residual <= (1 + excess) * least + 1e-9 * np.linalg.norm(dense), (residual, least)
