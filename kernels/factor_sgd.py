"""Gradient descent on the factors of a matrix in Triton: what `vecsmith.reference.factor_sgd` says,
on a GPU.

What it computes
    An epoch over ratings, or over pairs of items, a cell at a time: the definitions are the
    reference's, and so are the order and the draws, to the bit.

How the work is split
    A program of one warp (four, of more than 512 factors) trains the cells of a block one after the
    other, with the rows of a cell in registers and the ids of the next one under way. Blocks of one
    launch are those that the order of an epoch lets run at once: the k-th of the bands of rows with
    the (t - k)-th of those of columns, of launch t. They have no row and no column in common, and
    what comes before each in the order has been done. So an epoch over ratings takes the steps of
    the reference, in its order, and the same input gives the same bits. Of pairs the item that is
    drawn may be anybody's: its rows are read and written without a lock (Hogwild), or, in
    deterministic mode, one program does it all.

What bounds its speed
    The time from a cell's ids to its rows' way back, about a microsecond, in each of as many
    programs as there are bands, of which half run on average: 256 bands train something like 100
    million cells a second. Bytes, 16 f a cell, are far from a limit. None of this has been measured
    yet.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
# Liked items that are compared with a drawn one at once.
_COMPARED = tl.constexpr(128)


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _has(indices, low, high, wanted):
    """Whether the rising numbers indices[low] .. indices[high - 1] have this one."""
    while high - low > _COMPARED:
        middle = (low + high) // 2
        before = tl.load(indices + middle) <= wanted
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    at = low + tl.arange(0, _COMPARED)
    found = tl.load(indices + at, mask=at < high, other=-1) == wanted
    return tl.max(found.to(tl.int32), 0) > 0


@triton.jit(do_not_specialize=["per"])
def _ratings(
    user_factors,  # float32 [U, f], and the steps between rows
    item_factors,
    user_bias,  # float32 [U] or None
    item_bias,
    user_squares,  # float32 [U, 2] or None
    item_squares,
    user_stride,
    item_stride,
    user_bias_stride,
    item_bias_stride,
    user_squares_stride,
    item_squares_stride,
    users,  # int32 [n]
    items,
    values,  # float32 [n]
    offsets,  # int64 [blocks + 1]
    blocks,  # int64 [programs, per]
    losses,  # float64 [blocks]
    per,
    f,
    mean,
    rate,
    decay,
    bias_rate,
    bias_decay,
    BLOCK: tl.constexpr,
):
    d = tl.arange(0, BLOCK)
    inside = d < f
    for k in range(per):
        block = tl.load(blocks + tl.program_id(0) * per + k)
        first = tl.load(offsets + block)
        last = tl.load(offsets + block + 1)
        u = tl.load(users + first, mask=first < last, other=0).to(tl.int64)
        i = tl.load(items + first, mask=first < last, other=0).to(tl.int64)
        total = tl.full([], 0.0, tl.float64)
        for at in range(first, last):
            more = at + 1 < last
            next_u = tl.load(users + at + 1, mask=more, other=0).to(tl.int64)
            next_i = tl.load(items + at + 1, mask=more, other=0).to(tl.int64)
            p_at = user_factors + u * user_stride + d
            q_at = item_factors + i * item_stride + d
            p = tl.load(p_at, mask=inside, other=0.0)
            q = tl.load(q_at, mask=inside, other=0.0)
            e = tl.load(values + at) - mean - tl.sum(p * q, 0)
            if user_bias is not None:
                b_u = tl.load(user_bias + u * user_bias_stride)
                e -= b_u
            if item_bias is not None:
                b_i = tl.load(item_bias + i * item_bias_stride)
                e -= b_i
            g_p = decay * p - e * q
            g_q = decay * q - e * p
            rate_p = rate
            rate_q = rate
            rate_u = bias_rate
            rate_i = bias_rate
            if user_squares is not None:
                at_u = user_squares + u * user_squares_stride
                at_i = item_squares + i * item_squares_stride
                s_p = tl.load(at_u)
                s_q = tl.load(at_i)
                s_u = tl.load(at_u + 1)
                s_i = tl.load(at_i + 1)
                rate_p = rate / tl.sqrt_rn(s_p)
                rate_q = rate / tl.sqrt_rn(s_q)
                rate_u = bias_rate / tl.sqrt_rn(s_u)
                rate_i = bias_rate / tl.sqrt_rn(s_i)
                s_p += tl.sum(g_p * g_p, 0) / f
                s_q += tl.sum(g_q * g_q, 0) / f
            # All threads have read what one of them writes, and then see it.
            tl.debug_barrier()
            tl.store(p_at, p - rate_p * g_p, mask=inside)
            tl.store(q_at, q - rate_q * g_q, mask=inside)
            if user_squares is not None:
                tl.store(at_u, s_p)
                tl.store(at_i, s_q)
            if user_bias is not None:
                g = bias_decay * b_u - e
                tl.store(user_bias + u * user_bias_stride, b_u - rate_u * g)
                if user_squares is not None:
                    tl.store(at_u + 1, s_u + g * g)
            if item_bias is not None:
                g = bias_decay * b_i - e
                tl.store(item_bias + i * item_bias_stride, b_i - rate_i * g)
                if user_squares is not None:
                    tl.store(at_i + 1, s_i + g * g)
            tl.debug_barrier()
            total += e.to(tl.float64) * e.to(tl.float64)
            u = next_u
            i = next_i
        tl.store(losses + block, total)


@triton.jit(do_not_specialize=["per", "count", "key"])
def _pairs(
    user_factors,  # float32 [U, f], and the steps between rows
    item_factors,
    item_bias,  # float32 [I] or None
    user_stride,
    item_stride,
    item_bias_stride,
    users,  # int32 [n]
    items,
    offsets,  # int64 [blocks + 1]
    indptr,  # int64 [U + 1]: the items that users like, rising; or None twice
    indices,  # int32 [n]
    blocks,  # int64 [programs, per]
    results,  # float64 [blocks, 3]
    count,  # n
    key,
    per,
    f,
    rate,
    decay,
    BLOCK: tl.constexpr,
):
    d = tl.arange(0, BLOCK)
    inside = d < f
    bits = key.to(tl.int64).to(tl.uint64)
    for k in range(per):
        block = tl.load(blocks + tl.program_id(0) * per + k)
        total = tl.full([], 0.0, tl.float64)
        right = tl.full([], 0, tl.int64)
        trained = tl.full([], 0, tl.int64)
        for at in range(tl.load(offsets + block), tl.load(offsets + block + 1)):
            u = tl.load(users + at).to(tl.int64)
            i = tl.load(items + at).to(tl.int64)
            counter = (tl.full([], 1, tl.int64) + at).to(tl.uint64)
            drawn = _mix(bits + counter * _GOLDEN)
            other = tl.umulhi(drawn, count.to(tl.uint64)).to(tl.int64)
            j = tl.load(items + other).to(tl.int64)
            liked = j < 0
            if indptr is not None:
                liked = _has(indices, tl.load(indptr + u), tl.load(indptr + u + 1), j)
            if liked == 0:
                p_at = user_factors + u * user_stride + d
                i_at = item_factors + i * item_stride + d
                j_at = item_factors + j * item_stride + d
                p = tl.load(p_at, mask=inside, other=0.0)
                q_i = tl.load(i_at, mask=inside, other=0.0)
                q_j = tl.load(j_at, mask=inside, other=0.0)
                score = tl.sum(p * (q_i - q_j), 0)
                if item_bias is not None:
                    b_i = tl.load(item_bias + i * item_bias_stride)
                    b_j = tl.load(item_bias + j * item_bias_stride)
                    score += b_i - b_j
                z = 1.0 / (1.0 + tl.exp(score))
                tl.debug_barrier()
                tl.store(p_at, p + rate * (z * (q_i - q_j) - decay * p), mask=inside)
                # Where j is i, what is written last stays: j's.
                tl.store(i_at, q_i + rate * (z * p - decay * q_i), mask=inside)
                tl.store(j_at, q_j - rate * (z * p + decay * q_j), mask=inside)
                if item_bias is not None:
                    tl.store(item_bias + i * item_bias_stride, b_i + rate * (z - decay * b_i))
                    tl.store(item_bias + j * item_bias_stride, b_j - rate * (z + decay * b_j))
                tl.debug_barrier()
                loss = tl.maximum(-score, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(score)))
                total += loss.to(tl.float64)
                right += (score > 0).to(tl.int64)
                trained += 1
        tl.store(results + 3 * block, total)
        tl.store(results + 3 * block + 1, right.to(tl.float64))
        tl.store(results + 3 * block + 2, trained.to(tl.float64))


# --- Launches. ------------------------------------------------------------------------------------


def _step(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def _width(f: int) -> dict[str, int]:
    return {"BLOCK": triton.next_power_of_2(f), "num_warps": 1 if f <= 512 else 4, "num_stages": 1}


def ratings(
    tables: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    cells: tuple[Tensor, Tensor, Tensor, Tensor],
    blocks: Tensor,
    losses: Tensor,
    numbers: tuple[float, float, float, float, float],
) -> None:
    """Trains blocks that have no row and no column in common.

    tables: factors, biases and squares, each of users and items; cells: users, items, values,
    offsets; blocks: int64; losses: float64 [all blocks], those of these are written; numbers:
    mean, learning rate, regularization, and both of biases.
    """
    f = tables[0].shape[1]
    _ratings[(len(blocks),)](
        *tables, *(_step(table) for table in tables), *cells, blocks, losses, 1, f, *numbers,
        **_width(f),
    )  # fmt: skip


def pairs(
    tables: tuple[Tensor, Tensor, Tensor | None],
    cells: tuple[Tensor, Tensor, Tensor],
    liked: tuple[Tensor | None, Tensor | None],
    blocks: Tensor,
    results: Tensor,
    key: int,
    numbers: tuple[float, float],
    *,
    in_order: bool,
) -> None:
    """Trains blocks: in their order if ``in_order``, else at once.

    tables: factors of users and of items, biases; cells: users, items, offsets; liked: indptr,
    indices; results: float64 [all blocks, 3]; key: of the draws, as an int64; numbers: learning
    rate and regularization.
    """
    given: Any = (*tables, *(_step(table) for table in tables), *cells, *liked, blocks, results)
    f, count = tables[0].shape[1], len(cells[0])
    programs = 1 if in_order else len(blocks)
    _pairs[(programs,)](
        *given, count, key, len(blocks) // programs, f, *numbers, **_width(f)
    )  # fmt: skip
