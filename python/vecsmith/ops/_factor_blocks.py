"""The cells of a matrix as blocks of bands of rows and bands of columns: what ``factor_sgd``
trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops._cells import Cells, cells_of, trusted_cells
from vecsmith.ops._registry import BackendUnavailable, native
from vecsmith.reference import factor_sgd as reference
from vecsmith.reference.skipgram import stream_key

# A band of rows of 128 numbers is half a megabyte; so many workers at most can share an epoch.
_BAND_ROWS = 1 << 10
_LEAST_BANDS, _MOST_BANDS = 16, 256
# Cells of a block, about: fewer cost more than they are worth.
_BLOCK_CELLS = 512


@dataclass(frozen=True)
class FactorBlocks:
    """Cells (user, item, value) for :func:`factor_sgd`, made by :func:`factor_blocks`.

    users, items: int32 [n]; values: float32 [n]; offsets: int64 [bands^2 + 1]: those of block
    (a, c) are offsets[a * bands + c] .. offsets[a * bands + c + 1] - 1; cells: the same by row,
    with int64 indptr and int32 indices. All on one device, not to be changed.
    """

    users: Tensor
    items: Tensor
    values: Tensor
    offsets: Tensor
    cells: Cells

    @property
    def bands(self) -> int:
        """How many bands of rows there are, and how many of columns."""
        return math.isqrt(len(self.offsets) - 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.cells.shape

    def to(self, device: torch.device | str) -> FactorBlocks:
        """The same on a device: that of the tables that are trained."""
        device = torch.device(device)
        return FactorBlocks(
            self.users.to(device),
            self.items.to(device),
            self.values.to(device),
            self.offsets.to(device),
            self.cells.to(device),
        )

    def __len__(self) -> int:
        """The number of cells."""
        return len(self.users)


def factor_blocks(
    matrix: Any, *, bands: int | None = None, seed: int = 0, num_threads: int | None = None
) -> FactorBlocks:
    """Lays out the cells of a matrix for :func:`factor_sgd` and :func:`factor_sgd_bpr`.

    Rows and columns are dealt to as many bands each, so that every band has about as many cells; a
    block is what a band of rows and a band of columns have in common, and its cells are shuffled.
    Definitions: :mod:`vecsmith.reference.factor_sgd`. They are made on the CPU; ``to`` moves them.

    Args:
        matrix: the cells: scipy.sparse or torch.sparse on the CPU, or :class:`Cells`. Cells that
            come twice are added up; those that are stored as 0 are cells.
        bands: B. None: from the size of the matrix alone, 256 at most. The order of the updates
            follows from it, and as many workers at most can share an epoch.
        seed: of the shuffling.
        num_threads: default ``torch.get_num_threads()``.

    Raises:
        TypeError, ValueError: a matrix that :func:`als_solve` does not take.
        ValueError: values beyond float32, more than 2^31 - 1 rows or columns, options out of range.
    """
    name = "factor_blocks"
    cells = cells_of(name, matrix)
    rows, columns = cells.shape
    if cells.values.device.type != "cpu":
        raise ValueError(f"{name}: expected the matrix on cpu; got it on {cells.values.device}")
    if max(rows, columns) >= 2**31:
        raise ValueError(f"{name}: expected fewer than 2^31 rows and columns; got {cells.shape}")
    if bands is None:
        bands = default_bands(rows, columns, len(cells))
    check.integer(name, "bands", bands, low=1, high=1 << 12)
    seed = check.seed(name, seed)
    threads = check.threads(name, num_threads)
    values = cells.values.float()
    if not check.all_finite(values):
        raise ValueError(f"{name}: expected values that float32 can hold")
    indptr, items = cells.indptr.long(), cells.indices.int()
    lengths = indptr.diff()
    users = torch.repeat_interleave(torch.arange(rows, dtype=torch.int32), lengths)
    user_band = reference.deal(lengths, bands)
    item_band = reference.deal(torch.bincount(items, minlength=columns), bands)
    kept = trusted_cells(indptr, items, cells.values, cells.shape)
    try:
        module = native()
    except BackendUnavailable:
        found = reference.layout(users, items, values, user_band, item_band, bands, seed)
        return FactorBlocks(*found, kept)
    made = (torch.empty_like(users), torch.empty_like(items), torch.empty_like(values))
    offsets = torch.empty(bands * bands + 1, dtype=torch.int64)
    module.factor_sgd_layout(
        tuple(t.data_ptr() for t in (users, items, values)),
        len(users),
        (user_band.data_ptr(), item_band.data_ptr(), bands),
        stream_key(seed, 0, reference.STREAM_SHUFFLE) & (2**64 - 1),
        tuple(t.data_ptr() for t in (*made, offsets)),
        threads,
    )
    return FactorBlocks(*made, offsets, kept)


def default_bands(rows: int, columns: int, cells: int) -> int:
    """How many bands a matrix gets."""
    wanted = min(max(_LEAST_BANDS, -(-rows // _BAND_ROWS)), _MOST_BANDS)
    return max(1, min(wanted, math.isqrt(cells // _BLOCK_CELLS), rows, columns))
