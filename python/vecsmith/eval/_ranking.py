"""How good lists of recommended items are, over the full catalogue."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

NAMES = ("recall", "precision", "ndcg", "map", "mrr", "hit_rate", "coverage")
_CAPPED = ("map", "ndcg")
_MOST_EXPONENTIAL = 900  # a sum of some is still finite in float64
# What implicit gives items that it has filtered out, and fills short lists with.
_NOT_RECOMMENDED = float(np.finfo(np.float32).min)


@dataclass(frozen=True, eq=False)
class RankingMeasures(Mapping[str, float]):
    """The outcome of :func:`ranking_measures`: a mapping from "recall@20" and so on to the means.

    Attributes:
        means: the means over users (coverage: over the catalogue), by "name@k".
        users: int64 [n], the users that have test items: those that were counted.
        per_user: float64 [n] by "name@k", where that was asked for (without coverage); else empty.
    """

    means: dict[str, float]
    users: np.ndarray
    per_user: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.means[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.means)

    def __len__(self) -> int:
        return len(self.means)

    def __repr__(self) -> str:
        return f"RankingMeasures({self})"

    def __str__(self) -> str:
        means = ", ".join(f"{name} {mean:.4f}" for name, mean in self.means.items())
        return f"{means} ({len(self.users)} users)"


@dataclass(frozen=True)
class _Relevant:
    """The test items of U users: of user u ``items[indptr[u]:indptr[u + 1]]``, sorted, each once,
    with their ratings. ``num_items`` is None where nobody knows."""

    indptr: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    num_items: int | None


def ranking_measures(
    recommended: Any,
    test: Any,
    k: int | Sequence[int] = 20,
    *,
    gains: str | None = None,
    capped: Collection[str] = _CAPPED,
    num_items: int | None = None,
    per_user: bool = False,
) -> RankingMeasures:
    """Recall, precision, NDCG, MAP, MRR, hit rate and coverage of the first k recommended items.

    With n the number of a user's test items, r_i = 1 if the i-th recommended item is one of them
    and else 0, and m = min(k, n):

        recall@k    = sum_i<=k r_i / n
        precision@k = sum_i<=k r_i / k
        ndcg@k      = sum_i<=k r_i / log2(i + 1)  /  sum_i<=m 1 / log2(i + 1)
        map@k       = sum_i<=k r_i (sum_j<=i r_j / i)  /  m
        mrr@k       = 1 / (the least i <= k with r_i = 1), or 0
        hit_rate@k  = 1 if any r_i with i <= k is 1, or 0
        coverage@k  = the share of the catalogue that is in some user's first k

    Means are over the users with test items. These are the definitions of LightGCN's and RecBole's
    code; NDCG and MAP are those of implicit, too (its "precision" is another thing: all hits over
    the sum of m). NDCG is Järvelin and Kekäläinen's (2002, doi:10.1145/582415.582418), the others
    are of Manning, Raghavan and Schütze, "Introduction to Information Retrieval" (2008), chapter 8.

    Where definitions differ is whether the best that a list of k can reach is the measure of n > k
    items: ``capped`` names the measures that divide by what m items give, the others divide by what
    n do. ("recall", "map", "ndcg") is recall as of Liang et al. (2018, arXiv:1802.05814); () is the
    average precision of the book, and NDCG with the ideal of the whole list.

    Args:
        recommended: integers [U, K], row u the items for user u, best first; -1 is no item.
        test: the items that users took: a scipy.sparse matrix [U, I] (every stored cell counts),
            :class:`vecsmith.data.Interactions`, or a sequence of U sequences of items.
        k: one cut or several, each at most K.
        gains: None: r_i as above. For NDCG "linear" puts the item's rating in the place of 1, and
            "exponential" 2^rating - 1 (Burges et al. 2005, doi:10.1145/1102351.1102363); the ideal
            list has the best-rated items first.
        capped: some of "recall", "map", "ndcg".
        num_items: the size of the catalogue where ``test`` is no matrix; without it there is no
            coverage.
        per_user: keep the values of every user, too.

    Returns: a mapping from "recall@20" and so on to means.

    Raises:
        ValueError: shapes that do not go together; a list that holds an item twice; no user with
            test items; ratings below 0 with ``gains``.
        IndexError: an item beyond the catalogue.
        TypeError: items that are no integers.
    """
    cuts = _cuts(k)
    if gains not in (None, "linear", "exponential"):
        raise ValueError(f"expected gains None, 'linear' or 'exponential'; got {gains!r}")
    if isinstance(capped, str) or set(capped) - {"recall", "map", "ndcg"}:
        raise ValueError(f"expected capped among ('recall', 'map', 'ndcg'); got {capped!r}")
    relevant = _relevant(test, num_items)
    table = _table(recommended, cuts[-1])
    if len(table) != len(relevant.indptr) - 1:
        raise ValueError(
            f"expected recommended of shape [{len(relevant.indptr) - 1}, K], a row for each user "
            f"of the test; got {list(table.shape)}"
        )
    lengths = np.diff(relevant.indptr)
    users = np.flatnonzero(lengths > 0)
    if not len(users):
        raise ValueError("expected users with test items; got none")
    table, lengths = table[users, : cuts[-1]], lengths[users]
    _refuse_items(table, users, relevant.num_items)
    places = _places(relevant, users, table)  # [n, K]
    hits = places >= 0

    ranks = np.arange(1, cuts[-1] + 1)
    discounts = 1 / np.log2(ranks + 1)
    found = np.cumsum(hits, axis=1)  # [n, K]
    precisions = np.cumsum(hits * found / ranks, axis=1)
    if gains is None:
        gained = np.cumsum(hits * discounts, axis=1)
        # One more column: the ideal of all of a user's items.
        ideals = np.cumsum(1 / np.log2(np.arange(2, max(cuts[-1], lengths.max()) + 2)))
    else:
        gain = _gains(relevant, gains)
        gained = np.cumsum(np.where(hits, gain[places], 0) * discounts, axis=1)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, np.inf)

    values: dict[str, np.ndarray] = {}
    means: dict[str, float] = {}
    for cut in cuts:
        reachable = np.minimum(cut, lengths)
        right = found[:, cut - 1]
        best = reachable if "ndcg" in capped else lengths
        ideal = ideals[best - 1] if gains is None else _ideal(relevant, users, gain, best)
        of_cut = {
            "recall": right / (reachable if "recall" in capped else lengths),
            "precision": right / cut,
            "ndcg": np.divide(gained[:, cut - 1], ideal, out=np.zeros(len(users)), where=ideal > 0),
            "map": precisions[:, cut - 1] / (reachable if "map" in capped else lengths),
            "mrr": np.where(first <= cut, 1 / first, 0.0),
            "hit_rate": (right > 0).astype(np.float64),
        }
        values.update({f"{name}@{cut}": array for name, array in of_cut.items()})
        means.update({f"{name}@{cut}": float(array.mean()) for name, array in of_cut.items()})
        if relevant.num_items is not None:
            shown = table[:, :cut]
            means[f"coverage@{cut}"] = len(np.unique(shown[shown >= 0])) / relevant.num_items
    return RankingMeasures(means, users, values if per_user else {})


def evaluate_ranking(
    model: Any,
    train: Any,
    test: Any,
    k: int | Sequence[int] = 20,
    *,
    batch_size: int = 1024,
    filter_already_liked_items: bool = True,
    gains: str | None = None,
    capped: Collection[str] = _CAPPED,
    per_user: bool = False,
) -> RankingMeasures:
    """:func:`ranking_measures` of what a model recommends to the users with test items, out of all
    items (no sample of negatives, which ranks models otherwise: Krichene and Rendle 2020,
    doi:10.1145/3394486.3403226).

    Args:
        model: has implicit's ``recommend(userids, user_items, N=..., filter_already_liked_items=
            ...)``, which returns (items, scores), each [B, N], best first. Items with a score of
            -inf or the least float32 are none (that is how short lists are filled up).
        train, test: :class:`vecsmith.data.Interactions` or scipy.sparse matrices [U, I], of the
            same users and items.
        k: one cut or several; a catalogue of fewer items gives shorter lists.
        batch_size: users at a time.
        filter_already_liked_items: leave out each user's items of the training. A test item that is
            one of them is then a miss.
        gains, capped, per_user: as of :func:`ranking_measures`.

    Raises: ValueError for shapes that do not go together, scores that are nan, and as
        :func:`ranking_measures`.
    """
    cuts = _cuts(k)
    if operator.index(batch_size) < 1:
        raise ValueError(f"expected batch_size >= 1; got {batch_size}")
    seen, held = _matrix(train, "train"), _matrix(test, "test")
    if seen.shape != held.shape:
        raise ValueError(
            f"expected train and test of one shape; got {list(seen.shape)} and {list(held.shape)} "
            "(Interactions.reindex gives the one the keys of the other)"
        )
    users = np.flatnonzero(np.diff(held.indptr) > 0)
    table = np.full((len(users), cuts[-1]), -1, np.int64)
    number = min(cuts[-1], held.shape[1])
    for start in range(0, len(users), batch_size):
        batch = users[start : start + batch_size]
        items, scores = model.recommend(
            batch,
            seen[batch],
            N=number,
            filter_already_liked_items=filter_already_liked_items,
        )
        items, scores = _array(items, "recommended items"), _array(scores, "scores")
        if items.ndim != 2 or len(items) != len(batch) or items.shape[1] > number:
            raise ValueError(
                f"expected recommend to return items of shape [{len(batch)}, {number}]; "
                f"got {list(items.shape)}"
            )
        if scores.shape != items.shape:
            raise ValueError(
                f"expected recommend to return scores of shape {list(items.shape)}; "
                f"got {list(scores.shape)}"
            )
        if np.isnan(scores).any():
            user = int(batch[np.isnan(scores).any(axis=1)][0])
            raise ValueError(f"expected scores that are numbers; got nan for user {user}")
        table[start : start + len(batch), : items.shape[1]] = np.where(
            scores > _NOT_RECOMMENDED, items, -1
        )
    measures = ranking_measures(
        table, held[users], cuts, gains=gains, capped=capped, per_user=per_user
    )
    return RankingMeasures(measures.means, users, measures.per_user)


# --- arguments ------------------------------------------------------------------------------------


def _cuts(k: Any) -> list[int]:
    given = [k] if isinstance(k, (int, np.integer)) else list(k)
    cuts = sorted({operator.index(cut) for cut in given})
    if not cuts or cuts[0] < 1:
        raise ValueError(f"expected k >= 1, one or several; got {k}")
    return cuts


def _array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise ValueError(f"expected {what} that are not masked; got some that are")
    return np.asarray(values)


def _table(recommended: Any, longest: int) -> np.ndarray:
    try:
        table = _array(recommended, "recommended items")
    except ValueError:
        raise ValueError(
            "expected recommended of shape [U, K]; got rows of different lengths (-1 is no item)"
        ) from None
    if table.ndim != 2 or table.shape[1] < longest:
        raise ValueError(
            f"expected recommended of shape [U, K] with K >= k = {longest}; got {list(table.shape)}"
        )
    if table.dtype.kind not in "iu":
        raise TypeError(f"expected recommended items that are integers; got {table.dtype}")
    return table.astype(np.int64)


def _matrix(interactions: Any, name: str) -> Any:
    """As a CSR matrix."""
    matrix = getattr(interactions, "matrix", interactions)
    if not hasattr(matrix, "tocsr") or len(matrix.shape) != 2:
        raise TypeError(
            f"expected {name} to be Interactions or a scipy.sparse matrix; "
            f"got {type(interactions).__name__}"
        )
    return matrix.tocsr()


def _relevant(test: Any, num_items: int | None) -> _Relevant:
    if hasattr(getattr(test, "matrix", test), "tocsr"):
        matrix = _matrix(test, "test")
        lengths, items, ratings = np.diff(matrix.indptr), matrix.indices, matrix.data
        size = matrix.shape[1] if num_items is None else num_items
        if size < matrix.shape[1]:
            raise ValueError(f"expected num_items >= {matrix.shape[1]}, the columns; got {size}")
        num_items = size
    else:
        rows = [_items_of(row) for row in test]
        lengths = np.array([len(row) for row in rows], np.int64)
        items = np.concatenate(rows) if rows else np.empty(0, np.int64)
        ratings = np.ones(len(items))
        if len(items) and (items.min() < 0 or items.max() >= (num_items or np.inf)):
            limit = "" if num_items is None else f" and below {num_items}"
            wrong = items.min() if items.min() < 0 else items.max()
            raise IndexError(f"expected test items of at least 0{limit}; got {wrong}")
    items, ratings = items.astype(np.int64), ratings.astype(np.float64)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((items, owners))
    owners, items, ratings = owners[order], items[order], ratings[order]
    twice = (owners[1:] == owners[:-1]) & (items[1:] == items[:-1])
    if twice.any():
        at = int(np.flatnonzero(twice)[0])
        raise ValueError(
            f"expected each test item of a user once; got item {items[at]} of user {owners[at]} "
            "more than once"
        )
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return _Relevant(indptr, items, ratings, num_items)


def _items_of(row: Any) -> np.ndarray:
    items = np.asarray(list(row) if isinstance(row, (set, frozenset)) else row)
    if items.size == 0:
        return np.empty(0, np.int64)
    if items.ndim != 1 or items.dtype.kind not in "iu":
        raise TypeError(
            f"expected the test items of a user to be a sequence of integers; got {row!r:.60}"
        )
    return items.astype(np.int64)


def _refuse_items(table: np.ndarray, users: np.ndarray, num_items: int | None) -> None:
    """table: [n, K], the items recommended to the users [n]."""
    bad = table < -1
    if num_items is not None:
        bad |= table >= num_items
    if bad.any():
        limit = "" if num_items is None else f" below {num_items}"
        raise IndexError(
            f"expected recommended items{limit}, or -1; got {table[bad][0]} for user "
            f"{users[bad.any(axis=1)][0]}"
        )
    ordered = np.sort(table, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        user = users[twice.any(axis=1)][0]
        raise ValueError(
            f"expected each item once in a list; got item {ordered[:, 1:][twice][0]} twice for "
            f"user {user}"
        )


# --- what was found -------------------------------------------------------------------------------


def _places(relevant: _Relevant, users: np.ndarray, table: np.ndarray) -> np.ndarray:
    """int64 [n, K]: where each recommended item is among all test items; -1 where it is none of its
    user's."""
    size = np.int64(max(relevant.items.max(), table.max()) + 1)
    owners = np.repeat(np.arange(len(relevant.indptr) - 1), np.diff(relevant.indptr))
    there = owners * size + relevant.items  # sorted
    asked = users[:, None] * size + table
    places = np.minimum(np.searchsorted(there, asked), len(there) - 1)
    return np.where((there[places] == asked) & (table >= 0), places, -1)


def _gains(relevant: _Relevant, gains: str) -> np.ndarray:
    """float64: the gain of each test item."""
    if (relevant.ratings < 0).any() or not np.isfinite(relevant.ratings).all():
        wrong = relevant.ratings[~(relevant.ratings >= 0) | np.isinf(relevant.ratings)][0]
        raise ValueError(f"expected ratings that are finite and at least 0; got {wrong}")
    if gains == "exponential" and relevant.ratings.max() > _MOST_EXPONENTIAL:
        raise ValueError(
            f"expected ratings of at most {_MOST_EXPONENTIAL} for gains of 2^rating - 1; "
            f"got {relevant.ratings.max()}"
        )
    return relevant.ratings if gains == "linear" else np.exp2(relevant.ratings) - 1


def _ideal(
    relevant: _Relevant, users: np.ndarray, gain: np.ndarray, best: np.ndarray
) -> np.ndarray:
    """float64 [n]: sum_i<=b gain_i / log2(i + 1) of each user's b = best [n] greatest gains."""
    owners = np.repeat(np.arange(len(relevant.indptr) - 1), np.diff(relevant.indptr))
    order = np.lexsort((-gain, owners))
    ranks = np.arange(len(owners)) - relevant.indptr[owners]
    counted = np.zeros(len(relevant.indptr) - 1, np.int64)
    counted[users] = best
    parts = np.where(ranks < counted[owners], gain[order] / np.log2(ranks + 2), 0)
    return np.bincount(owners, parts, minlength=len(counted))[users]
