"""The systems of alternating least squares in Triton: what `vecsmith.reference.als_solve` says, on
a GPU.

What it computes
    With implicit feedback the factors are in the basis in which what is known of cells that are not
    there, Y^T Y + l I, is I, or diagonal where rows have their own l (vecsmith.ops._als_basis).
    Then a row of n cells with factors z_j, weights w_j and targets b_j looks for

        (D + Z^T W Z) t = Z^T b                                     f numbers, or, where all w >= 0,
        (I + V K V) u = b / v,  K = Z D^-1 Z^T,  t = D^-1 Z^T V u   n numbers (Woodbury)

    with V the diagonal of v = sqrt(w). With explicit feedback D is l I, b = w r, the right side of
    the second v r, and l I is in the place of its I. A confidence of 1 has w = 0 and no quotient:
    it is taken for 1 + 2^-24, half of the last bit of a float32.

How the work is split
    `_few_cells`      a program for each row of up to 128 cells: K from rows that are gathered once,
                      a part of their columns at a time; then Gauss and Jordan's elimination in
                      registers
    `_row_products`   I + V K V of longer rows of n < f cells, a program for each tile of its lower
                      half; torch factors batches of them, and `combine_rows` takes Z^T V u
    `_gram`           Z^T W Z and Z^T b, a program for each tile of the lower half and each part of
                      the cells of a row; `_add_parts` adds parts up in order; torch factors
    `conjugate_rows`  steps of conjugate gradients, a program for each row: a pass over its cells
                      for each product with the matrix, vectors of f numbers in registers
    `_multiply`       rows times a matrix [f, f]: the change of basis

    No atomics: the same input gives the same bits. Products of float32 follow
    torch.get_float32_matmul_precision(): "highest" multiplies and adds float32, else three products
    of tf32 are taken; one would cost the systems that they are positive definite.

What bounds its speed
    Multiply-adds: n^2 f + n^3 for a row of few cells, n f^2 / 2 and f^3 / 3 for one of many. The
    elimination takes about a hundred instructions and two barriers a step, with three programs of
    64 cells on a multiprocessor. Gathered rows come from L2 where that holds the factors (50 MB:
    100,000 rows of 128); `conjugate_rows` is bound by them, 4 n f bytes for each product. None of
    this has been measured yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from vecsmith.kernels._als_cells import (
    cells_at,
    combine_rows,
    conjugate_rows,
    factors_at,
    ridge_of,
    roots,
    scales,
)

# Of a row that a program solves by itself; a system of 128 is 64 registers of 256 threads.
MOST_CELLS = 128
# Of conjugate gradients: their vectors are held whole.
MOST_FACTORS = 4096
# Cells of a part: what is added up in one accumulator.
PART = 2048
# A pivot that is so small a part of what stood on the diagonal has no digits left.
LEAST_PIVOT = 1e-6
_LEAST_PIVOT = tl.constexpr(LEAST_PIVOT)
_SUM_BLOCK = 1024


@triton.jit
def _tile_of(number):
    """(i, j <= i) of the tiles of a lower half, row by row."""
    i = ((tl.sqrt_rn(8.0 * number.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where((i + 1) * (i + 2) // 2 <= number, i + 1, i)
    i = tl.where(i * (i + 1) // 2 > number, i - 1, i)
    return i, number - i * (i + 1) // 2


@triton.jit
def _few_cells(
    rows,  # int64: of the matrix, of up to N cells none of which has a negative weight
    indptr,
    indices,
    values,
    weights,  # float32 [cells] or None
    basis,  # float32 [columns, f]
    stride,
    spectrum,  # float32 [f] or None
    ridges,  # float32 [rows] or None
    ridge,
    alpha,
    f,
    out,  # float32 [rows, f]
    out_stride,
    failed,  # bool [rows]
    IMPLICIT: tl.constexpr,
    N: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.load(rows + tl.program_id(0))
    begin = tl.load(indptr + row).to(tl.int64)
    count = (tl.load(indptr + row + 1).to(tl.int64) - begin).to(tl.int32)
    lane = tl.arange(0, N)
    live = lane < count
    own = ridge_of(ridges, ridge, row)
    column, w, b = cells_at(indices, values, weights, begin + lane, live, alpha, IMPLICIT)
    v, x = roots(w, b, live, IMPLICIT)

    system = tl.zeros([N, N], tl.float32)
    for first in range(0, f, BLOCK_F):
        d = first + tl.arange(0, BLOCK_F)
        z = factors_at(basis, stride, column, d, live, f)
        if spectrum is not None:
            z = z * scales(spectrum, own, d, f)[None, :]
        system = tl.dot(z, tl.trans(z), system, input_precision=PRECISION)
    diagonal = lane[:, None] == lane[None, :]
    one = tl.where(live, 1.0 if IMPLICIT else own, 1.0)
    system = system * v[:, None] * v[None, :] + tl.where(diagonal, one[:, None], 0.0)

    least = tl.sum(tl.where(diagonal, system, 0.0), 1) * _LEAST_PIVOT
    pivots = tl.full([N], 1.0, tl.float32)
    bad = tl.zeros([N], tl.int32)
    for j in range(count):
        here = lane == j
        # Right of the pivot its row is its column: what is left of the system is symmetric.
        pivot_column = tl.sum(tl.where(here[None, :], system, 0.0), 1)
        pivot = tl.sum(tl.where(here, pivot_column, 0.0), 0)
        bad = tl.where(here & ((pivot_column > least) == 0), 1, bad)
        pivot = tl.where(pivot > 0, pivot, 1.0)
        pivots = tl.where(here, pivot, pivots)
        factor = tl.where(here, 0.0, pivot_column / pivot)
        pivot_row = tl.where(lane > j, pivot_column, 0.0)
        system -= factor[:, None] * pivot_row[None, :]
        x -= factor * tl.sum(tl.where(here, x, 0.0), 0)
    coefficients = x / pivots * v
    tl.store(failed + row, tl.max(bad, 0) > 0)
    for first in range(0, f, BLOCK_F):
        d = first + tl.arange(0, BLOCK_F)
        z = factors_at(basis, stride, column, d, live, f)
        t = tl.sum(coefficients[:, None] * z, 0)
        if spectrum is not None:
            scale = scales(spectrum, own, d, f)
            t = t * scale * scale
        tl.store(out + row * out_stride + d, t, mask=d < f)


@triton.jit
def _row_products(
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
    systems,  # float32 [len(rows), size, size]: the lower half is written
    rights,  # float32 [2, len(rows), size]: of the systems, and v
    size,  # a multiple of TILE
    IMPLICIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    i, j = _tile_of(tl.program_id(1))
    row = tl.load(rows + slot)
    begin = tl.load(indptr + row).to(tl.int64)
    count = (tl.load(indptr + row + 1).to(tl.int64) - begin).to(tl.int32)
    own = ridge_of(ridges, ridge, row)
    down = i * TILE + tl.arange(0, TILE)
    right = j * TILE + tl.arange(0, TILE)
    live_d = down < count
    live_r = right < count
    column_d, w, b = cells_at(indices, values, weights, begin + down, live_d, alpha, IMPLICIT)
    v_d, x = roots(w, b, live_d, IMPLICIT)
    column_r, w, b = cells_at(indices, values, weights, begin + right, live_r, alpha, IMPLICIT)
    v_r, _ = roots(w, b, live_r, IMPLICIT)
    system = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, f, BLOCK_F):
        d = first + tl.arange(0, BLOCK_F)
        z_d = factors_at(basis, stride, column_d, d, live_d, f)
        z_r = factors_at(basis, stride, column_r, d, live_r, f)
        if spectrum is not None:
            scale = scales(spectrum, own, d, f)
            z_d = z_d * (scale * scale)[None, :]
        system = tl.dot(z_d, tl.trans(z_r), system, input_precision=PRECISION)
    one = tl.where(live_d, 1.0 if IMPLICIT else own, 1.0)
    system = system * v_d[:, None] * v_r[None, :]
    system += tl.where(down[:, None] == right[None, :], one[:, None], 0.0)
    at = systems + (slot * size + down)[:, None] * size + right[None, :]
    tl.store(at, system)
    if i == j:
        tl.store(rights + slot * size + down, x)
        tl.store(rights + (slot + tl.num_programs(0)) * size + down, v_d)


@triton.jit
def _gram(
    firsts,  # int64 [parts]: cells firsts[p] .. lasts[p] - 1 are of part p
    lasts,
    indices,
    values,
    weights,
    basis,
    stride,
    alpha,
    f,
    systems,  # float32 [parts, f, f]: the lower half is written
    rights,  # float32 [parts, f]
    IMPLICIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    i, j = _tile_of(tl.program_id(1))
    down = i * TILE + tl.arange(0, TILE)
    right = j * TILE + tl.arange(0, TILE)
    begin = tl.load(firsts + part)
    count = (tl.load(lasts + part) - begin).to(tl.int32)
    system = tl.zeros([TILE, TILE], tl.float32)
    targets = tl.zeros([BLOCK_N, TILE], tl.float32)
    for first in range(0, count, BLOCK_N):
        cell = first + tl.arange(0, BLOCK_N)
        live = cell < count
        column, w, b = cells_at(indices, values, weights, begin + cell, live, alpha, IMPLICIT)
        z_d = factors_at(basis, stride, column, down, live, f)
        z_r = factors_at(basis, stride, column, right, live, f)
        targets += b[:, None] * z_d
        weighted = tl.trans(z_d * w[:, None])
        system = tl.dot(weighted, z_r, system, input_precision=PRECISION)
    mask = (down < f)[:, None] & (right < f)[None, :]
    tl.store(systems + (part * f + down)[:, None] * f + right[None, :], system, mask=mask)
    if i == j:
        tl.store(rights + part * f + down, tl.sum(targets, 0), mask=down < f)


@triton.jit
def _add_parts(
    parts,  # float32 [parts, width]
    offsets,  # int64 [slots + 1]
    sums,  # float32 [slots, width]
    width,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < width
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(tl.load(offsets + slot), tl.load(offsets + slot + 1)):
        total += tl.load(parts + part * width + lane, mask=inside, other=0.0)
    tl.store(sums + slot * width + lane, total, mask=inside)


@triton.jit(do_not_specialize=["count"])
def _multiply(
    rows,  # float32 [count, f]
    count,
    stride,
    f,
    matrix,  # float32 [f, f]
    out,  # float32 [count, f], other memory
    out_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    total = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    for first in range(0, f, DEPTH):
        k = first + tl.arange(0, DEPTH)
        left = factors_at(rows, stride, row, k, row < count, f)
        right = factors_at(matrix, f, k.to(tl.int64), d, k < f, f)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    mask = (row < count)[:, None] & (d < f)[None, :]
    tl.store(out + row[:, None] * out_stride + d[None, :], total, mask=mask)


# --- Launches. ------------------------------------------------------------------------------------


class Systems(NamedTuple):
    """The systems of all rows, on one device, and where their solutions go.

    indptr, indices: int; values: any numbers; weights: float32 [cells] or None; basis: float32
    [columns, f]; spectrum: float32 [f] or None; ridges: float32 [rows] or None; found: float32
    [rows, f], in the basis; failed: bool [rows].
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    weights: Tensor | None
    basis: Tensor
    spectrum: Tensor | None
    ridges: Tensor | None
    ridge: float
    alpha: float
    implicit: bool
    found: Tensor
    failed: Tensor

    @property
    def f(self) -> int:
        return self.found.shape[1]

    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.indptr, self.indices, self.values, self.weights

    def rest(self) -> tuple[Tensor, int, Tensor | None, Tensor | None, float, float, int]:
        table = (self.basis, self.basis.stride(0), self.spectrum, self.ridges)
        return (*table, float(self.ridge), float(self.alpha), self.f)


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32x3"


def _block(f: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(f)))


def _lower(size: int, tile: int) -> int:
    """How many tiles a lower half has."""
    tiles = triton.cdiv(size, tile)
    return tiles * (tiles + 1) // 2


def few_cells(systems: Systems, rows: Tensor, most: int) -> None:
    """Solves rows (int64) of at most ``most`` <= MOST_CELLS cells, none of negative weight."""
    if not len(rows):
        return
    size = max(16, triton.next_power_of_2(most))
    _few_cells[(len(rows),)](
        rows, *systems.cells(), *systems.rest(), systems.found, systems.found.stride(0),
        systems.failed, IMPLICIT=systems.implicit, N=size, BLOCK_F=_block(systems.f, 32),
        PRECISION=_precision(), num_warps=max(1, min(8, size * size // 1024)), num_stages=2,
    )  # fmt: skip


def row_products(systems: Systems, rows: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The systems of n numbers [B, size, size] (their lower halves) of rows of at most ``size``
    cells, their right sides, and v [B, size]. size: a multiple of 64."""
    found = systems.basis.new_empty(len(rows), size, size)
    rights = systems.basis.new_empty(2, len(rows), size)
    _row_products[(len(rows), _lower(size, 64))](
        rows, *systems.cells(), *systems.rest(), found, rights, size, IMPLICIT=systems.implicit,
        TILE=64, BLOCK_F=32, PRECISION=_precision(), num_warps=4, num_stages=3,
    )  # fmt: skip
    return found, rights[0], rights[1]


def combine(systems: Systems, rows: Tensor, coefficients: Tensor) -> None:
    """Writes D^-1 times the sums of the factors of rows' cells with coefficients [B, size]."""
    block = _block(systems.f, 128)
    combine_rows[(len(rows), triton.cdiv(systems.f, block))](
        rows, systems.indptr, systems.indices, systems.basis, systems.basis.stride(0),
        systems.spectrum, systems.ridges, systems.f, coefficients, coefficients.stride(0),
        systems.found, systems.found.stride(0), BLOCK_N=max(1, 2048 // block), BLOCK_F=block,
        num_warps=4,
    )  # fmt: skip


def gram(systems: Systems, rows: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """The lower halves of Z^T W Z [B, f, f], and Z^T b [B, f], of rows each of which is cut into so
    many parts (int64 [B], on the CPU). Above the diagonal may stand anything."""
    f, device = systems.f, rows.device
    begins = systems.indptr[rows].long()
    lengths = systems.indptr[rows + 1].long() - begins
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(pieces, 0, out=offsets[1:])
    parts = int(offsets[-1])
    offsets, pieces = offsets.to(device), pieces.to(device)
    slots = torch.repeat_interleave(
        torch.arange(len(rows), device=device), pieces, output_size=parts
    )
    number = torch.arange(parts, device=device) - offsets[slots]
    firsts = begins[slots] + lengths[slots] * number // pieces[slots]
    lasts = begins[slots] + lengths[slots] * (number + 1) // pieces[slots]
    found, rights = systems.basis.new_empty(parts, f, f), systems.basis.new_empty(parts, f)
    tile = _block(f, 64)
    _gram[(parts, _lower(f, tile))](
        firsts, lasts, *systems.cells()[1:], systems.basis, systems.basis.stride(0),
        float(systems.alpha), f, found, rights, IMPLICIT=systems.implicit, TILE=tile,
        BLOCK_N=16 if f % 16 else 32, PRECISION=_precision(), num_warps=4, num_stages=3,
    )  # fmt: skip
    if parts == len(rows):
        return found, rights
    return _sums(found, offsets), _sums(rights, offsets)


def _sums(parts: Tensor, offsets: Tensor) -> Tensor:
    sums = parts.new_empty(len(offsets) - 1, *parts.shape[1:])
    width = parts[0].numel()
    _add_parts[(len(sums), triton.cdiv(width, _SUM_BLOCK))](
        parts, offsets, sums, width, BLOCK=_SUM_BLOCK, num_warps=4
    )
    return sums


def conjugate(systems: Systems, rows: Tensor, steps: int) -> None:
    """Steps of conjugate gradients from what ``found`` has; f <= MOST_FACTORS."""
    if not len(rows):
        return
    width = max(16, triton.next_power_of_2(systems.f))
    conjugate_rows[(len(rows),)](
        rows, *systems.cells(), *systems.rest(), systems.found, systems.found.stride(0), steps,
        IMPLICIT=systems.implicit, FP=width, BLOCK_N=min(16, max(1, 4096 // width)),
        num_warps=2 if width <= 128 else 4 if width <= 1024 else 8,
    )  # fmt: skip


def multiply(rows: Tensor, matrix: Tensor, out: Tensor) -> None:
    """out = rows @ matrix, of float32 [n, f] and [f, f]; out is other memory."""
    count, f = rows.shape
    if not count:
        return
    block = _block(f, 64)
    _multiply[(triton.cdiv(count, 64), triton.cdiv(f, block))](
        rows, count, rows.stride(0), f, matrix.float().contiguous(), out, out.stride(0),
        BLOCK_R=64, BLOCK_F=block, DEPTH=32, PRECISION=_precision(), num_warps=4, num_stages=3,
    )  # fmt: skip
