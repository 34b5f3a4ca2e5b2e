"""Measures of recommended items and of predicted ratings, against plain Python, by hand, and on
what they refuse."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from vecsmith import eval as measures
from vecsmith.data import Interactions

ROOT = Path(__file__).resolve().parent.parent


def plain(recommended, test, k, gains=None, capped=("map", "ndcg")):
    """The means by loops over users and ranks; test: dicts from item to rating."""
    of_user = {}
    for items, liked in zip(recommended, test, strict=True):
        if not liked:
            continue
        n, m = len(liked), min(k, len(liked))
        hits = [item in liked for item in items[:k]]
        gain = {None: lambda r: 1.0, "linear": float, "exponential": lambda r: 2.0**r - 1}[gains]
        dcg = sum(gain(liked[i]) / math.log2(r + 2) for r, i in enumerate(items[:k]) if hits[r])
        best = sorted(map(gain, liked.values()), reverse=True)[: m if "ndcg" in capped else n]
        ideal = sum(value / math.log2(r + 2) for r, value in enumerate(best))
        precisions = sum(sum(hits[: r + 1]) / (r + 1) for r in range(len(hits)) if hits[r])
        row = {
            "recall": sum(hits) / (m if "recall" in capped else n),
            "precision": sum(hits) / k,
            "ndcg": dcg / ideal if ideal else 0.0,
            "map": precisions / (m if "map" in capped else n),
            "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
            "hit_rate": float(any(hits)),
        }
        for name, value in row.items():
            of_user.setdefault(f"{name}@{k}", []).append(value)
    return {name: sum(values) / len(values) for name, values in of_user.items()}


@st.composite
def problems(draw):
    num_items = draw(st.integers(1, 12))
    number = draw(st.integers(1, 5))
    width = draw(st.integers(1, num_items + 2))
    items = st.integers(0, num_items - 1)
    recommended = []
    for _ in range(number):
        order = draw(st.permutations(range(num_items)))[:width]
        order += [-1] * (width - len(order))
        for at in draw(st.sets(st.integers(0, width - 1), max_size=2)):
            order[at] = -1
        recommended.append(order)
    test = [draw(st.dictionaries(items, st.integers(0, 5), max_size=6)) for _ in range(number)]
    test[draw(st.integers(0, number - 1))][draw(items)] = 3
    return num_items, recommended, test


def as_csr(test, num_items, dtype=np.float32):
    rows = [u for u, liked in enumerate(test) for _ in liked]
    columns = [item for liked in test for item in liked]
    ratings = np.array([r for liked in test for r in liked.values()], dtype)
    indptr = np.concatenate([[0], np.cumsum([len(liked) for liked in test])])
    assert len(rows) == len(ratings)
    return sparse.csr_matrix((ratings, columns, indptr), shape=(len(test), num_items))


@given(problems(), st.sampled_from([None, "linear", "exponential"]), st.data())
@settings(deadline=None, max_examples=150)
def test_measures_are_those_of_plain_python(problem, gains, data):
    num_items, recommended, test = problem
    cuts = sorted(data.draw(st.sets(st.integers(1, len(recommended[0])), min_size=1, max_size=3)))
    capped = tuple(data.draw(st.sets(st.sampled_from(["recall", "map", "ndcg"]))))
    found = measures.ranking_measures(
        np.array(recommended),
        as_csr(test, num_items),
        cuts,
        gains=gains,
        capped=capped,
        per_user=True,
    )
    counted = [u for u, liked in enumerate(test) if liked]
    assert found.users.tolist() == counted
    for k in cuts:
        expected = plain(recommended, test, k, gains, capped)
        shown = {i for u in counted for i in recommended[u][:k] if i >= 0}
        expected[f"coverage@{k}"] = len(shown) / num_items
        assert {n: v for n, v in found.items() if n.endswith(f"@{k}")} == pytest.approx(expected)
        for name in expected.keys() - {f"coverage@{k}"}:
            assert found.per_user[name].shape == (len(counted),)
            assert found.per_user[name].mean() == pytest.approx(expected[name])


def test_measures_by_hand():
    # User 0 took 1, 4 and 7; of her list, 1 and 7 stand at 1 and 3. User 1 took nothing. User 2
    # took 2, which is not in his list.
    recommended = [[1, 3, 7, 0], [0, 1, 2, 3], [5, 6, -1, -1]]
    found = measures.ranking_measures(recommended, [[7, 1, 4], [], {2}], (1, 4), num_items=10)
    dcg, ideal = 1 + 1 / math.log2(4), 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert dict(found) == pytest.approx(
        {
            "recall@1": (1 / 3) / 2,
            "precision@1": 1 / 2,
            "ndcg@1": 1 / 2,
            "map@1": 1 / 2,
            "mrr@1": 1 / 2,
            "hit_rate@1": 1 / 2,
            "coverage@1": 2 / 10,
            "recall@4": (2 / 3) / 2,
            "precision@4": (2 / 4) / 2,
            "ndcg@4": dcg / ideal / 2,
            "map@4": (1 + 2 / 3) / 3 / 2,
            "mrr@4": 1 / 2,
            "hit_rate@4": 1 / 2,
            "coverage@4": 6 / 10,
        }
    )
    assert found.users.tolist() == [0, 2]
    assert not found.per_user
    assert str(found).startswith("recall@1 0.1667, precision@1 0.5000")
    assert str(found).endswith("(2 users)")
    assert len(found) == 14
    without = measures.ranking_measures(recommended, [[7, 1, 4], [], [2]], 4)
    assert "coverage@4" not in without
    assert without["recall@4"] == found["recall@4"]


def test_lists_matrices_and_tensors_are_the_same():
    generator = np.random.default_rng(0)
    dense = generator.random((9, 15)) < 0.3
    dense[0] = False
    table = np.array([generator.permutation(15)[:6] for _ in range(9)])
    test = sparse.csr_matrix(dense)
    expected = dict(measures.ranking_measures(table, test, 6))
    lists = [np.flatnonzero(row) for row in dense]
    unsorted = test.copy()
    for u in range(9):
        part = slice(*unsorted.indptr[u : u + 2])
        unsorted.indices[part] = unsorted.indices[part][::-1]
    for given_table, given_test, size in [
        (torch.from_numpy(table), test.tocoo(), None),
        (table.astype(np.int32)[::-1][::-1], test.tocsc(), 15),
        (np.asfortranarray(table), lists, 15),
        (table.tolist(), unsorted, None),
        (table.astype(np.uint8), Interactions.from_scipy(test), None),
    ]:
        found = measures.ranking_measures(given_table, given_test, 6, num_items=size)
        assert dict(found) == expected
    wider = measures.ranking_measures(table, test, 6, num_items=30)
    assert wider["coverage@6"] == expected["coverage@6"] / 2


@pytest.mark.parametrize(
    ("recommended", "test", "options", "error", "words"),
    [
        ([[0, 0]], [[1]], {}, ValueError, "item 0 twice for user 0"),
        ([[0, -2]], [[1]], {}, IndexError, "got -2 for user 0"),
        ([[0, 5]], [[1]], {"num_items": 5}, IndexError, "below 5, or -1; got 5 for user 0"),
        ([[0, 1]], [[9]], {"num_items": 5}, IndexError, "below 5; got 9"),
        ([[0, 1]], [[-1]], {}, IndexError, "at least 0; got -1"),
        ([[0, 1]], [[1, 1]], {}, ValueError, "item 1 of user 0 more than once"),
        ([[0, 1]], [[]], {}, ValueError, "users with test items; got none"),
        ([[0, 1]], [], {}, ValueError, r"shape \[0, K\]"),
        ([[0, 1]], [[1], [1]], {}, ValueError, r"shape \[2, K\].* got \[1, 2\]"),
        ([[0, 1], [1]], [[1], [1]], {}, ValueError, "different lengths"),
        ([0, 1], [[1], [1]], {}, ValueError, r"got \[2\]"),
        ([[0, 1]], [[1]], {"k": 3}, ValueError, "K >= k = 3"),
        ([[0, 1]], [[1]], {"k": 0}, ValueError, "k >= 1"),
        ([[0, 1]], [[1]], {"k": ()}, ValueError, "k >= 1"),
        ([[0, 1]], [[1]], {"k": 1.5}, TypeError, "float"),
        ([[0.0, 1]], [[1]], {}, TypeError, "integers; got float64"),
        ([[0, 1]], [[1.5]], {}, TypeError, "sequence of integers"),
        ([[0, 1]], [["a"]], {}, TypeError, "sequence of integers"),
        ([[0, 1]], [[1]], {"gains": "log"}, ValueError, "gains None, 'linear'"),
        ([[0, 1]], [[1]], {"capped": "recall"}, ValueError, "capped among"),
        ([[0, 1]], [[1]], {"capped": ["mrr"]}, ValueError, "capped among"),
        ([[0, 1]], sparse.eye(1, 4), {"num_items": 3}, ValueError, "num_items >= 4"),
        ([[0, 1]], -sparse.eye(1, 4), {"gains": "linear"}, ValueError, "at least 0; got -1"),
        ([[0, 1]], 1e4 * sparse.eye(1, 4), {"gains": "exponential"}, ValueError, "at most 900"),
        ([[0, 1]], np.nan * sparse.eye(1, 4), {"gains": "linear"}, ValueError, "got nan"),
    ],
)
def test_ranking_measures_refuse(recommended, test, options, error, words):
    with pytest.raises(error, match=words):
        measures.ranking_measures(recommended, test, **{"k": 2, **options})


class Scores:
    """A model with a score for each user and item, that speaks like implicit's."""

    def __init__(self, scores, filler=-np.inf):
        self.scores, self.filler, self.batches = scores, filler, []

    def recommend(self, userids, user_items, N=10, filter_already_liked_items=True):
        assert user_items.shape == (len(userids), self.scores.shape[1])
        self.batches.append(len(userids))
        scores = self.scores[userids].copy()
        if filter_already_liked_items:
            scores[user_items.toarray() != 0] = self.filler
        items = np.argsort(-scores, axis=1, kind="stable")[:, :N]
        return items, np.take_along_axis(scores, items, axis=1)

    def fit(self, user_items):
        self.scores = self.scores + user_items.sum(axis=0)
        return self

    def predict(self, userids, itemids):
        return torch.from_numpy(np.asarray(self.scores))[userids, itemids]


def ratings(seed=0, shape=(23, 17), density=0.4):
    generator = np.random.default_rng(seed)
    matrix = generator.integers(1, 6, shape) * (generator.random(shape) < density)
    return Interactions.from_scipy(matrix)


@pytest.mark.parametrize("filler", [-np.inf, np.finfo(np.float32).min])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_full_catalogue_in_batches(filler, batch_size):
    train, test = ratings().split_ratio(0.4, seed=1)
    model = Scores(np.random.default_rng(2).random((23, 17)), filler)
    found = measures.evaluate_ranking(
        model, train, test, (3, 30), batch_size=batch_size, per_user=True
    )
    scores = np.where(train.matrix.toarray() != 0, -np.inf, model.scores)
    lists = [
        [item for item in np.argsort(-row, kind="stable").tolist() if row[item] > -np.inf]
        for row in scores
    ]
    liked = [dict.fromkeys(test.matrix[u].indices.tolist(), 1) for u in range(23)]
    for k in (3, 30):
        expected = plain(lists, liked, k)
        assert {n: found[n] for n in expected} == pytest.approx(expected)
    assert found.users.tolist() == [u for u in range(23) if liked[u]]
    assert found.per_user["recall@3"].shape == found.users.shape
    assert sum(model.batches) == len(found.users)
    assert max(model.batches) <= batch_size


def test_items_of_the_training_may_stay():
    train, test = ratings().split_ratio(0.4)
    model = Scores(train.matrix.toarray() + 0.0)
    kept = measures.evaluate_ranking(model, train, test, 5, filter_already_liked_items=False)
    left_out = measures.evaluate_ranking(model, train, test, 5)
    assert kept["hit_rate@5"] < left_out["hit_rate@5"]
    known = Scores(test.matrix.toarray() + 0.0)
    assert measures.evaluate_ranking(known, train.matrix, test.matrix, 17)["ndcg@17"] == 1


class Wrong(Scores):
    """What recommend returns is not what was asked for."""

    def __init__(self, items, scores):
        self.returned = items, scores

    def recommend(self, *_, **__):
        return self.returned


def test_evaluate_ranking_refuses():
    train, test = ratings().split_ratio(0.4)
    model = Scores(np.zeros((23, 17)))
    with pytest.raises(ValueError, match=r"one shape; got \[23, 17\] and \[23, 16\]"):
        measures.evaluate_ranking(model, train, test.matrix[:, :16])
    with pytest.raises(TypeError, match=r"expected train to be Interactions .* got ndarray"):
        measures.evaluate_ranking(model, train.matrix.toarray(), test)
    with pytest.raises(ValueError, match="batch_size >= 1; got 0"):
        measures.evaluate_ranking(model, train, test, batch_size=0)
    with pytest.raises(ValueError, match="users with test items; got none"):
        measures.evaluate_ranking(model, train, test.binarize(9))
    number = int((np.diff(test.matrix.indptr) > 0).sum())
    shown = np.tile(np.arange(2), (number, 1))
    for items, scores, words in [
        (shown[:-1], shown[:-1] + 0.0, rf"shape \[{number}, 2\]; got"),
        (np.zeros((number, 3), int), np.ones((number, 3)), rf"shape \[{number}, 2\]; got"),
        (shown, np.ones((number, 1)), r"scores of shape"),
        (shown, np.full((number, 2), np.nan), "got nan for user"),
        (np.ma.array(shown, mask=shown > 0), shown + 1.0, "items that are not masked"),
        (shown, np.ma.array(shown + 1.0, mask=shown > 0), "scores that are not masked"),
    ]:
        with pytest.raises(ValueError, match=words):
            measures.evaluate_ranking(Wrong(items, scores), train, test, 2)


def test_errors_of_predicted_ratings():
    assert measures.rmse([1, 2, 3], [1, 4, 3]) == pytest.approx(math.sqrt(4 / 3))
    assert measures.mae(torch.tensor([1.0, 2.0]), np.array([2.0, 4.0], np.float32)) == 1.5
    # Sums of float32 would lose these.
    assert measures.mae(np.full(3, 1e8, np.float32), np.full(3, 1e8 + 8, np.float64)) == 8
    assert measures.mae(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), [2, 4]) == 1.5
    assert measures.mae(torch.tensor([1.0, 2.0], requires_grad=True), [2, 4]) == 1.5
    assert measures.mae(np.array([1, 2], np.uint8), np.array([2, 4], np.uint8)) == 1.5
    assert measures.mae([Fraction(1), 2], np.ma.array([2, 4])) == 1.5
    for measure in (measures.rmse, measures.mae):
        with pytest.raises(ValueError, match="predicted ratings that are not masked; got some"):
            measure(np.ma.array([1.0, 2.0], mask=[0, 1]), [1, 2])
        with pytest.raises(ValueError, match="actual ratings that are not masked; got some"):
            measure([1, 2], np.ma.array([1.0, 2.0], mask=[1, 0]))
        for wrong in (["1", "2"], [1j, 2], [object(), 2], np.array(["2020", "2021"], "M8[Y]")):
            with pytest.raises(TypeError, match="actual ratings that are numbers; got"):
                measure([1, 2], wrong)
        with pytest.raises(ValueError, match=r"got \[2\] and \[3\]"):
            measure([1, 2], [1, 2, 3])
        with pytest.raises(ValueError, match="at least one rating"):
            measure([], [])
        with pytest.raises(ValueError, match="predicted ratings that are finite; got nan"):
            measure([1, math.nan], [1, 2])
        with pytest.raises(ValueError, match="actual ratings that are finite; got inf"):
            measure([1, 2], [1, math.inf])


def test_predictions_of_all_cells():
    test = ratings()
    model = Scores(np.random.default_rng(0).random((23, 17)))
    rows, columns = test.matrix.nonzero()
    differences = model.scores[rows, columns] - test.matrix.data
    expected = {
        "rmse": math.sqrt(np.mean(differences**2)),
        "mae": np.mean(np.abs(differences)),
    }
    for batch_size in (7, 1 << 20):
        found = measures.evaluate_ratings(model, test, batch_size=batch_size)
        assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least one rating"):
        measures.evaluate_ratings(model, test.binarize(9))
    with pytest.raises(ValueError, match="batch_size >= 1"):
        measures.evaluate_ratings(model, test, batch_size=0)
    model.predict = lambda userids, itemids: np.zeros(3)
    with pytest.raises(ValueError, match=r"expected predict to return .* got \[3\]"):
        measures.evaluate_ratings(model, test)


def test_cross_validation_of_a_model():
    interactions = ratings()
    made = []

    def make_model():
        made.append(Scores(np.zeros((23, 17))))
        return made[-1]

    found = measures.cross_validate(make_model, interactions, 4, seed=3)
    folds = []
    for train, test in interactions.cross_validation(4, seed=3):
        model = Scores(np.zeros((23, 17))).fit(train.matrix)
        folds.append(dict(measures.evaluate_ranking(model, train, test)))
    assert found.folds == folds
    assert len(made) == 4
    for name in folds[0]:
        values = [fold[name] for fold in folds]
        assert found.mean[name] == pytest.approx(np.mean(values))
        assert found.std[name] == pytest.approx(np.std(values, ddof=1))
    assert "ndcg@20" in found.mean
    assert str(found).endswith("(4 folds)")
    by_rating = measures.cross_validate(make_model, interactions, 2, measure="ratings")
    assert set(by_rating.mean) == {"rmse", "mae"}
    sizes = measures.cross_validate(
        make_model, interactions, 5, measure=lambda model, train, test: len(test)
    )
    assert sum(fold["measure"] for fold in sizes.folds) == pytest.approx(
        len(interactions) - (np.diff(interactions.matrix.indptr) == 1).sum()
    )
    with pytest.raises(ValueError, match="measure 'ranking', 'ratings' or a function"):
        measures.cross_validate(make_model, interactions, measure="rmse")
    with pytest.raises(ValueError, match="folds >= 2; got 1"):
        measures.cross_validate(make_model, interactions, 1)
    names = iter("abcde")
    with pytest.raises(ValueError, match="the same measures in every fold"):
        measures.cross_validate(make_model, interactions, measure=lambda *_: {next(names): 1.0})


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "ratings.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in blocks:
        exec(compile(block, "docs/ratings.md", "exec"), scope)
    assert len(scope["ratings"]) == 72
    assert scope["held"].shape == scope["known"].shape == (2, 5)
    assert len(scope["measures"].users) == 12
    assert scope["found"].mean["ndcg@20"] > 0
