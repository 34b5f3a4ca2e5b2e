"""The operator `als_solve`: iterations of alternating least squares, implicit feedback, against
implicit, at equal loss.

    python -m bench.bench_als_solve                          matrices made here
    python -m bench.bench_als_solve --data NAME=FILE ...     yours: what Interactions.read reads

An iteration is both half-steps, of all rows and all columns. The time of an iteration is that of
several, after one that is not counted; peers tell theirs by a callback. Losses are compared at the
end of as many iterations from other random starts.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from vecsmith import ops
from vecsmith.models._factor_options import drawn
from vecsmith.ops._cells import cells_of
from vecsmith.reference import als_solve as reference
from vecsmith.reference.als_solve import als_loss

from ._peers import usable
from ._pytest import pytest
from ._runner import Check, Group, Job, Ratio, Skipped, finish, guarded, parser, run
from .roofline import Work

ALPHA, REGULARIZATION = 10.0, 0.01
# That are timed; those by conjugate gradients are short.
ITERATIONS = {"cholesky": 3, "cg": 10}
# Cholesky against implicit's, by data and factors; conjugate gradients against its own.
BARS = {
    **{("gowalla", f): bar for f, bar in ((64, 8.0), (128, 15.0), (256, 40.0))},
    **{("ml-1m", f): 6.0 for f in (64, 128, 256)},
}
CG_BAR = 2.5
# The time until our loss is that of as many of its iterations with conjugate gradients.
TO_LOSS_ITERATIONS = 15
TO_LOSS_BARS = {("gowalla", 128): 2.5, ("ml-1m", 128): 2.0}


def have_implicit() -> bool:
    return usable("implicit")


@dataclass(frozen=True)
class Shape:
    """Rows and columns, how many cells there are, and how many times as many the longest row has as
    one of the middle."""

    name: str
    rows: int
    columns: int
    cells: int
    skew: float

    def matrix(self) -> sparse.csr_matrix:
        draw = np.random.default_rng(0)
        rows = np.exp(draw.normal(0, self.skew, self.rows))
        columns = np.exp(draw.normal(0, self.skew, self.columns))
        at = draw.choice(self.rows, self.cells, p=rows / rows.sum())
        to = draw.choice(self.columns, self.cells, p=columns / columns.sum())
        made = sparse.csr_matrix(
            (np.ones(self.cells, np.float32), (at, to)), (self.rows, self.columns)
        )
        made.data[:] = draw.integers(1, 6, made.nnz)
        return made


# About as long as those of Gowalla and MovieLens-1M.
SHAPES = (
    Shape("sparse", 29_858, 40_981, 750_000, 0.9),
    Shape("dense", 6_040, 3_706, 1_200_000, 1.1),
)
QUICK = Shape("short", 4_000, 3_000, 200_000, 1.0)
_CHECKED, _ALLOWED = 20, 1e-4  # rows, and how far they may be off
CG_STEPS = 3  # ours and implicit's default


def work_of(matrix: sparse.csr_matrix, factors: int, method: str, iterations: int = 1) -> Work:
    """Of both half-steps. Bytes: the cells by rows and by columns, and each table read and written.
    Operations: Y^T Y, of which one half suffices, and for each row of either side

        cholesky   f^2 per cell for y y^T, 2 f per cell for b, f^3 / 3 + 2 f^2 for the solution
        cg         2 f^2 + 4 f per cell for A x, in the first residual and in each step
    """
    cells, rows, f = matrix.nnz, sum(matrix.shape), factors
    operations = rows * f * f
    if method == "cholesky":
        operations += 2 * cells * (f * f + 2 * f) + rows * (f**3 / 3 + 2 * f * f)
    else:
        operations += (CG_STEPS + 1) * (rows * 2 * f * f + 2 * cells * 4 * f)
    moved = 2 * cells * 8 + 2 * rows * f * 4
    return Work(iterations * moved, iterations * operations)


class Problem:
    """A matrix, and what each program needs."""

    def __init__(self, matrix: sparse.csr_matrix, factors: int, threads: int) -> None:
        self.matrix, self.factors, self.threads = matrix, factors, threads
        self.cells = cells_of("bench", matrix)
        self.transposed = self.cells.transposed()
        self.loss: dict[str, float] = {}

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As the class ALS begins."""
        random = np.random.default_rng(1)
        users, items = (
            drawn(n, self.factors, np.dtype(np.float32), random) for n in self.matrix.shape
        )
        return users, items

    def iterate(self, method: str, iterations: int) -> Iterator[float]:
        """The seconds of each iteration; self.found is where it led."""
        users, items = self.start()
        options = {"regularization": REGULARIZATION, "alpha": ALPHA, "method": method}
        for _ in range(iterations):
            started = time.perf_counter()
            ops.als_solve(self.cells, items, out=users, num_threads=self.threads, **options)
            ops.als_solve(self.transposed, users, out=items, num_threads=self.threads, **options)
            seconds = time.perf_counter() - started
            self.found = users, items
            yield seconds

    def ours(self, method: str) -> float:
        """Seconds of an iteration."""
        seconds = list(self.iterate(method, ITERATIONS[method] + 1))
        self.loss[f"vecsmith {method}"] = self.measure(*self.found)
        return sum(seconds[1:]) / ITERATIONS[method]

    @functools.cached_property
    def loss_to_reach(self) -> float:
        self.implicit(True, TO_LOSS_ITERATIONS)
        return self.loss["implicit cg"]

    @functools.cached_property
    def iterations_to_loss(self) -> dict[str, int]:
        counts = {}
        for method in ("cholesky", "cg"):
            for count, _ in enumerate(self.iterate(method, 3 * TO_LOSS_ITERATIONS), 1):
                if self.measure(*self.found) <= self.loss_to_reach:
                    counts[method] = count
                    break
        return counts

    def to_loss(self, method: str) -> float:
        return sum(self.iterate(method, self.iterations_to_loss[method]))

    def implicit(self, use_cg: bool, iterations: int | None = None) -> float:
        """Seconds of an iteration, without the first one."""
        if iterations is None:
            iterations = ITERATIONS["cg" if use_cg else "cholesky"] + 1
        import implicit
        import threadpoolctl

        times: list[float] = []
        with threadpoolctl.threadpool_limits(1, "blas"):  # as its users are told to
            model = implicit.als.AlternatingLeastSquares(
                factors=self.factors,
                regularization=REGULARIZATION,
                alpha=ALPHA,
                use_cg=use_cg,
                use_gpu=False,
                iterations=iterations,
                num_threads=self.threads,
                random_state=1,
            )
            model.fit(
                self.matrix,
                show_progress=False,
                callback=lambda *_: times.append(time.perf_counter()),
            )
        found = (torch.from_numpy(np.array(f)) for f in (model.user_factors, model.item_factors))
        self.loss["implicit " + ("cg" if use_cg else "cholesky")] = self.measure(*found)
        return (times[-1] - times[0]) / (iterations - 1)

    def measure(self, users: torch.Tensor, items: torch.Tensor) -> float:
        cells = self.cells
        options = {"regularization": REGULARIZATION, "alpha": ALPHA}
        parts = (cells.indptr, cells.indices, cells.values)
        loss = als_loss(*parts, users, items, **options)
        return float(loss + REGULARIZATION * items.double().square().sum())

    def check(self) -> list[Check]:
        """Rows are those of the reference; our loss is at most a thousandth above each peer's of
        the same kind."""
        checks = [self._check_rows()]
        for method, use_cg in (("cholesky", False), ("cg", True)):
            self.ours(method)
            ours = self.loss[f"vecsmith {method}"]
            finite = bool(np.isfinite(ours))
            checks.append(Check(f"{method}: the loss is finite, {ours:.6g}", finite))
            if have_implicit():
                compare = functools.partial(self._compare, method, use_cg)
                compared = guarded(f"implicit {method}", compare)
                checks = [*(checks if compared[0].failed else checks[:-1]), *compared]
        return checks

    def _check_rows(self) -> Check:
        """The longest rows by Cholesky, against float64."""
        _, items = self.start()
        options = {"regularization": REGULARIZATION, "alpha": ALPHA}
        found = ops.als_solve(self.cells, items, num_threads=self.threads, **options)
        lengths = np.diff(self.matrix.indptr)
        chosen = np.argsort(-lengths, kind="stable")[:_CHECKED]
        few = cells_of("bench", self.matrix[chosen])
        exact = reference.als_solve(few.indptr, few.indices, few.values, items, **options)
        off = float((found[torch.from_numpy(chosen)] - exact).abs().max() / exact.abs().max())
        what = f"cholesky: {len(chosen)} rows are off by {off:.1e} of the largest, from float64"
        return Check(f"{what} ({_ALLOWED:g} allowed)", off <= _ALLOWED)

    def _compare(self, method: str, use_cg: bool) -> list[Check]:
        self.implicit(use_cg)
        ours, theirs = (self.loss[f"{one} {method}"] for one in ("vecsmith", "implicit"))
        what = f"{method}: loss {ours:.6g}, implicit's {theirs:.6g}"
        return [Check(what, ours <= 1.001 * theirs)]


def group(name: str, matrix: Callable[[], sparse.csr_matrix], factors: int, threads: int) -> Group:
    problem = Problem(matrix(), factors, threads)
    entries: dict[str, Callable[[], float]] = {
        f"vecsmith {method}": functools.partial(problem.ours, method)
        for method in ("cholesky", "cg")
    }
    ratios = []
    if have_implicit():
        for method, use_cg in (("cholesky", False), ("cg", True)):
            entries[f"implicit {method}"] = functools.partial(problem.implicit, use_cg)
            bar = CG_BAR if use_cg else BARS.get((name, factors))
            what = f"{name} f={factors}: implicit / vecsmith, {method}"
            ratios.append(Ratio(what, f"vecsmith {method}", f"implicit {method}", bar))
    rows, columns = problem.matrix.shape
    return Group(
        name=f"als_solve_{name}_f{factors}",
        title=f"An iteration of ALS, {name}: {rows:,} x {columns:,}, {problem.matrix.nnz:,} cells, "
        f"{factors} factors, {threads} threads",
        unit="s",
        higher_is_better=False,
        entries=entries,
        check=problem.check,
        ratios=ratios,
        settings={"factors": factors, "alpha": ALPHA, "threads": threads},
        work={name: work_of(problem.matrix, factors, name.split()[1]) for name in entries},
    )


def to_loss_group(
    name: str, matrix: Callable[[], sparse.csr_matrix], factors: int, threads: int
) -> Group:
    """The time to the loss that implicit's default reaches. Raises Skipped without implicit."""
    if not have_implicit():
        raise Skipped("implicit is missing: pip install implicit")
    problem = Problem(matrix(), factors, threads)
    counts = problem.iterations_to_loss
    peer = f"implicit cg, {TO_LOSS_ITERATIONS} iterations"

    def theirs() -> float:
        return problem.implicit(True, TO_LOSS_ITERATIONS) * TO_LOSS_ITERATIONS

    def check() -> list[Check]:
        reached = problem.loss_to_reach
        return [
            Check(
                f"{method} reaches {reached:.6g} in {counts.get(method)} iterations",
                method in counts,
            )
            for method in ("cholesky", "cg")
        ]

    entries = {
        f"vecsmith {method}": functools.partial(problem.to_loss, method) for method in counts
    }
    best = min(counts, key=problem.to_loss, default="cholesky")
    what = f"{name} f={factors}: implicit cg / vecsmith {best}, to equal loss"
    bar = TO_LOSS_BARS.get((name, factors))
    return Group(
        name=f"als_solve_{name}_f{factors}_to_loss",
        title=f"To the loss of {TO_LOSS_ITERATIONS} iterations of implicit's conjugate gradients, "
        f"{name}, {factors} factors, {threads} threads",
        unit="s",
        higher_is_better=False,
        entries={**entries, peer: theirs},
        check=check,
        ratios=[Ratio(what, f"vecsmith {best}", peer, bar)],
        settings={"factors": factors, "alpha": ALPHA, "threads": threads, "iterations": counts},
    )


def read(path: Path) -> sparse.csr_matrix:
    from vecsmith.data import Interactions

    lists = "lists" if path.name.startswith(("train", "valid", "test")) else None
    return Interactions.read(path, format=lists).matrix


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", ["vecsmith cholesky", "vecsmith cg", "implicit cholesky", "implicit cg"]
)
@pytest.mark.parametrize("factors", [64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_als_solve(benchmark, shape: Shape, factors: int, way: str) -> None:
    if way.startswith("implicit"):
        pytest.importorskip("implicit")
    problem = Problem(shape.matrix(), factors, torch.get_num_threads())
    benchmark.group = f"{shape.name} f={factors}"
    program, method = way.split()
    call = (problem.ours, method) if program == "vecsmith" else (problem.implicit, method == "cg")
    benchmark.pedantic(*call[:1], call[1:], rounds=1)


# --- all of them ----------------------------------------------------------------------------------


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure: iterations of the operator, and fits of the class."""
    from . import als_peers

    jobs = [
        Job("short f=64", lambda: group(QUICK.name, QUICK.matrix, 64, threads), True),
        Job("fit short f=64", lambda: als_peers.likes(QUICK.name, QUICK.matrix, 64, threads), True),
    ]
    for shape in SHAPES:
        for factors in (64, 128, 256):
            given = (shape.name, shape.matrix, factors, threads)
            label = f"{shape.name} f={factors}"
            jobs.append(Job(label, functools.partial(group, *given)))
            jobs.append(Job(f"{label} to equal loss", functools.partial(to_loss_group, *given)))
    data = {SHAPES[0].name: SHAPES[0].matrix, "made": als_peers.made}
    for name, matrix in data.items():
        given = (name, matrix, 128, threads)
        jobs.append(Job(f"fit {name} f=128", functools.partial(als_peers.likes, *given)))
    for peer in ("cmfrec", "lenskit"):
        make = functools.partial(als_peers.ratings_against, "made", als_peers.made, peer, threads)
        jobs.append(Job(f"ratings {peer}", make))
    return jobs


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=3, corpus=False)
    options.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="your matrices")
    kinds = ["iteration", "to-loss"]
    options.add_argument("--groups", nargs="+", choices=kinds, default=kinds, help=" ")
    options.add_argument("--factors", nargs="+", type=int, default=[64, 128, 256], help=" ")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    data: dict[str, Callable[[], sparse.csr_matrix]] = {s.name: s.matrix for s in SHAPES}
    if given.data:
        named = (one.partition("=") for one in given.data)
        data = {name: functools.partial(read, Path(file)) for name, _, file in named}
    groups = {"iteration": group, "to-loss": to_loss_group}
    if not have_implicit():
        print("peer implicit is missing: pip install implicit", file=sys.stderr)
        del groups["to-loss"]
    records = [
        run(groups[kind](name, matrix, factors, given.threads), given.rounds)
        for name, matrix in data.items()
        for factors in given.factors
        for kind in given.groups
        if kind in groups
    ]
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
