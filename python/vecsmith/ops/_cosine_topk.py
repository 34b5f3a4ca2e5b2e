"""``cosine_topk`` as torch knows it: the registered operator with its fake and derivative, and the
backends. The arguments have been checked by :mod:`vecsmith.ops.cosine_topk`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _triton_cosine_topk
from vecsmith.ops._registry import Backend, Operator, choose, native, register
from vecsmith.reference import cosine_topk as reference

METRICS = reference.METRICS
# csrc/cpu/rows.h
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 4}
DTYPES = tuple(_TYPES)

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.define(
    "cosine_topk(Tensor queries, Tensor vocabulary, int k, str metric, Tensor? banned, "
    "Tensor? exclude_offsets, Tensor? excluded, str backend, int num_threads) -> (Tensor, Tensor)"
)

OPERATOR = register(
    Operator(
        "cosine_topk",
        (
            Backend("native", "cpu", DTYPES),
            Backend("triton", "cuda", DTYPES),
            Backend("reference", "any", DTYPES),
        ),
        ("cosine_topk",),
    )
)

# Gathered rows that a derivative looks at together: 10 MB of 312 doubles.
_GATHERED = 1 << 12


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def rows_of(table: Tensor) -> tuple[int, int, int, int, int]:
    """A table as the native module takes it."""
    count, dim = table.shape
    return address(table), _TYPES[table.dtype], count, dim, table.stride(0)


def unit_stride(table: Tensor) -> Tensor:
    return table if table.stride(-1) == 1 or table.shape[-1] == 1 else table.contiguous()


def search_native(
    queries: Tensor,
    vocabulary: Tensor,
    k: int,
    metric: str,
    banned: Tensor | None,
    exclude_offsets: Tensor | None,
    excluded: Tensor | None,
    num_threads: int,
    packed: tuple[int, int, int] = (0, 0, 0),
) -> tuple[Tensor, Tensor]:
    """packed: addresses of the panels and the center of a packed vocabulary, and its unit."""
    queries, vocabulary = unit_stride(queries), unit_stride(vocabulary)
    values = queries.new_empty(len(queries), k, dtype=reference.value_dtype(queries, vocabulary))
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    native().cosine_topk(
        (rows_of(vocabulary), METRICS.index(metric), address(banned), *packed),
        rows_of(queries),
        k,
        (address(exclude_offsets), address(excluded)),
        (address(values), values.dtype == torch.float64, address(indices)),
        num_threads or torch.get_num_threads(),
    )
    return values, indices


def _search_triton(
    queries: Tensor,
    vocabulary: Tensor,
    k: int,
    metric: str,
    banned: Tensor | None,
    exclude_offsets: Tensor | None,
    excluded: Tensor | None,
) -> tuple[Tensor, Tensor]:
    queries, vocabulary = unit_stride(queries), unit_stride(vocabulary)
    values = queries.new_empty(len(queries), k, dtype=reference.value_dtype(queries, vocabulary))
    indices = queries.new_empty(len(queries), k, dtype=torch.int64)
    _triton_cosine_topk.search(
        *(queries, vocabulary, metric, banned, exclude_offsets, excluded, values, indices)
    )
    return values, indices


def _forward(
    queries,
    vocabulary,
    k,
    metric,
    banned,
    exclude_offsets,
    excluded,
    backend,
    num_threads,
):
    chosen = choose(OPERATOR, queries.device.type, vocabulary.dtype, backend or None)
    given = (queries, vocabulary, k, metric, banned, exclude_offsets, excluded)
    if chosen == "native":
        return search_native(*given, num_threads)
    if chosen == "triton":
        return _search_triton(*given)
    masks = {"banned": banned, "exclude_offsets": exclude_offsets, "excluded": excluded}
    return reference.cosine_topk(queries, vocabulary, k, metric=metric, **masks)


def _forward_fake(
    queries,
    vocabulary,
    k,
    metric,
    banned,
    exclude_offsets,
    excluded,
    backend,
    num_threads,
):
    shape = (queries.shape[0], k)
    values = queries.new_empty(shape, dtype=reference.value_dtype(queries, vocabulary))
    return values, queries.new_empty(shape, dtype=torch.int64)


def _context(ctx: Any, inputs: Any, output: Any) -> None:
    queries, vocabulary, _, metric, *_ = inputs
    _, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(queries, vocabulary, indices)
    ctx.metric = metric


def _derivatives(grad: Tensor, queries: Tensor, rows: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """(of queries [Q, D], of the rows that were found [Q, k, D])."""
    q, g = queries.unsqueeze(1), grad.unsqueeze(2)
    if metric == "dot":
        return (g * rows).sum(1), g * q
    if metric == "l2":
        each = 2 * g * (q - rows)
        return each.sum(1), -each
    q_norm, w_norm = q.norm(dim=2, keepdim=True), rows.norm(dim=2, keepdim=True)
    is_some = (q_norm > 0) & (w_norm > 0)
    one = torch.ones_like(w_norm)
    q_norm, w_norm = torch.where(q_norm > 0, q_norm, one), torch.where(w_norm > 0, w_norm, one)
    q, w = q / q_norm, rows / w_norm
    cosine = (q * w).sum(2, keepdim=True)
    g = torch.where(is_some, g, torch.zeros_like(g))
    return (g * (w - cosine * q) / q_norm).sum(1), g * (q - cosine * w) / w_norm


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    nothing = (None,) * 7
    if grad is None:
        return None, None, *nothing
    queries, vocabulary, indices = ctx.saved_tensors
    kept = torch.promote_types(grad.dtype, reference.value_dtype(queries, vocabulary))
    of_queries = []
    of_rows = torch.zeros_like(vocabulary, dtype=kept) if ctx.needs_input_grad[1] else None
    at_once = max(1, _GATHERED // max(indices.shape[1], 1))
    for begin in range(0, len(queries), at_once):
        part = slice(begin, begin + at_once)
        found = indices[part]
        # In float64, where the squares of all that float32 holds are numbers.
        g = torch.where(found >= 0, grad[part].double(), 0.0)
        rows = found.clamp(min=0)
        of_query, of_row = _derivatives(
            g, queries[part].double(), vocabulary[rows].double(), ctx.metric
        )
        of_queries.append(of_query.to(queries.dtype))
        if of_rows is not None:
            of_rows = of_rows.index_add(0, rows.reshape(-1), of_row.flatten(0, 1).to(kept))
    return (
        torch.cat(of_queries) if of_queries else torch.zeros_like(queries),
        None if of_rows is None else of_rows.to(vocabulary.dtype),
        *nothing,
    )


_LIBRARY.impl("cosine_topk", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vecsmith::cosine_topk", _forward_fake)
torch.library.register_autograd(
    "vecsmith::cosine_topk", _backward, setup_context=_context, lib=_LIBRARY
)
