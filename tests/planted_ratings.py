"""Small matrices of users and items, and what a factorization of them must be, in NumPy."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def random_cells(users=30, items=20, density=0.2, seed=0, negative=True):
    """CSR float32, with values in -1 .. 4 (some of them 0), a user and an item without cells."""
    generator = np.random.default_rng(seed)
    there = generator.random((users, items)) < density
    there[users // 2] = there[:, items // 3] = False
    rows, columns = np.nonzero(there)
    values = generator.random(len(rows)).astype(np.float32) * 4
    if negative:
        values[::7] *= -0.25
        values[5:6] = 0
    return sparse.csr_matrix((values, (rows, columns)), shape=(users, items))


def groups(users=40, items=24, seed=0):
    """Users of two tastes: the first half takes items of the first half, mostly."""
    generator = np.random.default_rng(seed)
    mine = (np.arange(users) < users // 2)[:, None] == (np.arange(items) < items // 2)[None, :]
    return sparse.csr_matrix((generator.random((users, items)) < np.where(mine, 0.5, 0.02)) * 1.0)


def confidences(matrix, alpha):
    """(c, p) [users, items] of implicit feedback."""
    dense = np.ones(matrix.shape), np.zeros(matrix.shape)
    coo = matrix.tocoo()
    value = alpha * coo.data.astype(np.float64)
    dense[0][coo.row, coo.col] = np.abs(value)
    dense[1][coo.row, coo.col] = value > 0
    return dense


def implicit_half(c, p, y, ridges):
    """x [users, f]: the exact half-step of implicit feedback."""
    f = y.shape[1]
    return np.stack(
        [
            np.linalg.solve((y.T * c[u]) @ y + ridges[u] * np.eye(f), (y.T * c[u]) @ p[u])
            for u in range(len(c))
        ]
    )


def implicit_loss(matrix, x, y, alpha, regularization, weighted=False):
    """What ALS says that its loss is."""
    c, p = confidences(matrix, alpha)
    x, y = x.astype(np.float64), y.astype(np.float64)
    users = np.diff(matrix.indptr) if weighted else np.ones(len(x))
    items = np.diff(matrix.tocsc().indptr) if weighted else np.ones(len(y))
    norms = (users * (x**2).sum(1)).sum() + (items * (y**2).sum(1)).sum()
    return ((c * (p - x @ y.T) ** 2).sum() + regularization * norms) / c.sum()


def best(scores, k, left_out):
    """(items, scores) of the k greatest scores that are not left out (bool), ties by number."""
    order = np.argsort(-np.where(left_out, -np.inf, scores), kind="stable")
    order = order[~left_out[order]][:k]
    return order, scores[order]
