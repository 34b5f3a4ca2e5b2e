"""The operator `factor_sgd`: stochastic gradient descent on the factors of a matrix, against LIBMF
(ratings, to the same held-out error) and implicit (pairs).

    python -m bench.bench_factor_sgd                            matrices made here
    python -m bench.bench_factor_sgd --data FILE --libmf FILE   yours, and LIBMF's shared library

LIBMF is built by its own Makefile (`make lib`) and called as a library, so that no time goes to
files. Ratings: the seconds, preparation and all, that each program takes to the error that LIBMF
has after its 20 iterations; ours at its own defaults; without LIBMF those of an epoch. Pairs: the
seconds of an epoch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from vecsmith import ops
from vecsmith.data import Interactions

from ._peers import usable
from ._pytest import pytest
from ._runner import Check, Group, Job, Ratio, finish, guarded, parser, run
from .roofline import Work

LIBMF_ITERATIONS = 20
LIBMF_RATE, LIBMF_REGULARIZATION = 0.1, 0.05
MOST_EPOCHS = 40
SGD_BAR = 1.5
# Of pairs: epochs that are timed, after one that is not, and those to the comparison of what was
# learned, by the part of the pairs of a cell and a drawn item that are in order.
EPOCHS, LEARNED = 3, 20
PAIR_RATE = 0.05
PAIR_TOLERANCE = 0.01


def have_implicit() -> bool:
    return usable("implicit")


def work_of(matrix: sparse.csr_matrix, factors: int, bpr: bool) -> Work:
    """Of an epoch: the cells, and both tables read and written. A cell costs a product and a change
    of two rows, 2 f + 8 f operations; a pair of BPR <p, q_i - q_j> and a change of three, 15 f."""
    moved = matrix.nnz * (8 if bpr else 12) + 8 * sum(matrix.shape) * (factors + 1)
    return Work(moved, matrix.nnz * factors * (15 if bpr else 10))


def made(rows: int = 6_040, columns: int = 3_706, cells: int = 1_000_000) -> sparse.csr_matrix:
    """Ratings 1 .. 5 of a shape like that of MovieLens-1M: biases, eight tastes, and noise."""
    draw = np.random.default_rng(0)
    weights = [np.exp(draw.normal(0, 1.1, n)) for n in (rows, columns)]
    at, to = (draw.choice(len(w), 2 * cells, p=w / w.sum()) for w in weights)
    once = np.unique(at.astype(np.int64) * columns + to)
    once = draw.permutation(once)[:cells]
    at, to = once // columns, once % columns
    p, q = (draw.normal(0, 0.45, (n, 8)) for n in (rows, columns))
    values = 3.6 + draw.normal(0, 0.4, rows)[at] + draw.normal(0, 0.5, columns)[to]
    values += (p[at] * q[to]).sum(1) + draw.normal(0, 0.75, len(at))
    values = np.clip(np.rint(values), 1, 5).astype(np.float32)
    return sparse.csr_matrix((values, (at, to)), (rows, columns))


class Node(ctypes.Structure):
    _fields_ = (("u", ctypes.c_int32), ("v", ctypes.c_int32), ("r", ctypes.c_float))


class MatrixProblem(ctypes.Structure):
    _fields_ = (
        *(("m", ctypes.c_int32), ("n", ctypes.c_int32), ("nnz", ctypes.c_longlong)),
        ("R", ctypes.POINTER(Node)),
    )


class Parameters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("fun", "k", "nr_threads", "nr_bins", "nr_iters")),
        *((name, ctypes.c_float) for name in ("p1", "p2", "q1", "q2", "eta", "alpha", "c")),
        *((name, ctypes.c_bool) for name in ("do_nmf", "quiet", "copy_data")),
    )


class Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("fun", "m", "n", "k")),
        ("b", ctypes.c_float),
        *((name, ctypes.POINTER(ctypes.c_float)) for name in ("P", "Q")),
    )


@dataclass
class Split:
    """Ratings to train on, and others [n] to measure with."""

    train: sparse.csr_matrix
    users: np.ndarray
    items: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, matrix: sparse.csr_matrix) -> Split:
        cells = matrix.tocoo()
        held = np.random.default_rng(0).random(cells.nnz) < 0.1
        train = sparse.csr_matrix(
            (cells.data[~held], (cells.row[~held], cells.col[~held])), matrix.shape
        )
        return cls(train, cells.row[held], cells.col[held], cells.data[held])

    def error(self, predicted: np.ndarray) -> float:
        return float(np.sqrt(np.square(predicted - self.values).mean()))


class Ratings:
    """Ratings, and what each program needs."""

    def __init__(self, matrix: sparse.csr_matrix, factors: int, threads: int, libmf: str) -> None:
        self.split, self.factors, self.threads = Split.of(matrix), factors, threads
        self.library = ctypes.CDLL(libmf) if libmf else None
        self.target = np.inf  # then one epoch suffices
        self.errors: dict[str, float] = {}

    def libmf(self) -> float:
        """Seconds of LIBMF's training."""
        assert self.library is not None
        cells = self.split.train.tocoo()
        nodes = np.empty(cells.nnz, dtype=[("u", "i4"), ("v", "i4"), ("r", "f4")])
        nodes["u"], nodes["v"], nodes["r"] = cells.row, cells.col, cells.data
        pointer = nodes.ctypes.data_as(ctypes.POINTER(Node))
        problem = MatrixProblem(*cells.shape, cells.nnz, pointer)
        self.library.mf_get_default_param.restype = Parameters
        self.library.mf_train.restype = ctypes.POINTER(Model)
        given = self.library.mf_get_default_param()
        given.fun, given.k, given.nr_threads = 0, self.factors, self.threads
        given.nr_iters, given.eta, given.quiet = LIBMF_ITERATIONS, LIBMF_RATE, True
        given.p2 = given.q2 = LIBMF_REGULARIZATION
        started = time.perf_counter()
        model = self.library.mf_train(ctypes.byref(problem), given)
        seconds = time.perf_counter() - started
        found, mean = model.contents, model.contents.b
        tables = [
            np.ctypeslib.as_array(table, (rows, found.k)).copy()
            for table, rows in ((found.P, found.m), (found.Q, found.n))
        ]
        self.library.mf_destroy_model(ctypes.byref(model))
        p, q = tables[0][self.split.users], tables[1][self.split.items]
        predicted = (p * q).sum(1)
        # Rows without ratings are nan: for them it says the mean.
        predicted[np.isnan(predicted)] = mean
        self.errors["libmf"] = self.target = self.split.error(predicted)
        return seconds

    def ours(self) -> float:
        """Seconds of training to the target, measuring left out."""
        from vecsmith import MatrixFactorizationSGD

        measuring = [0.0]
        model = MatrixFactorizationSGD(
            self.factors, epochs=MOST_EPOCHS, random_state=0, num_threads=self.threads
        )

        def reached(*_: object) -> bool:
            begun = time.perf_counter()
            error = self.split.error(model.predict(self.split.users, self.split.items))
            self.errors["vecsmith"] = error
            measuring[0] += time.perf_counter() - begun
            return error <= self.target

        started = time.perf_counter()
        model.fit(self.split.train, callback=reached)
        return time.perf_counter() - started - measuring[0]

    def epoch(self) -> float:
        """Seconds of an epoch after the first, with biases and sums of squares; what prepares it is
        left out."""
        blocks, f = ops.factor_blocks(self.split.train), self.factors
        draw, sides = torch.Generator().manual_seed(0), {}
        for side, rows in zip(("user", "item"), self.split.train.shape, strict=True):
            table = ops.empty_table(rows, f + 3)
            sides[f"{side}_factors"] = table[:, :f].normal_(0, 0.1, generator=draw)
            sides[f"{side}_bias"] = table[:, f].zero_()
            sides[f"{side}_squares"] = table[:, f + 1 :].fill_(1)
        mean = float(self.split.train.data.mean())
        for epoch in range(EPOCHS + 1):
            if epoch == 1:
                started = time.perf_counter()
            ops.factor_sgd(blocks=blocks, **sides, mean=mean, epoch=epoch, num_threads=self.threads)
        return (time.perf_counter() - started) / EPOCHS

    def check(self) -> list[Check]:
        failed = guarded("libmf", lambda: [] if self.library is None else self.libmf() and [])
        self.ours()
        errors = ", ".join(f"{name} {error:.5f}" for name, error in self.errors.items())
        target = self.target
        if not np.isfinite(target):  # nobody has set one
            mean = np.full(len(self.split.values), self.split.train.data.mean())
            target = self.split.error(mean)
            errors += f", of the mean {target:.5f}"
        reached = self.errors["vecsmith"] <= target
        return [Check(f"held-out error: {errors}", bool(reached)), *failed]


def ratings(
    name: str, matrix: Callable[[], sparse.csr_matrix], factors: int, threads: int, libmf: str
) -> Group:
    problem = Ratings(matrix(), factors, threads, libmf)
    entries: dict[str, Callable[[], float]] = {"vecsmith": problem.ours if libmf else problem.epoch}
    ratios = []
    if libmf:
        entries["libmf"] = problem.libmf
        what = f"{name} f={factors}: LIBMF / vecsmith to the same error"
        ratios.append(Ratio(what, "vecsmith", "libmf", SGD_BAR))
    return Group(
        name=f"factor_sgd_{name}_f{factors}_t{threads}",
        title=f"Ratings by SGD, {name}: "
        + (f"to LIBMF's error after {LIBMF_ITERATIONS} iterations" if libmf else "an epoch")
        + f", {factors} factors, {threads} threads",
        unit="s",
        higher_is_better=False,
        entries=entries,
        check=problem.check,
        ratios=ratios,
        settings={"factors": factors, "threads": threads},
        # To LIBMF's error it takes some epochs and what prepares them.
        work={} if libmf else {"vecsmith": work_of(problem.split.train, factors, bpr=False)},
    )


class Pairs:
    """Likes, and what each program needs."""

    def __init__(self, matrix: sparse.csr_matrix, factors: int, threads: int) -> None:
        self.matrix, self.factors, self.threads = matrix, factors, threads
        cells = matrix.tocoo()
        draw = np.random.default_rng(0)
        at, other = draw.integers(0, cells.nnz, (2, 100_000))
        self.pairs = cells.row[at], cells.col[at], cells.col[other]

    def in_order(self, users: np.ndarray, items: np.ndarray) -> float:
        """The part of some pairs whose first item scores above the second."""
        u, i, j = self.pairs
        return float(((users[u] * (items[i] - items[j])).sum(1) > 0).mean())

    def _ours(self, epochs: int) -> tuple[float, float]:
        """(seconds of an epoch after the first, the part of the pairs that are in order)."""
        blocks = ops.factor_blocks(self.matrix)
        generator = torch.Generator().manual_seed(0)
        tables = []
        for rows in self.matrix.shape:
            table = ops.empty_table(rows, self.factors + 1)
            table.uniform_(-0.5 / self.factors, 0.5 / self.factors, generator=generator)
            tables.append(table)
        users, items = tables
        users[:, self.factors] = 1
        for epoch in range(epochs + 1):
            if epoch == 1:
                started = time.perf_counter()
            ops.factor_sgd_bpr(
                *(users[:, : self.factors], items[:, : self.factors], blocks),
                item_bias=items[:, self.factors],
                learning_rate=PAIR_RATE,
                epoch=epoch,
                num_threads=self.threads,
            )
        seconds = (time.perf_counter() - started) / epochs
        return seconds, self.in_order(users.numpy(), items.numpy())

    def _implicit(self, epochs: int) -> tuple[float, float]:
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        model = BayesianPersonalizedRanking(
            self.factors, PAIR_RATE, iterations=1, num_threads=self.threads, random_state=1
        )
        model.fit(self.matrix, show_progress=False)
        model.iterations = epochs  # goes on from its factors
        started = time.perf_counter()
        model.fit(self.matrix, show_progress=False)
        seconds = (time.perf_counter() - started) / epochs
        return seconds, self.in_order(model.user_factors, model.item_factors)

    def ours(self) -> float:
        """Seconds of an epoch."""
        return self._ours(EPOCHS)[0]

    def implicit(self) -> float:
        """Seconds of an epoch."""
        return self._implicit(EPOCHS)[0]

    def check(self) -> list[Check]:
        right = self._ours(LEARNED)[1]
        what = f"after {LEARNED + 1} epochs {right:.4f} of the pairs are in order"

        def compare() -> list[Check]:
            theirs = self._implicit(LEARNED)[1]
            return [Check(f"{what}, implicit's {theirs:.4f}", right >= theirs - PAIR_TOLERANCE)]

        compared = guarded("implicit", compare) if have_implicit() else []
        if compared and compared[0].failed is None:
            return compared
        return [Check(what, right >= 0.6), *compared]


def pairs(name: str, matrix: Callable[[], sparse.csr_matrix], factors: int, threads: int) -> Group:
    problem = Pairs(matrix(), factors, threads)
    entries: dict[str, Callable[[], float]] = {"vecsmith": problem.ours}
    ratios = []
    if have_implicit():
        entries["implicit"] = problem.implicit
        what = f"{name} f={factors}: implicit / vecsmith, an epoch"
        ratios.append(Ratio(what, "vecsmith", "implicit"))
    return Group(
        name=f"factor_sgd_bpr_{name}_f{factors}_t{threads}",
        title=f"An epoch of BPR, {name}: {problem.matrix.nnz:,} cells, {factors} factors, "
        f"{threads} threads",
        unit="s",
        higher_is_better=False,
        entries=entries,
        check=problem.check,
        ratios=ratios,
        settings={"factors": factors, "threads": threads},
        work=dict.fromkeys(entries, work_of(problem.matrix, factors, bpr=True)),
    )


def read(path: Path) -> sparse.csr_matrix:
    lists = "lists" if path.name.startswith(("train", "valid", "test")) else None
    return Interactions.read(path, format=lists).matrix


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [32, 128])
def test_an_epoch_over_ratings(benchmark, factors: int) -> None:
    problem = Ratings(made(), factors, torch.get_num_threads(), "")
    problem.target = 0.9
    benchmark.group = f"ratings f={factors}"
    benchmark.pedantic(problem.ours, rounds=1)


@pytest.mark.parametrize("way", ["vecsmith", "implicit"])
def test_an_epoch_over_pairs(benchmark, way: str) -> None:
    if way == "implicit":
        pytest.importorskip("implicit")
    problem = Pairs(made(), 100, torch.get_num_threads())
    benchmark.group = "pairs f=100"
    benchmark.pedantic(problem.ours if way == "vecsmith" else problem.implicit, rounds=1)


# --- all of them ----------------------------------------------------------------------------------


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure; LIBMF is what VECSMITH_LIBMF names."""
    libmf = os.environ["VECSMITH_LIBMF"] if usable("LIBMF") else ""
    short = functools.partial(made, 4_000, 3_000, 300_000)
    jobs = [
        Job("ratings short f=32", lambda: ratings("short", short, 32, threads, libmf), True),
        Job("pairs short f=64", lambda: pairs("short", short, 64, threads), True),
    ]
    for factors in (32, 128):
        given = (made, factors, threads)
        label = f"made f={factors}"
        jobs.append(Job(f"ratings {label}", functools.partial(ratings, "made", *given, libmf)))
        jobs.append(Job(f"pairs {label}", functools.partial(pairs, "made", *given)))
    return jobs


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=3, corpus=False)
    options.add_argument("--data", metavar="NAME=FILE", help="your ratings")
    options.add_argument("--pairs", metavar="NAME=FILE", help="your likes; default: the ratings")
    options.add_argument("--libmf", default="", metavar="FILE", help="LIBMF's shared library")
    options.add_argument("--factors", nargs="+", type=int, default=[32, 128], help=" ")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)

    def source(text: str | None) -> tuple[str, Callable[[], sparse.csr_matrix]]:
        if not text:
            return "made", made
        name, _, file = text.partition("=")
        return name, functools.partial(read, Path(file))

    name, matrix = source(given.data)
    likes = source(given.pairs or given.data)
    groups = [ratings(name, matrix, f, given.threads, given.libmf) for f in given.factors]
    groups += [pairs(*likes, f, given.threads) for f in given.factors]
    return finish([run(group, given.rounds) for group in groups], given)


if __name__ == "__main__":
    sys.exit(main())
