"""The backward's walk over entries that name the same row, for the kernels of `embedding_bag`.

What it computes
    For each row r that some entry names, the gradient sum_{n: indices[n] = r} c_n G[bag(n)], where
    c_n is a weight, 1/|b|, or for a maximum one where position n holds it and zero elsewhere.

How the work is split
    1. `_write_keys` gives every entry a key, its row; padding and what lies outside of every bag
       get the key num_rows, one past the last. In the narrowest integer that holds it: a radix sort
       costs as many passes as a key has bytes.
    2. torch.sort, stable, so equal rows stay in the order of their positions.
    3. `_resolve` turns each sorted entry into the place of its gradient row and its factor, so that
       later kernels are one load away from what they add, and marks where a row begins; a prefix
       sum of the marks and `_write_starts` give the segments. Nothing of this waits for the host:
       the number of segments stays on the device.
    4. Long segments: `_sum_blocks` adds up every aligned block of CHUNK sorted entries that lies in
       one segment, then CHUNK such blocks to one of the next level, and so on. `combine` walks a
       segment as its ragged ends plus the blocks between, so that no walk is more than 2 CHUNK
       steps a level and N / CHUNK^LEVELS on the last. The order of additions follows from the
       positions alone: no atomics, the same bits each time.

What bounds its speed
    The sort (24 bytes a pass and entry with 32-bit keys) and the gradient rows, 4 D bytes an entry;
    with B bags these are a table of 4 B D bytes that L2 mostly keeps. Blocks add at most
    8 D / CHUNK bytes an entry.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from vecsmith.kernels._table_batch import TableBatch, unit

_ENTRIES = 512  # entries a program of the kernels that take one entry a lane
_WARPS = 4


@triton.jit
def find(bounds, count, value, steps):
    """The last i in [0, count) with bounds[i] <= value, for ascending bounds with bounds[0] <=
    value. value: int64, any shape; steps: at least log2(count), rounded up."""
    low = value * 0
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        narrow = high - low > 1
        below = tl.load(bounds + middle, mask=narrow, other=0).to(tl.int64) <= value
        low = tl.where(narrow & below, middle, low)
        high = tl.where(narrow & (below == 0), middle, high)
    return low


@triton.jit
def bag_bounds(
    offsets, bag, live, entries, bags, length, FIXED: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """(first entry, last entry + 1) of bags, int64; equal where not live. bag: int64, any shape."""
    if FIXED:
        start = bag * length
        stop = start + length
    else:
        start = tl.load(offsets + bag, mask=live, other=0).to(tl.int64)
        if LAST:
            stop = tl.load(offsets + bag + 1, mask=live, other=0).to(tl.int64)
        else:
            stop = tl.load(offsets + bag + 1, mask=live & (bag + 1 < bags), other=entries)
            stop = stop.to(tl.int64)
    return tl.where(live, start, 0), tl.where(live, stop, 0)


@triton.jit(do_not_specialize=["entries", "bags", "length", "padding"])
def _count_kept(
    indices, offsets, counts, entries, bags, length, padding,
    FIXED: tl.constexpr, LAST: tl.constexpr, BAGS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """counts[b] = the entries of bag b that are not padding. counts: int32 [bags]"""
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    start, stop = bag_bounds(offsets, bag, bag < bags, entries, bags, length, FIXED, LAST)
    total = tl.zeros([BAGS], tl.int32)
    for first in range(0, tl.max(stop - start, 0), LANES):
        at = (start + first)[:, None] + tl.arange(0, LANES)[None, :]
        inside = at < stop[:, None]
        index = tl.load(indices + at, mask=inside, other=0).to(tl.int64)
        total += tl.sum((inside & (index != padding)).to(tl.int32), 1)
    tl.store(counts + bag, total, mask=bag < bags)


@triton.jit(do_not_specialize=["entries", "bags", "per_feature", "num_rows", "padding", "steps"])
def _write_keys(
    indices, offsets, firsts, keys, bag_of, entries, bags, per_feature, num_rows, padding, steps,
    BATCHED: tl.constexpr, FIXED: tl.constexpr, LAST: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """keys [entries] of any integer type; bag_of: int32 [entries], not written if FIXED."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < entries
    index = tl.load(indices + i, mask=live, other=0).to(tl.int64)
    key = index
    kept = live
    if not FIXED:
        bag = find(offsets, bags, i, steps)
        tl.store(bag_of + i, bag.to(tl.int32), mask=live)
        if LAST:
            kept = kept & (i < tl.load(offsets + bags).to(tl.int64))
        if BATCHED:
            key += tl.load(firsts + bag // per_feature, mask=live, other=0)
    if PADDED:
        kept = kept & (index != padding)
    key = tl.where(kept, key, num_rows)
    tl.store(keys + i, key.to(keys.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["entries", "bags", "length", "per_feature"])
def _resolve(
    keys, order, bag_of, offsets, columns, per_sample_weights, counts,
    marks, sources, factors,
    entries, bags, length, per_feature,
    BATCHED: tl.constexpr, FIXED: tl.constexpr, LAST: tl.constexpr, MEAN: tl.constexpr,
    COUNTED: tl.constexpr, WEIGHTED: tl.constexpr,
    WIDTH: tl.constexpr,  # of a row of the gradient, in units
    BLOCK: tl.constexpr,
):  # fmt: skip
    """marks: int32 [N], 1 where a row begins; sources: int64 [N], where the entry's gradient row
    begins, in units of the gradient's alignment; factors: float32 [N], if MEAN or WEIGHTED."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = k < entries
    key = tl.load(keys + k, mask=live, other=0)
    before = tl.load(keys + k - 1, mask=live & (k > 0), other=0)
    tl.store(marks + k, ((k == 0) | (key != before)).to(tl.int32), mask=live)
    position = tl.load(order + k, mask=live, other=0)
    if FIXED:
        bag = position // length
    else:
        bag = tl.load(bag_of + position, mask=live, other=0).to(tl.int64)
    if BATCHED:
        column = tl.load(columns + bag // per_feature, mask=live, other=0)
        tl.store(sources + k, (bag % per_feature) * WIDTH + column, mask=live)
    else:
        tl.store(sources + k, bag * WIDTH, mask=live)
    if MEAN or WEIGHTED:
        factor = tl.zeros([BLOCK], tl.float32) + 1.0
        if WEIGHTED:
            factor = tl.load(per_sample_weights + position, mask=live, other=0.0).to(tl.float32)
        if MEAN:
            if COUNTED:
                count = tl.load(counts + bag, mask=live, other=1)
            else:
                start, stop = bag_bounds(offsets, bag, live, entries, bags, length, FIXED, LAST)
                count = stop - start
            factor = tl.div_rn(factor, tl.maximum(count, 1).to(tl.float32))
        tl.store(factors + k, factor, mask=live)


@triton.jit(do_not_specialize=["entries", "num_rows", "tables", "steps"])
def _write_starts(
    keys, ranks, firsts, starts, rows, table_of, count, entries, num_rows, tables, steps,
    BATCHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ranks[k] is the number of marks up to and with k. Writes where each segment starts (and where
    the last one ends), its row (BATCHED: within its table, and the table), and their number."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = k < entries
    key = tl.load(keys + k, mask=live, other=0).to(tl.int64)
    rank = tl.load(ranks + k, mask=live, other=0)
    before = tl.load(ranks + k - 1, mask=live & (k > 0), other=0)
    begins = live & (rank != before)
    tl.store(starts + rank - 1, k.to(starts.dtype.element_ty), mask=begins)
    if BATCHED:
        table = find(firsts, tables, key, steps)
        tl.store(table_of + rank - 1, table.to(tl.int32), mask=begins)
        key -= tl.load(firsts + table, mask=begins, other=0)
    tl.store(rows + rank - 1, key, mask=begins)
    last = k == entries - 1
    real = tl.load(keys + k, mask=live, other=0).to(tl.int64) < num_rows
    tl.store(starts + rank, entries + k * 0, mask=last & real)
    tl.store(count + k * 0, (rank - (real == 0).to(tl.int32)).to(tl.int64), mask=last)


@triton.jit
def _entries(
    grad, positions, order, sources, factors, at, live, d, inside,
    UNIT: tl.constexpr, FACTORS: tl.constexpr, MAX: tl.constexpr,
):  # fmt: skip
    """What the sorted entries ``at`` [UNROLL, S] add to rows at columns d: float32 [S, BLOCK_D].
    One load for all of them, so that none waits for the one before."""
    source = tl.load(sources + at, mask=live, other=0) * UNIT
    place = source[:, :, None] + d[None, None, :]
    mask = live[:, :, None] & inside[None, :, :]
    value = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    if MAX:
        position = tl.load(order + at, mask=live, other=0)
        winner = tl.load(positions + place, mask=mask, other=-1)
        value = tl.where(winner == position[:, :, None], value, 0.0)
    if FACTORS:
        value = value * tl.load(factors + at, mask=live, other=0.0)[:, :, None]
    return tl.sum(value, 0)


@triton.jit
def _partial_sums(partials, at, live, d, inside, WIDTH: tl.constexpr):
    """The same of blocks: rows ``at`` [UNROLL, S] of partials."""
    place = (at * WIDTH)[:, :, None] + d[None, None, :]
    mask = live[:, :, None] & inside[None, :, :]
    return tl.sum(tl.load(partials + place, mask=mask, other=0.0), 0)


@triton.jit
def _whole_blocks(first, last, CHUNK: tl.constexpr):
    """Cuts items first .. last - 1 into ragged ends and the blocks between: (items before the
    blocks, items in both ends, items in the blocks, first block, last block + 1)."""
    block = (first + CHUNK - 1) // CHUNK
    end = last // CHUNK
    some = block < end
    head = tl.where(some, block * CHUNK - first, last - first)
    items = head + tl.where(some, last - end * CHUNK, 0)
    skipped = tl.where(some, (end - block) * CHUNK, 0)
    return head, items, skipped, tl.where(some, block, 0), tl.where(some, end, 0)


@triton.jit
def combine(
    grad, positions, order, sources, factors, partials,
    first, last,  # int64 [S]: sorted entries first .. last - 1 of each segment
    entries, d, inside,
    PARTIAL_WIDTH: tl.constexpr, UNIT: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr,
    UNROLL: tl.constexpr, FACTORS: tl.constexpr, MAX: tl.constexpr,
):  # fmt: skip
    """The gradients of segments at columns d: float32 [S, BLOCK_D]. inside: [1 or S, BLOCK_D]."""
    total = tl.zeros([first.shape[0], d.shape[0]], tl.float32)
    head = last - first
    items = head
    skipped = head * 0
    block = skipped
    end = skipped
    if LEVELS > 0:
        head, items, skipped, block, end = _whole_blocks(first, last, CHUNK)
    steps = tl.arange(0, UNROLL)[:, None]
    for begin in range(0, tl.max(items, 0), UNROLL):
        item = begin + steps
        at = first[None, :] + item + tl.where(item < head[None, :], 0, skipped[None, :])
        total += _entries(
            grad, positions, order, sources, factors, at, item < items[None, :], d, inside,
            UNIT, FACTORS, MAX,
        )  # fmt: skip
    base = tl.cast(entries, tl.int64) * 0  # of this level, in rows of partials
    blocks = tl.cast(entries, tl.int64)
    for level in tl.static_range(LEVELS):
        first = block
        blocks = blocks // CHUNK
        head = end - block
        items = head
        if level < LEVELS - 1:
            head, items, skipped, block, end = _whole_blocks(block, end, CHUNK)
        else:
            skipped = head * 0
        for begin in range(0, tl.max(items, 0), UNROLL):
            item = begin + steps
            at = first[None, :] + item + tl.where(item < head[None, :], 0, skipped[None, :])
            live = item < items[None, :]
            total += _partial_sums(partials, base + at, live, d, inside, PARTIAL_WIDTH)
        base += blocks
    return total


@triton.jit(do_not_specialize=["blocks", "span", "below", "above", "num_rows", "tables", "steps"])
def _sum_blocks(
    grad, positions, order, sources, factors, keys, partials, firsts, dims,
    blocks,  # of this level
    span,  # entries in a block
    below,  # first row of partials of the level below (read if not LOWEST)
    above,  # first row of partials of this level
    num_rows, tables, steps,
    LOWEST: tl.constexpr, BATCHED: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr,
    FACTORS: tl.constexpr, MAX: tl.constexpr, CHUNK: tl.constexpr, UNROLL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partials[above + b] = the sum of block b, where all of it is one segment. DIM: the width of
    partials, and (unless BATCHED) of the table."""
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = block < blocks
    key = tl.load(keys + block * span, mask=live, other=0)
    live = live & (key == tl.load(keys + (block + 1) * span - 1, mask=live, other=0))
    live = live & (key.to(tl.int64) < num_rows)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d[None, :] < DIM
    if BATCHED:
        table = find(firsts, tables, key.to(tl.int64), steps)
        inside = d[None, :] < (tl.load(dims + table, mask=live, other=0) * UNIT)[:, None]
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    some = tl.max(live.to(tl.int32), 0)
    for begin in range(0, some * CHUNK, UNROLL):
        at = (block * CHUNK + begin)[None, :] + tl.arange(0, UNROLL)[:, None]
        here = live[None, :] & (at >= 0)
        if LOWEST:
            total += _entries(
                grad, positions, order, sources, factors, at, here, d, inside,
                UNIT, FACTORS, MAX,
            )  # fmt: skip
        else:
            total += _partial_sums(partials, below + at, here, d, inside, DIM)
    place = partials + (above + block)[:, None] * DIM + d[None, :]
    tl.store(place, total, mask=live[:, None] & inside)


class Bags(NamedTuple):
    """How indices fall into bags. indices: [N]; offsets: [B] or [B + 1] (last=True), or None where
    every bag has ``length`` entries; features: how many tables the bags are spread over, B of them
    in equal runs."""

    indices: Tensor
    offsets: Tensor | None
    count: int
    length: int
    last: bool
    features: int = 1

    @property
    def fixed(self) -> bool:
        return self.offsets is None

    @property
    def average(self) -> int:
        """Entries in a bag, on average and rounded up."""
        return -(-self.indices.numel() // max(self.count, 1))

    def layout(self) -> dict:
        """The constants of kernels that find bags."""
        return {"FIXED": self.fixed, "LAST": self.last}


class Segments(NamedTuple):
    """Sorted entries: keys [N]; order: int64 [N], the positions in ``indices``; sources and factors
    as `_resolve` says; segment s is the sorted entries starts[s] .. starts[s + 1] - 1 and is row
    rows[s] (of table table_of[s]); count: int64 [1], the number of segments. partials: float32
    [blocks of all levels, width]; options: the constants of `combine`."""

    keys: Tensor
    order: Tensor
    sources: Tensor
    factors: Tensor | None
    starts: Tensor
    rows: Tensor
    table_of: Tensor | None
    count: Tensor
    partials: Tensor | None
    options: dict


def tile(dim: int, elements: int) -> tuple[int, int]:
    """(rows, BLOCK_D) of a tile of about that many elements. BLOCK_D is at least 4: with both sides
    1 the interpreter broadcasts garbage."""
    block = min(max(triton.next_power_of_2(dim), 4), 1024)
    return min(max(elements // block, 1), 64), block


def _steps(count: int) -> int:
    return max(count - 1, 0).bit_length()


def _key_dtype(num_rows: int) -> torch.dtype:
    for dtype in (torch.int16, torch.int32):
        if num_rows <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def _levels(entries: int, chunk: int) -> list[int]:
    """The number of blocks on each level; a level of fewer than four is not worth a launch."""
    blocks = []
    while len(blocks) < 4 and entries // chunk >= 4:
        entries //= chunk
        blocks.append(entries)
    return blocks


def collect(
    bags: Bags,
    grad: Tensor,
    num_rows: int,
    per_sample_weights: Tensor | None,
    positions: Tensor | None,
    *,
    mode: str,
    padding_idx: int,
    chunk: int,
    batch: TableBatch | None = None,
) -> Segments:
    """The segments of the entries of ``bags``, of which there is at least one.

    grad: [B, width], contiguous; num_rows: rows of the table, or of all tables of ``batch``
    together; positions: int64, of grad's shape, read if mode is "max"; padding_idx: -1 for none;
    chunk: entries in a block, a multiple of 4. Nothing waits for the device.
    """
    device, entries = grad.device, bags.indices.numel()
    batched, padded, mean = batch is not None, padding_idx >= 0, mode == "mean"
    per_feature = bags.count // bags.features
    layout = bags.layout()
    grid = (triton.cdiv(entries, _ENTRIES),)

    def integers(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=device)

    keys = integers(entries, _key_dtype(num_rows))
    bag_of = None if bags.fixed else integers(entries, torch.int32)
    _write_keys[grid](
        bags.indices, bags.offsets, batch.feature_firsts if batch else None, keys, bag_of,
        entries, bags.count, per_feature, num_rows, padding_idx, _steps(bags.count),
        BATCHED=batched, PADDED=padded, BLOCK=_ENTRIES, **layout,
    )  # fmt: skip
    keys, order = torch.sort(keys, stable=True)

    counts = None
    if mean and padded:
        counts = integers(bags.count, torch.int32)
        _count_kept[(triton.cdiv(bags.count, 32),)](
            bags.indices, bags.offsets, counts, entries, bags.count, bags.length, padding_idx,
            BAGS=32, LANES=16, **layout,
        )  # fmt: skip
    size = batch.unit if batch else unit(grad.shape[1])
    weighted = per_sample_weights is not None
    marks = integers(entries, torch.int32)
    sources = integers(entries, torch.int64)
    factors = integers(entries, torch.float32) if mean or weighted else None
    _resolve[grid](
        keys, order, bag_of, bags.offsets, batch.columns if batch else None, per_sample_weights,
        counts, marks, sources, factors, entries, bags.count, bags.length, per_feature,
        BATCHED=batched, MEAN=mean, COUNTED=counts is not None, WEIGHTED=weighted,
        WIDTH=grad.shape[1] // size, BLOCK=_ENTRIES, **layout,
    )  # fmt: skip

    ranks = torch.cumsum(marks, 0, dtype=torch.int32)
    starts = integers(entries + 1, torch.int32 if entries < 2**31 else torch.int64)
    rows = integers(entries, torch.int64)
    table_of = integers(entries, torch.int32) if batched else None
    count = integers(1, torch.int64)
    firsts, tables, steps = None, 0, 0
    if batch is not None:
        firsts, tables, steps = batch.firsts, len(batch.tables), _steps(len(batch.tables))
    _write_starts[grid](
        keys, ranks, firsts, starts, rows, table_of, count, entries, num_rows, tables, steps,
        BATCHED=batched, BLOCK=_ENTRIES,
    )  # fmt: skip

    width = batch.widest if batch else grad.shape[1]
    levels = _levels(entries, chunk) if width else []
    partials = None
    constants = {"UNIT": size, "FACTORS": factors is not None, "MAX": mode == "max"}
    if levels:
        partials = torch.empty(sum(levels), width, dtype=torch.float32, device=device)
        lanes, block_d = tile(width, 1024)
        below, above, span = 0, 0, chunk
        for level, blocks in enumerate(levels):
            _sum_blocks[(triton.cdiv(blocks, lanes), triton.cdiv(width, block_d))](
                grad, positions, order, sources, factors, keys, partials, firsts,
                batch.dims if batch else None, blocks, span, below, above, num_rows, tables,
                steps, LOWEST=level == 0, BATCHED=batched, DIM=width, CHUNK=chunk, UNROLL=4,
                ROWS=lanes, BLOCK_D=block_d, num_warps=_WARPS, **constants,
            )  # fmt: skip
            below, above, span = above, above + blocks, span * chunk
    options = {"PARTIAL_WIDTH": width, "CHUNK": chunk, "LEVELS": len(levels), **constants}
    return Segments(
        keys, order, sources, factors, starts, rows, table_of, count, partials, options
    )  # fmt: skip
