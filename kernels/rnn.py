"""Recurrent layers over whole sequences in Triton: what `vecsmith.reference.rnn` says, on a GPU.

What it computes
    LSTM, GRU (reset gate after or before the product) and vanilla RNNs, in one direction, forward
    (`rnn`) and backward (`rnn_backward`). Sums, gates, the cell c and the h that a GRU mixes are
    float32; what a product reads has the dtype of its weight. No atomics: the same input gives the
    same bits. float32 products follow torch.get_float32_matmul_precision(): "highest" multiplies
    and adds float32, "high" takes three products of tf32, "medium" one.

How the work is split
    W_ih x of all steps is one matrix product, and so are the gradients of the input and of the
    weights. Between them, a program takes BLOCK_B rows through all of their steps by itself: no
    program waits for another. Each step it goes over the hidden units, BLOCK_H at a time, with the
    gates of a unit side by side, so that they are fused into the product. Its states are in global
    memory, in two copies, of which a step reads one and writes the other; they stay in L1 and L2,
    and one barrier of the program a step is enough (two where the reset gate comes before).
    The rows of a tile are ordered by length, so its loop ends with its first row, and what rows
    that have ended would read is masked.
    Forward keeps the gates, in the place of W_ih x where they fit there, and every c. Backward, the
    product W_hh^T d of the step that comes after and the derivatives of the gates of the step
    before are fused in the same way; W_hh is read as it is, in either direction.

What bounds its speed
    A program reads all of W_hh in each step, 2 G H^2 bytes in bf16, from L2: 8.4 MB for an LSTM of
    1024 units, 77 us at the 64 bytes a cycle that one multiprocessor gets. It does not depend on
    BLOCK_B: a tile of 16 rows is as slow as one of 64, so tiles are as small as the tensor cores
    allow, until every multiprocessor has one. Weights that stay on chip need programs that wait for
    one another, which is CUDA's business.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear
from vecsmith.kernels._elements import _INTERPRETED, narrow

_GATES = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "rnn_tanh": 1, "rnn_relu": 1}
_SAVED = {"lstm": 4, "gru": 4, "gru_reset_before": 3, "rnn_tanh": 0, "rnn_relu": 0}
_PRECISION = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
_MARGIN = 2  # steps before the first and after the last, of no rows, that kernels may look at


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    """Relative error a few units in the last place: an odd polynomial near zero (Cephes' tanhf)."""
    q = x * x
    p = -5.70498872745e-3 * q + 2.06390887954e-2
    p = p * q - 5.37397155531e-2
    p = p * q + 1.33314422036e-1
    p = p * q - 3.33332819422e-1
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.625, p * q * x + x, tl.where(x < 0.0, -far, far))


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    """total + a b. The interpreter multiplies what it takes bfloat16's bits for."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _load(at, mask):
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(at, value, mask):
    tl.store(at, narrow(value, at.dtype.element_ty), mask=mask)


@triton.jit
def _left(at, live, k, HIDDEN: tl.constexpr):
    """Columns k of rows that begin at pointers ``at``, zero past the end and where not live."""
    mask = live[:, None] & (k < HIDDEN)[None, :]
    return tl.load(at[:, None] + k[None, :], mask=mask, other=0.0)


@triton.jit
def _rows_of(weight, first, units, k, HIDDEN: tl.constexpr):
    """weight[first + units, k] as [K, units], zero past the ends."""
    at = weight + (first + units.to(tl.int64))[None, :] * HIDDEN + k[:, None]
    return tl.load(at, mask=(units < HIDDEN)[None, :] & (k < HIDDEN)[:, None], other=0.0)


@triton.jit
def _columns_of(weight, first, k, units, HIDDEN: tl.constexpr):
    """weight[first + k, units] as [K, units], zero past the ends."""
    at = weight + (first + k.to(tl.int64))[:, None] * HIDDEN + units[None, :]
    return tl.load(at, mask=(k < HIDDEN)[:, None] & (units < HIDDEN)[None, :], other=0.0)


@triton.jit
def _bias_of(bias, first, units, total, HIDDEN: tl.constexpr):
    """total + bias[first + units], where there is a bias."""
    if bias is not None:
        total += _load(bias + first + units, units < HIDDEN)[None, :]
    return total


@triton.jit(do_not_specialize=["batch"])
def _forward(
    x,  # [N, G H]: W_ih x and the biases that are added to it
    weight,  # [G H, H]
    bias,  # [G H] or None: that of the recurrent product; "gru" alone
    h,  # [2, B, H], of weight's dtype: what a product reads; begins as h0, twice
    carry,  # float32 [2, B, H]: c of an LSTM, h of a GRU; begins as c0 or h0, twice
    product,  # [B, H], of weight's dtype: r * h, where the reset gate comes before
    update,  # float32 [B, H]: z, there
    output,  # [N, H]
    last_h,  # [B, H]
    last_c,  # [B, H]; "lstm" alone
    cells,  # [N, H] or None: every c
    gates,  # [N, S H] or None: what backward reads; may be x
    sizes,  # int64 [margin + T + margin]: rows at each step
    starts,  # int64, of the same shape: where they begin
    steps,  # int64 [tiles]
    batch,
    CELL: tl.constexpr,
    REVERSE: tl.constexpr,
    HIDDEN: tl.constexpr,
    MARGIN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All steps of the rows of a tile."""
    tile = tl.program_id(0)
    row = tile.to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    count = tl.load(steps + tile)
    plane = batch.to(tl.int64) * HIDDEN
    k_lanes = tl.arange(0, BLOCK_K)
    h_lanes = tl.arange(0, BLOCK_H)
    for s in range(count):
        if REVERSE:
            t = count - 1 - s + MARGIN
            size_after = tl.load(sizes + t - 1)
        else:
            t = s + MARGIN
            size_after = tl.load(sizes + t + 1)
        live = row < tl.load(sizes + t)
        final = live & (row >= size_after)
        at = tl.load(starts + t) + row
        now = (s % 2) * plane + row * HIDDEN
        then = ((s + 1) % 2) * plane + row * HIDDEN
        for first in range(0, HIDDEN, BLOCK_H):
            unit = first + h_lanes
            mask = live[:, None] & (unit < HIDDEN)[None, :]
            here = at[:, None] * HIDDEN + unit[None, :]
            there = then[:, None] + unit[None, :]
            if CELL == "lstm":
                own = at[:, None] * (4 * HIDDEN) + unit[None, :]
                sum_i = _load(x + own, mask)
                sum_f = _load(x + own + HIDDEN, mask)
                sum_g = _load(x + own + 2 * HIDDEN, mask)
                sum_o = _load(x + own + 3 * HIDDEN, mask)
                for start in range(0, HIDDEN, BLOCK_K):
                    k = start + k_lanes
                    state = _left(h + now, live, k, HIDDEN)
                    w = _rows_of(weight, 0, unit, k, HIDDEN)
                    sum_i = _dot(state, w, sum_i, PRECISION)
                    w = _rows_of(weight, HIDDEN, unit, k, HIDDEN)
                    sum_f = _dot(state, w, sum_f, PRECISION)
                    w = _rows_of(weight, 2 * HIDDEN, unit, k, HIDDEN)
                    sum_g = _dot(state, w, sum_g, PRECISION)
                    w = _rows_of(weight, 3 * HIDDEN, unit, k, HIDDEN)
                    sum_o = _dot(state, w, sum_o, PRECISION)
                i = _sigmoid(sum_i)
                f = _sigmoid(sum_f)
                g = _tanh(sum_g)
                o = _sigmoid(sum_o)
                c = f * _load(carry + now[:, None] + unit[None, :], mask) + i * g
                new = o * _tanh(c)
                tl.store(carry + there, c, mask=mask)
                if gates is not None:
                    tl.debug_barrier()  # Every thread has read x, in whose place they are written.
                    _store(gates + own, i, mask)
                    _store(gates + own + HIDDEN, f, mask)
                    _store(gates + own + 2 * HIDDEN, g, mask)
                    _store(gates + own + 3 * HIDDEN, o, mask)
                    _store(cells + here, c, mask)
                ends = row[:, None] * HIDDEN + unit[None, :]
                _store(last_c + ends, c, mask & final[:, None])
            elif CELL == "gru":
                own = at[:, None] * (3 * HIDDEN) + unit[None, :]
                sum_r = _bias_of(bias, 0, unit, _load(x + own, mask), HIDDEN)
                sum_z = _bias_of(bias, HIDDEN, unit, _load(x + own + HIDDEN, mask), HIDDEN)
                sum_n = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
                sum_n = _bias_of(bias, 2 * HIDDEN, unit, sum_n, HIDDEN)
                for start in range(0, HIDDEN, BLOCK_K):
                    k = start + k_lanes
                    state = _left(h + now, live, k, HIDDEN)
                    w = _rows_of(weight, 0, unit, k, HIDDEN)
                    sum_r = _dot(state, w, sum_r, PRECISION)
                    w = _rows_of(weight, HIDDEN, unit, k, HIDDEN)
                    sum_z = _dot(state, w, sum_z, PRECISION)
                    w = _rows_of(weight, 2 * HIDDEN, unit, k, HIDDEN)
                    sum_n = _dot(state, w, sum_n, PRECISION)
                r = _sigmoid(sum_r)
                z = _sigmoid(sum_z)
                n = _tanh(_load(x + own + 2 * HIDDEN, mask) + r * sum_n)
                new = n + z * (_load(carry + now[:, None] + unit[None, :], mask) - n)
                tl.store(carry + there, new, mask=mask)
                if gates is not None:
                    saved = gates + at[:, None] * (4 * HIDDEN) + unit[None, :]
                    _store(saved, r, mask)
                    _store(saved + HIDDEN, z, mask)
                    _store(saved + 2 * HIDDEN, n, mask)
                    _store(saved + 3 * HIDDEN, sum_n, mask)
            elif CELL == "gru_reset_before":
                own = at[:, None] * (3 * HIDDEN) + unit[None, :]
                sum_r = _load(x + own, mask)
                sum_z = _load(x + own + HIDDEN, mask)
                for start in range(0, HIDDEN, BLOCK_K):
                    k = start + k_lanes
                    state = _left(h + now, live, k, HIDDEN)
                    w = _rows_of(weight, 0, unit, k, HIDDEN)
                    sum_r = _dot(state, w, sum_r, PRECISION)
                    w = _rows_of(weight, HIDDEN, unit, k, HIDDEN)
                    sum_z = _dot(state, w, sum_z, PRECISION)
                r = _sigmoid(sum_r)
                z = _sigmoid(sum_z)
                old = _load(carry + now[:, None] + unit[None, :], mask)
                ends = row[:, None] * HIDDEN + unit[None, :]
                _store(product + ends, r * old, mask)
                tl.store(update + ends, z, mask=mask)
                if gates is not None:
                    tl.debug_barrier()
                    _store(gates + own, r, mask)
                    _store(gates + own + HIDDEN, z, mask)
            else:
                sum_n = _load(x + here, mask)
                for start in range(0, HIDDEN, BLOCK_K):
                    k = start + k_lanes
                    state = _left(h + now, live, k, HIDDEN)
                    w = _rows_of(weight, 0, unit, k, HIDDEN)
                    sum_n = _dot(state, w, sum_n, PRECISION)
                new = _tanh(sum_n) if CELL == "rnn_tanh" else tl.where(sum_n < 0.0, 0.0, sum_n)
            if CELL != "gru_reset_before":
                _store(h + there, new, mask)
                _store(output + here, new, mask)
                ends = row[:, None] * HIDDEN + unit[None, :]
                _store(last_h + ends, new, mask & final[:, None])
        tl.debug_barrier()  # What the next product reads has been written.
        if CELL == "gru_reset_before":
            for first in range(0, HIDDEN, BLOCK_H):
                unit = first + h_lanes
                mask = live[:, None] & (unit < HIDDEN)[None, :]
                here = at[:, None] * HIDDEN + unit[None, :]
                there = then[:, None] + unit[None, :]
                own = at[:, None] * (3 * HIDDEN) + 2 * HIDDEN + unit[None, :]
                sum_n = _load(x + own, mask)
                for start in range(0, HIDDEN, BLOCK_K):
                    k = start + k_lanes
                    state = _left(product + row * HIDDEN, live, k, HIDDEN)
                    w = _rows_of(weight, 2 * HIDDEN, unit, k, HIDDEN)
                    sum_n = _dot(state, w, sum_n, PRECISION)
                n = _tanh(sum_n)
                ends = row[:, None] * HIDDEN + unit[None, :]
                old = _load(carry + now[:, None] + unit[None, :], mask)
                new = n + _load(update + ends, mask) * (old - n)
                tl.store(carry + there, new, mask=mask)
                _store(h + there, new, mask)
                _store(output + here, new, mask)
                _store(last_h + ends, new, mask & final[:, None])
                if gates is not None:
                    tl.debug_barrier()
                    _store(gates + own, n, mask)
            tl.debug_barrier()


@triton.jit
def _state_before(values, initial, at, row, has, live, unit, HIDDEN: tl.constexpr):
    """The state that a step began with: of the step before it, or the initial one."""
    inside = (unit < HIDDEN)[None, :]
    mask = (live & has)[:, None] & inside
    before = _load(values + at[:, None] * HIDDEN + unit[None, :], mask)
    mask = (live & (has == 0))[:, None] & inside
    return before + _load(initial + row[:, None] * HIDDEN + unit[None, :], mask)


@triton.jit(do_not_specialize=["batch"])
def _backward(
    grad,  # [N, H] or None
    grad_h,  # [B, H] or None
    grad_c,  # [B, H] or None
    weight,  # [G H, H]
    gates,  # [N, S H], as _forward left them
    states,  # [N, H]: every c of an LSTM, the output of other cells
    initial,  # [B, H]: c0 or h0
    d,  # [N, D H]: of the gates; "gru": of r, z, n and of the product that r scales
    carry,  # float32 [2, B, H]: the gradient of c; that of h past the product, of a GRU
    dh0,  # [B, H]
    dc0,  # [B, H]
    sizes,
    starts,
    steps,
    batch,
    CELL: tl.constexpr,
    REVERSE: tl.constexpr,
    HIDDEN: tl.constexpr,
    MARGIN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All steps of the rows of a tile, from their last to their first, and a turn more, in which
    the gradient has come to the initial state. Sequences are walked against their direction, so
    with REVERSE rows drop out on the way, and come to their initial state earlier."""
    tile = tl.program_id(0)
    row = tile.to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    count = tl.load(steps + tile)
    plane = batch.to(tl.int64) * HIDDEN
    k_lanes = tl.arange(0, BLOCK_K)
    h_lanes = tl.arange(0, BLOCK_H)
    gated: tl.constexpr = CELL == "lstm" or CELL == "gru" or CELL == "gru_reset_before"
    gates_of_d: tl.constexpr = 4 if CELL == "lstm" or CELL == "gru" else 3 if gated else 1
    width: tl.constexpr = gates_of_d * HIDDEN
    for s in range(count + 1):
        if REVERSE:
            t = s + MARGIN
            t_from = t - 1
            t_next = t + 1
        else:
            t = count - 1 - s + MARGIN
            t_from = t + 1
            t_next = t - 1
        live = row < tl.load(sizes + t)
        came = row < tl.load(sizes + t_from)
        has = row < tl.load(sizes + t_next)
        at = tl.load(starts + t) + row
        at_from = tl.load(starts + t_from) + row
        at_next = tl.load(starts + t_next) + row
        enters = live & (came == 0)
        leaves = came & (live == 0)
        if CELL == "gru_reset_before":
            now = row * HIDDEN
            then = plane + row * HIDDEN
        else:
            now = (s % 2) * plane + row * HIDDEN
            then = ((s + 1) % 2) * plane + row * HIDDEN
        place = d + at_from * width
        reach = tl.where(s > 0, HIDDEN, 0)
        for first in range(0, HIDDEN, BLOCK_H):
            unit = first + h_lanes
            inside = (unit < HIDDEN)[None, :]
            mask = live[:, None] & inside
            here = at[:, None] * HIDDEN + unit[None, :]
            ends = row[:, None] * HIDDEN + unit[None, :]
            dh = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
            for start in range(0, reach, BLOCK_K):
                k = start + k_lanes
                part = _left(place, came, k, HIDDEN)
                dh = _dot(part, _columns_of(weight, 0, k, unit, HIDDEN), dh, PRECISION)
                if gated:
                    part = _left(place + HIDDEN, came, k, HIDDEN)
                    w = _columns_of(weight, HIDDEN, k, unit, HIDDEN)
                    dh = _dot(part, w, dh, PRECISION)
                if CELL == "gru":
                    part = _left(place + 3 * HIDDEN, came, k, HIDDEN)
                    w = _columns_of(weight, 2 * HIDDEN, k, unit, HIDDEN)
                    dh = _dot(part, w, dh, PRECISION)
                if CELL == "lstm":
                    part = _left(place + 2 * HIDDEN, came, k, HIDDEN)
                    w = _columns_of(weight, 2 * HIDDEN, k, unit, HIDDEN)
                    dh = _dot(part, w, dh, PRECISION)
                    part = _left(place + 3 * HIDDEN, came, k, HIDDEN)
                    w = _columns_of(weight, 3 * HIDDEN, k, unit, HIDDEN)
                    dh = _dot(part, w, dh, PRECISION)
            if gated:
                carried = _load(carry + now[:, None] + unit[None, :], came[:, None] & inside)
            if CELL == "gru" or CELL == "gru_reset_before":
                dh += carried
            _store(dh0 + ends, dh, leaves[:, None] & inside)
            if grad is not None:
                dh += _load(grad + here, mask)
            if grad_h is not None:
                dh += _load(grad_h + ends, enters[:, None] & inside)
            own = d + at[:, None] * width + unit[None, :]
            if gated:
                there = carry + then[:, None] + unit[None, :]
            if CELL == "lstm":
                _store(dc0 + ends, carried, leaves[:, None] & inside)
                dc = carried
                if grad_c is not None:
                    dc += _load(grad_c + ends, enters[:, None] & inside)
                saved = gates + at[:, None] * (4 * HIDDEN) + unit[None, :]
                i = _load(saved, mask)
                f = _load(saved + HIDDEN, mask)
                g = _load(saved + 2 * HIDDEN, mask)
                o = _load(saved + 3 * HIDDEN, mask)
                old = _state_before(states, initial, at_next, row, has, live, unit, HIDDEN)
                seen = _tanh(_load(states + here, mask))
                dc += dh * o * (1.0 - seen * seen)
                tl.store(there, dc * f, mask=mask)
                _store(own, dc * g * i * (1.0 - i), mask)
                _store(own + HIDDEN, dc * old * f * (1.0 - f), mask)
                _store(own + 2 * HIDDEN, dc * i * (1.0 - g * g), mask)
                _store(own + 3 * HIDDEN, dh * seen * o * (1.0 - o), mask)
            elif CELL == "gru":
                saved = gates + at[:, None] * (4 * HIDDEN) + unit[None, :]
                r = _load(saved, mask)
                z = _load(saved + HIDDEN, mask)
                n = _load(saved + 2 * HIDDEN, mask)
                q = _load(saved + 3 * HIDDEN, mask)
                old = _state_before(states, initial, at_next, row, has, live, unit, HIDDEN)
                dn = dh * (1.0 - z) * (1.0 - n * n)
                tl.store(there, dh * z, mask=mask)
                _store(own, dn * q * r * (1.0 - r), mask)
                _store(own + HIDDEN, dh * (old - n) * z * (1.0 - z), mask)
                _store(own + 2 * HIDDEN, dn, mask)
                _store(own + 3 * HIDDEN, dn * r, mask)
            elif CELL == "gru_reset_before":
                saved = gates + at[:, None] * (3 * HIDDEN) + unit[None, :]
                z = _load(saved + HIDDEN, mask)
                n = _load(saved + 2 * HIDDEN, mask)
                old = _state_before(states, initial, at_next, row, has, live, unit, HIDDEN)
                tl.store(there, dh * z, mask=mask)
                _store(own + HIDDEN, dh * (old - n) * z * (1.0 - z), mask)
                _store(own + 2 * HIDDEN, dh * (1.0 - z) * (1.0 - n * n), mask)
            else:
                new = _load(states + here, mask)
                if CELL == "rnn_tanh":
                    _store(own, dh * (1.0 - new * new), mask)
                else:
                    _store(own, tl.where(new <= 0.0, 0.0, dh), mask)
        tl.debug_barrier()
        if CELL == "gru_reset_before":
            reach = tl.where(s < count, HIDDEN, 0)
            for first in range(0, reach, BLOCK_H):
                unit = first + h_lanes
                mask = live[:, None] & (unit < HIDDEN)[None, :]
                dp = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)  # of r * h
                for start in range(0, HIDDEN, BLOCK_K):
                    k = start + k_lanes
                    part = _left(d + at * (3 * HIDDEN) + 2 * HIDDEN, live, k, HIDDEN)
                    w = _columns_of(weight, 2 * HIDDEN, k, unit, HIDDEN)
                    dp = _dot(part, w, dp, PRECISION)
                own = at[:, None] * (3 * HIDDEN) + unit[None, :]
                r = _load(gates + own, mask)
                old = _state_before(states, initial, at_next, row, has, live, unit, HIDDEN)
                _store(d + own, dp * old * r * (1.0 - r), mask)
                direct = _load(carry + then[:, None] + unit[None, :], mask)
                tl.store(carry + now[:, None] + unit[None, :], direct + dp * r, mask=mask)
            tl.debug_barrier()


class _Steps(NamedTuple):
    """What kernels know of the lengths: int64 rows of a table on the device."""

    sizes: Tensor
    starts: Tensor
    steps: Tensor
    tiles: int


def _steps_of(batch_sizes: Tensor, rows: int, device: torch.device) -> _Steps:
    """batch_sizes: [T] on the CPU; rows: of a tile."""
    batch = int(batch_sizes[0])
    tiles = triton.cdiv(batch, rows)
    count = batch_sizes.numel()
    width = max(count + 2 * _MARGIN, tiles)
    inner = slice(_MARGIN, _MARGIN + count)
    if int(batch_sizes[-1]) == batch:  # made on the device: nothing is copied from the host
        table = torch.zeros(3, width + width % 2, dtype=torch.int64, device=device)
        table[0, inner] = batch
        torch.arange(0, count * batch, batch, out=table[1, inner])
        table[2, :tiles] = count
        return _Steps(*table, tiles)
    table = torch.zeros(3, width + width % 2, dtype=torch.int64)
    table[0, inner] = batch_sizes
    table[1, inner] = batch_sizes.cumsum(0) - batch_sizes
    # sizes do not increase: a tile has as many steps as there are sizes that its first row is below
    table[2, :tiles] = count - torch.searchsorted(
        batch_sizes.flip(0), torch.arange(0, batch, rows), right=True
    )
    # From memory that is not pinned: what is copied has been read when this returns.
    return _Steps(*table.to(device, non_blocking=True), tiles)


def _device(device: torch.device) -> tuple[int, int]:
    """How many multiprocessors there are, and the bytes of shared memory that a program may have;
    those of an H200 where there is no GPU."""
    if device.type != "cuda":
        return 132, 227 << 10
    index = torch.cuda.current_device() if device.index is None else device.index
    facts = triton.runtime.driver.active.utils.get_device_properties(index)
    return facts["multiprocessor_count"], facts["max_shared_mem"]


def _shape(cell: str, dtype: torch.dtype, batch: int, hidden: int, device: torch.device) -> dict:
    """The launch of both kernels.

    Tiles of 16 rows until every multiprocessor has one, then of 32. A stage of the pipeline is a
    block of each gate's weight and what it is multiplied with, 73 KB of an LSTM. One is computed,
    and those that are under way must cover the 27 KB that hide L2's 250 ns at 64 bytes a cycle.
    Products of "highest" precision are sums of threads that hold what they multiply in registers:
    they take half of the units at a time.
    """
    precision = torch.get_float32_matmul_precision()
    by_threads = dtype == torch.float32 and precision == "highest"
    processors, memory = _device(device)
    wide = max(16, triton.next_power_of_2(hidden))
    rows = 16 if batch <= 16 * processors else 32
    units = min(wide, (1024 if by_threads else 2048) // rows)
    depth = min(wide, 128 // dtype.itemsize)
    gates, stages = _GATES[cell], 3
    if cell == "gru_reset_before":  # whose products are of two gates and of one
        gates, stages = 2, 4
    elif gates == 1:
        stages = 4
    while units > 16 and (stages - 1) * gates * (units + rows) * depth * dtype.itemsize > memory:
        units //= 2
    return {
        "HIDDEN": hidden,
        "PRECISION": _PRECISION[precision],
        "BLOCK_B": rows,
        "BLOCK_H": units,
        "BLOCK_K": depth,
        "num_warps": 8 if units >= 64 else 4,
        "num_stages": stages,
    }


def rnn(
    input: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    *,
    cell: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """A layer, as :func:`vecsmith.reference.rnn.rnn`; its checks are the caller's.

    All contiguous, of one dtype: float32, float16 or bfloat16. Returns (output [N, H], last h
    [B, H], last c or None) and with ``save``, else None, what :func:`rnn_backward` needs: every c
    [N, H] ("lstm"), and the gates: [N, 4 H] i f g o of an LSTM, [N, 4 H] r z n and the product that
    r scales of a GRU, [N, 3 H] r z n where the reset gate comes before ("rnn_*" needs none).
    """
    batch, hidden = h0.shape
    bias = b_ih
    if cell != "gru" and b_hh is not None:
        bias = b_hh if b_ih is None else b_ih + b_hh
    x = linear(input, w_ih, bias)
    output = torch.empty(input.shape[0], hidden, dtype=input.dtype, device=input.device)
    last_h, last_c = torch.empty_like(h0), None
    carry = cells = gates = product = update = None
    if cell == "lstm":
        assert c0 is not None
        last_c = torch.empty_like(c0)
        carry = torch.stack([c0, c0]).float()
    elif cell != "rnn_tanh" and cell != "rnn_relu":
        carry = torch.stack([h0, h0]).float()
    if cell == "gru_reset_before":
        product, update = torch.empty_like(h0), torch.empty_like(h0, dtype=torch.float32)
    if save and cell == "lstm":
        cells = torch.empty_like(output)
    if save and _SAVED[cell]:
        gates = x
        if _SAVED[cell] != _GATES[cell]:
            gates = x.new_empty(x.shape[0], _SAVED[cell] * hidden)
    shape = _shape(cell, input.dtype, batch, hidden, input.device)
    lengths = _steps_of(batch_sizes, shape["BLOCK_B"], input.device)
    with torch.cuda.device_of(input):
        _forward[(lengths.tiles,)](
            x, w_hh, b_hh if cell == "gru" else None, torch.stack([h0, h0]), carry, product, update,
            output, last_h, last_c, cells, gates, *lengths[:3], batch,
            CELL=cell, REVERSE=reverse, MARGIN=_MARGIN, **shape,
        )  # fmt: skip
    return output, last_h, last_c, cells, gates


def _previous(output: Tensor, h0: Tensor, batch_sizes: Tensor, reverse: bool) -> Tensor:
    """The h that every step began with [N, H]."""
    batch, count = h0.shape[0], output.shape[0]
    if batch * batch_sizes.numel() == count:
        parts = [output[batch:], h0] if reverse else [h0, output[: count - batch]]
        return torch.cat(parts)
    ended = batch_sizes.new_zeros(1)
    starts = batch_sizes.cumsum(0) - batch_sizes
    if reverse:  # step t + 1 has the same rows first, and the others begin with h0
        following = torch.cat([batch_sizes[1:], ended])
        table = torch.stack([batch_sizes, starts, following]).to(output.device)
        sizes, starts, following = table.repeat_interleave(table[0], 1, output_size=count)
        place = torch.arange(count, device=output.device)
        row = place - starts
        place = torch.where(row < following, place + sizes, count + row)
        return torch.cat([output, h0]).index_select(0, place)
    # step t - 1 has all rows of step t
    back = torch.cat([batch_sizes[:1], batch_sizes[:-1]])
    table = torch.stack([batch_sizes, back]).to(output.device)
    _, back = table.repeat_interleave(table[0], 1, output_size=count)
    place = torch.arange(batch, count + batch, device=output.device) - back
    return torch.cat([h0, output]).index_select(0, place)


def rnn_backward(
    grad: Tensor | None,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    output: Tensor,
    cells: Tensor | None,
    gates: Tensor | None,
    *,
    cell: str,
    reverse: bool,
    needs_input: bool,
    needs_weights: bool = True,
) -> tuple[Tensor | None, Tensor, Any, Any, Any, Any, Any]:
    """Gradients of input (None unless ``needs_input``), h0, c0 (or None), w_ih, w_hh, b_ih, b_hh
    (None unless ``needs_weights``), of what :func:`rnn` was given and has left. Contiguous tensors;
    a gradient that is None is zero."""
    batch, hidden = h0.shape
    d = input.new_empty(input.shape[0], hidden * (4 if cell == "gru" else _GATES[cell]))
    carry, dc0 = None, None
    if cell == "lstm":
        assert c0 is not None
        dc0 = torch.empty_like(c0)
    if cell != "rnn_tanh" and cell != "rnn_relu":
        carry = torch.empty(2, batch, hidden, dtype=torch.float32, device=input.device)
    dh0 = torch.empty_like(h0)
    shape = _shape(cell, input.dtype, batch, hidden, input.device)
    lengths = _steps_of(batch_sizes, shape["BLOCK_B"], input.device)
    with torch.cuda.device_of(input):
        _backward[(lengths.tiles,)](
            grad, grad_h, grad_c, w_hh, gates, cells if cell == "lstm" else output,
            c0 if cell == "lstm" else h0, d, carry, dh0, dc0, *lengths[:3], batch,
            CELL=cell, REVERSE=reverse, MARGIN=_MARGIN, **shape,
        )  # fmt: skip
    d_input = d[:, : w_ih.shape[0]] @ w_ih if needs_input else None
    if not needs_weights:
        return d_input, dh0, dc0, None, None, None, None
    before = _previous(output, h0, batch_sizes, reverse)
    sums = d.sum(0)
    if cell == "gru":
        both, product = slice(0, 2 * hidden), slice(3 * hidden, None)
        dw_hh = torch.cat([d[:, both].T @ before, d[:, product].T @ before])
        db_hh = torch.cat([sums[both], sums[product]])
        d, sums = d[:, : 3 * hidden], sums[: 3 * hidden].clone()
    else:
        db_hh = sums.clone()
        if cell == "gru_reset_before":
            assert gates is not None
            parts = d.split([2 * hidden, hidden], 1)
            dw_hh = torch.cat([parts[0].T @ before, parts[1].T @ (gates[:, :hidden] * before)])
        else:
            dw_hh = d.T @ before
    return d_input, dh0, dc0, d.T @ input, dw_hh, sums, db_hh
