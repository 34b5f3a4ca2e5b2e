"""Rows of a table as float32 and back, for the kernels of `embedding_bag`."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.uint8: tl.uint8,
}
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def narrow(value, TYPE: tl.constexpr):
    """float32 as TYPE, rounded to nearest, ties to even. A GPU's conversion does that; Triton's
    interpreter cuts bfloat16 off, so what it cuts off is rounded before."""
    if _INTERPRETED and tl.bfloat16 == TYPE:
        bits = value.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    return value.to(TYPE)


@triton.jit
def _float_at(at, live, WORDS: tl.constexpr):
    """The float32 whose first byte is at ``at`` (pointers to uint8), at any address."""
    if WORDS:
        value = tl.load(at.to(tl.pointer_type(tl.float32)), mask=live, other=0.0)
    else:
        bits = tl.load(at, mask=live, other=0).to(tl.uint32)
        bits |= tl.load(at + 1, mask=live, other=0).to(tl.uint32) << 8
        bits |= tl.load(at + 2, mask=live, other=0).to(tl.uint32) << 16
        bits |= tl.load(at + 3, mask=live, other=0).to(tl.uint32) << 24
        value = bits.to(tl.float32, bitcast=True)
    return value


@triton.jit
def read_rows(table, row, stride, dim, d, live, PACKED: tl.constexpr, WORDS: tl.constexpr):
    """Columns d of rows, as float32 [*, BLOCK_D]; zero where not live or past dim. row: [*]"""
    at = table + row * stride
    mask = tl.expand_dims(live, -1) & (d < dim)
    value = tl.load(tl.expand_dims(at, -1) + d, mask=mask, other=0).to(tl.float32)
    if PACKED:
        scale = _float_at(at + dim, live, WORDS)
        bias = _float_at(at + dim + 4, live, WORDS)
        value = value * tl.expand_dims(scale, -1) + tl.expand_dims(bias, -1)
    return value
