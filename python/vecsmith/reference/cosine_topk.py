"""What the operator ``cosine_topk`` computes, in plain PyTorch.

For queries q_i [Q, D] and a vocabulary of rows w_j [V, D], the k rows of the best score s_ij, best
first, of equal scores the row of lower index first:

    cosine   s_ij = <q_i, w_j> / (|q_i| |w_j|)      greatest first; 0 where a length is 0
    dot      s_ij = <q_i, w_j>                      greatest first
    l2       s_ij = |q_i - w_j|^2                   least first

Scores are float64, each row's sum taken in the same order, so that rows of equal bits have equal
scores. Rows that are banned, for all queries or for one, are left out; where fewer than k are
allowed the places behind them have index -1 and the value -inf (l2: inf).

Derivatives, of the values, for the rows that were found:

    cosine   ds/dq = w / (|q| |w|) - s q / |q|^2    ds/dw = q / (|q| |w|) - s w / |w|^2
    dot      ds/dq = w                              ds/dw = q
    l2       ds/dq = 2 (q - w)                      ds/dw = 2 (w - q)
"""

from __future__ import annotations

import torch
from torch import Tensor

METRICS = ("cosine", "dot", "l2")


def value_dtype(queries: Tensor, vocabulary: Tensor) -> torch.dtype:
    """Of the values: float64 where one of both is, else float32."""
    wide = torch.float64 in (queries.dtype, vocabulary.dtype)
    return torch.float64 if wide else torch.float32


def scores(query: Tensor, rows: Tensor, metric: str) -> Tensor:
    """Of one query [D] with rows [V, D], float64 [V]."""
    query, rows = query.double(), rows.double()
    if metric == "l2":
        return (rows - query).square().sum(1)
    products = (rows * query).sum(1)
    if metric == "dot":
        return products
    lengths = rows.square().sum(1).sqrt() * query.square().sum().sqrt()
    return torch.where(lengths > 0, products / lengths, 0.0)


def cosine_topk(
    queries: Tensor,
    vocabulary: Tensor,
    k: int = 1,
    *,
    metric: str = "cosine",
    banned: Tensor | None = None,
    exclude_offsets: Tensor | None = None,
    excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(values [Q, k], int64 indices [Q, k]).

    queries: [Q, D]; vocabulary: [V, D]; banned: bool [V]; the rows that query i may not have are
    excluded[exclude_offsets[i] : exclude_offsets[i + 1]], ascending; -1 is none.
    """
    worst = torch.inf if metric == "l2" else -torch.inf
    values = torch.full((len(queries), k), worst, dtype=torch.float64, device=queries.device)
    indices = torch.full((len(queries), k), -1, device=queries.device)
    for i, query in enumerate(queries):
        found = scores(query, vocabulary, metric)
        allowed = torch.ones_like(found, dtype=torch.bool)
        if banned is not None:
            allowed &= ~banned
        if exclude_offsets is not None and excluded is not None:
            own = excluded[exclude_offsets[i] : exclude_offsets[i + 1]]
            allowed[own[own >= 0]] = False
        rows = allowed.nonzero().squeeze(1)
        best = found[rows].sort(descending=metric != "l2", stable=True)
        count = min(k, len(rows))
        values[i, :count] = best.values[:count]
        indices[i, :count] = rows[best.indices[:count]]
    return values.to(value_dtype(queries, vocabulary)), indices
