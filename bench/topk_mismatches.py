"""Counts where cosine_topk is not exact: searches among rows of many kinds, each answer compared
with scores in float64.

An answer is wrong where a returned row's score is more than 1e-12 from the one at that rank
(relative to |q| |w| with dot, to (|q| + |w|)^2 with l2), where a row comes twice, where the value
is not the score, or where of rows of equal bits a later one comes before the first. Scores of all
rows come from a product of matrices in float64, a chunk of queries at a time; what differs there is
looked at again with the reference, which takes each score by itself.

    python -m bench.topk_mismatches --queries 1000000 --json mismatches.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import _native, ops
from vecsmith.ops import _cosine_topk as registered
from vecsmith.reference import cosine_topk as reference

EXACT = 1e-12
UNITS = {"floats": 0, "pairs": 1, "bytes": 2}
_SCORES = 1 << 22  # float64 scores that are held at once

# --- rows and queries -----------------------------------------------------------------------------


def _random(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    return torch.randn(queries, dim), torch.randn(rows, dim)


def _clustered(spread: float) -> Callable[[int, int, int], tuple[Tensor, Tensor]]:
    """Rows in 40 clusters; queries near rows."""

    def make(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
        centers = torch.randn(min(40, rows), dim)
        w = centers[torch.randint(len(centers), (rows,))] + spread * torch.randn(rows, dim)
        return w[torch.randint(rows, (queries,))] + spread * torch.randn(queries, dim), w

    return make


def _near_duplicates(apart: float) -> Callable[[int, int, int], tuple[Tensor, Tensor]]:
    """Every row 8 times with relative changes of this size; queries near rows."""

    def make(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
        few = torch.randn(max(1, rows // 8), dim)
        w = few[torch.randint(len(few), (rows,))] * (1 + apart * torch.randn(rows, dim))
        return w[torch.randint(rows, (queries,))] + 0.1 * torch.randn(queries, dim), w

    return make


def _outliers(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """One dimension is a hundred times larger than the others: what is left of those in bytes?"""
    w = torch.randn(rows, dim)
    w[:, dim // 3] = 100 + 30 * torch.randn(rows)
    q = torch.randn(queries, dim)
    q[::2, dim // 3] = 0
    return q, w


def _offset(size: float) -> Callable[[int, int, int], tuple[Tensor, Tensor]]:
    """A common mean that is this much larger than what tells rows apart."""

    def make(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
        mean = size * torch.randn(dim)
        q, w = torch.randn(queries, dim), mean + torch.randn(rows, dim)
        q[::2] += mean
        return q, w

    return make


def _scaled(of_queries: float, of_rows: float) -> Callable[[int, int, int], tuple[Tensor, Tensor]]:
    def make(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
        q, w = _clustered(0.3)(queries, rows, dim)
        return of_queries * q, of_rows * w

    return make


def _mixed_scales(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    q, w = _clustered(0.3)(queries, rows, dim)
    return (
        q * 10.0 ** torch.empty(queries, 1).uniform_(-12, 12),
        w * 10.0 ** torch.empty(rows, 1).uniform_(-12, 12),
    )


def _integers(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Few values in few dimensions: ties of equal rows and of others."""
    q, w = torch.zeros(queries, dim), torch.zeros(rows, dim)
    some = min(dim, 5)
    q[:, :some] = torch.randint(-2, 3, (queries, some)).float()
    w[:, :some] = torch.randint(-2, 3, (rows, some)).float()
    return q, w


def _cancelling(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Large components whose products cancel: what is left is far below what rounding takes."""
    half = dim // 2
    large = 1000 * torch.randn(rows, half)
    w = torch.randn(rows, dim)
    w[:, :half] += large
    w[:, half : 2 * half] -= large
    q = 0.001 * torch.randn(queries, dim)
    both = torch.randn(queries, half)
    q[:, :half] += both
    q[:, half : 2 * half] += both
    return q, w


def _coherent(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """What rounding to bfloat16 takes has the query's sign in each component: errors add up, and
    rows that round up come before better ones that round down."""
    signs = torch.where(torch.rand(dim) < 0.5, -1.0, 1.0)
    # Just above or below the middle of two bfloat16 numbers, by rows.
    above = torch.where(torch.rand(rows, 1) < 0.5, -1.0, 1.0)
    w = signs * (1 + 2.0**-8 + above * 2.0**-14 * torch.rand(rows, dim))
    w[:, : dim // 4] += 2.0**-7 * torch.randint(0, 3, (rows, dim // 4))
    return signs * (1 + 0.01 * torch.randn(queries, dim)), w


def _low_bits(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """One row, each time with the last bit of one component turned; equal ones among them."""
    w = torch.randn(dim).repeat(rows, 1)
    at = torch.randint(dim, (rows,))
    bits = w.view(torch.int32)
    bits[torch.arange(rows), at] ^= 1
    return w[:1] + torch.randn(queries, dim) * torch.logspace(-6, 0, queries)[:, None], w


def _spikes(queries: int, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """A spike that is the same in all rows sets the step of bytes; what differs lies below it."""
    w = 2.0**-8 * torch.randn(rows, dim)
    w[:, torch.randint(dim, (1,))] = 1
    q = torch.randn(queries, dim) * 10.0 ** torch.empty(1, dim).uniform_(-3, 0)
    return q, w


DATA: dict[str, Callable[[int, int, int], tuple[Tensor, Tensor]]] = {
    "random": _random,
    "clustered 0.3": _clustered(0.3),
    "clustered 0.05": _clustered(0.05),
    "near-duplicate 1e-4": _near_duplicates(1e-4),
    "near-duplicate 1e-6": _near_duplicates(1e-6),
    "near-duplicate 1e-7": _near_duplicates(1e-7),
    "outlier dimension": _outliers,
    "offset 30": _offset(30),
    "offset 1e3": _offset(1e3),
    "offset 1e5": _offset(1e5),
    "huge": _scaled(1e15, 1e15),
    "tiny rows": _scaled(1, 1e-10),
    "tiny": _scaled(1e-20, 1e-25),
    "denormal": _scaled(1e-42, 1e-42),
    "mixed scales": _mixed_scales,
    "integers": _integers,
    "cancelling": _cancelling,
    "coherent": _coherent,
    "low bits": _low_bits,
    "spikes": _spikes,
}


def trained_vectors(dim: int, words: int = 4000, seed: int = 0) -> Tensor:
    """Vectors of a Word2Vec that was trained for seconds, on text with topics."""
    from vecsmith import Word2Vec

    draw = np.random.default_rng(seed)
    often = 1 / np.arange(1, words // 20 + 1)
    often /= often.sum()
    sentences = []
    for topic in draw.integers(20, size=8000):
        ranks = draw.choice(len(often), size=15, p=often)
        common = draw.random(15) < 0.3
        sentences.append(
            [str(r) if c else f"{topic}.{r}" for r, c in zip(ranks, common, strict=True)]
        )
    model = Word2Vec(sentences, vector_size=dim, min_count=1, sg=1, epochs=2, seed=1, workers=1)
    return torch.from_numpy(np.array(model.wv.vectors))


def read_vectors(path: Path) -> Tensor:
    """A folder of vecsmith's, an array (.npy), or a file in word2vec's formats."""
    from vecsmith import KeyedVectors

    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    if path.is_dir():
        return torch.from_numpy(np.array(KeyedVectors.load(path).vectors))
    keyed = KeyedVectors.load_word2vec_format(path, binary=path.suffix == ".bin")
    return torch.from_numpy(np.array(keyed.vectors))


def queries_of(vectors: Tensor, queries: int) -> Tensor:
    """What is asked of trained vectors: rows, analogies (a - b + c), means with noise."""
    a, b, c = (vectors[torch.randint(len(vectors), (queries,))] for _ in range(3))
    out = a - b + c
    out[::3] = a[::3]
    out[1::3] = a[1::3] + b[1::3] + 0.1 * torch.randn_like(a[1::3]) * a.std()
    return out


# --- searches -------------------------------------------------------------------------------------


def search(
    queries: Tensor, vocabulary: Tensor, k: int, metric: str, unit: int | None, threads: int
) -> tuple[Tensor, Tensor]:
    """The operator; unit: in a first pass of this unit, whatever the processor is fast at."""
    if unit is None:
        found = ops.cosine_topk(queries, vocabulary, k, metric=metric, num_threads=threads)
        return found.values, found.indices
    count, dim = vocabulary.shape
    center = torch.zeros((dim + 127) // 64 * 64)
    given = (registered.rows_of(vocabulary), registered.METRICS.index(metric), 0)
    _native.cosine_topk_choose((*given, 0, center.data_ptr(), 0))
    rows, _, size = _native.cosine_topk_layout(unit, dim)
    panels = torch.empty((count + rows - 1) // rows * size, dtype=torch.uint8)
    packed = (panels.data_ptr(), center.data_ptr(), unit)
    _native.cosine_topk_pack((*given, *packed), 0, 0, threads)
    return registered.search_native(
        queries, vocabulary, k, metric, None, None, None, threads, packed
    )


def _lengths(rows: Tensor) -> Tensor:
    return rows.square().sum(-1).sqrt()


def _scores(queries: Tensor, rows: Tensor, metric: str) -> Tensor:
    """Of queries [Q, D] and rows of their own [Q, k, D], float64, the greatest first: [Q, k]."""
    queries, rows = queries.double().unsqueeze(1), rows.double()
    if metric == "l2":
        return -(rows - queries).square().sum(2)
    products = (rows * queries).sum(2)
    if metric == "dot":
        return products
    lengths = _lengths(rows) * _lengths(queries)
    return torch.where(lengths > 0, products / lengths, 0.0)


class Truth:
    """The k best scores in float64, of queries among rows."""

    def __init__(self, queries: Tensor, vocabulary: Tensor, k: int, metric: str) -> None:
        self.metric, self.queries, self.vocabulary = metric, queries, vocabulary
        w = vocabulary.double()
        self.row_lengths, self.query_lengths = _lengths(w), _lengths(queries.double())
        if metric == "cosine":
            w = torch.where(self.row_lengths[:, None] > 0, w / self.row_lengths[:, None], 0.0)
        # Distances of what remains without the mean are less of a difference of large numbers.
        mean = w.mean(0) if metric == "l2" else None
        w = w if mean is None else w - mean
        squares = w.square().sum(1)
        best, which = [], []
        for q in queries.split(max(1, _SCORES // len(w))):
            q = q.double()
            if mean is not None:
                q = q - mean
            scores = q @ w.T
            if metric == "cosine":
                lengths = _lengths(q)[:, None]
                scores = torch.where(lengths > 0, scores / lengths, 0.0)
            elif metric == "l2":
                scores = 2 * scores - squares - q.square().sum(1, keepdim=True)
            found = scores.topk(k)
            best.append(found.values)
            which.append(found.indices)
        self.best, self.rows = torch.cat(best), torch.cat(which)
        _, group = torch.unique(vocabulary, dim=0, return_inverse=True)
        self.group = group
        # The place of each row among those of equal bits.
        order = group.argsort(stable=True)
        starts = torch.ones(len(group), dtype=torch.bool)
        starts[1:] = group[order][1:] != group[order][:-1]
        at = torch.arange(len(group))
        place = torch.empty_like(at)
        place[order] = at - torch.where(starts, at, 0).cummax(0).values
        self.place = place

    def limit(self, queries: Tensor, indices: Tensor) -> Tensor:
        """What a score of these rows may be off: [Q, k]."""
        if self.metric == "cosine":
            return torch.full(indices.shape, EXACT, dtype=torch.float64)
        q, w = self.query_lengths[queries, None], self.row_lengths[indices]
        return EXACT * (q * w if self.metric == "dot" else (q + w) ** 2)

    def wrong(self, values: Tensor, indices: Tensor) -> Tensor:
        """The queries whose answer is wrong."""
        k = indices.shape[1]
        wrong = torch.zeros(len(indices), dtype=torch.bool)
        chunk = max(1, _SCORES // (k * self.vocabulary.shape[1]))
        for begin in range(0, len(indices), chunk):
            at = torch.arange(begin, min(begin + chunk, len(indices)))
            found = indices[at]
            bad = ((found < 0) | (found >= len(self.vocabulary))).any(1)
            found = found.clamp(0, len(self.vocabulary) - 1)
            own = _scores(self.queries[at], self.vocabulary[found], self.metric)
            limit = torch.maximum(self.limit(at, found), self.limit(at, self.rows[at, :k]))
            for i in ((own - self.best[at, :k]).abs() > limit).any(1).nonzero().squeeze(1):
                # Sums of a product of matrices may be as far off; each score by itself is nearer.
                q = self.queries[at[i] : at[i] + 1]
                exact, _ = reference.cosine_topk(q.double(), self.vocabulary, k, metric=self.metric)
                exact = -exact if self.metric == "l2" else exact
                bad[i] |= bool(((own[i] - exact[0]).abs() > limit[i]).any())
            value = values[at].double()
            value = -value if self.metric == "l2" else value
            rounding = torch.finfo(values.dtype).eps * own.abs() + torch.finfo(values.dtype).tiny
            bad |= ((value - own).abs() > limit + rounding).any(1)
            # Of equal rows those before a row that was found are found, too.
            keys = (self.group[found] * len(self.vocabulary) + found).sort(1)
            inside = keys.values % len(self.vocabulary)
            group = self.group[inside]
            first = torch.ones_like(group, dtype=torch.bool)
            first[:, 1:] = group[:, 1:] != group[:, :-1]
            place = torch.arange(k).expand_as(group)
            place = place - torch.where(first, place, 0).cummax(1).values
            bad |= (place != self.place[inside]).any(1)
            wrong[at] = bad
        return wrong


# --- the count ------------------------------------------------------------------------------------


def count(
    queries: int = 1_000_000,
    rows: int = 20_000,
    dim: int = 96,
    *,
    k: int = 10,
    metric: str = "cosine",
    unit: int | None = None,
    vectors: Path | None = None,
    threads: int = 2,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Mismatches of so many queries in all, shared out evenly among the kinds of rows."""
    kinds = [*DATA, "trained"]
    each = -(-queries // len(kinds))
    result: dict[str, Any] = {
        "isa": _native.isa_level(),
        "unit": unit,
        "metric": metric,
        "k": k,
        "queries": 0,
        "mismatches": 0,
        "kinds": {},
    }
    for number, kind in enumerate(kinds):
        torch.manual_seed(seed + number)
        started = time.monotonic()
        if kind == "trained":
            w = trained_vectors(dim) if vectors is None else read_vectors(vectors).float()
            q = queries_of(w, each)
        else:
            q, w = DATA[kind](each, rows, dim)
        found = search(q, w, k, metric, unit, threads)
        searched = time.monotonic()
        wrong = Truth(q, w, k, metric).wrong(*found).nonzero().squeeze(1)
        result["queries"] += each
        result["mismatches"] += len(wrong)
        result["kinds"][kind] = {
            "queries": each,
            "rows": len(w),
            "dim": w.shape[1],
            "mismatches": len(wrong),
            "first": wrong[:5].tolist(),
        }
        log(
            f"{kind:20} {each} queries, {len(w)} rows: {len(wrong)} mismatches "
            f"({searched - started:.0f} s of search, {time.monotonic() - searched:.0f} s of checks)"
        )
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--queries", type=int, default=1_000_000, help="in all")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--metric", choices=registered.METRICS, default="cosine")
    parser.add_argument("--unit", choices=UNITS, help="of the first pass; default: the fastest")
    parser.add_argument("--isa", choices=_native.isa_levels(), help="level of the kernels")
    parser.add_argument("--vectors", type=Path, help="trained vectors, in place of small ones")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.isa:
        _native.set_isa_level(options.isa)
    result = count(
        options.queries,
        options.rows,
        options.dim,
        k=options.k,
        metric=options.metric,
        unit=None if options.unit is None else UNITS[options.unit],
        vectors=options.vectors,
        threads=options.threads,
        seed=options.seed,
    )
    print(f"{result['mismatches']} mismatches in {result['queries']} queries")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
