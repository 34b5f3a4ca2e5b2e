"""`ALS.recommend` for all users against implicit's, with the same factors.

    python -m bench.als_recommend                          a matrix made here
    python -m bench.als_recommend --data NAME=FILE ...     yours: what Interactions.read reads

One call for all users, 20 items each, without those that they have. Ours packs the items anew in
each call, as the first one does; implicit's products are given as many BLAS threads as ours has
threads, or one, as its own warning asks: two entries.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from ._runner import Check, Group, Ratio, finish, parser, run
from .bench_als_solve import SHAPES, have_implicit, read

N = 20
BARS = {("gowalla", 128): 5.0}
ALPHA, ITERATIONS = 10.0, 8


class Problem:
    def __init__(self, matrix: sparse.csr_matrix, factors: int, threads: int) -> None:
        from vecsmith import ALS

        self.matrix, self.threads = matrix.astype(np.float32), threads
        self.users = np.arange(matrix.shape[0])
        self.model = ALS(
            *(factors, 0.01, ALPHA),
            iterations=ITERATIONS,
            random_state=0,
            num_threads=threads,
            progress=False,
        ).fit(self.matrix)
        self.tables = self.model.user_factors.copy(), self.model.item_factors.copy()
        self.found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def ours(self) -> float:
        self.model.user_factors, self.model.item_factors = self.tables
        started = time.perf_counter()
        self.found["vecsmith"] = self.model.recommend(self.users, self.matrix, N=N)
        return time.perf_counter() - started

    @functools.cached_property
    def _peer(self):
        from implicit.cpu.als import AlternatingLeastSquares

        peer = AlternatingLeastSquares(self.tables[0].shape[1], num_threads=self.threads)
        peer.user_factors, peer.item_factors = self.tables
        return peer

    def implicit(self, blas: int) -> float:
        import threadpoolctl

        peer = self._peer
        with threadpoolctl.threadpool_limits(blas, "blas"):
            started = time.perf_counter()
            self.found["implicit"] = peer.recommend(self.users, self.matrix, N=N)
            return time.perf_counter() - started

    def check(self) -> list[Check]:
        """Scores are those of a product in float64, and no worse than the peer's."""
        self.ours()
        ids, scores = self.found["vecsmith"]
        some = self.users[:: max(1, len(self.users) // 500)]
        exact = self.tables[0][some].astype(np.float64) @ self.tables[1].T.astype(np.float64)
        rows = self.matrix[some].tocoo()
        exact[rows.row, rows.col] = -np.inf
        best = -np.sort(-exact, axis=1)[:, :N]
        worst = float(np.abs(best - scores[some]).max())
        checks = [Check(f"scores are the best {N} to {worst:.1e}", worst < 1e-5)]
        if have_implicit():
            self.implicit(1)
            same = float((ids == self.found["implicit"][0]).mean())
            checks.append(Check(f"{100 * same:.3f}% of the items are implicit's", same > 0.999))
        return checks


def group(name: str, matrix: Callable[[], sparse.csr_matrix], factors: int, threads: int) -> Group:
    problem = Problem(matrix(), factors, threads)
    entries: dict[str, Callable[[], float]] = {"vecsmith": problem.ours}
    ratios = []
    if have_implicit():
        for blas in sorted({1, threads}):
            peer = f"implicit, BLAS of {blas}"
            entries[peer] = functools.partial(problem.implicit, blas)
            what = f"{name} f={factors}: {peer} / vecsmith"
            ratios.append(Ratio(what, "vecsmith", peer, BARS.get((name, factors))))
    rows, columns = problem.matrix.shape
    return Group(
        name=f"als_recommend_{name}_f{factors}",
        title=f"The best {N} for all users, {name}: {rows:,} x {columns:,}, {factors} factors, "
        f"{threads} threads",
        unit="s",
        higher_is_better=False,
        entries=entries,
        check=problem.check,
        ratios=ratios,
        settings={"factors": factors, "threads": threads},
    )


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5, corpus=False)
    options.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="your matrices")
    options.add_argument("--factors", nargs="+", type=int, default=[128], help=" ")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    data: dict[str, Callable[[], sparse.csr_matrix]] = {s.name: s.matrix for s in SHAPES[:1]}
    if given.data:
        named = (one.partition("=") for one in given.data)
        data = {name: functools.partial(read, Path(file)) for name, _, file in named}
    groups = [group(name, m, f, given.threads) for name, m in data.items() for f in given.factors]
    return finish([run(one, given.rounds) for one in groups], given)


if __name__ == "__main__":
    sys.exit(main())
