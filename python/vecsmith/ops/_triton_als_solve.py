"""``als_solve`` on a GPU: which rows go to which of the Triton kernels, in which batches, and what
is solved again. The arguments have been checked by :mod:`vecsmith.ops.als_solve`. Importing this
does not import Triton."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vecsmith.ops._als_basis import basis_of, exact_gram_matrix
from vecsmith.ops._torch_als_solve import sweeps

if TYPE_CHECKING:
    from vecsmith.kernels.als_solve import Systems

# What `conjugate_rows` has registers for.
MOST_CONJUGATE = 4096

_AT_ONCE = 1 << 26  # numbers of systems that stand together
_MOST_PARTS = 64  # of the cells of a row


def als_solve(
    out: Tensor,
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    weights: Tensor | None,
    factors: Tensor,
    *,
    regularization: float,
    regularizations: Tensor | None,
    implicit: bool,
    alpha: float,
    method: str,
    steps: int,
    block_size: int,
    exact_below: int,
) -> int:
    """As :func:`vecsmith.reference.als_solve.als_solve`, into ``out``, of float32, on a GPU or, in
    Triton's interpreter, on the CPU. Returns how many rows were solved again in float64."""
    from vecsmith.kernels import als_solve as kernels

    with torch.cuda.device_of(out), torch.autocast(out.device.type, enabled=False), torch.no_grad():
        basis, spectrum, made, found = factors, None, None, out
        if implicit:
            made = basis_of(
                exact_gram_matrix(factors), regularization, shared=regularizations is None
            )
            basis, found = torch.empty_like(factors), torch.empty_like(out)
            kernels.multiply(factors, made.change, basis)
            if made.spectrum is not None:
                spectrum = made.spectrum.float()
            if method != "cholesky":
                kernels.multiply(out, made.forth, found)
        systems = kernels.Systems(
            *(indptr, indices, values, weights, basis, spectrum),
            None if regularizations is None else regularizations.float(),
            *(regularization, alpha, implicit, found),
            torch.zeros(len(out), dtype=torch.bool, device=out.device),
        )
        lengths = indptr.diff().long()
        exact = torch.ones_like(lengths, dtype=torch.bool)
        if method == "block" and block_size < systems.f:
            _blocks(systems, lengths, steps, block_size)
            exact = None
        elif method == "block":
            exact &= steps > 0  # one block is the whole system
        elif method == "cg":
            exact = lengths < exact_below
            kernels.conjugate(systems, _by_length(lengths, ~exact), steps)
        rescued = 0
        if exact is not None:
            _exact(systems, lengths, exact)
        for row in systems.failed.nonzero().flatten().tolist():
            rescued += 1
            _rescue(systems, row)
        if made is not None:
            kernels.multiply(found, made.back, out)
    return rescued


def _exact(systems: Systems, lengths: Tensor, chosen: Tensor) -> None:
    """Solves the chosen rows (bool) exactly."""
    from vecsmith.kernels import als_solve as kernels

    few = min(systems.f, kernels.MOST_CELLS)
    dual = chosen & (lengths <= max(few, systems.f - 1)) & ~_has_negative(systems)
    before, most = -1, 16
    while before < few:
        most = min(most, few)
        part = dual & (lengths > before) & (lengths <= most)
        kernels.few_cells(systems, part.nonzero().flatten(), most)
        before, most = most, 2 * most
    _dual_batches(systems, lengths, dual & (lengths > few))
    for rows, found, right in _primal_batches(systems, lengths, chosen & ~dual):
        solution, failed = _solve(found, right)
        systems.found[rows] = solution
        systems.failed[rows] = failed


def _has_negative(systems: Systems) -> Tensor:
    """Of each row whether one of its cells has a negative weight: bool [rows]."""
    none = torch.zeros_like(systems.failed)
    if not systems.implicit:
        return none
    negative = (systems.alpha * systems.values).abs() < 1
    if not bool(negative.any()):
        return none
    before = torch.zeros(len(negative) + 1, dtype=torch.int64, device=negative.device)
    torch.cumsum(negative, 0, out=before[1:])
    bounds = before[systems.indptr.long()]
    return bounds[1:] > bounds[:-1]


def _by_length(lengths: Tensor, chosen: Tensor) -> Tensor:
    """The chosen rows, the longest first."""
    rows = chosen.nonzero().flatten()
    return rows[lengths[rows].argsort(descending=True, stable=True)]


def _dual_batches(systems: Systems, lengths: Tensor, chosen: Tensor) -> None:
    """Solves rows of fewer cells than factors as systems of as many numbers as they have cells."""
    from vecsmith.kernels import als_solve as kernels

    rows = _by_length(lengths, chosen)
    sizes = lengths[rows].cpu()
    first = 0
    while first < len(rows):
        size = -(-int(sizes[first]) // 64) * 64
        last = first + max(1, _AT_ONCE // (size * size))
        # None is padded to more than half as much again.
        last = min(last, int(torch.searchsorted(-sizes, -(size * 2 // 3), right=True)))
        own = rows[first : max(last, first + 1)]
        first += len(own)
        found, right, roots = kernels.row_products(systems, own, size)
        solution, failed = _solve(found, right)
        kernels.combine(systems, own, solution * roots)
        systems.failed[own] = failed


def _primal_batches(
    systems: Systems, lengths: Tensor, chosen: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, the lower halves of their systems [B, f, f], right sides [B, f])."""
    from vecsmith.kernels import als_solve as kernels

    rows = _by_length(lengths, chosen)
    sizes = lengths[rows].cpu()
    pieces = (-(-sizes // kernels.PART)).clamp(1, _MOST_PARTS)
    most = max(1, _AT_ONCE // systems.f**2)
    # A row of one part is its sum; longer ones stand in memory once more.
    needed = (pieces + (pieces > 1)).cumsum(0)
    first = 0
    while first < len(rows):
        done = int(needed[first - 1]) if first else 0
        last = max(first + 1, int(torch.searchsorted(needed, done + most, right=True)))
        own = rows[first:last]
        found, right = kernels.gram(systems, own, pieces[first:last])
        found.diagonal(dim1=1, dim2=2).add_(_base(systems, own))
        yield own, found, right
        first = last


def _base(systems: Systems, rows: Tensor) -> Tensor | float:
    """D of rows, which broadcasts to [B, f]."""
    if systems.ridges is None:
        return 1.0 if systems.implicit else systems.ridge
    own = systems.ridges[rows, None]
    return own if systems.spectrum is None else own + systems.spectrum


def _solve(matrices: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(x of matrices [B, n, n] x = right [B, n], bool [B]: which have no digits left). What stands
    above the diagonal does not count."""
    from vecsmith.kernels.als_solve import LEAST_PIVOT

    before = matrices.diagonal(dim1=1, dim2=2) * LEAST_PIVOT
    lower, failed = torch.linalg.cholesky_ex(matrices)
    fine = (lower.diagonal(dim1=1, dim2=2).square() > before).all(1) & (failed == 0)
    return torch.cholesky_solve(right[:, :, None], lower)[:, :, 0], ~fine


def _blocks(systems: Systems, lengths: Tensor, steps: int, block_size: int) -> None:
    everything = torch.ones_like(systems.failed)
    for rows, found, right in _primal_batches(systems, lengths, everything):
        whole = found.tril() + found.tril(-1).mT
        systems.found[rows] = sweeps(whole, right, systems.found[rows], steps, block_size)


def _rescue(systems: Systems, row: int) -> None:
    """Solves a row in float64, if need be with the least ridge that it takes."""
    begin, end = systems.indptr[row : row + 2].tolist()
    p = systems.basis[systems.indices[begin:end].long()].double()
    r = systems.values[begin:end].double()
    if systems.implicit:
        c = systems.alpha * r
        w, b = c.abs() - 1, c.clamp_min(0)
    else:
        w = torch.ones_like(r) if systems.weights is None else systems.weights[begin:end].double()
        b = w * r
    ridge = systems.ridge if systems.ridges is None else float(systems.ridges[row])
    scale = None
    if systems.implicit:
        if systems.spectrum is not None:
            scale = (systems.spectrum.double() + ridge).rsqrt()
            p = p * scale
        ridge = 1.0
    matrix, right = (p.T * w) @ p, p.T @ b
    eye = torch.eye(systems.f, dtype=p.dtype, device=p.device)
    more = 1e-12 * (float(matrix.diagonal().abs().mean()) + ridge) or 1.0
    while True:
        shifted = matrix + ridge * eye
        lower, failed = torch.linalg.cholesky_ex(shifted)
        if not failed and bool((lower.diagonal().square() > 1e-14 * shifted.diagonal()).all()):
            break
        ridge, more = ridge + more, 10 * more
    x = torch.cholesky_solve(right[:, None], lower)[:, 0]
    systems.found[row] = (x if scale is None else x * scale).float()
