"""Quality of recommendations by `ALS` and by implicit, over one grid of settings: Recall@20 and
NDCG@20 over the whole catalogue, of items that were held out.

    python -m bench.als_quality --data NAME=TRAIN,TEST ...    lines `user item item ...`

Both train by conjugate gradients at their defaults, 15 iterations, at each alpha and regularization
of the grid, and both are measured by the same code; the best of each measure counts. Beside the
grid, at the alpha that is best in it: more factors by blocks (iALS++), and regularization by
frequency, which implicit has not.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ._runner import finish, machine, parser, table
from .bench_als_solve import have_implicit

ALPHAS = (1.0, 10.0)
REGULARIZATIONS = (1.0, 10.0, 30.0, 100.0)
WEIGHTED = (0.03, 0.1, 0.3)  # times the number of a row's cells
ITERATIONS = 15
MEASURES = ("recall", "ndcg")


def matrices(*paths: Path) -> list[sparse.csr_matrix]:
    """Of files, over the users and items of all of them."""
    from vecsmith.data import Interactions

    def read(files: Path | list[Path]) -> Interactions:
        return Interactions.read(files, format="lists")

    together = read(list(paths))
    parts = [read(path).reindex(together.users, together.items) for path in paths]
    return [part.matrix.astype(np.float32) for part in parts]


def measured(model: Any, train: sparse.csr_matrix, test: sparse.csr_matrix) -> dict[str, float]:
    from vecsmith.eval import evaluate_ranking

    found = evaluate_ranking(model, train, test, k=20)
    return {f"{name}@20": 100 * float(found[f"{name}@20"]) for name in MEASURES}


class Quality:
    def __init__(self, train: sparse.csr_matrix, test: sparse.csr_matrix, threads: int) -> None:
        self.train, self.test, self.threads = train, test, threads

    def ours(self, factors: int, alpha: float, regularization: float, **more: Any) -> Any:
        from vecsmith import ALS

        return ALS(
            *(factors, regularization, alpha),
            iterations=ITERATIONS,
            random_state=0,
            num_threads=self.threads,
            progress=False,
            **more,
        ).fit(self.train)

    def implicit(self, factors: int, alpha: float, regularization: float) -> Any:
        import threadpoolctl
        from implicit.cpu.als import AlternatingLeastSquares

        with threadpoolctl.threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=factors,
                regularization=regularization,
                alpha=alpha,
                iterations=ITERATIONS,
                num_threads=self.threads,
                random_state=0,
            )
            model.fit(self.train, show_progress=False)
        return model

    def score(self, name: str, train: Any) -> dict[str, float]:
        started = time.perf_counter()
        model = train()
        trained = time.perf_counter()
        scores = measured(model, self.train, self.test)
        latest = "  ".join(f"{m} {value:.2f}" for m, value in scores.items())
        print(f"   {name:<44} {latest}  ({trained - started:.1f} s to train)", flush=True)
        return scores


def record(name: str, quality: Quality, factors: int, more: int) -> dict[str, object]:
    grid = list(itertools.product(ALPHAS, REGULARIZATIONS))
    programs = {"vecsmith": quality.ours}
    if have_implicit():
        programs["implicit"] = quality.implicit
    scores: dict[str, dict[str, dict[str, float]]] = {program: {} for program in programs}
    for (alpha, ridge), (program, train) in itertools.product(grid, programs.items()):
        point = f"alpha {alpha:g}, regularization {ridge:g}"

        def trained(train=train, alpha=alpha, ridge=ridge) -> Any:
            return train(factors, alpha, ridge)

        scores[program][point] = quality.score(f"{program}, {point}", trained)
    measures = [f"{m}@20" for m in MEASURES]
    best = {
        program: {m: max(points[p][m] for p in points) for m in measures}
        for program, points in scores.items()
    }
    points = scores["vecsmith"]
    alpha, ridge = grid[max(range(len(grid)), key=lambda n: list(points.values())[n]["ndcg@20"])]
    for many, method in ((factors, None), (more, "block")):
        point = f"{many} factors{' by blocks' if method else ''}"
        extra = {
            f"vecsmith, {point}, weighted {weight:g}": functools.partial(
                *(quality.ours, many, alpha, weight),
                method=method,
                weighted_regularization=True,
            )
            for weight in WEIGHTED
        }
        if method:
            what = f"vecsmith, {point}, regularization {ridge:g}"
            best[what] = quality.score(
                what, functools.partial(quality.ours, many, alpha, ridge, method=method)
            )
        found = {what: quality.score(what, train) for what, train in extra.items()}
        what = max(found, key=lambda what: found[what]["ndcg@20"])
        best[what] = found[what]
    rows = [["best of the grid", *measures]]
    rows += [[program, *(f"{value[m]:.2f}" for m in measures)] for program, value in best.items()]
    print(table(rows))
    differences = [
        {
            "what": f"{name}: {m}, points over implicit's best",
            "ours": "vecsmith",
            "other": "implicit",
            "points": best["vecsmith"][m] - best["implicit"][m],
            "bar": 0.0,
            "reached": best["vecsmith"][m] >= best["implicit"][m],
        }
        for m in measures
        if "implicit" in best
    ]
    return {
        "name": f"als_quality_{name}",
        "title": f"Recommendations, {name}: the best of {len(grid)} settings, {factors} factors",
        "unit": "points",
        "higher_is_better": True,
        "settings": {
            "factors": factors,
            "iterations": ITERATIONS,
            "alpha": " ".join(f"{a:g}" for a in ALPHAS),
            "regularization": " ".join(f"{r:g}" for r in REGULARIZATIONS),
            "the point of the others": f"alpha {alpha:g}, regularization {ridge:g}",
        },
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": 1,
        "agreement": [],
        "scores": {p: {m: {"mean": v[m], "samples": [v[m]]} for m in v} for p, v in best.items()},
        "grid": scores,
        "ratios": [],
        "differences": differences,
    }


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=1, corpus=False)
    options.add_argument("--data", nargs="+", required=True, metavar="NAME=TRAIN,TEST", help=" ")
    options.add_argument("--factors", type=int, default=128, help=" ")
    options.add_argument("--more-factors", type=int, default=512, help="of the one by blocks")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    records = []
    for one in given.data:
        name, _, files = one.partition("=")
        train, test = matrices(*(Path(file) for file in files.split(",")))
        print(f"== {name}")
        quality = Quality(train, test, given.threads)
        records.append(record(name, quality, given.factors, given.more_factors))
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
