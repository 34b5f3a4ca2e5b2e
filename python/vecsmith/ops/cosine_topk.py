"""The operator ``cosine_topk``: the nearest rows of a vocabulary, exactly, without the matrix of
all scores, and what stands on it.

What it computes is written down in :mod:`vecsmith.reference.cosine_topk`; how torch knows it, and
how the native module is called, in ``_cosine_topk.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vecsmith.ops import _checks as check
from vecsmith.ops import _cosine_topk as registered
from vecsmith.ops._cells import Cells

if TYPE_CHECKING:
    from vecsmith.ops._packed_rows import PackedRows

# Pairs of rows that are compared at once.
_COMPARED = 1024


class TopK(NamedTuple):
    """The rows that were found, best first: values and indices [..., k]."""

    values: Tensor
    indices: Tensor


def cosine_topk(
    queries: Tensor,
    vocabulary: Tensor,
    k: int = 1,
    *,
    metric: str = "cosine",
    banned: Tensor | None = None,
    exclude: Tensor | Sequence[Sequence[int]] | Cells | None = None,
    backend: str | None = None,
    num_threads: int | None = None,
) -> TopK:
    """The k rows of a vocabulary with the best scores, for each query:

        cosine   <q, w> / (|q| |w|), greatest first; 0 where one of them is zero
        dot      <q, w>, greatest first
        l2       |q - w|^2, least first

    Exact: scores of all rows are first bounded in low precision (bytes, bfloat16, or float32, what
    the processor multiplies fastest), with a proven error, and the rows that could be among the
    best are scored in float64. Each row returned is within 1e-12 (relative to |q| |w| with dot, to
    (|q| + |w|)^2 with l2) of the one at that rank; of rows of equal bits the lower index comes
    first. Scratch memory stays below 64 MB, whatever Q and V (k up to 100,000, D up to 32,768).
    On a GPU a Triton kernel does the same in bfloat16 for k up to 2,048; float64 tables and larger
    k are scored in float64 as they are.

    Args:
        queries: [..., D] of float32, float64, bfloat16 or float16.
        vocabulary: [V, D] of the same device, of any of these dtypes, V >= 1; copied where its rows
            have no unit stride.
        k: 1..V.
        metric: "cosine", "dot" or "l2".
        banned: bool [V], rows that nobody may have; they may hold anything.
        exclude: rows that single queries may not have: int64 [..., E] with -1 for none; a sequence
            of sequences of rows, one for each of the queries; or :class:`Cells` [queries, V], whose
            values do not matter.
        backend: "native", "triton" or "reference" to force one.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        (values [..., k], int64 indices [..., k]); values are float32, or float64 where queries or
        vocabulary are. Where fewer than k rows are allowed the last places have index -1 and the
        value -inf (l2: inf). Values are differentiable in queries and vocabulary, twice.

    Raises:
        TypeError, ValueError: wrong types, shapes, devices; a row or query that is not finite, by
            its index; k > V; with dot and l2 rows longer than 1e18.
        IndexError: an excluded row out of -1..V-1.
        BackendUnavailable: a forced backend that cannot run.
    """
    name = "cosine_topk"
    _check_tables(name, queries, vocabulary)
    if metric not in registered.METRICS:
        names = ", ".join(repr(m) for m in registered.METRICS)
        raise ValueError(f"{name}: expected metric to be one of {names}; got {metric!r}")
    check.integer(name, "k", k, low=1)
    if k > vocabulary.shape[0]:
        raise ValueError(f"{name}: expected k of at most V={vocabulary.shape[0]} rows; got {k}")
    if banned is not None:
        check.tensor(name, "banned", banned, torch.bool, (vocabulary.shape[0],), like=vocabulary)
    flat = queries.reshape(-1, queries.shape[-1])
    offsets, excluded = exclusions(name, exclude, queries, vocabulary.shape[0])
    values, indices = torch.ops.vecsmith.cosine_topk(
        *(flat, vocabulary, k, metric, banned, offsets, excluded, backend or ""),
        0 if num_threads is None else check.threads(name, num_threads),
    )
    shape = (*queries.shape[:-1], k)
    return TopK(values.view(shape), indices.view(shape))


def linear_topk(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    k: int = 1,
    *,
    backend: str | None = None,
    num_threads: int | None = None,
) -> TopK:
    """The k greatest outputs of a linear layer, ``(input @ weight.T + bias).topk(k)``, without its
    other outputs: the sparse code of a k-sparse autoencoder (Makhzani and Frey 2013).

    Args:
        input: [..., D]; weight: [V, D]; bias: [V], or None; as in :func:`cosine_topk`. With a bias
            the weight is copied.
        k, backend, num_threads: as in :func:`cosine_topk`.

    Returns:
        (values, indices) as :func:`cosine_topk` with metric "dot"; differentiable in all three.
    """
    if bias is None:
        return cosine_topk(input, weight, k, metric="dot", backend=backend, num_threads=num_threads)
    name = "linear_topk"
    _check_tables(name, input, weight)
    check.tensor(name, "bias", bias, weight.dtype, (weight.shape[0],), like=weight)
    # The bias is the weight of one more input, which is 1.
    return cosine_topk(
        torch.cat([input, input.new_ones(*input.shape[:-1], 1)], -1),
        torch.cat([weight, bias.unsqueeze(1)], 1),
        k,
        metric="dot",
        backend=backend,
        num_threads=num_threads,
    )


@torch.no_grad()
def match_mask(
    outputs: Tensor,
    embeddings: Tensor | PackedRows,
    targets: Tensor,
    *,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """Whether the nearest row by cosine is the target, for each output: the mask of the match loss,
    which is the squared error where this is false.

    Args:
        outputs: [..., D].
        embeddings: [V, D], as in :func:`cosine_topk`; or :class:`PackedRows` of them, with metric
            "cosine", where they are asked often (``backend`` and ``num_threads`` are theirs then).
        targets: int64 [...], rows of embeddings; negative: no target, and no match.
        backend, num_threads: as in :func:`cosine_topk`.

    Returns:
        bool [...]. A row that equals the target's bit for bit counts as the target.

    Raises:
        As :func:`cosine_topk`; IndexError for a target that is no row.
    """
    name = "match_mask"
    table = embeddings if isinstance(embeddings, Tensor) else embeddings.table
    _check_tables(name, outputs, table)
    shape = tuple(outputs.shape[:-1])
    if isinstance(targets, Tensor):
        targets = targets.contiguous()
    check.tensor(name, "targets", targets, torch.int64, shape, like=outputs)
    if targets.numel() and int(targets.max()) >= len(table):
        raise IndexError(f"{name}: expected targets below V={len(table)}; got {int(targets.max())}")
    if isinstance(embeddings, Tensor):
        found = cosine_topk(outputs, table, backend=backend, num_threads=num_threads)
    elif embeddings.metric == "cosine":
        found = embeddings.search(outputs)
    else:
        raise ValueError(f"{name}: expected rows packed for cosine; got {embeddings.metric!r}")
    nearest = found.indices.squeeze(-1)
    matched = nearest == targets
    # Another row may be the same as the target's.
    other = (~matched & (targets >= 0) & (nearest >= 0)).nonzero(as_tuple=True)
    a, b = nearest[other].flatten(), targets[other].flatten()
    same = [
        (table[a[part]] == table[b[part]]).all(-1)
        for part in torch.arange(len(a), device=a.device).split(_COMPARED)
    ]
    if same:
        matched[other] = torch.cat(same)
    return matched


def nearest_token_accuracy(
    outputs: Tensor,
    embeddings: Tensor | PackedRows,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """The share of outputs whose nearest row by cosine is the target (:func:`match_mask`), among
    the targets that are not ``ignore_index``: float32 [], nan where there are none."""
    shape = tuple(outputs.shape[:-1]) if isinstance(outputs, Tensor) else ()
    if not isinstance(targets, Tensor) or targets.shape != shape:
        got = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"nearest_token_accuracy: expected targets of shape {list(shape)}; got {got}"
        )
    if outputs.layout != torch.strided:
        raise TypeError(f"nearest_token_accuracy: expected dense outputs; got {outputs.layout}")
    where = (targets != ignore_index).nonzero(as_tuple=True)
    matched = match_mask(
        outputs[where], embeddings, targets[where], backend=backend, num_threads=num_threads
    )
    return matched.float().mean()


def _check_tables(name: str, queries: object, vocabulary: object) -> None:
    if not isinstance(queries, Tensor):
        raise TypeError(
            f"{name}: expected queries to be a torch.Tensor; got {type(queries).__name__}"
        )
    if queries.layout != torch.strided:
        raise TypeError(f"{name}: expected queries to be dense; got {queries.layout}")
    strided = isinstance(vocabulary, Tensor) and vocabulary.layout == torch.strided
    if isinstance(vocabulary, Tensor) and strided and vocabulary.dim() == 2:  # of any strides
        check.table(name, "vocabulary", registered.unit_stride(vocabulary))
    else:
        check.table(name, "vocabulary", vocabulary)
        return
    if queries.dtype not in registered.DTYPES or vocabulary.dtype not in registered.DTYPES:
        raise TypeError(
            f"{name}: expected float32, float64, bfloat16 or float16; "
            f"got queries {queries.dtype}, vocabulary {vocabulary.dtype}"
        )
    if vocabulary.shape[0] < 1:
        raise ValueError(f"{name}: expected a vocabulary of at least one row; got none")
    if queries.dim() < 1 or queries.shape[-1] != vocabulary.shape[1]:
        raise ValueError(
            f"{name}: expected queries of shape [..., D={vocabulary.shape[1]}]; "
            f"got {list(queries.shape)}"
        )
    if queries.device != vocabulary.device:
        raise ValueError(
            f"{name}: expected queries on {vocabulary.device}; got them on {queries.device}"
        )


def exclusions(
    name: str, exclude: object, queries: Tensor, rows: int
) -> tuple[Tensor | None, Tensor | None]:
    """(offsets [Q + 1], rows ascending for each query, those of -1 first), int64; or None twice."""
    if exclude is None:
        return None, None
    count = queries.numel() // max(queries.shape[-1], 1)
    if isinstance(exclude, Cells):
        if exclude.shape != (count, rows):
            raise ValueError(
                f"{name}: expected exclude of shape [{count}, {rows}], queries and rows; "
                f"got {list(exclude.shape)}"
            )
        if exclude.indices.device != queries.device:
            raise ValueError(
                f"{name}: expected exclude on {queries.device}; got it on {exclude.indices.device}"
            )
        return (exclude.indptr.long(), exclude.indices.long()) if len(exclude) else (None, None)
    if not isinstance(exclude, Tensor):
        if not isinstance(exclude, Sequence) or isinstance(exclude, str):
            raise TypeError(
                f"{name}: expected exclude to be a tensor or a sequence of sequences of rows; "
                f"got {type(exclude).__name__}"
            )
        lists = []
        for one in exclude:
            own: list[Any] = list(one) if isinstance(one, Iterable) else [None]
            if not all(isinstance(row, Integral) for row in own):
                raise TypeError(f"{name}: expected sequences of rows in exclude; got {one!r}")
            lists.append([int(row) for row in own])
        outside = [row for one in lists for row in one if not -1 <= row < rows]
        if outside:
            raise IndexError(f"{name}: expected exclude in -1..{rows - 1}; got {outside[0]}")
        if len(lists) != count:
            raise ValueError(
                f"{name}: expected exclude with {count} lists, one for each query; got {len(lists)}"
            )
        longest = max((len(one) for one in lists), default=0)
        padded = [one + [-1] * (longest - len(one)) for one in lists]
        exclude = torch.tensor(padded, dtype=torch.int64, device=queries.device)
        exclude = exclude.view(count, longest)
    else:
        if exclude.dtype != torch.int64:
            raise TypeError(f"{name}: expected exclude to be torch.int64; got {exclude.dtype}")
        if exclude.dim() != queries.dim() or exclude.shape[:-1] != queries.shape[:-1]:
            raise ValueError(
                f"{name}: expected exclude of shape {[*queries.shape[:-1], 'E']}; "
                f"got {list(exclude.shape)}"
            )
        if exclude.device != queries.device:
            raise ValueError(
                f"{name}: expected exclude on {queries.device}; got it on {exclude.device}"
            )
    flat = exclude.reshape(count, -1)
    if not isinstance(flat, FakeTensor) and not torch.compiler.is_compiling():
        check.ids(name, "exclude", flat, -1, rows)
    each = flat.shape[1]
    if each == 0:
        return None, None
    offsets = torch.arange(count + 1, device=flat.device) * each
    return offsets, flat.sort(1).values.reshape(-1)
