"""What the operator ``als_solve`` computes, in plain PyTorch: all rows of one side of a matrix
factorization, given the other side.

For every row u with observed cells (i, r_ui), and factors y_i [f] of the columns, the x_u that
minimizes

    implicit   sum_i c_ui (p_ui - <x_u, y_i>)^2 + l_u |x_u|^2       over all columns i
    explicit   sum_i w_ui (r_ui - <x_u, y_i>)^2 + l_u |x_u|^2       over the observed cells

With implicit feedback (Hu, Koren and Volinsky 2008, doi:10.1109/ICDM.2008.22) an observed cell says
how sure it is that the row takes the column: c_ui = |alpha r_ui|, p_ui = 1 where alpha r_ui > 0 and
else 0; a cell that is not observed has c = 1 and p = 0. With explicit ones (Zhou et al. 2008,
doi:10.1007/978-3-540-68880-8_32) only observed cells count, and w_ui is 1 where there are no
weights. Both are systems A x = b,

    implicit   A = Y^T Y + l_u I + sum_i (c_ui - 1) y_i y_i^T       b = sum_i c_ui p_ui y_i
    explicit   A =         l_u I + sum_i       w_ui  y_i y_i^T      b = sum_i w_ui r_ui y_i

and a method says how far they are solved:

    cholesky   exactly
    cg         ``steps`` steps of conjugate gradients from the rows that are there, preconditioned
               with Y^T Y + l_u I where feedback is implicit (Takacs, Pilaszy and Tikk 2011,
               doi:10.1145/2043932.2043987); rows of fewer than ``exact_below`` cells exactly
    block      ``steps`` times over blocks of ``block_size`` numbers, each solved exactly while the
               others stand (iALS++: Rendle et al. 2021, arXiv:2110.14044), in the coordinates in
               which that preconditioner is I (:func:`basis`)
"""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = ("cholesky", "cg", "block")


def basis(gram: Tensor | None, ridge: float, shared: bool) -> Tensor | None:
    """B with B^T (gram + ridge I) B = I, in which "block" has its coordinates; None: I times
    ridge^-1/2, which makes no difference to it.

    shared: all rows have the same ridge, and B = L^-T of Cholesky's L; else
    B = V (S + ridge)^-1/2 of the eigenvectors V and eigenvalues S of gram.
    """
    if gram is None:
        return None
    if shared:
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        lower = torch.linalg.cholesky(gram + ridge * eye)
        return torch.linalg.solve_triangular(lower, eye, upper=False).T
    values, vectors = torch.linalg.eigh(gram)
    return vectors * (values + ridge).rsqrt()


def als_solve(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    factors: Tensor,
    *,
    regularization: float | Tensor = 0.01,
    implicit: bool = True,
    alpha: float = 1.0,
    weights: Tensor | None = None,
    method: str = "cholesky",
    start: Tensor | None = None,
    steps: int = 3,
    block_size: int = 128,
    exact_below: int = 0,
) -> Tensor:
    """x [m, f], float64.

    indptr: int [m + 1], indices: int [n], values: [n], the cells as compressed rows; factors: y
    [columns, f]; regularization: l, or l_u [m]; weights: [n], of explicit feedback; start: [m, f].
    """
    y = factors.double()
    rows, f = len(indptr) - 1, y.shape[1]
    eye = torch.eye(f, dtype=torch.float64, device=y.device)
    shared = not isinstance(regularization, Tensor)
    ridges = torch.as_tensor(regularization, dtype=torch.float64).expand(rows).tolist()
    gram = y.T @ y if implicit else None
    out = torch.zeros(rows, f, dtype=torch.float64, device=y.device)
    if start is not None:
        out += start.double()
    bounds = indptr.tolist()
    for u, ridge in enumerate(ridges):
        cells = slice(bounds[u], bounds[u + 1])
        p, r = y[indices[cells].long()], values[cells].double()
        if implicit:
            c = alpha * r
            w, b = c.abs() - 1, p.T @ c.clamp_min(0)
        else:
            w = torch.ones_like(r) if weights is None else weights[cells].double()
            b = p.T @ (w * r)
        first = ridge * eye if gram is None else gram + ridge * eye
        a = first + (p.T * w) @ p
        if method == "cholesky" or (method == "cg" and len(r) < exact_below):
            out[u] = torch.linalg.solve(a, b)
        elif method == "cg":
            out[u] = conjugate_gradients(a, b, out[u], None if gram is None else first, steps)
        else:
            change = basis(gram, ridge, shared)
            change = eye if change is None else change
            a, b = change.T @ a @ change, change.T @ b
            t = torch.linalg.solve(change, out[u])
            for _ in range(steps):
                for begin in range(0, f, block_size):
                    part = slice(begin, begin + block_size)
                    t[part] += torch.linalg.solve(a[part, part], b[part] - a[part] @ t)
            out[u] = change @ t
    return out


def conjugate_gradients(
    a: Tensor, b: Tensor, x: Tensor, preconditioner: Tensor | None, steps: int
) -> Tensor:
    """``steps`` steps towards a x = b (Hestenes and Stiefel 1952), fewer where it is reached."""

    def precondition(r: Tensor) -> Tensor:
        return r if preconditioner is None else torch.linalg.solve(preconditioner, r)

    x = x.clone()
    r = b - a @ x
    z = precondition(r)
    p, before = z, r @ z
    for _ in range(steps):
        if before <= 1e-20:
            break
        product = a @ p
        length = before / (p @ product)
        x += length * p
        r = r - length * product
        z = precondition(r)
        after = r @ z
        p, before = z + after / before * p, after
    return x


def als_loss(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    row_factors: Tensor,
    factors: Tensor,
    *,
    regularization: float | Tensor = 0.01,
    implicit: bool = True,
    alpha: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """What the rows minimize, summed over them: float64 []. Without the norms of ``factors``."""
    x, y = row_factors.double(), factors.double()
    rows = torch.repeat_interleave(torch.arange(len(indptr) - 1), indptr.diff().long())
    found, r = (x[rows] * y[indices.long()]).sum(1), values.double()
    if implicit:
        c = alpha * r
        loss = (c.abs() * ((c > 0).double() - found).square() - found.square()).sum()
        loss = loss + ((x.T @ x) * (y.T @ y)).sum()
    else:
        w = torch.ones_like(r) if weights is None else weights.double()
        loss = (w * (r - found).square()).sum()
    ridges = torch.as_tensor(regularization, dtype=torch.float64)
    return loss + (ridges * x.square().sum(1)).sum()
