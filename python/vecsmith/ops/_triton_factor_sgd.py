"""``factor_sgd`` on a GPU: the launches of an epoch of the Triton kernels. The arguments have been
checked by :mod:`vecsmith.ops.factor_sgd`. Importing this does not import Triton."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vecsmith.reference import factor_sgd as reference
from vecsmith.reference.skipgram import stream_key


def blocks_in_order(offsets: Tensor, seed: int, epoch: int) -> Tensor:
    """The blocks of an epoch, int64 [B, B], each row one band of rows: they are taken row by row,
    each from the left."""
    bands = math.isqrt(len(offsets) - 1)
    rows, columns = reference.order(bands, seed, epoch)
    return torch.tensor(rows)[:, None] * bands + torch.tensor(columns)


def together(order: Tensor) -> Iterator[Tensor]:
    """The diagonals of :func:`blocks_in_order`, from its first block on: no two blocks of one have
    a band in common, and those that come before them in the order, and have one, are done."""
    bands = len(order)
    flipped = order.flip(0)
    for offset in range(1 - bands, bands):
        yield flipped.diagonal(offset)


def factor_sgd(
    tables: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    cells: reference.Layout,
    numbers: tuple[float, float, float, float, float],
    seed: int,
    epoch: int,
) -> Tensor:
    """As :func:`vecsmith.reference.factor_sgd.factor_sgd`; tables and numbers as the kernels take
    them."""
    from vecsmith.kernels import factor_sgd as kernels

    device = tables[0].device
    losses = torch.zeros(len(cells.offsets) - 1, dtype=torch.float64, device=device)
    parts = list(together(blocks_in_order(cells.offsets, seed, epoch)))
    moved = torch.cat(parts).to(device).split([len(part) for part in parts])
    given = (cells.users, cells.items, cells.values, cells.offsets)
    with torch.cuda.device_of(tables[0]), torch.no_grad():
        for blocks in moved:
            kernels.ratings(tables, given, blocks, losses, numbers)
    return losses.cpu().sum()


def factor_sgd_bpr(
    tables: tuple[Tensor, Tensor, Tensor | None],
    cells: reference.Layout,
    liked: tuple[Tensor | None, Tensor | None],
    numbers: tuple[float, float],
    seed: int,
    epoch: int,
    *,
    ordered: bool,
) -> Tensor:
    """As :func:`vecsmith.reference.factor_sgd.factor_sgd_bpr`, to the bit if ``ordered``."""
    from vecsmith.kernels import factor_sgd as kernels

    device = tables[0].device
    results = torch.zeros(len(cells.offsets) - 1, 3, dtype=torch.float64, device=device)
    order = blocks_in_order(cells.offsets, seed, epoch)
    parts: list[Any] = [order.flatten()] if ordered else list(together(order))
    moved = torch.cat(parts).to(device).split([len(part) for part in parts])
    key = stream_key(seed, epoch, reference.STREAM_DRAWS) & (2**64 - 1)
    key = key - 2**64 if key >> 63 else key
    given = (cells.users, cells.items, cells.offsets)
    with torch.cuda.device_of(tables[0]), torch.no_grad():
        for blocks in moved:
            kernels.pairs(*(tables, given, liked, blocks, results, key, numbers), in_order=ordered)
    return results.cpu().sum(0)
