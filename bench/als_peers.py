"""Whole trainings of the classes `ALS` and `ExplicitALS` against cmfrec and LensKit, on equal
answers.

    python -m bench.als_peers                          matrices made here
    python -m bench.als_peers --data NAME=FILE ...     yours: what Interactions.read reads

Likes (every cell counts the same, with confidence 10): the seconds of a fit by Cholesky of 5
iterations, ours of 7: our loss at the end must be no higher, wherever each begins. Ratings (files
whose values differ): the seconds to the held-out error that the peer has at the end of its
training, all with one regularization; the error is looked at after each of our iterations, and that
is left out of the time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from vecsmith.ops._cells import cells_of
from vecsmith.reference.als_solve import als_loss

from ._peers import usable
from ._runner import Check, Group, Ratio, Skipped, finish, guarded, parser, run
from .bench_als_solve import SHAPES, read, work_of
from .bench_factor_sgd import Split, made

CONFIDENCE, REGULARIZATION, ITERATIONS = 10.0, 0.1, 5
OUR_ITERATIONS = 7
LIKES_BARS = {"gowalla": 4.0, "ml-1m": 2.0}
RATINGS_FACTORS, RATINGS_ITERATIONS, RATINGS_BAR = 50, 15, 3.0
# Times a row's cells, in all of them.
RATINGS_REGULARIZATION = {"vecsmith": 0.06, "cmfrec": 0.06, "lenskit": 0.06}


def installed(name: str) -> bool:
    return usable(name)


class Likes:
    """A matrix of ones, and the trainings that are compared."""

    def __init__(self, matrix: sparse.csr_matrix, factors: int, threads: int) -> None:
        self.matrix = matrix.copy()
        self.matrix.data = np.ones(matrix.nnz, np.float32)
        self.factors, self.threads = factors, threads
        self.cells = cells_of("bench", self.matrix)
        self.loss: dict[str, float] = {}

    def _measure(self, name: str, users: np.ndarray, items: np.ndarray) -> None:
        cells = self.cells
        tables = (torch.from_numpy(np.ascontiguousarray(t)) for t in (users, items))
        x, y = tables
        loss = als_loss(
            *(cells.indptr, cells.indices, cells.values, x, y),
            alpha=CONFIDENCE,
            regularization=REGULARIZATION,
        )
        self.loss[name] = float(loss + REGULARIZATION * y.double().square().sum())

    def vecsmith(self) -> float:
        from vecsmith import ALS

        model = ALS(
            *(self.factors, REGULARIZATION, CONFIDENCE),
            use_cg=False,
            iterations=OUR_ITERATIONS,
            random_state=0,
            num_threads=self.threads,
            progress=False,
        )
        started = time.perf_counter()
        model.fit(self.matrix)
        seconds = time.perf_counter() - started
        self._measure("vecsmith", model.user_factors, model.item_factors)
        return seconds

    def cmfrec(self) -> float:
        import cmfrec

        model = cmfrec.CMF_implicit(
            k=self.factors,
            lambda_=REGULARIZATION,
            alpha=CONFIDENCE - 1,
            use_cg=False,
            niter=ITERATIONS,
            precompute_for_predictions=False,
            nthreads=self.threads,
        )
        cells = self.matrix.tocoo()
        started = time.perf_counter()
        model.fit(cells)
        seconds = time.perf_counter() - started
        self._measure("cmfrec", model.A_, model.B_)
        return seconds

    @functools.cached_property
    def _dataset(self):
        return lenskit_dataset(self.matrix)

    def lenskit(self) -> float:
        from lenskit.als import ImplicitMFScorer

        data = self._dataset
        model = ImplicitMFScorer(
            embedding_size=self.factors,
            epochs=ITERATIONS,
            regularization=REGULARIZATION,
            weight=CONFIDENCE - 1,
        )
        started = time.perf_counter()
        model.train(data)
        seconds = time.perf_counter() - started
        users, items = model.user_embeddings, model.item_embeddings
        self._measure("lenskit", users[data.users.numbers(np.arange(users.shape[0]))], items)
        return seconds

    def check(self, names: list[str]) -> list[Check]:
        self.vecsmith()
        ours = self.loss["vecsmith"]

        def one(name: str) -> list[Check]:
            getattr(self, name)()
            theirs = self.loss[name]
            return [Check(f"loss {ours:.6g}, {name}'s {theirs:.6g}", ours <= 1.001 * theirs)]

        checks: list[Check] = []
        for name in names[1:]:
            checks += guarded(name, functools.partial(one, name))
        if any(check.failed is None for check in checks):
            return checks
        return [Check(f"the loss is finite, {ours:.6g}", bool(np.isfinite(ours))), *checks]


def lenskit_dataset(matrix: sparse.csr_matrix):
    """All rows and columns, those without cells as well, in their order."""
    import pandas as pd
    from lenskit.data import DatasetBuilder

    cells = matrix.tocoo()
    builder = DatasetBuilder()
    builder.add_entities("user", np.arange(matrix.shape[0]))
    builder.add_entities("item", np.arange(matrix.shape[1]))
    frame = pd.DataFrame({"user_id": cells.row, "item_id": cells.col, "rating": cells.data})
    builder.add_interactions(
        "rating", frame, entities=["user", "item"], missing="error", default=True
    )
    return builder.build()


class Ratings:
    """Ratings to train on and others to measure with, and the trainings that are compared."""

    def __init__(self, matrix: sparse.csr_matrix, peer: str, threads: int) -> None:
        self.split, self.peer, self.threads = Split.of(matrix), peer, threads
        self.target = np.inf
        self.errors: dict[str, float] = {}

    def theirs(self) -> float:
        return self._cmfrec() if self.peer == "cmfrec" else self._lenskit()

    def _cmfrec(self) -> float:
        import cmfrec

        model = cmfrec.CMF(
            method="als",
            k=RATINGS_FACTORS,
            lambda_=RATINGS_REGULARIZATION["cmfrec"],
            scale_lam=True,
            use_cg=False,
            niter=RATINGS_ITERATIONS,
            precompute_for_predictions=False,
            nthreads=self.threads,
        )
        cells = self.split.train.astype(np.float64).tocoo()
        started = time.perf_counter()
        model.fit(cells)
        seconds = time.perf_counter() - started
        self._theirs(model.predict(self.split.users, self.split.items))
        return seconds

    @functools.cached_property
    def _dataset(self):
        return lenskit_dataset(self.split.train)

    def _lenskit(self) -> float:
        from lenskit.als import BiasedMFScorer
        from lenskit.data import ItemList

        model = BiasedMFScorer(
            embedding_size=RATINGS_FACTORS,
            epochs=RATINGS_ITERATIONS,
            regularization=RATINGS_REGULARIZATION["lenskit"],
            user_embeddings="prefer",
        )
        data = self._dataset
        started = time.perf_counter()
        model.train(data)
        seconds = time.perf_counter() - started
        predicted = np.full(len(self.split.values), self.split.train.data.mean())
        order = np.argsort(self.split.users, kind="stable")
        bounds = np.searchsorted(self.split.users[order], np.arange(self.split.train.shape[0] + 1))
        for user in np.flatnonzero(np.diff(bounds)):
            at = order[bounds[user] : bounds[user + 1]]
            scores = model(query=int(user), items=ItemList(item_ids=self.split.items[at])).scores()
            predicted[at] = np.where(np.isnan(scores), predicted[at], scores)
        self._theirs(predicted)
        return seconds

    def _theirs(self, predicted: np.ndarray) -> None:
        self.errors[self.peer] = self.target = self.split.error(predicted)

    class _Reached(Exception):
        pass

    def ours(self) -> float:
        from vecsmith import ExplicitALS

        measuring = 0.0
        model = ExplicitALS(
            *(RATINGS_FACTORS, RATINGS_REGULARIZATION["vecsmith"]),
            iterations=2 * RATINGS_ITERATIONS,
            random_state=0,
            num_threads=self.threads,
            progress=False,
        )

        def look(*_: object) -> None:
            nonlocal measuring
            begun = time.perf_counter()
            self.errors["vecsmith"] = self.split.error(
                model.predict(self.split.users, self.split.items)
            )
            measuring += time.perf_counter() - begun
            if self.errors["vecsmith"] <= self.target:
                raise self._Reached

        started = time.perf_counter()
        with contextlib.suppress(self._Reached):
            model.fit(self.split.train, callback=look)
        return time.perf_counter() - started - measuring

    def check(self) -> list[Check]:
        if self.peer:
            self.theirs()
        self.ours()
        errors = ", ".join(f"{name} {error:.5f}" for name, error in self.errors.items())
        reached = self.errors["vecsmith"] <= self.target
        return [Check(f"held-out error: {errors}", bool(reached))]


def likes(name: str, matrix: Callable[[], sparse.csr_matrix], factors: int, threads: int) -> Group:
    problem = Likes(matrix(), factors, threads)
    peers = [peer for peer in ("cmfrec", "lenskit") if installed(peer)]
    bar = LIKES_BARS.get(name) if factors == 128 else None
    names = ["vecsmith", *peers]
    rows, columns = problem.matrix.shape
    return Group(
        name=f"als_likes_{name}_f{factors}",
        title=f"A fit of {ITERATIONS} iterations by Cholesky, {name}: {rows:,} x {columns:,}, "
        f"{problem.matrix.nnz:,} cells, {factors} factors, {threads} threads",
        unit="s",
        higher_is_better=False,
        entries={one: getattr(problem, one) for one in names},
        check=functools.partial(problem.check, names),
        ratios=[
            Ratio(f"{name} f={factors}: {peer} / vecsmith", "vecsmith", peer, bar) for peer in peers
        ],
        settings={"factors": factors, "confidence": CONFIDENCE, "threads": threads},
        work={
            one: work_of(
                problem.matrix,
                factors,
                "cholesky",
                OUR_ITERATIONS if one == "vecsmith" else ITERATIONS,
            )
            for one in names
        },
    )


def ratings(name: str, matrix: Callable[[], sparse.csr_matrix], peer: str, threads: int) -> Group:
    problem = Ratings(matrix(), peer, threads)
    entries: dict[str, Callable[[], float]] = {"vecsmith": problem.ours}
    ratios = []
    if peer:
        entries[peer] = problem.theirs
        what = f"{name} f={RATINGS_FACTORS}: {peer} / vecsmith, to its held-out error"
        ratios.append(Ratio(what, "vecsmith", peer, RATINGS_BAR if name == "ml-1m" else None))
    return Group(
        name=f"als_ratings_{name}_{peer or 'alone'}",
        title=f"Ratings, {name}: to the held-out error of {peer or 'none'} after "
        f"{RATINGS_ITERATIONS} iterations, {RATINGS_FACTORS} factors, {threads} threads",
        unit="s",
        higher_is_better=False,
        entries=entries,
        check=problem.check,
        ratios=ratios,
        settings={
            "factors": RATINGS_FACTORS,
            "regularization": str(RATINGS_REGULARIZATION),
            "threads": threads,
        },
    )


def ratings_against(
    name: str, matrix: Callable[[], sparse.csr_matrix], peer: str, threads: int
) -> Group:
    """As ``ratings``. Raises Skipped where the peer cannot take part."""
    if not installed(peer):
        raise Skipped(f"{peer} is missing: pip install {peer}")
    return ratings(name, matrix, peer, threads)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=3, corpus=False)
    options.add_argument("--data", nargs="+", default=[], metavar="NAME=FILE", help="your matrices")
    kinds = ["likes", "ratings"]
    options.add_argument("--groups", nargs="+", choices=kinds, default=kinds, help=" ")
    options.add_argument("--factors", nargs="+", type=int, default=[128], help=" ")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    # LensKit asks for them there, when it starts its own.
    os.environ.setdefault("LK_NUM_THREADS", str(given.threads))
    data: dict[str, Callable[[], sparse.csr_matrix]] = {s.name: s.matrix for s in SHAPES[:1]}
    data["made"] = made
    if given.data:
        named = (one.partition("=") for one in given.data)
        data = {name: functools.partial(read, Path(file)) for name, _, file in named}
    groups = []
    for name, matrix in data.items():
        if "likes" in given.groups:
            groups += [likes(name, matrix, factors, given.threads) for factors in given.factors]
        if "ratings" in given.groups and len(np.unique(matrix().data)) > 1:
            peers = [peer for peer in ("cmfrec", "lenskit") if installed(peer)]
            groups += [ratings(name, matrix, peer, given.threads) for peer in peers or [""]]
    return finish([run(group, given.rounds) for group in groups], given)


if __name__ == "__main__":
    sys.exit(main())
