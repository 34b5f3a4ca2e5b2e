"""What the estimators check and compute alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from vecsmith.models._matrix import Matrix

FLOATS: Any = (np.float64, np.float32)
NORMALS = ("auto", "QR", "LU", "none")


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError."""
    if not isinstance(value, str) or value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"expected {name} to be one of {names}; got {value!r}")


def integer(name: str, value: Any, least: int) -> int:
    """Raises TypeError, ValueError."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be an int; got {value!r}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}; got {value}")
    return int(value)


def number(name: str, value: Any, least: float, most: float = float("inf")) -> float:
    """Raises TypeError, ValueError."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number; got {value!r}")
    number = float(value)
    if not least <= number <= most or number == float("inf"):
        bounds = f">= {least:g}" if most == float("inf") else f"in {least:g} .. {most:g}"
        raise ValueError(f"expected {name} {bounds}; got {value}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Raises TypeError."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"expected {name} to be True or False; got {value!r}")
    return bool(value)


def width(name: str, X: Any, components: int) -> None:
    """Raises ValueError."""
    if X.shape[1] != components:
        raise ValueError(
            f"{name}: expected X of {components} columns, as n_components; got {X.shape[1]}"
        )


@contextmanager
def kept_on_error(estimator: Any) -> Iterator[None]:
    """A fit that fails leaves the attributes of the one before. They are put in place anew, never
    written into."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def projected(X: Any, components: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    """(X - 1 mean^T) components^T, in the dtype that X and components come to."""
    dtype = np.result_type(X.dtype, components.dtype)
    matrix = Matrix(X.astype(dtype, copy=False), mean)
    return matrix.times(torch.from_numpy(np.ascontiguousarray(components.T, dtype=dtype))).numpy()


def arpack_triplets(
    matrix: Matrix, rank: int, tol: float, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U, s, V^T) by scipy's implicitly restarted Lanczos method, signs and order as elsewhere.

    Raises:
        ValueError: rank = min(m, n), which ARPACK does not give.
    """
    import scipy.sparse.linalg

    if rank >= min(matrix.shape):
        raise ValueError(
            f"expected n_components < min(n_samples={matrix.shape[0]}, "
            f"n_features={matrix.shape[1]}) with 'arpack'; got {rank}"
        )

    def times(vectors: np.ndarray) -> np.ndarray:
        columns = np.ascontiguousarray(vectors.reshape(len(vectors), -1))
        return matrix.times(torch.from_numpy(columns)).numpy()

    def transposed_times(vectors: np.ndarray) -> np.ndarray:
        columns = np.ascontiguousarray(vectors.reshape(len(vectors), -1))
        return matrix.transposed_times(torch.from_numpy(columns)).numpy()

    dtype = torch.empty(0, dtype=matrix.dtype).numpy().dtype
    linalg: Any = scipy.sparse.linalg  # its stubs know other signatures
    operator = linalg.LinearOperator(
        matrix.shape, matvec=times, rmatvec=transposed_times, matmat=times,
        rmatmat=transposed_times, dtype=dtype,
    )  # fmt: skip
    start = random.uniform(-1, 1, min(matrix.shape)).astype(dtype)
    left, values, right = linalg.svds(operator, k=rank, tol=tol, v0=start)
    order = np.argsort(-values, kind="stable")
    left, values, right = left[:, order], values[order], right[order]
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])
    signs[signs == 0] = 1
    return left * signs, values, right * signs[:, None]
