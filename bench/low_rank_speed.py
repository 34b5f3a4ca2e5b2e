"""`TruncatedSVD`, `PCA` and `NMF` against scikit-learn's, at equal residual.

    python -m bench.low_rank_speed                          matrices made here
    python -m bench.low_rank_speed --data NAME=FILE ...     yours: ratings, or a .npz of scipy's

Rank 64, float32 and float64, everything at scikit-learn's defaults, but that our TruncatedSVD takes
3 iterations, not 5: they keep what the earlier ones found, and have the lower residual.
"""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ._runner import Check, Group, Ratio, finish, parser, run
from .bench_als_solve import SHAPES, read

RANK, BAR = 64, 3.0
OURS: dict[str, dict[str, Any]] = {"TruncatedSVD": {"n_iter": 3}}
NAMES = ("TruncatedSVD", "PCA", "NMF")
# Ours may be so much of the matrix's norm above scikit-learn's.
TOLERANCE = 1e-3


def text(documents: int = 20_000, words: int = 5_000, topics: int = 40) -> sparse.csr_matrix:
    """tf-idf of documents that are drawn from topics, rows of length 1: about 70 words in each."""
    draw = np.random.default_rng(0)
    common = 1 / np.arange(1, words + 1)
    own = [np.roll(common, int(draw.integers(words))) + 0.3 * common for _ in range(topics)]
    own = [one / one.sum() for one in own]
    rows, columns = [], []
    for document in range(documents):
        mix = draw.dirichlet(np.full(topics, 0.05))
        length = int(draw.lognormal(4.6, 0.5)) + 5
        for topic, count in enumerate(draw.multinomial(length, mix)):
            if count:
                rows.append(np.full(count, document))
                columns.append(draw.choice(words, count, p=own[topic]))
    at = np.concatenate(rows), np.concatenate(columns)
    counts = sparse.csr_matrix((np.ones(len(at[0])), at), (documents, words))
    idf = np.log((1 + documents) / (1 + np.bincount(counts.indices, minlength=words))) + 1
    counts.data *= idf[counts.indices]
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(lengths, 1e-30)) @ counts)


class Problem:
    def __init__(self, matrix: sparse.csr_matrix, kind: str, name: str, threads: int) -> None:
        self.matrix, self.name, self.threads = matrix.astype(kind), name, threads
        self.residual: dict[str, float] = {}

    def fit(self, program: str) -> float:
        import sklearn.decomposition
        import threadpoolctl

        import vecsmith

        module: Any = vecsmith if program == "vecsmith" else sklearn.decomposition
        options = OURS.get(self.name, {}) if program == "vecsmith" else {}
        model = getattr(module, self.name)(RANK, random_state=0, **options)
        with warnings.catch_warnings(), threadpoolctl.threadpool_limits(self.threads):
            warnings.simplefilter("ignore")  # of convergence: the residuals are compared
            started = time.perf_counter()
            model.fit(self.matrix)
            seconds = time.perf_counter() - started
        self.residual[program] = self._residual(model)
        return seconds

    def _residual(self, model: Any) -> float:
        """|X - its approximation| by |X| (less the mean's part, for PCA)."""
        if self.name == "NMF":
            norm = float(np.sqrt(np.square(self.matrix.data, dtype=np.float64).sum()))
            return float(model.reconstruction_err_) / norm
        if self.name == "PCA":
            explained = float(np.sum(model.explained_variance_ratio_, dtype=np.float64))
        else:
            total = float(np.square(self.matrix.data, dtype=np.float64).sum())
            explained = float(np.square(model.singular_values_, dtype=np.float64).sum()) / total
        return float(np.sqrt(max(0.0, 1 - explained)))

    def check(self) -> list[Check]:
        for program in ("vecsmith", "scikit-learn"):
            self.fit(program)
        ours, theirs = self.residual["vecsmith"], self.residual["scikit-learn"]
        what = f"residual {ours:.6f}, scikit-learn's {theirs:.6f}"
        return [Check(what, ours <= theirs + TOLERANCE * theirs)]


def group(data: str, matrix: sparse.csr_matrix, kind: str, name: str, threads: int) -> Group:
    problem = Problem(matrix, kind, name, threads)
    programs = ("vecsmith", "scikit-learn")
    rows, columns = matrix.shape
    return Group(
        name=f"low_rank_{name.lower()}_{data}_{kind}",
        title=f"{name} of rank {RANK}, {data}: {rows:,} x {columns:,}, {matrix.nnz:,} cells of "
        f"{kind}, {threads} threads",
        unit="s",
        higher_is_better=False,
        entries={one: functools.partial(problem.fit, one) for one in programs},
        check=problem.check,
        ratios=[Ratio(f"{name}, {data}, {kind}: scikit-learn / vecsmith", *programs, bar=BAR)],
        settings={"rank": RANK, "threads": threads},
    )


def _file(path: Path) -> sparse.csr_matrix:
    return sparse.load_npz(path).tocsr() if path.suffix == ".npz" else read(path)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=3, corpus=False)
    options.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="your matrices")
    options.add_argument("--kinds", nargs="+", default=["float32", "float64"], help=" ")
    options.add_argument("--models", nargs="+", choices=NAMES, default=NAMES, help=" ")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    data: dict[str, Callable[[], sparse.csr_matrix]] = {"ratings": SHAPES[1].matrix, "text": text}
    if given.data:
        named = (one.partition("=") for one in given.data)
        data = {name: functools.partial(_file, Path(file)) for name, _, file in named}
        data.setdefault("text", text)
    records = []
    for name, make in data.items():
        matrix = make()
        for model in given.models:
            for kind in given.kinds:
                records.append(run(group(name, matrix, kind, model, given.threads), given.rounds))
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
