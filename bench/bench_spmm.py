"""The operator `spmm`: a sparse matrix times a dense one, against torch.sparse (MKL) and SciPy.

    python -m bench.bench_spmm                        matrices made here
    python -m bench.bench_spmm --data NAME=FILE ...   yours: what Interactions.read reads, or an
                                                      .npz of scipy.sparse.save_npz

Each matrix and its transpose, times as many columns as factors and as a block of a Krylov space.
"""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from vecsmith import ops
from vecsmith.ops._cells import cells_of

from ._pytest import pytest
from ._runner import Check, Group, Job, Ratio, finish, parser, run
from .roofline import Work

WIDTHS = (16, 64)
DTYPES = ("float32", "float64")
WAYS = ("vecsmith", "torch.sparse", "scipy")
_REPEATS = 5  # products of a time


def made(rows: int, columns: int, cells: int, skew: float) -> sparse.csr_matrix:
    """Cells whose rows and columns are log-normal in length."""
    draw = np.random.default_rng(0)
    weights = [np.exp(draw.normal(0, skew, n)) for n in (rows, columns)]
    at, to = (draw.choice(len(w), cells, p=w / w.sum()) for w in weights)
    return sparse.csr_matrix((draw.random(cells), (at, to)), (rows, columns))


# About as long as those of MovieLens-1M and of the tf-idf of 20 Newsgroups.
SHAPES: dict[str, Callable[[], sparse.csr_matrix]] = {
    "ratings": functools.partial(made, 6_040, 3_706, 1_200_000, 1.1),
    "terms": functools.partial(made, 20_000, 5_000, 2_600_000, 1.3),
}


class Problem:
    """A product, each way."""

    def __init__(self, matrix: sparse.csr_matrix, width: int, dtype: str, threads: int) -> None:
        self.matrix, self.threads = matrix.astype(dtype), threads
        generator = torch.Generator().manual_seed(0)
        dense = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64)
        self.dense = dense.to(getattr(torch, dtype))
        self.cells = cells_of("bench", self.matrix)
        parts = (self.cells.indptr, self.cells.indices, self.cells.values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is a beta of torch's
            self.tensor = torch.sparse_csr_tensor(*parts, matrix.shape, check_invariants=False)

    def product(self, way: str) -> torch.Tensor:
        if way == "vecsmith":
            return ops.spmm(self.cells, self.dense, num_threads=self.threads)
        if way == "scipy":
            return torch.from_numpy(self.matrix @ self.dense.numpy())
        return self.tensor @ self.dense

    def time(self, way: str) -> float:
        """Milliseconds of a product, after one that is not counted."""
        self.product(way)
        started = time.perf_counter()
        for _ in range(_REPEATS):
            self.product(way)
        return (time.perf_counter() - started) / _REPEATS * 1e3

    def work(self) -> Work:
        """Cells, their bounds, the dense matrix and the product; a multiply-add per cell and
        column."""
        rows, columns = self.matrix.shape
        width, itemsize = self.dense.shape[1], self.dense.dtype.itemsize
        moved = sum(
            part.numel() * part.itemsize for part in (self.cells.indptr, self.cells.indices)
        )
        moved += (self.matrix.nnz + (rows + columns) * width) * itemsize
        dtype = str(self.dense.dtype).removeprefix("torch.")
        return Work(moved, 2 * self.matrix.nnz * width, dtype)

    def check(self) -> list[Check]:
        """Our error against float64, as a part of |A| |X|: that of a walk of roundings."""
        matrix, dense = self.matrix.astype(np.float64), self.dense.double().numpy()
        exact = torch.from_numpy(matrix @ dense)
        scale = float((abs(matrix) @ np.abs(dense)).max())
        longest = int(np.diff(self.matrix.indptr).max())
        allowed = torch.finfo(self.dense.dtype).eps * longest**0.5
        off = float((self.product("vecsmith") - exact).abs().max()) / scale
        return [Check(f"error {off:.2g} of |A| |X|, {allowed:.2g} allowed", off <= allowed)]


def group(name: str, matrix: sparse.csr_matrix, width: int, dtype: str, threads: int) -> Group:
    problem = Problem(matrix, width, dtype, threads)
    rows, columns = matrix.shape
    return Group(
        name=f"spmm_{name}_b{width}_{dtype}",
        title=f"A sparse matrix times a dense one, {name}: {rows:,} x {columns:,}, "
        f"{matrix.nnz:,} cells, {width} columns of {dtype}, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={way: functools.partial(problem.time, way) for way in WAYS},
        check=problem.check,
        ratios=[Ratio(f"{name} b={width} {dtype}: {w} / vecsmith", WAYS[0], w) for w in WAYS[1:]],
        settings={"width": width, "dtype": dtype, "threads": threads},
        work=dict.fromkeys(WAYS, problem.work()),
    )


def read(path: Path) -> sparse.csr_matrix:
    if path.suffix == ".npz":
        return sparse.load_npz(path).tocsr()
    from vecsmith.data import Interactions

    return Interactions.read(path).matrix


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_spmm(benchmark, shape: str, width: int, dtype: str, way: str) -> None:
    problem = Problem(SHAPES[shape](), width, dtype, torch.get_num_threads())
    benchmark.group = f"{shape} b={width} {dtype}"
    benchmark(problem.product, way)


# --- all of them ----------------------------------------------------------------------------------


QUICK = (("ratings", 16, "float32"), ("terms", 64, "float32"))


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure."""

    def make(shape: str, transposed: bool, width: int, dtype: str) -> Group:
        matrix = SHAPES[shape]()
        if not transposed:
            return group(shape, matrix, width, dtype, threads)
        return group(f"{shape}_transposed", matrix.T.tocsr(), width, dtype, threads)

    return [
        Job(
            f"{shape}{' transposed' if transposed else ''} b={width} {dtype}",
            functools.partial(make, shape, transposed, width, dtype),
            not transposed and (shape, width, dtype) in QUICK,
        )
        for shape in SHAPES
        for transposed in (False, True)
        for width in WIDTHS
        for dtype in DTYPES
    ]


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5, corpus=False)
    options.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="your matrices")
    options.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), help=" ")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    data = SHAPES
    if given.data:
        named = (one.partition("=") for one in given.data)
        data = {name: functools.partial(read, Path(file)) for name, _, file in named}
    records = []
    for name, make in data.items():
        matrix = make()
        for which, of in ((name, matrix), (f"{name}_transposed", matrix.T.tocsr())):
            for width in given.widths:
                for dtype in DTYPES:
                    records.append(run(group(which, of, width, dtype, given.threads), given.rounds))
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
