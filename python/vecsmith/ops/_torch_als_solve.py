"""``als_solve`` in batches of rows, with torch's own batched products and factorizations: what runs
where there is no kernel of ours. Rows of about one length are gathered together, padded with cells
of weight 0."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops._als_basis import basis_of

_LEAST_RIDGE = 1e-6  # of the diagonal of a system
_AT_ONCE = 1 << 24  # numbers that are gathered, or stand in systems, together


def als_solve(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    factors: Tensor,
    *,
    regularization: float | Tensor,
    implicit: bool,
    alpha: float,
    weights: Tensor | None,
    method: str,
    start: Tensor,
    steps: int,
    block_size: int,
    exact_below: int,
) -> Tensor:
    """As :func:`vecsmith.reference.als_solve.als_solve`, in the dtype of the factors."""
    y, f = factors, factors.shape[1]
    lengths = indptr.diff().long()
    shared = not isinstance(regularization, Tensor)
    ridges = torch.as_tensor(regularization, dtype=torch.float64, device=y.device)
    ridges = ridges.expand(len(lengths))
    out, made = start, None
    if implicit:
        # In the basis in which what is known of cells that are not there is I, or diagonal.
        ridge = float(ridges[0]) if shared and len(ridges) else 0.0
        made = basis_of(y.double().T @ y.double(), ridge, shared)
        y, out = _times(y, made.change), _times(out, made.forth)
    out = out.clone()
    eye = torch.eye(f, dtype=y.dtype, device=y.device)
    order = lengths.argsort(descending=True, stable=True)
    sizes = lengths[order].tolist()
    first = 0
    while first < len(order):
        longest = max(sizes[first], 1)
        count = max(1, _AT_ONCE // (f * max(longest, f)))
        # No row is padded to more than twice its length.
        rows = order[first : first + count]
        rows = rows[lengths[rows] * 2 >= sizes[first]] if sizes[first] > 16 else rows
        first += len(rows)
        places = torch.arange(longest, device=y.device)
        real = places < lengths[rows, None]
        cells = (indptr[rows, None] + places).where(real, 0).long()
        p, found = y[indices[cells].long()], out[rows]  # [B, n, f], [B, f]
        r = values[cells].to(y.dtype)
        if implicit:
            c = alpha * r
            w, b = c.abs() - 1, c.clamp_min(0)
        else:
            w = torch.ones_like(r) if weights is None else weights[cells].to(y.dtype)
            b = w * r
        w, b = w.where(real, 0), b.where(real, 0)
        base, scale = eye, None
        if made is None:
            base = ridges[rows].to(y.dtype)[:, None, None] * eye
        elif made.spectrum is not None:
            scale = (made.spectrum + ridges[rows, None]).rsqrt().to(y.dtype)
            p, found = p * scale[:, None], found / scale
        right = (p * b[:, :, None]).sum(1)
        exact = torch.ones_like(rows, dtype=torch.bool)
        if method != "cholesky":
            exact = lengths[rows] < exact_below if method == "cg" else exact & False
        systems = None
        if method == "block" or bool(exact.any()):
            systems = base + (p * w[:, :, None]).transpose(1, 2) @ p
        solved = found if systems is None or method == "block" else _solve(systems, right)
        if not bool(exact.all()):
            if method == "cg":
                more = _conjugate(p, w, base, right, found, steps)
            else:
                assert systems is not None
                more = sweeps(systems, right, found, steps, block_size)
                if made is None and steps:
                    # Without a ridge blocks have no one solution, and sweeps nowhere to come to.
                    hardest = systems.diagonal(dim1=1, dim2=2).amax(1)
                    free = (lengths[rows] < f) & (ridges[rows] <= _LEAST_RIDGE * hardest)
                    _least_squares(systems, right, free, more)
            solved = torch.where(exact[:, None], solved, more)
        out[rows] = solved if scale is None else solved * scale
    return out if made is None else _times(out, made.back)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix, in float64 and then of the dtype of the rows."""
    return (rows.double() @ matrix).to(rows.dtype)


def _solve(systems: Tensor, right: Tensor) -> Tensor:
    """x of systems [B, f, f] x = right [B, f]; what is singular gets its least squares."""
    lower, failed = torch.linalg.cholesky_ex(systems)
    found = torch.cholesky_solve(right[:, :, None], lower)[:, :, 0]
    # A pivot that is so small a part of what stood on the diagonal has no digits left.
    least = 1e-6 if systems.dtype == torch.float32 else 1e-14
    pivots = lower.diagonal(dim1=1, dim2=2).square()
    failed = (failed != 0) | (pivots <= least * systems.diagonal(dim1=1, dim2=2)).any(1)
    _least_squares(systems, right, failed, found)
    return found


def _least_squares(systems: Tensor, right: Tensor, chosen: Tensor, found: Tensor) -> None:
    """Into found [B, f], of the chosen systems (bool [B]), the shortest of the x that solve
    systems x = right best; what is below the rounding of the dtype counts as nothing."""
    least = 1e-6 if systems.dtype == torch.float32 else 1e-14
    for row in chosen.nonzero().flatten().tolist():
        sides = systems[row].double().cpu(), right[row, :, None].double().cpu()
        found[row] = (
            torch.linalg.lstsq(*sides, rcond=least, driver="gelsd").solution[:, 0].to(found)
        )


def _conjugate(p: Tensor, w: Tensor, base: Tensor, right: Tensor, x: Tensor, steps: int) -> Tensor:
    def multiply(v: Tensor) -> Tensor:
        seen = w * (p @ v[:, :, None])[:, :, 0]
        return (base @ v[:, :, None])[:, :, 0] + (seen[:, None] @ p)[:, 0]

    r = right - multiply(x)
    direction, before = r, r.square().sum(1, keepdim=True)
    for _ in range(steps):
        product = multiply(direction)
        curve = (direction * product).sum(1, keepdim=True)
        length = torch.where((before > 1e-20) & (curve > 0), before / curve, 0.0)
        x = x + length * direction
        r = r - length * product
        after = r.square().sum(1, keepdim=True)
        direction = r + torch.where(before > 1e-20, after / before, 0.0) * direction
        before = after
    return x


def sweeps(systems: Tensor, right: Tensor, x: Tensor, count: int, block_size: int) -> Tensor:
    """x of systems [B, f, f] x = right [B, f] after so many times over blocks of its numbers."""
    x = x.clone()
    for _ in range(count):
        for begin in range(0, x.shape[1], block_size):
            part = slice(begin, begin + block_size)
            left = right[:, part] - (systems[:, part] @ x[:, :, None])[:, :, 0]
            x[:, part] += _solve(systems[:, part, part], left)
    return x
