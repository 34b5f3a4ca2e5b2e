"""What becomes of a row's gradient, for the backward of `embedding_bag`: stored, or a step of an
optimizer on the row.

What it computes
    For every touched row its gradient (`_segments.combine`), and one of the rules of
    vecsmith.ops.UpdateRule. Each touched row of the table and of the states is read and written
    once; no other row changes.

How the work is split
    A tile is [ROWS, BLOCK_D], 32 bytes a thread of each tensor. Rows and states are fetched first,
    the gradient is summed while they come. Row-wise rules need the mean of g^2 before any column
    changes: where D is more than one tile the gradient is taken twice, the second time from L2. The
    number of touched rows is known to the device alone, so a fixed number of programs stride over
    them.

What bounds its speed
    Memory: (2 + 2 states) 4 D bytes a touched row, and 4 D an entry for its gradient row, from L2
    where that keeps B rows; what is read once goes first out of L2 for their sake. About 124
    registers let 16 warps live on a multiprocessor, each with 2 rows of the table and of each
    state and 8 of the gradient under way: with Adam and D = 128, 112 KB, where 4.8 TB/s at 800 ns
    over 132 of them need 29 KB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from vecsmith.kernels._elements import TYPES, narrow
from vecsmith.kernels._segments import Segments, combine, tile
from vecsmith.kernels._table_batch import TableBatch

_WARPS = 4


@triton.jit
def _row_pointers(
    base, table, row, stride, live,
    BATCHED: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Pointers [S] to the beginnings of rows."""
    if BATCHED:
        address = tl.load(base + table, mask=live, other=0)
        pointer = tl.multiple_of(address.to(tl.pointer_type(TYPE)), ALIGNED)
    else:
        pointer = base
    return pointer + row * stride


@triton.jit
def _next_size(size, squares, dim, rest2, RULE: tl.constexpr):
    """The state of a row-wise rule after this step. squares: the sum of g^2 over the row."""
    mean = tl.div_rn(squares, tl.maximum(dim, 1).to(tl.float32))
    if RULE == "rowwise_adagrad":
        size += mean
    else:
        size += rest2 * (mean - size)
    return size


@triton.jit
def _inside(d, dim, live, DIM: tl.constexpr, BATCHED: tl.constexpr):
    """Where a tile is inside of its rows: bool [S, BLOCK_D]."""
    if BATCHED:
        mask = live[:, None] & (d[None, :] < dim[:, None])
    else:
        mask = live[:, None] & (d[None, :] < DIM)
    return mask


@triton.jit
def _step_gradient(g, w, weight_decay, DECAY: tl.constexpr, MAXIMIZE: tl.constexpr):
    """What a rule sees: the gradient with its sign, and weight decay after that."""
    if MAXIMIZE:
        g = -g
    if DECAY:
        g += weight_decay * w
    return g


@triton.jit(do_not_specialize=["entries"])
def _update(
    weights,  # [V, STRIDE]; BATCHED: int64 [T], addresses, as for the states
    first_state,  # float32 [V, DIM], if FULL_STATES
    second_state,  # float32 [V, DIM], if FULL_STATES > 1
    row_state,  # float32 [V], if ROWWISE
    dims,  # BATCHED: int64 [T], in units
    values,  # GRADIENT: [U, DIM], or [V, DIM] if DENSE
    rows,
    table_of,
    starts,
    count,
    grad,
    positions,
    order,
    sources,
    factors,
    partials,
    entries,
    rates,  # float32 [2], or None: rate and fresh, where they are the device's
    rate,
    eps,
    rest1,  # 1 - beta1
    rest2,  # 1 - beta2
    momentum,
    fresh,
    weight_decay,
    RULE: tl.constexpr,
    FULL_STATES: tl.constexpr,
    ROWWISE: tl.constexpr,
    NESTEROV: tl.constexpr,
    DECAY: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    DENSE: tl.constexpr,
    BATCHED: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,  # BATCHED: bytes that the addresses of tables are multiples of
    STATE_ALIGNED: tl.constexpr,
    DIM: tl.constexpr,  # BATCHED: the largest
    STRIDE: tl.constexpr,  # of rows of weights; states are contiguous
    PARTIAL_WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    LEVELS: tl.constexpr,
    UNROLL: tl.constexpr,
    FACTORS: tl.constexpr,
    MAX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """RULE "gradient": values = the gradients of the segments. Else one step of the rule on each
    segment's row. Programs stride over blocks of ROWS segments."""
    segments = tl.load(count)
    if rates is not None:
        rate = tl.load(rates)
        fresh = tl.load(rates + 1)
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(segments, ROWS), tl.num_programs(0)):
        segment = block * ROWS + tl.arange(0, ROWS)
        live = segment < segments
        row = tl.load(rows + segment, mask=live, other=0)
        first = tl.load(starts + segment, mask=live, other=0).to(tl.int64)
        last = tl.load(starts + segment + 1, mask=live, other=0).to(tl.int64)
        dim = row * 0 + DIM
        stride = DIM
        weight_stride = STRIDE
        table = row
        if BATCHED:
            table = tl.load(table_of + segment, mask=live, other=0)
            dim = tl.load(dims + table, mask=live, other=0) * UNIT
            stride = dim
            weight_stride = dim
        if RULE != "gradient":
            w_row = _row_pointers(weights, table, row, weight_stride, live, BATCHED, TYPE, ALIGNED)
        if FULL_STATES > 0:
            s_row = _row_pointers(
                first_state, table, row, stride, live, BATCHED, tl.float32, STATE_ALIGNED
            )
        if FULL_STATES > 1:
            v_row = _row_pointers(
                second_state, table, row, stride, live, BATCHED, tl.float32, STATE_ALIGNED
            )
        if ROWWISE:
            size_at = _row_pointers(row_state, table, row, 1, live, BATCHED, tl.float32, 4)
            size = tl.load(size_at, mask=live, other=0.0)
            if DIM > BLOCK_D:
                squares = tl.zeros([ROWS], tl.float32)
                for start in range(0, DIM, BLOCK_D):
                    d = start + tl.arange(0, BLOCK_D)
                    inside = _inside(d, dim, live, DIM, BATCHED)
                    w = tl.load(w_row[:, None] + d[None, :], mask=inside, other=0.0)
                    g = combine(
                        grad, positions, order, sources, factors, partials, first, last, entries,
                        d, inside, PARTIAL_WIDTH, UNIT, CHUNK, LEVELS, UNROLL, FACTORS, MAX,
                    )  # fmt: skip
                    g = _step_gradient(g, w.to(tl.float32), weight_decay, DECAY, MAXIMIZE)
                    squares += tl.sum(g * g, 1)
                size = _next_size(size, squares, dim, rest2, RULE)

        for start in range(0, DIM, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside = _inside(d, dim, live, DIM, BATCHED)
            # Fetched before the gradient is summed: neither waits for the other.
            if RULE != "gradient":
                w_at = w_row[:, None] + d[None, :]
                w = tl.load(w_at, mask=inside, other=0.0, eviction_policy="evict_first")
                w = w.to(tl.float32)
            if FULL_STATES > 0:
                s_at = s_row[:, None] + d[None, :]
                s = tl.load(s_at, mask=inside, other=0.0, eviction_policy="evict_first")
            if FULL_STATES > 1:
                v_at = v_row[:, None] + d[None, :]
                v = tl.load(v_at, mask=inside, other=0.0, eviction_policy="evict_first")
            g = combine(
                grad, positions, order, sources, factors, partials, first, last, entries,
                d, inside, PARTIAL_WIDTH, UNIT, CHUNK, LEVELS, UNROLL, FACTORS, MAX,
            )  # fmt: skip
            if RULE == "gradient":
                place = segment
                if DENSE:
                    place = row
                tl.store(
                    values + place[:, None] * DIM + d[None, :],
                    narrow(g, values.dtype.element_ty), mask=inside,
                )  # fmt: skip
            else:
                g = _step_gradient(g, w, weight_decay, DECAY, MAXIMIZE)
                if ROWWISE and DIM <= BLOCK_D:
                    size = _next_size(size, tl.sum(g * g, 1), dim, rest2, RULE)
                if RULE == "sgd":
                    step = g
                    if FULL_STATES > 0:
                        s = momentum * s + fresh * g
                        step = s
                        if NESTEROV:
                            step = g + momentum * s
                elif RULE == "adagrad":
                    s += g * g
                    step = tl.div_rn(g, tl.sqrt_rn(s) + eps)
                elif RULE == "rowwise_adagrad":
                    step = tl.div_rn(g, tl.broadcast_to((tl.sqrt_rn(size) + eps)[:, None], g.shape))
                elif RULE == "adam":
                    s += rest1 * (g - s)
                    v += rest2 * (g * g - v)
                    step = tl.div_rn(s, tl.sqrt_rn(v) + eps)
                else:
                    s += rest1 * (g - s)
                    step = tl.div_rn(s, tl.broadcast_to((tl.sqrt_rn(size) + eps)[:, None], s.shape))
                w = narrow(w - rate * step, w_at.dtype.element_ty)
                tl.store(w_at, w, mask=inside, eviction_policy="evict_first")
                if FULL_STATES > 0:
                    tl.store(s_at, s, mask=inside, eviction_policy="evict_first")
                if FULL_STATES > 1:
                    tl.store(v_at, v, mask=inside, eviction_policy="evict_first")
        if ROWWISE:
            tl.store(size_at, size, mask=live)


def _update_shape(dim: int) -> dict:
    """The launch of `_update`: 8 elements a thread of each tensor, so that the row, two states, the
    sum and four gradient rows under way are about 100 registers."""
    rows, block = tile(dim, 32 * _WARPS * 8)
    return {"ROWS": rows, "BLOCK_D": block, "UNROLL": 4, "num_warps": _WARPS}


def _programs(device: torch.device) -> int:
    """Programs that stride over the touched rows: some rounds of a full GPU, so that those with
    long segments are evened out."""
    if device.type != "cuda":
        return 8
    return 32 * torch.cuda.get_device_properties(device).multi_processor_count


def _is_on_device(rule: Any) -> bool:
    """Whether the rate of a rule is a number of the device."""
    return rule is not None and any(isinstance(n, Tensor) for n in (rule.lr, rule.step))


def _numbers(rule: Any) -> list[float]:
    """What does not change within a step, in double precision: the rate, eps, 1 - beta1, 1 - beta2,
    the momentum, the weight of a new gradient in it, the weight decay."""
    if rule is None:
        return [0.0] * 7
    rate, fresh = (0.0, 0.0) if _is_on_device(rule) else rule.rate()
    rests = (1 - rule.beta1, 1 - rule.beta2)
    return [float(n) for n in (rate, rule.eps, *rests, rule.momentum, fresh, rule.weight_decay)]


def run(
    segments: Segments,
    grad: Tensor,
    positions: Tensor | None,
    num_rows: int,
    dim: int,
    programs: int | None,
    *,
    weights: Tensor | None = None,
    state: Sequence[Tensor] = (),
    batch: TableBatch | None = None,
    values: Tensor | None = None,
    dense: bool = False,
    rule: Any = None,
) -> None:
    """Launches `_update`: the gradients into ``values``, or a step of ``rule``."""
    shape = _update_shape(dim)
    entries = segments.keys.numel()
    blocks = triton.cdiv(min(entries, num_rows), shape["ROWS"])
    name = "gradient" if rule is None else rule.name
    rowwise = name.startswith("rowwise")
    full = list(state[:-1] if rowwise else state)
    constants = {
        "RULE": name,
        "FULL_STATES": len(full),
        "ROWWISE": rowwise,
        "NESTEROV": rule is not None and rule.nesterov,
        "DECAY": rule is not None and rule.weight_decay != 0,
        "MAXIMIZE": rule is not None and rule.maximize,
        "DENSE": dense,
        "BATCHED": batch is not None,
        "TYPE": None,
        "ALIGNED": 16,
        "STATE_ALIGNED": 16,
        "DIM": dim,
        "STRIDE": dim,
    }
    if batch is not None:
        constants["TYPE"] = TYPES[batch.dtype]
        constants["ALIGNED"], constants["STATE_ALIGNED"] = batch.aligned, batch.state_aligned
    elif weights is not None:
        constants["STRIDE"] = weights.stride(0)
    _update[(min(blocks, programs or _programs(grad.device)),)](
        weights, *[*full, None, None][:2], state[-1] if rowwise else None,
        batch.dims if batch else None, values, segments.rows, segments.table_of, segments.starts,
        segments.count, grad, positions, segments.order, segments.sources, segments.factors,
        segments.partials, entries,
        rule.rate_on_device(grad.device) if _is_on_device(rule) else None,
        *_numbers(rule), **constants, **segments.options, **shape,
    )  # fmt: skip
