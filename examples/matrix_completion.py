"""Ratings that nobody gave: a table with unknown cells, completed by a few numbers for each row and
column.

    python examples/matrix_completion.py                    # made-up ratings
    python examples/matrix_completion.py ratings.dat        # yours: MovieLens, a CSV, Parquet, ...

First the textbook's table of four people and five films, at rank 2, with factors of any sign and
with factors of at least 0: the known cells come back, the unknown ones get a number, and the people
fall into two tastes. Then many ratings: a tenth of each user's is held out, and predicted by the
mean of the others, by alternating least squares and by gradient descent. Another tenth says when to
stop. Beside each model stands how many numbers it has learned.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import vecsmith
from vecsmith.data import Interactions
from vecsmith.eval import evaluate_ratings, rmse

UNKNOWN = float("nan")
TABLE = np.array(
    [
        [5, 4, UNKNOWN, 1, UNKNOWN],
        [UNKNOWN, 5, 5, UNKNOWN, 2],
        [1, UNKNOWN, 2, 5, 5],
        [UNKNOWN, 1, 1, 4, 5],
    ]
)


def complete(table: np.ndarray, rank: int, nonnegative: bool) -> vecsmith.ExplicitALS:
    """A model of the known cells, without biases."""
    model = vecsmith.ExplicitALS(
        *(rank, 0.005),
        biases=False,
        nonnegative=nonnegative,
        iterations=200,
        random_state=0,
        progress=False,
    )
    return model.fit(Interactions.from_scipy(table, missing=UNKNOWN))


def tastes(model: vecsmith.ExplicitALS) -> np.ndarray:
    """0 or 1 for each user: on whose side he is, the first user's or that of the user least like
    him. Only angles count: any turn of the factors predicts the same."""
    x = model.user_factors
    assert x is not None
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    ends = x[[0, int((x @ x[0]).argmin())]]
    return (x @ ends.T).argmax(axis=1)


def show_table(nonnegative: bool) -> None:
    """The completed table, what is in its factors, and how many numbers they are."""
    model = complete(TABLE, 2, nonnegative)
    found, known = model.predict_all(), ~np.isnan(TABLE)
    print(f"\nrank 2, factors {'of at least 0' if nonnegative else 'of any sign'}:")
    for row, given in zip(found, TABLE, strict=True):
        cells = (
            f"{x:5.1f}{'   ' if np.isnan(g) else f' ({g:.0f})':4}"
            for x, g in zip(row, given, strict=True)
        )
        print("  " + " ".join(cells).rstrip())
    print(f"  known cells (in brackets) are met within {abs(found - TABLE)[known].max():.2f}")
    print(f"  tastes of the four people: {tastes(model).tolist()}")
    print(
        f"  {model.n_parameters} numbers, 2 for each of 4 people and 5 films; "
        f"{known.sum()} of the {TABLE.size} cells are known"
    )
    if nonnegative:
        print(
            f"  the people's: {np.array2string(model.user_factors, precision=1)}".replace("\n", "")
        )


def made_up(users: int = 600, items: int = 300, seed: int = 0) -> Interactions:
    """Ratings 1 .. 5 of three tastes, a mean, biases and noise."""
    draw = np.random.default_rng(seed)
    p, q = draw.normal(0, 0.6, (users, 3)), draw.normal(0, 0.9, (items, 3))
    values = 3.5 + draw.normal(0, 0.4, (users, 1)) + draw.normal(0, 0.4, items) + p @ q.T
    values = np.clip(np.rint(values + draw.normal(0, 0.4, values.shape)), 1, 5)
    at, to = (draw.random(values.shape) < 0.2).nonzero()
    return Interactions.from_arrays(at, to, values[at, to])


def show_ratings(ratings: Interactions, factors: int, epochs: int) -> dict[str, float]:
    """Prints, and returns, {model: the RMSE of the ratings that were held out}."""
    train, test = ratings.split_ratio(0.1, seed=0)
    train, watched = train.split_ratio(0.1, seed=1)
    (users, items), cells = ratings.shape, len(ratings)
    print(
        f"\n{cells:,} ratings of {users:,} users and {items:,} items: "
        f"{cells / (users * items):.1%} of {users * items:,} cells; {len(test):,} are predicted"
    )
    print(f"{'':<18}{'numbers':>12}{'RMSE':>9}{'seconds':>9}")
    mean = float(train.matrix.data.mean())
    errors = {"mean": rmse(np.full(len(test), mean), test.matrix.data)}
    print(f"{'mean':<18}{1:12,}{errors['mean']:9.4f}")
    options = {"clip": True, "random_state": 0, "progress": False}
    for name, model in (
        ("least squares", vecsmith.ExplicitALS(factors, iterations=epochs, **options)),
        ("gradient descent", vecsmith.MatrixFactorizationSGD(factors, epochs=epochs, **options)),
    ):
        started = time.perf_counter()
        model.fit(train, validation=watched)
        seconds = time.perf_counter() - started
        errors[name] = evaluate_ratings(model, test)["rmse"]
        print(f"{name:<18}{model.n_parameters:12,}{errors[name]:9.4f}{seconds:9.1f}")
    ids, _ = model.recommend(0, ratings.matrix[0], N=5)
    ids = ids[ids >= 0]
    stars = model.predict(0, ids)
    best = ", ".join(f"{ratings.items[i]} ({x:.2f})" for i, x in zip(ids, stars, strict=True))
    print(f"the greatest of the cells that user {ratings.users[0]} has not filled: {best}")
    return errors


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ratings", type=Path, nargs="?", help="a file of users, items and ratings")
    parser.add_argument("--factors", type=int, default=32, help="of many ratings [32]")
    parser.add_argument("--epochs", type=int, default=30, help="at most so many [30]")
    options = parser.parse_args(arguments)
    try:
        ratings = made_up() if options.ratings is None else Interactions.read(options.ratings)
        for nonnegative in (False, True):
            show_table(nonnegative)
        show_ratings(ratings, options.factors, options.epochs)
    except (OSError, ValueError) as error:
        print(f"matrix_completion.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
