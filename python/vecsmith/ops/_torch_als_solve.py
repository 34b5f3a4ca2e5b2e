"""``als_solve`` in batches of rows, with torch's own batched products and factorizations: what runs
where there is no kernel of ours. Rows of about one length are gathered together, padded with cells
of weight 0."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.reference import als_solve as reference

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
                more = _conjugate(p, w, base, right, found, gram is not None, steps)
            else:
                ridge_of = ridges[rows].tolist()
                change = [
                    reference.basis(gram, one, shared) for one in ridge_of[: 1 if shared else None]
                ]
                more = _blocks(p, w, base, right, found, change, steps, block_size)
            found = torch.where(exact[:, None], found, more)
        out[rows] = found
    return out


def _solve(systems: Tensor, right: Tensor) -> Tensor:
    """x of systems [B, f, f] x = right [B, f]; what is singular gets its least squares."""
    lower, failed = torch.linalg.cholesky_ex(systems)
    found = torch.cholesky_solve(right[:, :, None], lower)[:, :, 0]
    for row in failed.nonzero().flatten().tolist():
        found[row] = (
            torch.linalg.lstsq(
                systems[row].double().cpu(), right[row, :, None].double().cpu(), driver="gelsd"
            )
            .solution[:, 0]
            .to(found)
        )
    return found


def _conjugate(
    p: Tensor, w: Tensor, base: Tensor, right: Tensor, x: Tensor, conditioned: bool, steps: int
) -> Tensor:
    lower = torch.linalg.cholesky(base) if conditioned else None

    def multiply(v: Tensor) -> Tensor:
        seen = w * (p @ v[:, :, None])[:, :, 0]
        return (base @ v[:, :, None])[:, :, 0] + (seen[:, None] @ p)[:, 0]

    def precondition(r: Tensor) -> Tensor:
        return r if lower is None else torch.cholesky_solve(r[:, :, None], lower)[:, :, 0]

    r = right - multiply(x)
    z = precondition(r)
    direction, before = z, (r * z).sum(1, keepdim=True)
    for _ in range(steps):
        product = multiply(direction)
        curve = (direction * product).sum(1, keepdim=True)
        length = torch.where(before > 1e-20, before / curve, 0.0)
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
    change: list[Tensor | None],
    count: int,
    block_size: int,
) -> Tensor:
    systems = base + (p * w[:, :, None]).transpose(1, 2) @ p
    if change[0] is not None:
        b = torch.stack([one.to(x.dtype) for one in change if one is not None])
        systems = b.transpose(1, 2) @ systems @ b
        right = (right[:, None] @ b)[:, 0]
        x = torch.linalg.solve(b, x[:, :, None])[:, :, 0]
    else:
        b = None
    x = sweeps(systems, right, x, count, block_size)
    return x if b is None else (b @ x[:, :, None])[:, :, 0]


def sweeps(systems: Tensor, right: Tensor, x: Tensor, count: int, block_size: int) -> Tensor:
    """x of systems [B, f, f] x = right [B, f] after so many times over blocks of its numbers."""
    x = x.clone()
    for _ in range(count):
        for begin in range(0, x.shape[1], block_size):
            part = slice(begin, begin + block_size)
            left = right[:, part] - (systems[:, part] @ x[:, :, None])[:, :, 0]
            x[:, part] += _solve(systems[:, part, part], left)
    return x
