"""How far predicted ratings are from those given, and what folds make of any measure."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecsmith.eval._ranking import _array, _matrix, evaluate_ranking


def rmse(predicted: Any, actual: Any) -> float:
    """The root of the mean of (predicted - actual)^2, in float64.

    Args:
        predicted, actual: numbers of one shape, finite.

    Raises:
        ValueError: shapes that differ, no numbers at all, and some that are masked or not finite.
        TypeError: what are no numbers.
    """
    return math.sqrt(float(np.mean(np.square(_differences(predicted, actual)))))


def mae(predicted: Any, actual: Any) -> float:
    """The mean of |predicted - actual|, in float64. Arguments and errors: as :func:`rmse`."""
    return float(np.mean(np.abs(_differences(predicted, actual))))


def evaluate_ratings(model: Any, test: Any, *, batch_size: int = 1 << 20) -> dict[str, float]:
    """RMSE and MAE of a model's predictions of all cells of the test.

    Args:
        model: has ``predict(userids, itemids)``, int64 [B] each, which returns [B] ratings.
        test: :class:`vecsmith.data.Interactions` or a scipy.sparse matrix [U, I]; stored zeros are
            ratings of 0.
        batch_size: cells at a time.

    Returns: {"rmse": ..., "mae": ...}.

    Raises: ValueError for a test without cells and predictions that are not finite or too few.
    """
    if operator.index(batch_size) < 1:
        raise ValueError(f"expected batch_size >= 1; got {batch_size}")
    matrix = _matrix(test, "test")
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    columns = matrix.indices.astype(np.int64)
    predicted = np.empty(len(rows))
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        ratings = _array(model.predict(rows[part], columns[part]), "predicted ratings")
        if ratings.shape != rows[part].shape:
            raise ValueError(
                f"expected predict to return ratings of shape {list(rows[part].shape)}; "
                f"got {list(ratings.shape)}"
            )
        predicted[part] = ratings
    return {"rmse": rmse(predicted, matrix.data), "mae": mae(predicted, matrix.data)}


@dataclass(frozen=True)
class CrossValidation:
    """The outcome of :func:`cross_validate`.

    Attributes:
        mean: the mean over the folds, by the measure's name.
        std: the sample standard deviation over the folds (n - 1 in the denominator).
        folds: what each fold gave.
    """

    mean: dict[str, float]
    std: dict[str, float]
    folds: list[dict[str, float]]

    def __str__(self) -> str:
        parts = [f"{name} {self.mean[name]:.4f} +- {self.std[name]:.4f}" for name in self.mean]
        return f"{', '.join(parts)} ({len(self.folds)} folds)"


def cross_validate(
    make_model: Callable[[], Any],
    interactions: Any,
    folds: int = 5,
    *,
    measure: str | Callable[[Any, Any, Any], Any] = "ranking",
    seed: int = 0,
) -> CrossValidation:
    """Fit and measure a new model on each fold of
    :meth:`vecsmith.data.Interactions.cross_validation`.

    Args:
        make_model: returns a new model, whose ``fit(user_items)`` takes a CSR matrix.
        interactions: :class:`vecsmith.data.Interactions`.
        folds: how many.
        measure: "ranking" (:func:`evaluate_ranking`, the first 20), "ratings"
            (:func:`evaluate_ratings`), or a function of (model, train, test), the last two
            Interactions, that returns a number or a mapping from names to numbers.
        seed: of the folds.

    Returns: means and standard deviations by name; a bare number has the name "measure".

    Raises:
        ValueError: fewer than two folds, another word for measure, and a measure that names other
            things in other folds.
    """
    if isinstance(measure, str) and measure not in ("ranking", "ratings"):
        raise ValueError(f"expected measure 'ranking', 'ratings' or a function; got {measure!r}")
    outcomes: list[dict[str, float]] = []
    for train, test in interactions.cross_validation(folds, seed=seed):
        model = make_model()
        model.fit(train.matrix)
        if measure == "ranking":
            found: Any = evaluate_ranking(model, train, test)
        elif isinstance(measure, str):
            found = evaluate_ratings(model, test)
        else:
            found = measure(model, train, test)
        named = found if isinstance(found, Mapping) else {"measure": found}
        outcomes.append({str(name): float(value) for name, value in named.items()})
        if outcomes[-1].keys() != outcomes[0].keys():
            raise ValueError(
                f"expected the same measures in every fold; got {sorted(outcomes[0])} and "
                f"{sorted(outcomes[-1])}"
            )
    columns = {name: np.array([fold[name] for fold in outcomes]) for name in outcomes[0]}
    return CrossValidation(
        {name: float(column.mean()) for name, column in columns.items()},
        {name: float(column.std(ddof=1)) for name, column in columns.items()},
        outcomes,
    )


def _differences(predicted: Any, actual: Any) -> np.ndarray:
    given = {"predicted": predicted, "actual": actual}
    both = [_numbers(values, f"{name} ratings") for name, values in given.items()]
    if both[0].shape != both[1].shape:
        raise ValueError(
            f"expected as many predicted ratings as actual ones; got {list(both[0].shape)} and "
            f"{list(both[1].shape)}"
        )
    if not both[0].size:
        raise ValueError("expected at least one rating; got none")
    for name, values in zip(("predicted", "actual"), both, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(
                f"expected {name} ratings that are finite; got {values[~np.isfinite(values)][0]}"
            )
    return both[0] - both[1]


def _numbers(values: Any, what: str) -> np.ndarray:
    """As float64."""
    array = _array(values, what)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    if array.dtype.kind == "O":  # Decimal, Fraction; None is nan
        with contextlib.suppress(TypeError, ValueError):
            return array.astype(np.float64)
    raise TypeError(f"expected {what} that are numbers; got {array.dtype}")
