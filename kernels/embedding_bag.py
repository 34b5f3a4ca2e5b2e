"""Embedding tables in Triton: what `vecsmith.reference.embedding_bag` says, on a GPU.

What it computes
    Pooled and plain look-ups (`embedding_bag`), the gradient of the table with duplicates combined
    (`embedding_bag_gradient`), the gradient of the weights of samples, and backward and optimizer
    step in one (`embedding_bag_update`). Of one table, or of many in one launch (`embedding_bags`,
    `embedding_bags_update`). All sums are float32; addresses are int64; no atomics anywhere, so the
    same input gives the same bits.

How the work is split
    Forward: a tile is [bags, BLOCK_D], 16 bytes a thread, so that a row of 128 floats is a single
    load of one warp and narrower rows share a warp: short bags come several to a program. A program
    walks its bags side by side, UNROLL entries of each in one load (were they loads of their own,
    the compiler would have each wait for the one before); the indices of the next entries are
    fetched ahead. Where bags are few and long, SPLIT lanes share a bag and are added up at the end.
    Backward: `_segments` brings equal rows together, `_row_update` walks them.

What bounds its speed
    Memory: N rows read, B written, 8 bytes an index. With 8 rows a warp under way and 54 registers,
    32 warps on a multiprocessor have 128 KB in flight, where 4.8 TB/s at 800 ns over 132 of them
    need 29 KB. Launch shapes follow from such figures, not from a search: see `_pool_shape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from vecsmith.kernels import _row_update, _segments
from vecsmith.kernels._elements import TYPES, narrow, read_rows
from vecsmith.kernels._segments import Bags, bag_bounds, find
from vecsmith.kernels._table_batch import TableBatch

_WARPS = 4
_CHUNK = 32  # entries in a block of a long segment


@triton.jit
def _slice(values, steps, step: tl.constexpr):
    """values[step] of float32 [UNROLL, S, BLOCK_D]. Zeros are added as integers, which the compiler
    takes out; it must keep a sum with a floating zero."""
    bits = tl.where(steps[:, None, None] == step, values.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, 0).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["entries", "bags", "per_feature", "length", "padding"])
def _pool(
    weights,  # [V, STRIDE]; BATCHED: int64 [F], the address of each feature's table
    dims,  # BATCHED: int64 [F], in units
    columns,  # BATCHED: int64 [F], in units
    indices,
    offsets,
    per_sample_weights,
    out,
    positions,
    entries,
    bags,  # of all features
    per_feature,
    length,
    padding,
    MODE: tl.constexpr,
    BATCHED: tl.constexpr,
    FIXED: tl.constexpr,
    LAST: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PADDED: tl.constexpr,
    PACKED: tl.constexpr,
    WORDS: tl.constexpr,  # scale and bias of a packed row lie at multiples of 4 bytes
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,  # BATCHED: bytes that the addresses are multiples of
    DIM: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,  # of a row of out
    UNIT: tl.constexpr,
    SPLIT: tl.constexpr,
    UNROLL: tl.constexpr,
    BAGS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[b] = the pooled rows of bag b. Programs: features x blocks of bags, blocks of columns."""
    block = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    if BATCHED:
        blocks = tl.cdiv(per_feature, BAGS)
        feature = block // blocks
        block = block % blocks
        table = tl.load(weights + feature).to(tl.pointer_type(TYPE))
        table = tl.multiple_of(table, ALIGNED)
        dim = tl.load(dims + feature) * UNIT
        stride = dim
        if PACKED:
            stride = dim + 8
        target = out + tl.load(columns + feature) * UNIT
        first_bag = feature * per_feature
    else:
        table = weights
        dim = DIM
        stride = STRIDE
        target = out
        first_bag = block * 0
    slot = tl.arange(0, BAGS * SPLIT)
    bag = block * BAGS + slot // SPLIT
    start, stop = bag_bounds(
        offsets, first_bag + bag, bag < per_feature, entries, bags, length, FIXED, LAST
    )
    steps = tl.arange(0, UNROLL)
    at = (start + slot % SPLIT)[None, :] + (steps * SPLIT)[:, None]
    live = at < stop[None, :]
    row = tl.load(indices + at, mask=live, other=0).to(tl.int64)
    total = tl.zeros([BAGS * SPLIT, BLOCK_D], tl.float32)
    if MODE == "max":
        best = tl.full([BAGS * SPLIT, BLOCK_D], -1, tl.int64)
    if PADDED:
        kept = tl.zeros([BAGS * SPLIT], tl.int32)
    for begin in range(0, tl.max(stop - start, 0), UNROLL * SPLIT):
        next_at = at + UNROLL * SPLIT
        next_live = next_at < stop[None, :]
        next_row = tl.load(indices + next_at, mask=next_live, other=0).to(tl.int64)
        if PADDED:
            live = live & (row != padding)
            kept += tl.sum(live.to(tl.int32), 0)
        value = read_rows(table, row, stride, dim, d, live, PACKED, WORDS)
        if WEIGHTED:
            weight = tl.load(per_sample_weights + at, mask=live, other=0.0).to(tl.float32)
            value = value * weight[:, :, None]
        if MODE == "max":  # One after another: the first of equals, and NaN in the first place.
            for step in tl.static_range(UNROLL):
                one = _slice(value, steps, step)
                here = tl.sum(tl.where(steps[:, None] == step, live.to(tl.int32), 0), 0) != 0
                larger = here[:, None] & ((best < 0) | (one > total))
                total = tl.where(larger, one, total)
                best = tl.where(larger, (start + begin + step)[:, None], best)
        else:
            total += tl.sum(value, 0)
        at = next_at
        live = next_live
        row = next_row
    if SPLIT > 1:
        total = tl.sum(tl.reshape(total, (BAGS, SPLIT, BLOCK_D)), 1)
        if PADDED:
            kept = tl.sum(tl.reshape(kept, (BAGS, SPLIT)), 1)
        bag = block * BAGS + tl.arange(0, BAGS)
        start, stop = bag_bounds(
            offsets, first_bag + bag, bag < per_feature, entries, bags, length, FIXED, LAST
        )
    if MODE == "mean":
        count = stop - start
        if PADDED:
            count = kept.to(tl.int64)
        total = tl.div_rn(total, tl.maximum(count, 1).to(tl.float32)[:, None])
    place = bag[:, None] * WIDTH + d[None, :]
    mask = (bag < per_feature)[:, None] & (d[None, :] < dim)
    tl.store(target + place, narrow(total, out.dtype.element_ty), mask=mask)
    if MODE == "max":
        if BATCHED:
            place += tl.load(columns + feature) * UNIT
        tl.store(positions + place, best, mask=mask)


@triton.jit(do_not_specialize=["entries", "bags", "length", "padding", "steps"])
def _sample_gradients(
    grad, weight, indices, offsets, out, entries, bags, length, padding, steps,
    FIXED: tl.constexpr, LAST: tl.constexpr, PADDED: tl.constexpr, PACKED: tl.constexpr,
    WORDS: tl.constexpr, DIM: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[n] = <grad[bag(n)], weight[indices[n]]>, zero for padding and outside of every bag.
    Neighbors share a bag, whose gradient is then in L1: the rows of weight are what is read."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = i < entries
    row = tl.load(indices + i, mask=live, other=0).to(tl.int64)
    inside = live
    if FIXED:
        bag = i // length
    else:
        bag = find(offsets, bags, i, steps)
        if LAST:
            inside = inside & (i < tl.load(offsets + bags).to(tl.int64))
    if PADDED:
        inside = inside & (row != padding)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, DIM, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        value = read_rows(weight, row, STRIDE, DIM, d, inside, PACKED, WORDS)
        other = read_rows(grad, bag, DIM, DIM, d, inside, False, False)
        total += tl.sum(value * other, 1)
    tl.store(out + i, narrow(total, out.dtype.element_ty), mask=live)


def _pool_shape(dim: int, row_bytes: int, item: int, mode: str, bags: int, average: int) -> dict:
    """The launch of `_pool`: 16 bytes a thread and load where rows are aligned to that (their own
    alignment elsewhere), 8 such loads under way; four of them in one tile where nothing is pooled.

    row_bytes: a number that divides every row's size; item: bytes of an element; average: entries
    in a bag. Where there are too few bags to fill a GPU and they are long, a bag is split."""
    vector = max(min(16, row_bytes & -row_bytes) // item, 1)
    elements = 32 * _WARPS * vector * (4 if mode == "none" else 1)
    rows, block = _segments.tile(dim, elements)
    split = 1
    if mode in ("sum", "mean"):  # A maximum keeps the order of entries.
        while split < 16 and average >= 64 * split and bags * split < 1 << 14:
            split *= 2
    rows = max(rows, split)
    bytes_a_load = rows * block // (32 * _WARPS) * item
    unroll = 8 if bytes_a_load <= 16 else 4 if bytes_a_load <= 32 else 2
    if mode == "none":
        unroll = 1
    else:
        unroll = min(unroll, triton.next_power_of_2(max(triton.cdiv(average, split), 1)))
    return {
        "SPLIT": split,
        "BAGS": rows // split,
        "UNROLL": unroll,
        "BLOCK_D": block,
        "num_warps": _WARPS,
    }


def _bags(
    indices: Tensor, offsets: Tensor | None, mode: str, include_last_offset: bool, features: int = 1
) -> Bags:
    """Without offsets: indices [B, L], or of any shape with mode "none", or [B] (bags of one)."""
    flat = indices.reshape(-1).contiguous()
    if offsets is not None:
        count = max(offsets.numel() - include_last_offset, 0)
        return Bags(flat, offsets.contiguous(), count, 0, include_last_offset, features)
    if mode == "none" or indices.dim() == 1:
        return Bags(flat, None, flat.numel(), 1, False)
    return Bags(flat, None, *indices.shape, False)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.reshape(-1).contiguous()


def _words(table: Tensor, dim: int) -> bool:
    """Whether scale and bias of every packed row lie at multiples of 4 bytes."""
    return dim % 4 == 0 and table.stride(0) % 4 == 0 and table.data_ptr() % 4 == 0


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    *,
    mode: str = "mean",
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor]:
    """Look-ups, as :func:`vecsmith.reference.embedding_bag.embedding_bag`; its checks are the
    caller's.

    weight: [V, D] float32, float16 or bfloat16, or [V, D + 8] uint8 (row-wise quantized), with unit
    stride along D; indices: int32 or int64, [N] with offsets, [B, L] without; [*] with mode "none",
    which needs no offsets; offsets: int32 or int64, [B] or [B + 1]; per_sample_weights: of any
    floating dtype, like indices. padding_idx: -1 for none; with "none" it changes nothing.

    Returns (out [B, D] of weight's dtype, float32 for uint8 ([*, D] with "none"); positions int64
    [B, D] with "max": the place in ``indices`` of each maximum, -1 in empty bags; else empty).
    """
    packed = weight.dtype == torch.uint8
    dim = weight.shape[1] - 8 * packed
    bags = _bags(indices, None if mode == "none" else offsets, mode, include_last_offset)
    dtype = torch.float32 if packed else weight.dtype
    out = torch.empty(bags.count, dim, dtype=dtype, device=weight.device)
    positions = torch.empty(
        (bags.count, dim) if mode == "max" else 0, dtype=torch.int64, device=weight.device
    )
    if out.numel():
        item = weight.element_size()
        row_bytes = math.gcd(weight.stride(0) * item, weight.data_ptr() % 16 or 16)
        shape = _pool_shape(dim, row_bytes, item, mode, bags.count, bags.average)
        grid = (triton.cdiv(bags.count, shape["BAGS"]), triton.cdiv(dim, shape["BLOCK_D"]))
        with torch.cuda.device_of(weight):
            _pool[grid](
                weight, None, None, bags.indices, bags.offsets, _flat(per_sample_weights), out,
                positions, bags.indices.numel(), bags.count, bags.count, bags.length, padding_idx,
                MODE=mode, BATCHED=False, WEIGHTED=per_sample_weights is not None,
                PADDED=padding_idx >= 0 and mode != "none", PACKED=packed,
                WORDS=packed and _words(weight, dim), TYPE=TYPES[weight.dtype], ALIGNED=16,
                DIM=dim, STRIDE=weight.stride(0), WIDTH=dim, UNIT=1, **bags.layout(), **shape,
            )  # fmt: skip
    return out.view(*indices.shape, dim) if mode == "none" else out, positions


def embedding_bags(
    batch: TableBatch,
    indices: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    *,
    mode: str = "sum",
    include_last_offset: bool = True,
) -> tuple[Tensor, Tensor]:
    """Look-ups in many tables, in one launch.

    indices: [N], those of the first feature's bags, then of the second's, and so on, each within
    its table; offsets: [F B + 1], or [F B]; mode: "sum", "mean" or "max". Checks are the caller's.

    Returns (out [B, sum of the features' D], positions: of out's shape with "max", else empty).
    """
    bags = _bags(indices, offsets, mode, include_last_offset, len(batch.features))
    per_feature = bags.count // bags.features
    dtype = torch.float32 if batch.packed else batch.dtype
    out = torch.empty(per_feature, batch.width, dtype=dtype, device=batch.device)
    positions = torch.empty(
        out.shape if mode == "max" else 0, dtype=torch.int64, device=batch.device
    )
    if out.numel():
        item = batch.tables[0].element_size()
        row_bytes = math.gcd(batch.unit * item, 8 if batch.packed else 16, batch.aligned)
        shape = _pool_shape(batch.widest, row_bytes, item, mode, bags.count, bags.average)
        blocks = triton.cdiv(per_feature, shape["BAGS"])
        grid = (blocks * bags.features, triton.cdiv(batch.widest, shape["BLOCK_D"]))
        with torch.cuda.device_of(out):
            _pool[grid](
                batch.feature_pointers, batch.feature_dims, batch.columns, bags.indices,
                bags.offsets, _flat(per_sample_weights), out, positions, bags.indices.numel(),
                bags.count, per_feature, 0, -1,
                MODE=mode, BATCHED=True, WEIGHTED=per_sample_weights is not None, PADDED=False,
                PACKED=batch.packed, WORDS=batch.packed and row_bytes % 4 == 0,
                TYPE=TYPES[batch.dtype], ALIGNED=batch.aligned, DIM=batch.widest, STRIDE=0,
                WIDTH=batch.width, UNIT=batch.unit, **bags.layout(), **shape,
            )  # fmt: skip
    return out, positions


def embedding_bag_gradient(
    grad: Tensor,
    indices: Tensor,
    num_rows: int,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    mode: str = "mean",
    include_last_offset: bool = False,
    padding_idx: int = -1,
    dense: bool = False,
    fixed: bool = False,
    dtype: torch.dtype | None = None,
    chunk: int = _CHUNK,
    programs: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of the table, duplicates combined, the same bits each time.

    grad: [B, D] ([*, D] with mode "none"), float32, float16 or bfloat16; positions: what
    `embedding_bag` gave with "max"; the rest as there. dtype: of the values, None for grad's.
    chunk: entries in a block of a long segment, a multiple of 4.

    Returns (rows [U] int64, distinct and ascending; values [U, D]), which waits for the device to
    know U; with ``dense`` (an empty tensor, the dense gradient [V, D]), which does not wait; nor
    does ``fixed``, which gives N of both, past the U-th row num_rows, which there is not, and 0.
    """
    dim = grad.shape[-1]
    dtype = dtype or grad.dtype
    bags = _bags(indices, None if mode == "none" else offsets, mode, include_last_offset)
    none = torch.empty(0, dtype=torch.int64, device=grad.device)
    if dense:
        rows, values = none, torch.zeros(num_rows, dim, dtype=dtype, device=grad.device)
    else:
        rows, values = none, torch.empty(0, dim, dtype=dtype, device=grad.device)
    if not bags.indices.numel() or not bags.count:
        return rows, values
    grad = grad.reshape(bags.count, dim).contiguous()
    with torch.cuda.device_of(grad):
        segments = _segments.collect(
            bags, grad, num_rows, _flat(per_sample_weights), _flat(positions),
            mode=mode, padding_idx=padding_idx, chunk=chunk,
        )  # fmt: skip
        if fixed:
            entries = segments.rows.numel()
            there = torch.arange(entries, device=grad.device) < segments.count
            rows = torch.where(there, segments.rows, num_rows)
            values = torch.zeros(entries, dim, dtype=dtype, device=grad.device)
        elif not dense:
            count = int(segments.count)
            rows = segments.rows[:count].clone()
            values = torch.empty(count, dim, dtype=dtype, device=grad.device)
        if values.numel():
            _row_update.run(
                segments,
                grad,
                _flat(positions),
                num_rows,
                dim,
                programs,
                values=values,
                dense=dense,
            )
    return rows, values


def per_sample_weights_gradient(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    *,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Tensor:
    """<grad[bag(n)], weight[indices[n]]> of mode "sum": [N], of grad's dtype; zero for padding.
    Arguments as in `embedding_bag_gradient` and `embedding_bag`."""
    packed = weight.dtype == torch.uint8
    dim = weight.shape[1] - 8 * packed
    bags = _bags(indices, offsets, "sum", include_last_offset)
    out = torch.zeros(bags.indices.numel(), dtype=grad.dtype, device=grad.device)
    if not out.numel() or not bags.count or not dim:
        return out
    rows, block = _segments.tile(dim, 32 * _WARPS * 16)
    with torch.cuda.device_of(grad):
        _sample_gradients[(triton.cdiv(out.numel(), rows),)](
            grad.contiguous(), weight, bags.indices, bags.offsets, out, out.numel(), bags.count,
            bags.length, padding_idx, max(bags.count - 1, 0).bit_length(),
            PADDED=padding_idx >= 0, PACKED=packed, WORDS=packed and _words(weight, dim),
            DIM=dim, STRIDE=weight.stride(0), ROWS=rows, BLOCK_D=block, num_warps=_WARPS,
            **bags.layout(),
        )  # fmt: skip
    return out


def embedding_bag_update(
    weight: Tensor,
    state: Sequence[Tensor],
    indices: Tensor,
    grad: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    rule: Any,
    mode: str = "mean",
    include_last_offset: bool = False,
    padding_idx: int = -1,
    finite: Tensor | None = None,
    chunk: int = _CHUNK,
    programs: int | None = None,
) -> None:
    """Backward and optimizer in one, in place, without waiting for the device.

    weight: [V, D] float32, float16 or bfloat16, with unit stride along D; state: float32,
    contiguous, of the shapes that ``rule`` (a vecsmith.ops.UpdateRule) asks for; the rest as in
    `embedding_bag_gradient`; finite: one bool on the device, or None; where it is false, nothing
    changes. Each touched row of weight and of the states is read and written once (a table's row
    twice by a row-wise rule where D > 1024); other rows do not change.
    """
    num_rows, dim = weight.shape
    bags = _bags(indices, None if mode == "none" else offsets, mode, include_last_offset)
    if not bags.indices.numel() or not bags.count or not dim:
        return
    grad = grad.reshape(bags.count, dim).contiguous()
    with torch.cuda.device_of(weight):
        segments = _segments.collect(
            bags, grad, num_rows, _flat(per_sample_weights), _flat(positions),
            mode=mode, padding_idx=padding_idx, chunk=chunk,
        )  # fmt: skip
        if finite is not None:
            segments.count.mul_(finite)
        _row_update.run(
            segments, grad, _flat(positions), num_rows, dim, programs,
            weights=weight, state=state, rule=rule,
        )  # fmt: skip


def embedding_bags_update(
    batch: TableBatch,
    indices: Tensor,
    grad: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    rule: Any,
    mode: str = "sum",
    include_last_offset: bool = True,
    chunk: int = _CHUNK,
    programs: int | None = None,
) -> None:
    """`embedding_bag_update` of many tables and their states, under one rule, in the launches of
    one. grad: [B, sum of the features' D]; the rest as in `embedding_bags`. Features that share a
    table are combined."""
    bags = _bags(indices, offsets, mode, include_last_offset, len(batch.features))
    if not bags.indices.numel() or not bags.count or not batch.widest:
        return
    grad = grad.contiguous()
    with torch.cuda.device_of(grad):
        segments = _segments.collect(
            bags, grad, batch.num_rows, _flat(per_sample_weights), _flat(positions),
            mode=mode, padding_idx=-1, chunk=chunk, batch=batch,
        )  # fmt: skip
        _row_update.run(
            segments, grad, _flat(positions), batch.num_rows, batch.widest, programs,
            weights=batch.pointers, state=batch.state_pointers, batch=batch, rule=rule,
        )  # fmt: skip
