"""The cells of a matrix in order: sorted by row and column, each once; and which of them a split or
a filter takes."""

from __future__ import annotations

from typing import Any

import numpy as np

DUPLICATES = ("error", "sum", "last", "mean", "max")
# SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def compressed(
    rows: np.ndarray,
    columns: np.ndarray,
    ratings: np.ndarray,
    timestamps: np.ndarray | None,
    users: np.ndarray,
    items: np.ndarray,
    duplicates: str,
) -> tuple[Any, np.ndarray | None]:
    """The CSR matrix float32 [len(users), len(items)] of cells in any order, and their timestamps.

    Args:
        rows, columns: integers [n], valid.
        ratings: float64 [n], finite.
        timestamps: [n].
        users, items: the keys, for errors.
        duplicates: one of DUPLICATES: what to make of cells that come more than once.

    Raises: ValueError for a cell that comes twice under "error", and for a sum beyond float32.
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"expected duplicates in {DUPLICATES}; got {duplicates!r}")
    places = np.multiply(rows, len(items), dtype=np.int64)
    places += columns
    del rows, columns
    if len(places) and not (places[1:] > places[:-1]).all():
        # Stable: of equal cells the last stays the last.
        order = np.argsort(places, kind="stable")
        places, ratings = places[order], ratings[order]
        timestamps = None if timestamps is None else timestamps[order]
        del order
        new = places[1:] != places[:-1]
        if not new.all():
            if duplicates == "error":
                raise ValueError(_twice(places, new, users, items))
            starts = np.flatnonzero(np.concatenate([[True], new]))
            places, ratings, timestamps = _merged(places, starts, ratings, timestamps, duplicates)
    indptr = np.searchsorted(places, np.arange(len(users) + 1) * np.int64(len(items)))
    places %= max(len(items), 1)
    return csr(ratings, places, indptr, (len(users), len(items))), timestamps


def _twice(places: np.ndarray, new: np.ndarray, users: np.ndarray, items: np.ndarray) -> str:
    first = int(np.flatnonzero(~new)[0])
    row, column = divmod(int(places[first]), len(items))
    return (
        f"expected each pair of user and item once; got user {users[row].item()!r} with item "
        f"{items[column].item()!r} more than once ({int((~new).sum())} rows too many): say what to "
        "make of them with duplicates='sum', 'last', 'mean' or 'max'"
    )


def _merged(
    places: np.ndarray,
    starts: np.ndarray,
    ratings: np.ndarray,
    timestamps: np.ndarray | None,
    duplicates: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """One cell for each run of equal places. Its time is the latest."""
    ends = np.append(starts[1:], len(places))
    if duplicates == "last":
        last = ends - 1
        if timestamps is not None:
            latest = np.repeat(np.maximum.reduceat(timestamps, starts), ends - starts)
            of_latest = np.where(timestamps == latest, np.arange(len(places)), -1)
            last = np.maximum.reduceat(of_latest, starts)
        merged = ratings[last]
    elif duplicates == "max":
        merged = np.maximum.reduceat(ratings, starts)
    else:
        merged = np.add.reduceat(ratings, starts)
        if duplicates == "mean":
            merged = merged / (ends - starts)
    if timestamps is not None:
        timestamps = np.maximum.reduceat(timestamps, starts)
    return places[starts], merged, timestamps


def csr(
    ratings: np.ndarray, columns: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]
) -> Any:
    """scipy's CSR matrix of cells in order; float32, with int32 indices where they suffice.

    Raises: ValueError for a rating beyond float32.
    """
    from scipy import sparse

    with np.errstate(over="ignore"):
        data = ratings.astype(np.float32, copy=False)
    if not np.isfinite(data).all():
        raise ValueError("expected ratings within float32; got one beyond, or a sum of some")
    small = max(len(data), *shape) <= np.iinfo(np.int32).max
    dtype = np.int32 if small else np.int64
    parts = (data, columns.astype(dtype, copy=False), indptr.astype(dtype, copy=False))
    matrix = sparse.csr_matrix(parts, shape=shape, copy=False)
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def kept(matrix: Any, keep: np.ndarray) -> Any:
    """The matrix with only the cells where ``keep``, bool [nnz], says so; of the same shape."""
    before = np.concatenate([[0], np.cumsum(keep)])
    return csr(matrix.data[keep], matrix.indices[keep], before[matrix.indptr], matrix.shape)


def rows_of(matrix: Any) -> np.ndarray:
    """int64 [nnz]: the row of each cell."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


# --- splits ---------------------------------------------------------------------------------------


def random_bits(size: int, seed: int) -> np.ndarray:
    """uint64 [size]: SplitMix64 of the seed; the same on every machine, with every NumPy."""

    def mixed(bits: np.ndarray) -> np.ndarray:
        for shift, factor in _MIX:
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        return bits

    # The seed is mixed first: neighboring seeds would give the same bits, one place further.
    start = mixed(np.array([seed & (1 << 64) - 1], np.uint64) + _STEP)
    return mixed(start + np.arange(1, size + 1, dtype=np.uint64) * _STEP)


def random_ranks(matrix: Any, seed: int) -> np.ndarray:
    """int64 [nnz]: in each row the numbers 0, 1, ... in random order."""
    rows = rows_of(matrix)
    bits = random_bits(len(rows), seed)
    room = max(1, int(matrix.shape[0]).bit_length())
    sorted_by = rows.astype(np.uint64) << np.uint64(64 - room) | bits >> np.uint64(room)
    order = np.argsort(sorted_by, kind="stable")
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - matrix.indptr[rows]
    return ranks


def last_of_rows(matrix: Any, timestamps: np.ndarray | None, seed: int) -> np.ndarray:
    """bool [nnz]: one cell of every row with two or more, the latest; among several at random."""
    lengths = np.diff(matrix.indptr)
    several = np.flatnonzero(lengths > 1)
    chosen = np.zeros(matrix.nnz, bool)
    if not len(several):
        return chosen
    cells = np.flatnonzero(np.repeat(lengths > 1, lengths))
    counts = lengths[several]
    starts = np.cumsum(counts) - counts
    bits = random_bits(matrix.nnz, seed)[cells] >> np.uint64(1)
    if timestamps is not None:
        times = timestamps[cells]
        latest = np.repeat(np.maximum.reduceat(times, starts), counts)
        bits = np.where(times == latest, bits + np.uint64(1), np.uint64(0))
    greatest = bits == np.repeat(np.maximum.reduceat(bits, starts), counts)
    first = np.minimum.reduceat(np.where(greatest, np.arange(len(cells)), len(cells)), starts)
    chosen[cells[first]] = True
    return chosen


def core(matrix: Any, min_user: int, min_item: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cells bool [nnz], users bool [U], items bool [I]) that are left when users with fewer than
    ``min_user`` cells and items with fewer than ``min_item`` go, until none is left."""
    rows, columns = rows_of(matrix), matrix.indices
    num_users, num_items = matrix.shape
    keep = np.ones(matrix.nnz, bool)
    users, items = np.ones(num_users, bool), np.ones(num_items, bool)
    while True:
        users &= np.bincount(rows[keep], minlength=num_users) >= min_user
        left = keep & users[rows]
        items &= np.bincount(columns[left], minlength=num_items) >= min_item
        left &= items[columns]
        if left.sum() == keep.sum():
            # A last time: a user without cells is no cell less.
            return left, users, items
        keep = left
