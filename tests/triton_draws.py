"""Kernels that write down the draws of vecsmith.kernels.skipgram, for tests/test_skipgram_triton.py
(imported only where Triton's interpreter or a GPU was chosen)."""

from __future__ import annotations

import triton
import triton.language as tl
from vecsmith.kernels import skipgram as kernels

_draw = kernels._draw
_window = kernels._window
_negatives = kernels._negatives


@triton.jit(do_not_specialize=["key"])
def draws(counters, out, key, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counter = tl.load(counters + i, mask=i < count, other=0).to(tl.uint64)
    bits = _draw(key.to(tl.int64).to(tl.uint64), counter)
    tl.store(out + i, bits.to(tl.int64, bitcast=True), mask=i < count)


@triton.jit(do_not_specialize=["key"])
def windows(positions, out, key, window, SHRINK: tl.constexpr):
    i = tl.program_id(0)
    bits = key.to(tl.int64).to(tl.uint64)
    tl.store(out + i, _window(bits, tl.load(positions + i), window, SHRINK))


@triton.jit(do_not_specialize=["key"])
def negatives(counters, positives, alias, out, key, vocabulary, negative, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    drawn = _negatives(
        key.to(tl.int64).to(tl.uint64),
        tl.load(counters + i),
        tl.load(positives + i),
        alias,
        vocabulary,
        negative,
        BLOCK,
    )
    column = tl.arange(0, BLOCK)
    tl.store(out + i * BLOCK + column, drawn)
