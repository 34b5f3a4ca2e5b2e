"""Cells of a row, for the kernels of `als_solve`: as they read them, and the kernels that need no
system: sums of factors, and conjugate gradients."""

from __future__ import annotations

import triton
import triton.language as tl

_LEAST_WEIGHT = tl.constexpr(2.0**-24)


@triton.jit
def cells_at(indices, values, weights, at, live, alpha, IMPLICIT: tl.constexpr):
    """(columns, w, b) of cells; those that are not live weigh nothing."""
    column = tl.load(indices + at, mask=live, other=0).to(tl.int64)
    r = tl.load(values + at, mask=live, other=0).to(tl.float32)
    if IMPLICIT:
        c = alpha * r
        w = tl.where(live, tl.abs(c) - 1.0, 0.0)
        b = tl.maximum(c, 0.0)
    else:
        if weights is None:
            w = tl.where(live, 1.0, 0.0)
        else:
            w = tl.load(weights + at, mask=live, other=0.0)
        b = w * r
    return column, w, b


@triton.jit
def roots(w, b, live, IMPLICIT: tl.constexpr):
    """(v, the right side) of the system of n numbers."""
    if IMPLICIT:
        v = tl.sqrt_rn(tl.maximum(w, _LEAST_WEIGHT))
        right = b / v
        v = tl.where(live, v, 0.0)
    else:
        v = tl.sqrt_rn(w)
        right = tl.where(w > 0, b / tl.where(w > 0, v, 1.0), 0.0)
    return v, tl.where(live, right, 0.0)


@triton.jit
def factors_at(basis, stride, column, d, live, f):
    """Columns d of factors [*, BLOCK]; zero past f and where not live."""
    mask = live[:, None] & (d < f)[None, :]
    return tl.load(basis + column[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def ridge_of(ridges, ridge, row):
    if ridges is not None:
        own = tl.load(ridges + row)
    else:
        own = ridge
    return own


@triton.jit
def scales(spectrum, own, d, f):
    """D^-1/2 of a row with its own l."""
    return 1.0 / tl.sqrt_rn(tl.load(spectrum + d, mask=d < f, other=1.0) + own)


@triton.jit
def combine_rows(
    rows,
    indptr,
    indices,
    basis,
    stride,
    spectrum,
    ridges,
    f,
    coefficients,  # float32 [len(rows), size]
    size,
    out,
    out_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """D^-1 times the sum of a row's factors with coefficients."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + slot)
    begin = tl.load(indptr + row).to(tl.int64)
    count = (tl.load(indptr + row + 1).to(tl.int64) - begin).to(tl.int32)
    d = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    total = tl.zeros([BLOCK_N, BLOCK_F], tl.float32)
    for first in range(0, count, BLOCK_N):
        cell = first + tl.arange(0, BLOCK_N)
        live = cell < count
        column = tl.load(indices + begin + cell, mask=live, other=0).to(tl.int64)
        u = tl.load(coefficients + slot * size + cell, mask=live, other=0.0)
        total += u[:, None] * factors_at(basis, stride, column, d, live, f)
    t = tl.sum(total, 0)
    if spectrum is not None:
        scale = scales(spectrum, tl.load(ridges + row), d, f)
        t = t * scale * scale
    tl.store(out + row * out_stride + d, t, mask=d < f)


@triton.jit
def _seen(
    vector, right, begin, count, indices, values, weights, basis, stride, scale, d, f, alpha,
    IMPLICIT: tl.constexpr, FP: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """The sum over cells of (right b - w <z, vector>) z."""
    total = tl.zeros([BLOCK_N, FP], tl.float32)
    for first in range(0, count, BLOCK_N):
        cell = first + tl.arange(0, BLOCK_N)
        live = cell < count
        column, w, b = cells_at(indices, values, weights, begin + cell, live, alpha, IMPLICIT)
        z = factors_at(basis, stride, column, d, live, f)
        if SCALED:
            z = z * scale[None, :]
        seen = tl.sum(z * vector[None, :], 1)
        total += (right * b - w * seen)[:, None] * z
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["steps"])
def conjugate_rows(
    rows,
    indptr,
    indices,
    values,
    weights,
    basis,
    stride,
    spectrum,
    ridges,
    ridge,
    alpha,
    f,
    out,  # float32 [rows, f]: begins as what the steps begin with
    out_stride,
    steps,
    IMPLICIT: tl.constexpr,
    FP: tl.constexpr,  # a power of two
    BLOCK_N: tl.constexpr,
):
    row = tl.load(rows + tl.program_id(0))
    begin = tl.load(indptr + row).to(tl.int64)
    count = (tl.load(indptr + row + 1).to(tl.int64) - begin).to(tl.int32)
    own = ridge_of(ridges, ridge, row)
    d = tl.arange(0, FP)
    base = 1.0 if IMPLICIT else own
    scaled: tl.constexpr = spectrum is not None
    scale = d.to(tl.float32) * 0.0 + 1.0
    if scaled:
        scale = scales(spectrum, own, d, f)
    at = out + row * out_stride + d
    x = tl.load(at, mask=d < f, other=0.0) / scale
    r = _seen(
        x, 1.0, begin, count, indices, values, weights, basis, stride, scale, d, f, alpha, IMPLICIT,
        FP, BLOCK_N, scaled,
    ) - base * x  # fmt: skip
    direction = r
    before = tl.sum(r * r, 0)
    for _ in range(steps):
        product = base * direction - _seen(
            direction, 0.0, begin, count, indices, values, weights, basis, stride, scale, d, f,
            alpha, IMPLICIT, FP, BLOCK_N, scaled,
        )  # fmt: skip
        curve = tl.sum(direction * product, 0)
        goes = before > 1e-20
        length = tl.where(goes, before / tl.where(goes, curve, 1.0), 0.0)
        x += length * direction
        r -= length * product
        after = tl.sum(r * r, 0)
        direction = r + tl.where(goes, after / tl.where(goes, before, 1.0), 0.0) * direction
        before = tl.where(goes, after, before)
    tl.store(at, x * scale, mask=d < f)
