"""What the operator ``factor_sgd`` computes, in plain PyTorch: one epoch of stochastic gradient
descent on the factors of a matrix, a cell at a time.

Ratings (Koren, Bell and Volinsky 2009, doi:10.1109/MC.2009.263)
----------------------------------------------------------------
A cell (u, i, r) with the rows p of u and q of i has the loss

    e^2 / 2 + l / 2 (|p|^2 + |q|^2) + l_b / 2 (b_u^2 + b_i^2),   e = r - (m + b_u + b_i + <p, q>)

and each of the four goes against its gradient, all from the values before the cell:

    p <- p - a_p g_p,  g_p = l p - e q        b_u <- b_u - a_u g_u,  g_u = l_b b_u - e
    q <- q - a_q g_q,  g_q = l q - e p        b_i <- b_i - a_i g_i,  g_i = l_b b_i - e

The rates a are the learning rates, or, where there are sums of squared gradients G (Chin et al.
2015, doi:10.1007/978-3-319-18038-0_35: one number for a row), learning rate / sqrt(G) with G as it
was before the cell; then G_p <- G_p + |g_p|^2 / f and G_b <- G_b + g_b^2.

Pairs (Rendle et al. 2009, arXiv:1205.2618)
-------------------------------------------
A cell (u, i), and an item j that is drawn for it, has the loss

    log(1 + exp(-d)) + l / 2 (|p|^2 + |q_i|^2 + |q_j|^2 + b_i^2 + b_j^2),
    d = b_i - b_j + <p, q_i - q_j>

and p, q_i, q_j, b_i and b_j go against its gradient: with z = 1 / (1 + exp(d))

    p <- p + a (z (q_i - q_j) - l p)
    q_i <- q_i + a (z p - l q_i)      b_i <- b_i + a (z - l b_i)
    q_j <- q_j - a (z p + l q_j)      b_j <- b_j - a (z + l b_j)

j is the item of a cell that is drawn evenly from all: items are drawn as often as they are liked. A
cell whose user likes the j that was drawn is left out. j may be i where that is not looked up.

Blocks and order
----------------
Rows and columns are dealt to B bands each: sorted by their number of cells, the most first, number
k goes to band k mod 2B, or 2B - 1 - k mod 2B if that is B or more. Cells are laid out by band of
the row, then by band of the column, and within such a block shuffled (Fisher and Yates, from the
end: cell k trades places with cell below(draw(k), k + 1) of the block). An epoch takes the bands of
rows in an order of its own, and those of columns within each: permutations of 0 .. B - 1 that are
shuffled in the same way.

Random draws are those of :mod:`vecsmith.reference.skipgram`, with below(bits, n) = bits n >> 64:

    shuffle of block b   key mix(key(stream 0 of seed, epoch 0) + (b + 1) G), n = k
    order of rows        stream 1 of (seed, epoch), n = k
    order of columns     stream 2, n = k
    drawn cell           stream 3, n = the cell's place in the layout
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vecsmith.reference.skipgram import GOLDEN, stream_key

STREAM_SHUFFLE, STREAM_ROWS, STREAM_COLUMNS, STREAM_DRAWS = range(4)
_ALL = (1 << 64) - 1


class Layout(NamedTuple):
    """Cells as blocks: users, items int32 [n], values float32 [n], offsets int64 [B * B + 1]."""

    users: Tensor
    items: Tensor
    values: Tensor
    offsets: Tensor


def mix(z: int) -> int:
    """SplitMix64's finalizer, of a number modulo 2^64."""
    z &= _ALL
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _ALL
    return z ^ (z >> 31)


def draw_below(key: int, counter: int, n: int) -> int:
    """An integer in 0 .. n - 1."""
    return mix(key + (counter + 1) * GOLDEN) * n >> 64


def shuffle(values: list, key: int) -> list:
    """In place; returns it."""
    for k in range(len(values) - 1, 0, -1):
        j = draw_below(key, k, k + 1)
        values[k], values[j] = values[j], values[k]
    return values


def order(bands: int, seed: int, epoch: int) -> tuple[list[int], list[int]]:
    """The order of the bands of rows, and of columns, in an epoch."""
    rows, columns = (
        shuffle(list(range(bands)), stream_key(seed, epoch, stream))
        for stream in (STREAM_ROWS, STREAM_COLUMNS)
    )
    return rows, columns


def deal(counts: Tensor, bands: int) -> Tensor:
    """The band of each of these, int32 [n], which have so many cells."""
    place = torch.arange(len(counts)) % (2 * bands)
    place = torch.where(place < bands, place, 2 * bands - 1 - place)
    found = torch.empty(len(counts), dtype=torch.int32)
    found[torch.argsort(counts, descending=True, stable=True)] = place.int()
    return found


def layout(
    users: Tensor,
    items: Tensor,
    values: Tensor,
    user_band: Tensor,
    item_band: Tensor,
    bands: int,
    seed: int,
) -> Layout:
    """Cells as blocks. user_band, item_band: int32, of each row and of each column."""
    block = user_band[users.long()].long() * bands + item_band[items.long()].long()
    counts = torch.bincount(block, minlength=bands * bands)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    places = torch.argsort(block, stable=True).tolist()
    key = stream_key(seed, 0, STREAM_SHUFFLE)
    bounds = offsets.tolist()
    for b in range(bands * bands):
        own = mix(key + (b + 1) * GOLDEN)
        places[bounds[b] : bounds[b + 1]] = shuffle(places[bounds[b] : bounds[b + 1]], own)
    at = torch.tensor(places, dtype=torch.int64)
    return Layout(users[at], items[at], values[at], offsets)


def cells_in_order(offsets: Tensor, seed: int, epoch: int) -> list[int]:
    """The places of the cells in the order of an epoch."""
    bounds = offsets.tolist()
    bands = round((len(bounds) - 1) ** 0.5)
    rows, columns = order(bands, seed, epoch)
    blocks = [row * bands + column for row in rows for column in columns]
    return [at for b in blocks for at in range(bounds[b], bounds[b + 1])]


def factor_sgd(
    user_factors: Tensor,
    item_factors: Tensor,
    cells: Layout,
    *,
    user_bias: Tensor | None = None,
    item_bias: Tensor | None = None,
    user_squares: Tensor | None = None,
    item_squares: Tensor | None = None,
    mean: float = 0.0,
    learning_rate: float = 0.01,
    bias_learning_rate: float = 0.01,
    regularization: float = 0.01,
    bias_regularization: float = 0.01,
    seed: int = 0,
    epoch: int = 0,
) -> Tensor:
    """One epoch over ratings, in place. Returns sum e^2, float64 [].

    user_factors: [U, f]; item_factors: [I, f]; user_bias: [U]; item_bias: [I]; user_squares:
    [U, 2], G of the factors and of the bias; item_squares: [I, 2].
    """
    total = torch.zeros((), dtype=torch.float64)
    sides = (
        (user_factors, user_bias, user_squares),
        (item_factors, item_bias, item_squares),
    )
    for at in cells_in_order(cells.offsets, seed, epoch):
        rows = (int(cells.users[at]), int(cells.items[at]))
        old = [side[0][row].clone() for side, row in zip(sides, rows, strict=True)]
        e = cells.values[at].to(old[0].dtype) - mean - old[0] @ old[1]
        for (_, bias, _), row in zip(sides, rows, strict=True):
            if bias is not None:
                e = e - bias[row]
        for k, ((factors, bias, squares), row) in enumerate(zip(sides, rows, strict=True)):
            rate, bias_rate = learning_rate, bias_learning_rate
            g = regularization * old[k] - e * old[1 - k]
            if squares is not None:
                rate, bias_rate = rate / squares[row, 0].sqrt(), bias_rate / squares[row, 1].sqrt()
                squares[row, 0] += g.square().mean()
            factors[row] = old[k] - rate * g
            if bias is not None:
                g = bias_regularization * bias[row] - e
                if squares is not None:
                    squares[row, 1] += g.square()
                bias[row] -= bias_rate * g
        total += e.double() ** 2
    return total


def factor_sgd_bpr(
    user_factors: Tensor,
    item_factors: Tensor,
    cells: Layout,
    liked: Sequence[set[int]] | None,
    *,
    item_bias: Tensor | None = None,
    learning_rate: float = 0.01,
    regularization: float = 0.01,
    seed: int = 0,
    epoch: int = 0,
) -> Tensor:
    """One epoch over pairs, in place. Returns, float64 [3], the sum of log(1 + exp(-d)), how many d
    were positive, and how many pairs there were.

    liked: the items of each user, who gets none of them as j; None: that is not looked up.
    """
    result = torch.zeros(3, dtype=torch.float64)
    key, count = stream_key(seed, epoch, STREAM_DRAWS), len(cells.items)
    for at in cells_in_order(cells.offsets, seed, epoch):
        u, i = int(cells.users[at]), int(cells.items[at])
        j = int(cells.items[draw_below(key, at, count)])
        if liked is not None and j in liked[u]:
            continue
        p, q_i, q_j = user_factors[u].clone(), item_factors[i].clone(), item_factors[j].clone()
        d = p @ (q_i - q_j)
        if item_bias is not None:
            d = d + item_bias[i] - item_bias[j]
        z = torch.sigmoid(-d)
        user_factors[u] = p + learning_rate * (z * (q_i - q_j) - regularization * p)
        # Where j is i, what was written last stays: j's.
        item_factors[i] = q_i + learning_rate * (z * p - regularization * q_i)
        item_factors[j] = q_j - learning_rate * (z * p + regularization * q_j)
        if item_bias is not None:
            b_i, b_j = item_bias[i].clone(), item_bias[j].clone()
            item_bias[i] = b_i + learning_rate * (z - regularization * b_i)
            item_bias[j] = b_j - learning_rate * (z + regularization * b_j)
        loss = torch.nn.functional.softplus(-d.double())
        result += torch.tensor([float(loss), float(d > 0), 1.0], dtype=torch.float64)
    return result
