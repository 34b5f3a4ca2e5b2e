"""The nearest rows of a vocabulary in Triton: what `vecsmith.reference.cosine_topk` says, on a GPU.

What it computes
    The k best rows for each query by cosine, product or squared distance, exactly, from tables of
    float32, float16 or bfloat16 (float64 is scanned), without the matrix of all scores.

    A first pass takes the products <a, b> + bias of factors that rank rows as the metric does:

        cosine   a = q / |q|   b = w / |w| - m   bias = 0
        dot      a = q / |q|   b = w - m         bias = 0
        l2       a = q - m     b = w - m         bias = -|b|^2 / 2

    with m the mean of some rows. a~, b~ are bfloat16, and what rounding takes away is kept:

        |<a, b> - s| <= |a - a~| |b| + |a~| |b - b~| + c |a~| |b~|

    where s is the sum that a matrix unit makes, c = (D + 16) 2^-21. A product of two bfloat16 is
    exact in float32; a unit that adds n terms at a time and cuts each off at the last of 24 bits of
    the largest of them is off by less than (1 + 2 / n) D 2^-23 sum |a~ b~|: for n >= 4, half of c
    or less is assumed of it. Numbers that bfloat16 cannot hold normalized are zeros, so nothing
    depends on how a unit takes them. tau is a bound below the k-th best: the k-th largest s - slack
    of rows seen. Only rows with s + slack >= tau can be among the best; they are scored from the
    given rows in float64.

How the work is split
    1. `_pack`: rows of a table as factors, their lengths and what rounding took away (float64).
    2. `_block_bounds`, on every n-th row of the vocabulary: the largest s - slack of each block of
       rows, whose k-th largest is the first tau (`_first_tau`): whatever the order of the rows,
       what remains to be taken is a known share of them.
    3. The vocabulary in slabs that stay in L2 (smaller ones while few rows were seen): packed,
       multiplied with all queries of a group
       (`_screen`: a tile of queries by a tile of rows; what reaches tau is appended to the query's
       list), and each query's list is cut by a tau that is now sharper (`_tighten`).
    4. `_score`: the rows that are left, in float64; then two stable sorts: by row, by score.
    A query whose list does not suffice is searched again with a longer one, from the tau it has
    reached, and if that does not suffice either all rows are scored in float64, as they are where
    there are few queries, few rows, or more neighbors than lists are made for. Slots of a list are
    taken with atomics, in any order; what is found does not depend on it.

    Scratch, whatever the sizes: at most 40 MB of packed queries and lists (their number in a group
    follows), 12 MB a slab, and about 10 MB of scores; the packed vocabulary is never there as a
    whole.

What bounds its speed
    The tensor cores: 2 Q V D operations, and a sixteenth of that for the sample. The comparison
    with tau takes, as compiled for sm_90, fifteen to thirty instructions a score: at D = 768 up to
    half as long as the products themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from vecsmith.kernels._elements import _INTERPRETED, narrow

_LEAST = tl.constexpr(-3.402823466e38)
_LONGEST = 1e18
_DEPTH = 64  # of a step of the products; factors are padded to it
_NO_ROW = 2**63 - 1

# What the first pass is for; beyond, all rows are scored in float64.
MOST_NEIGHBORS = 2048
MOST_DIM = 65536
_FEW_QUERIES = 4
_FEW_ROWS = 1024

_GROUP_BYTES, _SLAB_BYTES = 40 << 20, 12 << 20
_LONGEST_LIST = 8192
_SCORES = 1 << 17  # float64 scores at a time
_SAMPLE = 1 << 20  # numbers that the mean is taken of


@triton.jit
def _load_doubles(at, d, live, DIM: tl.constexpr):
    """Columns d of rows that begin at pointers ``at``; zero past the end and where not live."""
    mask = live[:, None] & (d < DIM)[None, :]
    return tl.load(at[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float64)


@triton.jit
def _excluded(excluded, start, stop, row):
    """Whether rows are among excluded[start] .. excluded[stop - 1], ascending."""
    low = start + row * 0
    high = stop + row * 0
    span = stop - start
    while span > 0:
        middle = (low + high) // 2
        active = low < high
        less = tl.load(excluded + middle, mask=active, other=0) < row
        low = tl.where(active & less, middle + 1, low)
        high = tl.where(active & (less == 0), middle, high)
        span = span // 2
    return tl.load(excluded + low, mask=low < stop, other=-1) == row


@triton.jit(do_not_specialize=["first", "step", "count", "lanes"])
def _pack(
    table,  # [N, D]
    stride,
    ids,  # int64 [count]: rows of the table; or None: first, first + step, ..
    first,
    step,
    count,
    banned,  # bool [N] or None
    center,  # float32 [D]
    factors,  # bfloat16 [lanes, WIDTH]; lanes from count on are those of banned rows
    facts,  # float32: of queries [3, lanes], |a~|, |a - a~|, tau; of rows [4, lanes], |b|, what
    # is lost for each |a~|, bias, and what is lost for any query
    bad,  # int64 []: the first row that cannot be taken
    lanes,
    METRIC: tl.constexpr,
    QUERIES: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = lane < count
    if ids is None:
        row = first + lane * step
    else:
        row = tl.load(ids + lane, mask=live, other=0)
    if banned is not None:
        live = live & (tl.load(banned + row, mask=live, other=1) == 0)
    at = table + row * stride
    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float64)
    for begin in range(0, DIM, BLOCK_D):
        v = _load_doubles(at, begin + columns, live, DIM)
        total += v * v
    squares = tl.sum(total, 1)
    if METRIC == "cosine":
        fine = squares < float("inf")
    else:
        fine = squares <= 1e36
    tl.atomic_min(bad + lane * 0, row, mask=live & (fine == 0), sem="relaxed")

    scaled: tl.constexpr = METRIC == "cosine" or (METRIC == "dot" and QUERIES)
    centered: tl.constexpr = METRIC == "l2" or not QUERIES
    norm = tl.sqrt(squares)
    factor = tl.where(norm > 0, 1.0 / tl.where(norm > 0, norm, 1.0), 0.0)
    lengths = tl.zeros([BLOCK_R, BLOCK_D], tl.float64)
    errors = tl.zeros([BLOCK_R, BLOCK_D], tl.float64)
    for begin in range(0, WIDTH, BLOCK_D):
        d = begin + columns
        v = _load_doubles(at, d, live, DIM)
        if scaled:
            v = v * factor[:, None]
        if centered:
            mean = tl.load(center + d, mask=d < DIM, other=0.0).to(tl.float64)
            v = tl.where(live[:, None], v - mean[None, :], 0.0)
        rounded = v.to(tl.float32)
        rounded = narrow(tl.where(tl.abs(rounded) < 2.0**-126, 0.0, rounded), tl.bfloat16)
        left = v - rounded.to(tl.float32).to(tl.float64)
        lengths += v * v
        errors += left * left
        mask = (lane < lanes)[:, None] & (d < WIDTH)[None, :]
        tl.store(factors + lane[:, None] * WIDTH + d[None, :], rounded, mask=mask)
    lengths = tl.sum(lengths, 1)
    length = tl.sqrt(lengths)
    # What float64 itself rounds: of the quotient, before the mean is taken away.
    error = tl.sqrt(tl.sum(errors, 1)) + (length + (1.0 if scaled else 0.0)) * 2.0**-30
    up: tl.constexpr = 1 + 2.0**-16
    inside = lane < lanes
    if QUERIES:
        # All rows are as near to a query of zeros: none of them has to be looked at.
        none = squares == 0.0 if METRIC != "l2" else squares < 0.0
        tau = tl.where(live & (none == 0), _LEAST, float("inf"))
        tl.store(facts + lane, ((length + error) * up).to(tl.float32), mask=inside)
        tl.store(facts + lanes + lane, (error * up).to(tl.float32), mask=inside)
        tl.store(facts + 2 * lanes + lane, tau, mask=inside)
    else:
        rounding: tl.constexpr = (DIM + 16) * 2.0**-21 + 2.0**-20  # and that of a sum and a slack
        lost = error + rounding * (length + error)
        bias = lengths * (-0.5 if METRIC == "l2" else 0.0)
        added = tl.where(live, DIM * 2.0**-120 - bias * 2.0**-21, 0.0)
        bias = tl.where(live, bias, -float("inf"))
        tl.store(facts + lane, (length * up).to(tl.float32), mask=inside)
        tl.store(facts + lanes + lane, (lost * up).to(tl.float32), mask=inside)
        tl.store(facts + 2 * lanes + lane, bias.to(tl.float32), mask=inside)
        tl.store(facts + 3 * lanes + lane, (added * up).to(tl.float32), mask=inside)


@triton.jit
def _products(
    a,
    b,
    q,
    v,
    WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """a[q] b[v]^T, float32 [BLOCK_Q, BLOCK_V]. The interpreter multiplies what it takes bfloat16's
    bits for."""
    k = tl.arange(0, DEPTH)
    a_at = a + q.to(tl.int64)[:, None] * WIDTH + k[None, :]
    b_at = b + v.to(tl.int64)[:, None] * WIDTH + k[None, :]
    total = tl.zeros([BLOCK_Q, BLOCK_V], tl.float32)
    for _ in range(0, WIDTH, DEPTH):
        x = tl.load(a_at)
        w = tl.load(b_at)
        if _INTERPRETED:
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        total = tl.dot(x, tl.trans(w), total)
        a_at += DEPTH
        b_at += DEPTH
    return total


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right columns."""
    return tl.split(tl.permute(tl.reshape(x, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))


@triton.jit
def _slack(query_facts, row_facts, q, v, query_lanes, row_lanes):
    """The most that a sum is off from what exact arithmetic gives [BLOCK_Q, BLOCK_V]."""
    length = tl.load(query_facts + q)
    error = tl.load(query_facts + query_lanes + q)
    norm = tl.load(row_facts + v)
    lost = tl.load(row_facts + row_lanes + v)
    added = tl.load(row_facts + 3 * row_lanes + v)
    return error[:, None] * norm[None, :] + (length[:, None] * lost[None, :] + added[None, :])


@triton.jit(do_not_specialize=["query_lanes", "row_lanes", "width", "first"])
def _block_bounds(
    queries,  # bfloat16 [query_lanes, WIDTH]
    query_facts,
    rows,  # bfloat16 [row_lanes, WIDTH]
    row_facts,
    bounds,  # float32 [query_lanes, width]
    query_lanes,
    row_lanes,
    width,
    first,  # block that rows begin with
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """bounds[q, block] = what the best of each ROWS rows reaches for certain."""
    tiles = query_lanes // BLOCK_Q
    tile = tl.program_id(0)
    q = (tile % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    begin = (tile // tiles) * BLOCK_V
    v = begin + tl.arange(0, BLOCK_V)
    sums = _products(queries, rows, q, v, WIDTH, BLOCK_Q, BLOCK_V, DEPTH)
    at = bounds + q.to(tl.int64)[:, None] * width + first
    parts = _halves(sums, BLOCK_Q, BLOCK_V)
    for i in tl.static_range(8):
        half = _halves(parts[i // 4], BLOCK_Q, BLOCK_V // 2)
        quarter = _halves(half[i // 2 % 2], BLOCK_Q, BLOCK_V // 4)
        _put_bounds(
            quarter[i % 2], query_facts, row_facts, q, begin + i * (BLOCK_V // 8), at, query_lanes,
            row_lanes, ROWS, BLOCK_Q, BLOCK_V // 8,
        )  # fmt: skip


@triton.jit
def _put_bounds(
    sums,
    query_facts,
    row_facts,
    q,
    begin,
    at,
    query_lanes,
    row_lanes,
    ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    v = begin + tl.arange(0, COLUMNS)
    bias = tl.load(row_facts + 2 * row_lanes + v)
    lower = sums + bias[None, :] - _slack(query_facts, row_facts, q, v, query_lanes, row_lanes)
    if ROWS > 1:
        lower = tl.max(tl.reshape(lower, [BLOCK_Q, COLUMNS // ROWS, ROWS]), 2)
    block = begin // ROWS + tl.arange(0, COLUMNS // ROWS)
    tl.store(at + block[None, :], lower)


@triton.jit
def _kth_largest(values, k):
    """The k-th largest of float32 values, of which none is NaN and there are k."""
    bits = values.to(tl.int32, bitcast=True)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)  # ordered as the values are
    found = tl.full([], -(2**31), tl.int64)
    step = tl.full([], 2**31, tl.int64)
    for _ in range(32):
        reached = tl.sum((keys >= found + step).to(tl.int32), 0) >= k
        found = tl.where(reached, found + step, found)
        step = step // 2
    key = found.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["k", "step", "count", "width"])
def _first_tau(
    bounds,  # float32 [queries, width]
    tau,  # float32 [queries]
    ids,  # int64 [queries]
    offsets,  # int64 [Q + 1], or None
    excluded,
    k,
    step,  # every step-th row is in a block
    count,  # of blocks
    width,
    BLOCK: tl.constexpr,
):
    """The k-th largest bound; of a query that may not have e of these rows, the (k + e)-th."""
    i = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    rank = k.to(tl.int64)
    if offsets is not None:
        query = tl.load(ids + i)
        stop = tl.load(offsets + query + 1)
        for begin in range(tl.load(offsets + query), stop, 128):
            at = begin + tl.arange(0, 128)
            row = tl.load(excluded + at, mask=at < stop, other=-1)
            rank += tl.sum(((row >= 0) & (row % step == 0)).to(tl.int64), 0)
    values = tl.load(bounds + i * width + lane, mask=lane < count, other=-float("inf"))
    if rank <= BLOCK:
        kth = _kth_largest(values, rank)
        tl.store(tau + i, tl.maximum(tl.load(tau + i), kth))


@triton.jit(do_not_specialize=["query_lanes", "row_lanes", "first"])
def _screen(
    queries,
    query_facts,
    rows,
    row_facts,
    counts,  # int32 [query_lanes]: of entries, also of those that found no place
    entries,  # float32 [query_lanes, 3, CAPACITY]: upper bound, lower bound, row (int32)
    query_lanes,
    row_lanes,
    first,  # row of the vocabulary that rows begin with
    CAPACITY: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Rows that reach a query's tau are appended to its entries; an eighth of a tile at a time,
    for whose slots there are registers."""
    tiles = query_lanes // BLOCK_Q
    tile = tl.program_id(0)
    q = (tile % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    begin = (tile // tiles) * BLOCK_V
    v = begin + tl.arange(0, BLOCK_V)
    sums = _products(queries, rows, q, v, WIDTH, BLOCK_Q, BLOCK_V, DEPTH)
    parts = _halves(sums, BLOCK_Q, BLOCK_V)
    for i in tl.static_range(8):
        half = _halves(parts[i // 4], BLOCK_Q, BLOCK_V // 2)
        quarter = _halves(half[i // 2 % 2], BLOCK_Q, BLOCK_V // 4)
        _append(
            quarter[i % 2], query_facts, row_facts, q, begin + i * (BLOCK_V // 8), counts, entries,
            query_lanes, row_lanes, first, CAPACITY, BLOCK_V // 8,
        )  # fmt: skip


@triton.jit
def _append(
    sums,
    query_facts,
    row_facts,
    q,
    begin,
    counts,
    entries,
    query_lanes,
    row_lanes,
    first,
    CAPACITY: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    v = begin + tl.arange(0, COLUMNS)
    score = sums + tl.load(row_facts + 2 * row_lanes + v)[None, :]
    slack = _slack(query_facts, row_facts, q, v, query_lanes, row_lanes)
    tau = tl.load(query_facts + 2 * query_lanes + q)
    hit = score + slack >= tau[:, None]
    if tl.max(hit.to(tl.int32)) > 0:
        place = counts + q[:, None] + (v * 0)[None, :]
        slot = tl.atomic_add(place, hit.to(tl.int32), mask=hit, sem="relaxed")
        hit = hit & (slot < CAPACITY)
        at = entries + q.to(tl.int64)[:, None] * (3 * CAPACITY) + slot
        row = (first + v).to(tl.float32, bitcast=True)
        tl.store(at, score + slack, mask=hit)
        tl.store(at + CAPACITY, score - slack, mask=hit)
        tl.store(at + 2 * CAPACITY, tl.broadcast_to(row[None, :], hit.shape), mask=hit)


@triton.jit(do_not_specialize=["k"])
def _tighten(
    counts,  # int32 [queries]
    entries,
    tau,  # float32 [queries]
    full,  # bool [queries]: entries were lost
    ids,
    offsets,
    excluded,
    k,
    CAPACITY: tl.constexpr,
):
    """tau becomes the k-th largest lower bound, and entries below it go, and those that the query
    may not have."""
    i = tl.program_id(0).to(tl.int64)
    pos = tl.arange(0, CAPACITY)
    count = tl.load(counts + i)
    live = pos < count
    at = entries + i * (3 * CAPACITY) + pos
    upper = tl.load(at, mask=live, other=-float("inf"))
    lower = tl.load(at + CAPACITY, mask=live, other=-float("inf"))
    row = tl.load(at + 2 * CAPACITY, mask=live, other=0.0)
    if offsets is not None:
        query = tl.load(ids + i)
        start = tl.load(offsets + query)
        stop = tl.load(offsets + query + 1)
        number = row.to(tl.int32, bitcast=True).to(tl.int64)
        live = live & (_excluded(excluded, start, stop, number) == 0)
        lower = tl.where(live, lower, -float("inf"))
    sharper = tl.maximum(tl.load(tau + i), _kth_largest(lower, k))
    keep = (live & (upper >= sharper)).to(tl.int32)
    to = entries + i * (3 * CAPACITY) + tl.cumsum(keep, 0) - 1
    tl.debug_barrier()  # Every thread has read what is written over.
    tl.store(to, upper, mask=keep != 0)
    tl.store(to + CAPACITY, lower, mask=keep != 0)
    tl.store(to + 2 * CAPACITY, row, mask=keep != 0)
    tl.store(tau + i, sharper)
    tl.store(counts + i, tl.sum(keep, 0))
    if count > CAPACITY:
        tl.store(full + i, True)


@triton.jit(do_not_specialize=["first", "count", "width"])
def _score(
    queries,  # [Q, D]
    query_stride,
    vocabulary,  # [V, D]
    row_stride,
    ids,  # int64 [queries]
    counts,  # int32 [queries]: of rows; or None: all that are allowed, of first, first + 1, ..
    rows,  # int32 [queries, LIST]
    scores,  # float64 [queries, width]
    banned,
    offsets,
    excluded,
    bad,  # int64 [2]: the first query and the first row that cannot be taken
    first,
    count,
    width,
    METRIC: tl.constexpr,
    DIM: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The scores of rows, greatest best, each row's sum in the same order; -inf where there is no
    row."""
    i = tl.program_id(0).to(tl.int64)
    query = tl.load(ids + i)
    pos = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if counts is not None:
        live = pos < tl.load(counts + i)
        row = tl.load(rows + i * LIST + pos, mask=live, other=0).to(tl.int64)
    else:
        live = pos < count
        row = first + pos.to(tl.int64)
        if banned is not None:
            live = live & (tl.load(banned + row, mask=live, other=1) == 0)
        if offsets is not None:
            start = tl.load(offsets + query)
            live = live & (_excluded(excluded, start, tl.load(offsets + query + 1), row) == 0)
    at = vocabulary + row * row_stride
    query_at = queries + query * query_stride
    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float64)
    squares = tl.zeros([BLOCK_R, BLOCK_D], tl.float64)
    query_squares = tl.zeros([BLOCK_D], tl.float64)
    reach = tl.where(tl.max(live.to(tl.int32), 0) > 0, DIM, 0)
    for begin in range(0, reach, BLOCK_D):
        d = begin + columns
        w = _load_doubles(at, d, live, DIM)
        q = tl.load(query_at + d, mask=d < DIM, other=0.0).to(tl.float64)
        if METRIC == "l2":
            total += (q[None, :] - w) * (q[None, :] - w)
        else:
            total += q[None, :] * w
        squares += w * w
        query_squares += q * q
    score = tl.sum(total, 1)
    squares = tl.sum(squares, 1)
    query_squares = tl.sum(query_squares, 0)
    if METRIC == "l2":
        score = -score
    elif METRIC == "cosine":
        lengths = tl.sqrt(squares) * tl.sqrt(query_squares)
        score = tl.where(lengths > 0, score / tl.where(lengths > 0, lengths, 1.0), 0.0)
    if counts is None:
        if METRIC == "cosine":
            fine = squares < float("inf")
            query_fine = query_squares < float("inf")
        else:
            fine = squares <= 1e36
            query_fine = query_squares <= 1e36
        tl.atomic_min(bad + 1 + row * 0, row, mask=live & (fine == 0), sem="relaxed")
        tl.atomic_min(bad, query, mask=query_fine == 0, sem="relaxed")
    score = tl.where(live, score, -float("inf"))
    tl.store(scores + i * width + pos, score, mask=pos < width)


class Problem(NamedTuple):
    """What is searched for, and where; all of one device.

    queries [Q, D], vocabulary [V, D], of unit stride along D; metric: "cosine", "dot", "l2";
    banned: bool [V] or None; the rows that query i may not have are excluded[offsets[i]] ..
    excluded[offsets[i + 1] - 1], ascending, -1 is none (int64, or None twice); values [Q, k] of
    float32 or float64 and int64 indices [Q, k] are written.
    """

    queries: Tensor
    vocabulary: Tensor
    metric: str
    banned: Tensor | None
    offsets: Tensor | None
    excluded: Tensor | None
    values: Tensor
    indices: Tensor

    @property
    def k(self) -> int:
        return self.indices.shape[1]


def _memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have; an H200's where there is no GPU."""
    if device.type != "cuda":
        return 227 << 10
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def _tile(queries: int, memory: int) -> dict[str, int]:
    """The launch of the products. A wide tile reads less from L2 for what it computes."""
    rows = 16 if queries <= 16 else 64 if queries <= 64 else 128
    columns = 256 if rows == 128 else 128
    stage = 2 * _DEPTH * (rows + columns)
    if 3 * stage > memory:
        columns = 128
        stage = 2 * _DEPTH * (rows + columns)
    return {
        "BLOCK_Q": rows,
        "BLOCK_V": columns,
        "DEPTH": _DEPTH,
        "num_warps": 8 if rows == 128 else 4,
        "num_stages": max(2, min(4, memory // stage)),
    }


def _packing(dim: int) -> dict[str, int]:
    columns = min(256, max(64, triton.next_power_of_2(dim)))
    return {"BLOCK_R": 2048 // columns, "BLOCK_D": columns, "num_warps": 4}


def _warps(block: int) -> int:
    """Of a program that goes over a list of this length."""
    return min(32, max(1, block // 256))


def _blocks(capacity: int, rows: int) -> tuple[int, int]:
    """(how many blocks the sample has, rows of a block): its bounds have the place of the entries,
    and it is a sixteenth of the vocabulary, or more where that is little."""
    count = 2 * capacity
    return count, min(16, triton.next_power_of_2(max(1, rows // (16 * count))))


def _mean(vocabulary: Tensor, metric: str, banned: Tensor | None) -> Tensor:
    """float32 [D], of up to 1,024 rows as the metric takes them. Any vector will do."""
    count, dim = vocabulary.shape
    taken = min(count, 1024, max(1, _SAMPLE // dim))
    ids = torch.arange(taken, device=vocabulary.device) * count // taken
    rows = vocabulary[ids].double().nan_to_num()
    if metric == "cosine":
        norm = rows.norm(dim=1, keepdim=True)
        rows = rows / torch.where(norm > 0, norm, 1.0)
    if banned is not None:
        rows = rows.masked_fill(banned[ids].unsqueeze(1), 0.0)
    return rows.mean(0).nan_to_num(posinf=0.0, neginf=0.0).float()


def _raise_bad(bad: Tensor, metric: str) -> None:
    """bad: int64 [2]"""
    for what, row in zip(("queries", "vocabulary"), bad.tolist(), strict=True):
        if row != _NO_ROW:
            length = "" if metric == "cosine" else " and of a length of at most 1e18"
            raise ValueError(f"cosine_topk: expected {what} to be finite{length}; row {row} is not")


def _store(problem: Problem, ids: Tensor, scores: Tensor, rows: Tensor) -> None:
    """scores: float64, rows: int64 [len(ids), k], best first."""
    none = scores == -torch.inf
    values = 0 - scores if problem.metric == "l2" else scores
    problem.values[ids] = values.to(problem.values.dtype)
    problem.indices[ids] = rows.masked_fill(none, -1)


def _launch_score(
    problem: Problem,
    ids: Tensor,
    scores: Tensor,
    bad: Tensor,
    first: int = 0,
    counts: Tensor | None = None,
    rows: Tensor | None = None,
) -> None:
    dim, width, block = problem.queries.shape[1], scores.shape[1], 16
    _score[(len(ids), triton.cdiv(width, block))](
        problem.queries, problem.queries.stride(0), problem.vocabulary,
        problem.vocabulary.stride(0), ids, counts, rows, scores, problem.banned, problem.offsets,
        problem.excluded, bad, first, width, width, METRIC=problem.metric, DIM=dim,
        LIST=0 if rows is None else rows.stride(0), BLOCK_R=block,
        BLOCK_D=min(128, triton.next_power_of_2(dim)), num_warps=4,
    )  # fmt: skip


def _parts(ids: Tensor | None, problem: Problem, size: int) -> Iterator[Tensor]:
    """Queries, at most so many at a time; all of them where ids is None."""
    if ids is not None:
        yield from ids.split(size)
        return
    count = len(problem.queries)
    for first in range(0, count, size):
        yield torch.arange(first, min(first + size, count), device=problem.queries.device)


def _scan(problem: Problem, ids: Tensor | None) -> None:
    """All rows in float64."""
    k, count, device = problem.k, len(problem.vocabulary), problem.queries.device
    chunk = min(count, max(k, _SCORES // 2))
    most = max(1, _SCORES // (chunk + k))
    bad = torch.full((2,), _NO_ROW, device=device)
    for part in _parts(ids, problem, most):
        scores = torch.full((len(part), k), -torch.inf, dtype=torch.float64, device=device)
        rows = torch.full((len(part), k), -1, device=device)
        for first in range(0, count, chunk):
            here = min(chunk, count - first)
            found = torch.empty(len(part), here, dtype=torch.float64, device=device)
            _launch_score(problem, part, found, bad, first)
            # Of equal scores the lower row comes first: those found before are before.
            best = torch.cat([scores, found], 1).sort(dim=1, descending=True, stable=True)
            at = best.indices[:, :k]
            earlier = rows.gather(1, at.clamp(max=k - 1))
            rows, scores = torch.where(at < k, earlier, first + at - k), best.values[:, :k]
        _store(problem, part, scores, rows)
    _raise_bad(bad, problem.metric)


def _score_lists(problem: Problem, ids: Tensor, counts: Tensor, rows: Tensor, bad: Tensor) -> None:
    """The best of each query's list. rows: int32 [queries, capacity]"""
    k = problem.k
    width = max(k, int(counts.max()))
    for first in range(0, len(ids), max(1, _SCORES // width)):
        part = slice(first, first + max(1, _SCORES // width))
        own = ids[part]
        scores = torch.empty(len(own), width, dtype=torch.float64, device=ids.device)
        _launch_score(problem, own, scores, bad, counts=counts[part], rows=rows[part])
        lanes = torch.arange(width, device=ids.device)
        listed = torch.where(lanes < counts[part].unsqueeze(1), lanes, 0).clamp(
            max=rows.shape[1] - 1
        )
        listed = rows[part].gather(1, listed).long()
        listed, order = listed.sort(1)
        best = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        _store(problem, own, best.values[:, :k], listed.gather(1, best.indices[:, :k]))


def _first_allowed(banned: Tensor | None, count: int, most: int, device: torch.device) -> Tensor:
    """The first rows, at most so many, that are not banned: int32."""
    if banned is None:
        return torch.arange(min(count, most), dtype=torch.int32, device=device)
    found: list[Tensor] = []
    for first in range(0, count, _SAMPLE):
        found.append((~banned[first : first + _SAMPLE]).nonzero().squeeze(1).int() + first)
        if sum(map(len, found)) >= most:
            break
    return torch.cat(found)[:most]


def _search_group(
    problem: Problem, ids: Tensor, center: Tensor, capacity: int, known: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The first pass and the scores of queries ``ids``, whose k-th best is at least ``known``.
    Returns (ids, tau) of those whose list did not suffice."""
    queries, vocabulary, metric, banned, offsets, excluded, *_ = problem
    k, device, dim = problem.k, queries.device, queries.shape[1]
    count, width, number = len(vocabulary), triton.cdiv(dim, _DEPTH) * _DEPTH, len(ids)
    tile = _tile(number, _memory(device))
    block = tile["BLOCK_V"]
    lanes = triton.cdiv(number, tile["BLOCK_Q"]) * tile["BLOCK_Q"]
    slab = min(triton.cdiv(count, block), max(1, _SLAB_BYTES // (2 * width * block))) * block
    factors = torch.empty(lanes, width, dtype=torch.bfloat16, device=device)
    facts = torch.empty(3, lanes, device=device)
    rows = torch.empty(slab, width, dtype=torch.bfloat16, device=device)
    row_facts = torch.empty(4 * slab, device=device)
    entries = torch.empty(lanes, 3, capacity, device=device)
    counts = torch.zeros(lanes, dtype=torch.int32, device=device)
    full = torch.zeros(number, dtype=torch.bool, device=device)
    bad = torch.full((2,), _NO_ROW, device=device)
    tau = facts[2]
    fixed = {"METRIC": metric, "DIM": dim, "WIDTH": width, **_packing(dim)}

    def pack(first: int, step: int, most: int) -> int:
        """Rows first, first + step, ..; at most so many. Returns how many lanes they take."""
        here = min(most, triton.cdiv(count - first, step))
        taken = triton.cdiv(here, block) * block
        _pack[(triton.cdiv(taken, fixed["BLOCK_R"]),)](
            vocabulary, vocabulary.stride(0), None, first, step, here, banned, center, rows,
            row_facts, bad[1:], taken, QUERIES=False, **fixed,
        )  # fmt: skip
        return taken

    def tighten() -> None:
        _tighten[(number,)](
            counts, entries, tau, full, ids, offsets, excluded, k, CAPACITY=capacity,
            num_warps=_warps(capacity),
        )  # fmt: skip

    _pack[(triton.cdiv(lanes, fixed["BLOCK_R"]),)](
        queries, queries.stride(0), ids, 0, 1, number, None, center, factors, facts, bad, lanes,
        QUERIES=True, **fixed,
    )  # fmt: skip
    if known is not None:
        tau[:number] = known
        seen = count * k
    else:
        blocks, each = _blocks(capacity, count)
        step = triton.cdiv(count, blocks * each)
        seen = triton.cdiv(count, step)
        held = 0
        for first in range(0, triton.cdiv(count, step), slab):
            taken = pack(first * step, step, slab)
            grid = (lanes // tile["BLOCK_Q"] * (taken // block),)
            _block_bounds[grid](
                factors, facts, rows, row_facts, entries, lanes, taken, 3 * capacity,
                first // each, WIDTH=width, ROWS=each, **tile,
            )  # fmt: skip
            held = (first + taken) // each
        _first_tau[(number,)](
            entries, tau, ids, offsets, excluded, k, step, held, 3 * capacity, BLOCK=blocks,
            num_warps=_warps(blocks),
        )  # fmt: skip
    first = 0
    while first < count:
        # Of n rows more than were seen, about k n / seen reach tau, and some that are as near.
        here = min(slab, max(block, seen * capacity // (8 * k) // block * block))
        taken = pack(first, 1, here)
        grid = (lanes // tile["BLOCK_Q"] * (taken // block),)
        _screen[grid](
            factors, facts, rows, row_facts, counts, entries, lanes, taken, first,
            CAPACITY=capacity, WIDTH=width, **tile,
        )  # fmt: skip
        tighten()
        first += here
        seen = max(seen, first)
    _raise_bad(bad, metric)
    zeros = tau[:number].isinf().nonzero().squeeze(1)
    if len(zeros):
        allowed = _first_allowed(banned, count, capacity, device)
        listed = torch.zeros(len(zeros), 3, capacity, device=device)
        listed.view(torch.int32)[:, 2, : len(allowed)] = allowed
        entries[zeros] = listed
        counts[zeros] = len(allowed)
        tau[zeros] = 0.0
        tighten()
        if len(allowed) == capacity:
            full[zeros] |= counts[zeros] < k
    short = full.nonzero().squeeze(1)
    counts[short] = 0
    _score_lists(problem, ids, counts[:number], entries.view(torch.int32)[:number, 2], bad)
    return ids[short], tau[short]


def _search(
    problem: Problem,
    ids: Tensor | None,
    center: Tensor,
    capacity: int,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All groups of queries; returns what :func:`_search_group` does."""
    count = len(problem.queries) if ids is None else len(ids)
    each = 2 * triton.cdiv(problem.queries.shape[1], _DEPTH) * _DEPTH + 12 * capacity + 64
    groups = triton.cdiv(count, max(16, _GROUP_BYTES // each // 128 * 128))
    size = triton.cdiv(count, groups)
    left = []
    for i, part in enumerate(_parts(ids, problem, size)):
        tau = None if known is None else known[i * size : (i + 1) * size]
        left.append(_search_group(problem, part, center, capacity, tau))
    return torch.cat([i for i, _ in left]), torch.cat([t for _, t in left])


def cosine_topk(problem: Problem) -> None:
    """Writes the values and indices of a problem. Raises ValueError for a query or a row, by its
    index, that is not finite or (dot, l2) longer than 1e18."""
    queries, vocabulary, k = problem.queries, problem.vocabulary, problem.k
    if len(queries) == 0:
        return
    with torch.cuda.device_of(queries):
        if (
            torch.float64 in (queries.dtype, vocabulary.dtype)
            or len(queries) <= _FEW_QUERIES
            or len(vocabulary) < max(_FEW_ROWS, 8 * k)
            or queries.shape[1] > MOST_DIM
            or k > MOST_NEIGHBORS
        ):
            return _scan(problem, None)
        center = _mean(vocabulary, problem.metric, problem.banned)
        capacity = max(256, triton.next_power_of_2(4 * k))
        left, tau = _search(problem, None, center, capacity)
        longer = min(8 * capacity, _LONGEST_LIST)
        if len(left) and longer > capacity:
            left, tau = _search(problem, left, center, longer, tau)
        if len(left):
            _scan(problem, left)
