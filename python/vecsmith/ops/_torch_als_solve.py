"""``als_solve`` in batches of rows, with torch's own batched products and factorizations: what runs
where there is no kernel of ours. Rows of about one length are gathered together, padded with cells
of weight 0."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops._als_basis import Basis, basis_of

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
    gram = y.double().T @ y.double() if implicit else None
    ridge = float(ridges[0]) if shared and len(ridges) else 0.0
    made = None if gram is None else basis_of(gram, ridge, shared)
    eye = torch.eye(f, dtype=y.dtype, device=y.device)
    out = start.clone()
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
        p = y[indices[cells].long()]  # [B, n, f]
        r = values[cells].to(y.dtype)
        if implicit:
            c = alpha * r
            w, b = c.abs() - 1, c.clamp_min(0)
        else:
            w = torch.ones_like(r) if weights is None else weights[cells].to(y.dtype)
            b = w * r
        w, b = w.where(real, 0), b.where(real, 0)
        right = (p * b[:, :, None]).sum(1)
        ridge = ridges[rows].to(y.dtype)
        base = ridge[:, None, None] * eye
        if gram is not None:
            base = base + gram.to(y.dtype)
        exact = torch.ones_like(rows, dtype=torch.bool)
        if method != "cholesky":
            exact = lengths[rows] < exact_below if method == "cg" else exact & False
        found = out[rows]
        if bool(exact.any()):
            systems = base + (p * w[:, :, None]).transpose(1, 2) @ p
            found = torch.where(exact[:, None], _solve(systems, right), found)
        if not bool(exact.all()):
            if method == "cg":
                more = _conjugate(p, w, base, right, found, made, ridges[rows], steps)
            else:
                more = _blocks(p, w, base, right, found, made, ridges[rows], steps, block_size)
            found = torch.where(exact[:, None], found, more)
        out[rows] = found
    return out


def _solve(systems: Tensor, right: Tensor) -> Tensor:
    """x of systems [B, f, f] x = right [B, f]; what is singular gets its least squares."""
    lower, failed = torch.linalg.cholesky_ex(systems)
    found = torch.cholesky_solve(right[:, :, None], lower)[:, :, 0]
    # A pivot that is so small a part of what stood on the diagonal has no digits left.
    least = 1e-6 if systems.dtype == torch.float32 else 1e-14
    pivots = lower.diagonal(dim1=1, dim2=2).square()
    failed = (failed != 0) | (pivots <= least * systems.diagonal(dim1=1, dim2=2)).any(1)
    for row in failed.nonzero().flatten().tolist():
        found[row] = (
            torch.linalg.lstsq(
                systems[row].double().cpu(), right[row, :, None].double().cpu(), driver="gelsd"
            )
            .solution[:, 0]
            .to(found)
        )
    return found


def _scales(made: Basis, ridges: Tensor) -> Tensor:
    """sqrt(S + l_u) [B, f], or [1, 1] of 1 where all rows have one basis."""
    if made.spectrum is None:
        return torch.ones(1, 1, dtype=torch.float64, device=ridges.device)
    return (made.spectrum + ridges[:, None]).sqrt()


def _conjugate(
    p: Tensor,
    w: Tensor,
    base: Tensor,
    right: Tensor,
    x: Tensor,
    made: Basis | None,
    ridges: Tensor,
    steps: int,
) -> Tensor:
    change = scales = None
    if made is not None:
        change, scales = made.change.to(x.dtype), _scales(made, ridges).square().to(x.dtype)

    def multiply(v: Tensor) -> Tensor:
        seen = w * (p @ v[:, :, None])[:, :, 0]
        return (base @ v[:, :, None])[:, :, 0] + (seen[:, None] @ p)[:, 0]

    def precondition(r: Tensor) -> Tensor:
        return r if change is None else (r @ change / scales) @ change.T

    r = right - multiply(x)
    z = precondition(r)
    direction, before = z, (r * z).sum(1, keepdim=True)
    for _ in range(steps):
        product = multiply(direction)
        curve = (direction * product).sum(1, keepdim=True)
        length = torch.where((before > 1e-20) & (curve > 0), before / curve, 0.0)
        x = x + length * direction
        r = r - length * product
        z = precondition(r)
        after = (r * z).sum(1, keepdim=True)
        direction = z + torch.where(before > 1e-20, after / before, 0.0) * direction
        before = after
    return x


def _blocks(
    p: Tensor,
    w: Tensor,
    base: Tensor,
    right: Tensor,
    x: Tensor,
    made: Basis | None,
    ridges: Tensor,
    count: int,
    block_size: int,
) -> Tensor:
    systems = base + (p * w[:, :, None]).transpose(1, 2) @ p
    if made is None:
        return sweeps(systems, right, x, count, block_size)
    # [B or 1, f, f]: to the coordinates in which base is I, and back.
    scales = _scales(made, ridges)
    change = (made.change / scales[:, None, :]).to(x.dtype)
    forth = (made.forth * scales[:, None, :]).to(x.dtype)
    systems = change.transpose(1, 2) @ systems @ change
    nothing = ~made.change.any(0)
    if bool(nothing.any()):
        systems = systems + torch.diag(nothing.to(x.dtype))
    right, x = (right[:, None] @ change)[:, 0], (x[:, None] @ forth)[:, 0]
    x = sweeps(systems, right, x, count, block_size)
    return (x[:, None] @ change.transpose(1, 2))[:, 0]


def sweeps(systems: Tensor, right: Tensor, x: Tensor, count: int, block_size: int) -> Tensor:
    """x of systems [B, f, f] x = right [B, f] after so many times over blocks of its numbers."""
    x = x.clone()
    for _ in range(count):
        for begin in range(0, x.shape[1], block_size):
            part = slice(begin, begin + block_size)
            left = right[:, part] - (systems[:, part] @ x[:, :, None])[:, :, 0]
            x[:, part] += _solve(systems[:, part, part], left)
    return x
