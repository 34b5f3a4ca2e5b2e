"""The operator `hals_sweep`: a sweep of coordinate descent over a nonnegative factor, against
scikit-learn's, which NMF's "cd" solver calls.

    python -m bench.bench_hals_sweep

Both begin from the same factor and go through the components in the same order.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vecsmith import ops
from vecsmith.reference import hals_sweep as reference

from ._peers import usable
from ._pytest import pytest
from ._runner import Check, Group, Job, Ratio, finish, guarded, parser, run
from .roofline import Work

ROWS = 20_000
DIMS = (16, 64, 128)
DTYPES = ("float32", "float64")
_REPEATS = 5  # sweeps of a time


def have_sklearn() -> bool:
    return usable("scikit-learn")


class Problem:
    """A factor of random numbers, half of which want to be zero."""

    def __init__(self, dim: int, dtype: str, threads: int) -> None:
        draw = np.random.default_rng(0)
        other = draw.random((dim, 4 * dim))
        self.threads = threads
        self.factor = torch.from_numpy(draw.random((ROWS, dim)).astype(dtype))
        self.gram = torch.from_numpy((other @ other.T).astype(dtype))
        mixed = draw.random((ROWS, dim)) @ (other @ other.T) * draw.random((ROWS, dim))
        self.numerator = torch.from_numpy(mixed.astype(dtype))
        self.ways: dict[str, Callable[[torch.Tensor], float]] = {
            "vecsmith": self.ours,
            "reference": self.plain,
        }
        if have_sklearn():
            self.ways["scikit-learn"] = self.theirs

    def ours(self, factor: torch.Tensor) -> float:
        given = (factor, self.numerator, self.gram)
        return float(ops.hals_sweep(*given, num_threads=self.threads))

    def plain(self, factor: torch.Tensor) -> float:
        return float(reference.hals_sweep(factor, self.numerator, self.gram))

    def theirs(self, factor: torch.Tensor) -> float:
        from sklearn.decomposition._cdnmf_fast import _update_cdnmf_fast

        order = np.arange(len(self.gram), dtype=np.intp)
        parts = (t.numpy() for t in (factor, self.gram, self.numerator))
        return _update_cdnmf_fast(*parts, order)

    def time(self, way: str) -> float:
        """Milliseconds of a sweep, after one that is not counted."""
        factor = self.factor.clone()
        self.ways[way](factor)
        started = time.perf_counter()
        for _ in range(_REPEATS):
            self.ways[way](factor)
        return (time.perf_counter() - started) / _REPEATS * 1e3

    def check(self) -> list[Check]:
        """Each way leads to the reference's factor."""
        wanted = self.factor.clone()
        self.plain(wanted)
        allowed = 64 * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())

        def one(way: str) -> list[Check]:
            found = self.factor.clone()
            self.ways[way](found)
            off = float((found - wanted).abs().max())
            return [Check(f"{way}: {off:.2g} off, {allowed:.2g} allowed", off <= allowed)]

        return [
            check
            for way in self.ways
            if way != "reference"
            for check in guarded(way, functools.partial(one, way))
        ]

    def work(self) -> Work:
        """The factor read and written and the numerator; a multiply-add with the gram matrix for
        each number and component."""
        rows, dim = self.factor.shape
        dtype = str(self.factor.dtype).removeprefix("torch.")
        return Work(3 * rows * dim * self.factor.dtype.itemsize, 2 * rows * dim * dim, dtype)


def group(dim: int, dtype: str, threads: int) -> Group:
    problem = Problem(dim, dtype, threads)
    return Group(
        name=f"hals_sweep_k{dim}_{dtype}",
        title=f"A sweep over {ROWS:,} rows of {dim} components, {dtype}, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={way: functools.partial(problem.time, way) for way in problem.ways},
        check=problem.check,
        ratios=[
            Ratio(f"k={dim} {dtype}: {way} / vecsmith", "vecsmith", way)
            for way in problem.ways
            if way != "vecsmith"
        ],
        settings={"rows": ROWS, "components": dim, "dtype": dtype, "threads": threads},
        work=dict.fromkeys(problem.ways, problem.work()),
    )


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["vecsmith", "reference", "scikit-learn"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_hals_sweep(benchmark, dim: int, dtype: str, way: str) -> None:
    problem = Problem(dim, dtype, torch.get_num_threads())
    if way not in problem.ways:
        pytest.skip("scikit-learn is not installed")
    benchmark.group = f"k={dim} {dtype}"
    benchmark(problem.ways[way], problem.factor.clone())


# --- all of them ----------------------------------------------------------------------------------


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure."""
    return [
        Job(
            f"k={dim} {dtype}",
            functools.partial(group, dim, dtype, threads),
            dtype == "float32" and dim != 128,
        )
        for dim in DIMS
        for dtype in DTYPES
    ]


def main(arguments: list[str] | None = None) -> int:
    given = parser(__doc__, rounds=5, corpus=False).parse_args(arguments)
    torch.set_num_threads(given.threads)
    groups = [group(dim, dtype, given.threads) for dim in DIMS for dtype in DTYPES]
    return finish([run(each, given.rounds) for each in groups], given)


if __name__ == "__main__":
    sys.exit(main())
