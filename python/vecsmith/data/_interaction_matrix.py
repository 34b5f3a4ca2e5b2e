"""The cells of a matrix that somebody else has made."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from vecsmith.data._interaction_columns import as_numpy

Cells = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]


def cells_of(matrix: Any, missing: float) -> Cells:
    """(rows int64 [n], columns int64 [n], ratings float64 [n], shape) of the stored cells of a
    sparse matrix, or of those of an array that are not ``missing``.

    Raises: ValueError for shapes, indices and values that cannot be; TypeError for other types.
    """
    from scipy import sparse

    if sparse.issparse(matrix):
        rows, columns, values, shape = _stored(matrix)
    else:
        rows, columns, values, shape = _present(matrix, missing)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"expected a matrix of numbers; got {values.dtype}")
    ratings = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(ratings))
    if len(bad):
        at = int(bad[0])
        hint = "" if sparse.issparse(matrix) else " (missing=nan where that says: no cell)"
        raise ValueError(
            f"expected ratings that are finite; got {ratings[at]} in row {rows[at]}, "
            f"column {columns[at]}{hint}"
        )
    return rows.astype(np.int64), columns.astype(np.int64), ratings, shape


def _stored(matrix: Any) -> Cells:
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix of two dimensions; got shape {list(matrix.shape)}")
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    if matrix.format in ("csr", "csc"):
        # Not by tocoo: nobody has looked at these indices yet.
        indptr = np.asarray(matrix.indptr).astype(np.int64)
        number = len(indptr) - 1
        steps = np.diff(indptr)
        lanes = shape[0] if matrix.format == "csr" else shape[1]
        whole = min(len(matrix.indices), len(matrix.data))
        if number != lanes or indptr[0] != 0 or indptr[-1] > whole or (steps < 0).any():
            raise ValueError(f"expected a valid {matrix.format} matrix; got a damaged indptr")
        major = np.repeat(np.arange(number), steps)
        minor, values = matrix.indices[: indptr[-1]], matrix.data[: indptr[-1]]
        rows, columns = (major, minor) if matrix.format == "csr" else (minor, major)
    else:
        triples = matrix.tocoo()
        rows, columns, values = triples.row, triples.col, triples.data
    for name, indices, size in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
        if len(indices) and (indices.min() < 0 or indices.max() >= size):
            wrong = indices[(indices < 0) | (indices >= size)][0]
            raise ValueError(f"expected {name} in 0..{size - 1}; got {wrong}")
    return rows, columns, values, shape


def _present(matrix: Any, missing: float) -> Cells:
    masked = isinstance(matrix, np.ma.MaskedArray)
    there = ~np.ma.getmaskarray(matrix) if masked else None
    try:
        array = as_numpy(matrix)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"expected a sparse matrix or an array; got {error}") from None
    if array.ndim != 2:
        raise ValueError(
            f"expected a matrix of two dimensions; got {type(matrix).__name__} of shape "
            f"{list(array.shape)}"
        )
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected a matrix of numbers; got {array.dtype}")
    present = ~_is_missing(array, missing)
    if there is not None:
        present &= there
    rows, columns = np.nonzero(present)
    return rows, columns, array[rows, columns], (array.shape[0], array.shape[1])


def _is_missing(array: np.ndarray, missing: Any) -> np.ndarray:
    """bool [U, I]: where the array has ``missing``, as a number of its own type: 0.1 of float64 is
    none of float32."""
    if not isinstance(missing, Real):
        raise TypeError(f"expected missing to be a number; got {missing!r}")
    if missing != missing:
        return np.isnan(array)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            rounded = array.dtype.type(missing)
        if np.isinf(rounded) and missing not in (-math.inf, math.inf):
            return np.zeros(array.shape, bool)
        return array == rounded
    return array == missing
