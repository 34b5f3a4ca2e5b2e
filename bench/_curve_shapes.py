"""The declared curves: what grows, from where to where, and the work at each size.

A unit of cost is the operator's own count of what it does, so that the cost of a unit is expected
to be flat: a curve that is not has something to explain.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .word2vec_curves import Text, tables


@dataclass
class Work:
    """Something to be timed: ``call()``, on torch's number of threads, does ``units`` units.

    answer: what a backend makes of the same input, of a work that was not called yet.
    """

    call: Callable[[], Any]
    units: float
    answer: Callable[[str], Tensor]


@dataclass(frozen=True)
class Curve:
    """The cost of a unit of an operator's work against one size.

    axis: the name in the record; grows: the same in words; full: sizes of a full run besides.
    """

    op: str
    axis: str
    grows: str
    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int], Work]
    full: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"curve_{self.op}_{self.axis}"


def up(first: int, count: int = 7) -> tuple[int, ...]:
    """1, 3, 10, 30, ... (or 3, 10, 30, ...) times a power of ten: seven are three decades."""
    from_three = str(first).startswith("3")
    power = first // 3 if from_three else first
    numbers = (power * 10 ** (n // 2) * (3 if n % 2 else 1) for n in range(count + 1))
    return tuple(numbers)[from_three:][:count]


# --- skipgram -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _text(vocabulary: int, tokens: int) -> Text:
    return Text(vocabulary, tokens)


def skipgram(
    words: int = 30_000,
    vocabulary: int = 30_000,
    dim: int = 100,
    negative: int = 5,
    *,
    text: int = 30_000,
    unit: int = 1,
) -> Work:
    """Training on the first ``words`` of a text of ``text`` words.

    units: words that survive the sub-sampling, in expectation, times ``unit``.
    """
    from vecsmith import ops

    made = _text(vocabulary, max(text, words))
    tokens = made.tokens[:words].clone()
    ends = made.offsets[made.offsets < words]
    offsets = torch.cat([ends, torch.tensor([words])])
    start = tables(vocabulary, dim)

    def train(work: tuple[Tensor, Tensor] = start, backend: str | None = None) -> None:
        ops.skipgram(
            *(work[0], work[1], tokens, offsets),
            keep=made.keep,
            alias=made.alias,
            negative=negative,
            compute_loss=False,
            backend=backend,
        )

    def answer(backend: str) -> Tensor:
        work = (start[0].clone(), start[1].clone())
        train(work, backend)
        return torch.cat(work)

    kept = words if made.keep is None else float(made.keep[tokens.long()].sum())
    return Work(train, kept * unit, answer)


# --- embedding_bag --------------------------------------------------------------------------------

_ROWS, _DIM, _BAG = 1_000_000, 64, 10


@functools.lru_cache(maxsize=1)
def _table(rows: int, dim: int) -> Tensor:
    from vecsmith import ops

    return ops.empty_table(rows, dim).normal_()


def embedding_bag(
    ids: int = 30_000,
    rows: int = 300_000,
    dim: int = _DIM,
    *,
    step: bool = False,
    of: int | None = None,
    unit: int = 1,
) -> Work:
    """Sums over bags of ten ids, or a step of row-wise Adagrad with a given gradient.

    Every call takes other ids, drawn uniformly, a million of them before the first come again, so
    that the rows of small batches are not those of the call before. rows: the first so many of a
    table of ``of`` rows. units: ids times ``unit``.
    """
    from vecsmith import ops

    table = _table(of or rows, dim)[:rows]
    draw = torch.Generator().manual_seed(0)
    pool = torch.randint(0, rows, (max(1 << 20, 8 * ids) // ids, ids), generator=draw)
    offsets = torch.arange(0, ids, _BAG)
    gradient = torch.randn(len(offsets), dim, generator=draw)
    squares = torch.full((rows,), 0.1)
    turn = 0

    def forward(backend: str | None = None) -> Tensor:
        nonlocal turn
        turn = (turn + 1) % len(pool)
        return ops.embedding_bag(pool[turn], table, offsets, mode="sum", backend=backend)

    def train(
        weight: Tensor = table, state: Tensor = squares, backend: str | None = None
    ) -> Tensor:
        nonlocal turn
        turn = (turn + 1) % len(pool)
        rule = ops.UpdateRule("rowwise_adagrad", lr=1e-3)
        bags = (pool[turn], gradient, offsets)
        ops.embedding_bag_update(weight, [state], *bags, rule=rule, backend=backend)
        return weight

    def answer(backend: str) -> Tensor:
        nonlocal turn
        turn = 0
        return train(table.clone(), squares.clone(), backend) if step else forward(backend)

    return Work(train if step else forward, ids * unit, answer)


# --- rnn ------------------------------------------------------------------------------------------


def rnn(
    length: int = 10, batch: int = 32, hidden: int = 128, *, step: bool = True, unit: int = 1
) -> Work:
    """An LSTM over sequences of one length, with as many inputs as hidden numbers; with ``step``
    its gradients, too.

    units: steps of sequences times ``unit``.
    """
    from vecsmith import ops

    draw = torch.Generator().manual_seed(0)
    scale = hidden**-0.5
    shapes = ((4 * hidden, hidden), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))
    weights = [(torch.rand(s, generator=draw) * 2 - 1) * scale for s in shapes]
    given = torch.randn(length * batch, hidden, generator=draw)
    gradient = torch.randn(length * batch, hidden, generator=draw)
    zero = torch.zeros(batch, hidden)
    sizes = torch.full((length,), batch)
    wanted = [t.requires_grad_(step) for t in (given, *weights)]

    def call(backend: str | None = None) -> Tensor:
        found, _, _ = ops.rnn(given, sizes, zero, zero, *weights, cell="lstm", backend=backend)
        if not step:
            return found
        return torch.cat([g.flatten() for g in torch.autograd.grad(found, wanted, gradient)])

    return Work(call, length * batch * unit, call)


# --- cosine_topk ----------------------------------------------------------------------------------


def cosine_topk(
    rows: int = 30_000, queries: int = 256, dim: int = 100, k: int = 10, *, unit: int = 1
) -> Work:
    """A search of packed rows. units: queries times rows times ``unit``."""
    from vecsmith import ops

    draw = torch.Generator().manual_seed(0)
    table = torch.randn(rows, dim, generator=draw)
    # Always the same few queries would be learned by the processor's prediction of branches.
    asked = torch.randn(16, queries, dim, generator=draw)
    turns = itertools.cycle(asked)
    packed = ops.PackedRows(table)

    def answer(backend: str) -> Tensor:
        if backend == "native":
            return packed.search(asked[0], k).values
        return ops.cosine_topk(asked[0], table, k, backend=backend).values

    return Work(lambda: packed.search(next(turns), k), queries * rows * unit, answer)


# --- sparse matrices ------------------------------------------------------------------------------


def _cells(rows: int, columns: int, each: int) -> Any:
    """Cells of a matrix with ``each`` in every row, at even distances from a random first."""
    from vecsmith.ops._cells import trusted_cells

    draw = np.random.default_rng(0)
    at = draw.integers(0, columns, (rows, 1)) + np.arange(each) * (columns // each)
    indices = np.sort(at % columns, axis=1).ravel().astype(np.int32)
    values = draw.integers(1, 6, rows * each).astype(np.float32)
    begins = torch.arange(rows + 1) * each
    parts = (torch.from_numpy(indices), torch.from_numpy(values))
    return trusted_cells(begins, *parts, (rows, columns))


def als_solve(
    factors: int = 64,
    each: int = 30,
    rows: int = 1_000,
    *,
    method: str = "cholesky",
    per: str = "product",
) -> Work:
    """A half-step for rows of ``each`` cells in 1,000 columns, implicit feedback.

    units: rows, or multiply-adds: of three steps with method "cg", else of the smaller system, of
    as many unknowns as there are cells or factors, and of its solution.
    """
    from vecsmith import ops

    cells = _cells(rows, 1_000, each)
    draw = torch.Generator().manual_seed(0)
    columns = torch.randn(1_000, factors, generator=draw) * factors**-0.5
    out = torch.zeros(rows, factors)

    def call(backend: str | None = None, into: Tensor = out) -> Tensor:
        return ops.als_solve(cells, columns, alpha=10.0, method=method, out=into, backend=backend)

    unknowns = min(each, factors)
    products = each * factors * unknowns + unknowns**3 / 3
    if method == "cg":
        products = 3 * (2 * each * factors + factors**2)
    units = rows * (products if per == "product" else 1)
    return Work(call, units, lambda backend: call(backend, torch.zeros_like(out)))


def factor_sgd(cells: int = 100_000, factors: int = 32, *, unit: int = 1) -> Work:
    """An epoch over the cells of a matrix of 6,000 x 4,000, with sums of squares.

    units: cells times ``unit``.
    """
    from scipy import sparse

    from vecsmith import ops

    draw = np.random.default_rng(0)
    at = draw.choice(6_000 * 4_000, cells, replace=False)
    values = draw.integers(1, 6, cells).astype(np.float32)
    matrix = sparse.csr_matrix((values, (at // 4_000, at % 4_000)), (6_000, 4_000))
    blocks = ops.factor_blocks(matrix)
    random = torch.Generator().manual_seed(0)
    sides = [ops.empty_table(n, factors).normal_(0, 0.1, generator=random) for n in (6_000, 4_000)]
    squares = [torch.ones(n, 2) for n in (6_000, 4_000)]

    def epoch(
        work: list[Tensor] = sides, sums: list[Tensor] = squares, backend: str | None = None
    ) -> list[Tensor]:
        options = {"user_squares": sums[0], "item_squares": sums[1], "mean": 3.0}
        ops.factor_sgd(work[0], work[1], blocks, backend=backend, **options)
        return work

    def answer(backend: str) -> Tensor:
        return torch.cat(epoch([t.clone() for t in sides], [t.clone() for t in squares], backend))

    return Work(epoch, cells * unit, answer)


def spmm(each: int = 30, width: int = 32, rows: int = 10_000, *, unit: int = 1) -> Work:
    """Rows of ``each`` cells in 10,000 columns times ``width`` columns. units: cells times
    ``unit``."""
    from vecsmith import ops

    cells = _cells(rows, 10_000, each)
    dense = torch.randn(10_000, width, generator=torch.Generator().manual_seed(0))

    def call(backend: str | None = None) -> Tensor:
        return ops.spmm(cells, dense, backend=backend)

    return Work(call, rows * each * unit, call)


def hals_sweep(rows: int = 10_000, rank: int = 32) -> Work:
    """A sweep. units: rows times rank^2."""
    from vecsmith import ops

    draw = torch.Generator().manual_seed(0)
    factor = torch.rand(rows, rank, generator=draw)
    basis = torch.rand(rank, 4 * rank, generator=draw)
    gram = basis @ basis.T
    numerator = torch.rand(rows, rank, generator=draw) * (factor @ gram)

    def sweep(work: Tensor = factor, backend: str | None = None) -> Tensor:
        ops.hals_sweep(work, numerator, gram, backend=backend)
        return work

    return Work(sweep, rows * rank**2, lambda backend: sweep(factor.clone(), backend))


# --- all of them ----------------------------------------------------------------------------------

_MULTIPLY_ADD = "ns per multiply-add"

CURVES: tuple[Curve, ...] = (
    Curve(
        *("skipgram", "words", "words of a chunk", "ns per trained word", up(300)),
        lambda n: skipgram(n, text=300_000),
        (1_000_000, 3_000_000),
    ),
    Curve(
        *("skipgram", "vocabulary", "words of the vocabulary", "ns per trained word", up(300)),
        lambda n: skipgram(vocabulary=n),
        (1_000_000,),
    ),
    Curve(
        *("skipgram", "dimension", "vector_size", "ns per trained word and number", up(1)),
        lambda n: skipgram(dim=n, unit=n),
    ),
    Curve(
        *("skipgram", "negatives", "negatives of a center", "ns per trained word and output"),
        up(1),
        lambda n: skipgram(words=10_000, negative=n, unit=1 + n),
    ),
    *(
        curve
        for step, prefix, what in ((False, "", "look-up"), (True, "step_", "training step"))
        for curve in (
            Curve(
                *("embedding_bag", f"{prefix}rows", f"rows of the table, {what}", "ns per id"),
                up(1_000),
                functools.partial(
                    lambda n, step: embedding_bag(rows=n, of=_ROWS, step=step), step=step
                ),
                (3_000_000,),
            ),
            Curve(
                *("embedding_bag", f"{prefix}ids", f"ids of a batch, {what}", "ns per id"),
                up(100),
                functools.partial(lambda n, step: embedding_bag(n, step=step), step=step),
                (300_000, 1_000_000),
            ),
            Curve(
                *("embedding_bag", f"{prefix}dimension", f"embedding_dim, {what}"),
                *("ns per id and number", up(1)),
                functools.partial(
                    lambda n, step: embedding_bag(10_000, 30_000, n, step=step, unit=n), step=step
                ),
            ),
        )
    ),
    Curve(
        *("rnn", "length", "steps of a sequence", "ns per step of a sequence", up(1)),
        lambda n: rnn(length=n, batch=16),
        (3_000, 10_000),
    ),
    Curve(
        *("rnn", "batch", "sequences of a batch", "ns per step of a sequence", up(1)),
        lambda n: rnn(batch=n),
        (3_000,),
    ),
    Curve(
        *("rnn", "forward_batch", "sequences of a batch, without gradients"),
        *("ns per step of a sequence", up(1)),
        lambda n: rnn(batch=n, step=False),
        (3_000,),
    ),
    Curve(
        *("rnn", "hidden", "hidden_size", _MULTIPLY_ADD, up(1)),
        lambda n: rnn(hidden=n, unit=3 * 8 * n * n),
    ),
    Curve(
        *("cosine_topk", "vocabulary", "rows searched", "ns per query and row", up(300)),
        lambda n: cosine_topk(n),
        (1_000_000,),
    ),
    Curve(
        *("cosine_topk", "queries", "queries", "ns per query and row", up(1)),
        lambda n: cosine_topk(queries=n),
        (3_000, 10_000),
    ),
    Curve(
        *("cosine_topk", "dimension", "numbers of a row", _MULTIPLY_ADD, up(3)),
        lambda n: cosine_topk(10_000, dim=n, unit=n),
    ),
    Curve(
        *("cosine_topk", "k", "neighbors wanted", "ns per query and row", up(1)),
        lambda n: cosine_topk(k=n),
        (3_000,),
    ),
    Curve(
        *("als_solve", "factors", "factors", _MULTIPLY_ADD, up(1)),
        lambda n: als_solve(n, 1_000, 100 if n < 300 else 10),
    ),
    Curve(
        *("als_solve", "cg_factors", "factors, three steps of conjugate gradients"),
        *(_MULTIPLY_ADD, up(1)),
        lambda n: als_solve(n, 300, 100, method="cg"),
    ),
    Curve(
        *("als_solve", "cells", "cells of a row", _MULTIPLY_ADD, up(1)),
        lambda n: als_solve(each=n),
    ),
    Curve(
        *("als_solve", "rows", "rows", "ns per row", up(10)),
        lambda n: als_solve(rows=n, per="row"),
        (30_000, 100_000),
    ),
    Curve(
        *("factor_sgd", "cells", "cells", "ns per cell", up(1_000)),
        lambda n: factor_sgd(n),
        (3_000_000, 10_000_000),
    ),
    Curve(
        *("factor_sgd", "factors", "factors", "ns per cell and factor", up(1)),
        lambda n: factor_sgd(30_000, n, unit=n),
    ),
    Curve(
        *("spmm", "cells", "cells of a row", "ns per cell", up(1)),
        lambda n: spmm(each=n, rows=3_000),
    ),
    Curve(
        *("spmm", "rows", "rows", "ns per cell", up(100)),
        lambda n: spmm(rows=n),
        (300_000, 1_000_000),
    ),
    Curve(
        *("spmm", "columns", "columns of the dense matrix", "ns per cell and column", up(1)),
        lambda n: spmm(10, n, unit=n),
    ),
    Curve(
        *("hals_sweep", "rows", "rows", _MULTIPLY_ADD, up(100)),
        lambda n: hals_sweep(n),
        (300_000, 1_000_000),
    ),
    Curve(
        *("hals_sweep", "rank", "components", _MULTIPLY_ADD, up(1)),
        lambda n: hals_sweep(1_000, n),
    ),
)

# Of the curves over threads: work that is worth sharing.
SHARED: dict[str, tuple[str, Callable[[], Work]]] = {
    "skipgram": ("ns per trained word", lambda: skipgram(300_000)),
    "embedding_bag": ("ns per id", lambda: embedding_bag(100_000, step=True)),
    "rnn": ("ns per step of a sequence", lambda: rnn(30, 64, 256)),
    "cosine_topk": ("ns per query and row", lambda: cosine_topk(30_000, 1_000)),
    "als_solve": ("ns per row", lambda: als_solve(rows=10_000, per="row")),
    "factor_sgd": ("ns per cell", lambda: factor_sgd(1_000_000)),
    "spmm": ("ns per cell", lambda: spmm(100)),
    "hals_sweep": (_MULTIPLY_ADD, lambda: hals_sweep(100_000)),
}

# Small enough for the reference; what may differ from it, as a part of the largest number.
SMALL: dict[str, tuple[float, Callable[[], Work]]] = {
    "skipgram": (1e-5, lambda: skipgram(200, 100, 16, text=200)),
    "embedding_bag": (1e-5, lambda: embedding_bag(200, 1_000, 16, step=True)),
    "rnn": (1e-5, lambda: rnn(5, 3, 16)),
    "cosine_topk": (1e-6, lambda: cosine_topk(1_000, 20, 16)),
    "als_solve": (1e-4, lambda: als_solve(16, 10, 50)),
    "factor_sgd": (1e-5, lambda: factor_sgd(1_000, 16)),
    "spmm": (1e-5, lambda: spmm(10, 8, 100)),
    "hals_sweep": (1e-5, lambda: hals_sweep(100, 8)),
}
