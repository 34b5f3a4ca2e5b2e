"""ExplicitALS: ratings that are completed, with biases and without, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse

from planted_ratings import best, random_cells
from vecsmith import ExplicitALS
from vecsmith.data import Interactions

NAN = np.nan
# Four users of two tastes, five items of two kinds.
TEXTBOOK = np.array(
    [[5, 4, NAN, 1, NAN], [NAN, 5, 5, NAN, 2], [1, NAN, 2, 5, 5], [NAN, 1, 1, 4, 5]]
)
OPTIONS = {"factors": 4, "regularization": 0.1, "random_state": 3, "progress": False}


def known(dense):
    return Interactions.from_scipy(dense, missing=NAN)


def planted(users=120, items=80, seed=0, noise=0.1):
    """Ratings with biases and two tastes; (train, test)."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(users, 2)) @ generator.normal(size=(2, items)) * 0.7
    scores += generator.normal(size=(users, 1)) + generator.normal(size=items) + 3
    scores += generator.normal(size=scores.shape) * noise
    there = generator.random(scores.shape) < 0.3
    return known(np.where(there, scores, NAN)).split_ratio(0.2)


def systems(matrix, x, y, mean, ridge, weighted, biases):
    """The loss of a model, dense."""
    coo = matrix.tocoo()
    found = x[:, : y.shape[1]] @ y.T if not biases else x[:, :-1] @ y[:, :-1].T
    if biases:
        found = found + x[:, -1:] + y[:, -1] + mean
    errors = ((coo.data - found[coo.row, coo.col]) ** 2).sum()
    users = np.diff(matrix.indptr) if weighted else np.ones(len(x))
    items = np.diff(matrix.tocsc().indptr) if weighted else np.ones(len(y))
    norms = (users * (x**2).sum(1)).sum() + (items * (y**2).sum(1)).sum()
    return (errors + ridge * norms) / len(coo.data), errors / len(coo.data)


# --- the textbook ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_textbook_matrix_is_completed(nonnegative):
    model = ExplicitALS(
        factors=2,
        regularization=0.01,
        biases=False,
        nonnegative=nonnegative,
        iterations=200,
        random_state=0,
        progress=False,
    ).fit(known(TEXTBOOK))
    full = model.predict_all()
    there = ~np.isnan(TEXTBOOK)
    assert np.abs(full - TEXTBOOK)[there].max() < 0.25
    assert model.n_parameters == 2 * (4 + 5)
    # Two tastes: users 0 and 1, users 2 and 3.
    assert [model.similar_users(user, N=2)[0][1] for user in range(4)] == [1, 0, 3, 2]
    if nonnegative:
        assert (model.user_factors >= 0).all()
        assert (model.item_factors >= 0).all()
        assert model.item_factors.argmax(1).tolist()[:3] == [model.item_factors[0].argmax()] * 3
        assert model.item_factors.argmax(1).tolist()[3:] == [model.item_factors[4].argmax()] * 2
        # What is not known is of the user's taste, too.
        assert full[0, 2] > 3 > full[0, 4]
        assert full[3, 0] < 2


# --- what is learned ------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_half_step_minimizes_the_loss(dtype, weighted, biases):
    matrix = random_cells(negative=True)
    model = ExplicitALS(
        **OPTIONS,
        biases=biases,
        weighted_regularization=weighted,
        dtype=dtype,
        iterations=3,
        calculate_training_loss=True,
    ).fit(matrix)
    x, y = (
        table.detach().numpy().astype(np.float64)
        for table in (model.user_embedding, model.item_embedding)
    )
    mean = matrix.data.mean(dtype=np.float64) if biases else 0.0
    assert model.global_bias == pytest.approx(mean)
    loss, errors = systems(matrix, x, y, mean, 0.1, weighted, biases)
    assert model.history_[-1]["loss"] == pytest.approx(loss, rel=1e-6)
    assert model.history_[-1]["rmse"] == pytest.approx(errors**0.5, rel=1e-6)
    losses = [measures["loss"] for measures in model.history_]
    assert losses == sorted(losses, reverse=True)
    # The items were solved last: no step of one of them makes it better.
    exact = 1e-5 if dtype == np.float32 else 1e-9
    for item in (0, 7, 19):
        for column in range(y.shape[1]):
            for step in (-1e-3, 1e-3):
                moved = y.copy()
                moved[item, column] += step
                assert systems(matrix, x, moved, mean, 0.1, weighted, biases)[0] > loss - exact
    # The user and the item without ratings.
    assert not x[15].any()
    assert not y[6].any()


@pytest.mark.parametrize("method", ["cg", "block"])
def test_other_methods_come_to_the_same_loss(method):
    train, _ = planted()
    options = {**OPTIONS, "iterations": 40, "calculate_training_loss": True}
    exact = ExplicitALS(**options).fit(train).history_[-1]["loss"]
    near = ExplicitALS(**options, method=method, block_size=2).fit(train).history_
    assert near[-1]["loss"] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("biases", [False, True])
def test_nonnegative_factors_lower_the_loss_to_where_no_step_helps(biases):
    train, _ = planted()
    model = ExplicitALS(
        **OPTIONS, nonnegative=True, biases=biases, iterations=60, calculate_training_loss=True
    ).fit(train)
    losses = [measures["loss"] for measures in model.history_]
    assert all(after <= before + 1e-7 for before, after in itertools.pairwise(losses))
    assert (model.user_factors >= 0).all()
    assert (model.item_factors >= 0).all()
    # Karush, Kuhn and Tucker, for the items that were solved last.
    x = model.user_embedding.detach().numpy().astype(np.float64)
    y = model.item_embedding.detach().numpy().astype(np.float64)
    if biases:
        x = np.concatenate([x[:, :-1], np.ones((len(x), 1))], axis=1)
    columns = train.matrix.tocsc()
    for item in range(10):
        part = slice(columns.indptr[item], columns.indptr[item + 1])
        rows, ratings = columns.indices[part], columns.data[part].astype(np.float64)
        if biases:
            ratings = ratings - model.global_bias - model.user_biases[rows]
        left = x[rows] @ y[item] - ratings
        gradient = x[rows].T @ left + 0.1 * len(rows) * y[item]
        free = y[item] > 0
        if biases:
            free[-1] = True
        np.testing.assert_allclose(gradient[free], 0, atol=2e-2)
        assert (gradient[~free] > -2e-2).all()


def test_nonnegative_rows_are_solved_in_parts(monkeypatch):
    train, _ = planted()
    options = {**OPTIONS, "nonnegative": True, "iterations": 2}
    whole = ExplicitALS(**options).fit(train).item_factors.copy()
    monkeypatch.setattr("vecsmith.models._nonnegative._AT_ONCE", 700)
    np.testing.assert_allclose(ExplicitALS(**options).fit(train).item_factors, whole, atol=1e-5)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("at_once", [1, 100])
def test_rows_are_solved_in_blocks(monkeypatch, at_once, nonnegative):
    train, _ = planted()
    rows = train.matrix.copy()
    rows.data[rows.indptr[3] : rows.indptr[9]] = 0
    rows.eliminate_zeros()  # rows without cells, between blocks too
    make = lambda: ExplicitALS(**OPTIONS, iterations=3, nonnegative=nonnegative)  # noqa: E731
    whole = make().fit(rows)
    monkeypatch.setattr("vecsmith.models._biased._IN_A_BLOCK", at_once)
    parts = make().fit(rows)
    for name in ("user_factors", "item_factors", "item_biases"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-5)


def test_held_out_ratings_are_predicted():
    train, test = planted()
    model = ExplicitALS(**{**OPTIONS, "regularization": 0.02}).fit(train)
    coo = test.matrix.tocoo()
    errors = model.predict(coo.row, coo.col) - coo.data
    mean = np.sqrt(np.mean((coo.data - train.matrix.data.mean()) ** 2))
    assert np.sqrt(np.mean(errors**2)) < 0.35 * mean


def test_training_stops_where_held_out_ratings_say():
    train, test = planted(noise=1.0)
    options = {**OPTIONS, "factors": 10, "regularization": 0.01, "iterations": 40, "patience": 3}
    called = []
    model = ExplicitALS(**options).fit(
        train, validation=test, callback=lambda *given: called.append(given)
    )
    measured = [measures["validation_rmse"] for measures in model.history_]
    best_of = int(np.argmin(measured))
    assert len(measured) == best_of + 1 + 3 < 40
    assert [given[2] for given in called] == model.history_
    assert "loss" not in model.history_[0]
    # The factors are those of the best iteration.
    whole = ExplicitALS(**{**options, "iterations": best_of + 1}).fit(train)
    np.testing.assert_array_equal(whole.item_embedding.detach(), model.item_embedding.detach())
    coo = test.matrix.tocoo()
    errors = model.predict(coo.row, coo.col) - coo.data
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(measured[best_of], rel=1e-5)


def test_training_stops_where_the_loss_hardly_falls():
    model = ExplicitALS(**OPTIONS, iterations=100, tolerance=1e-3).fit(planted()[0])
    losses = [measures["loss"] for measures in model.history_]
    assert 2 < len(losses) < 100
    assert 0 <= 1 - losses[-1] / losses[-2] < 1e-3


def test_fit_begins_anew():
    train, _ = planted()
    model = ExplicitALS(**OPTIONS).fit(train)
    before = model.item_embedding.detach().clone()
    assert torch.equal(model.fit(train).item_embedding, before)
    assert model.fit(random_cells()).user_factors.shape == (30, 4)


# --- predictions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return ExplicitALS(**OPTIONS).fit(planted()[0])


def test_predictions_are_sums(model):
    full = model.user_factors @ model.item_factors.T
    full = full + model.user_biases[:, None] + model.item_biases + model.global_bias
    np.testing.assert_allclose(model.predict_all(), full, atol=1e-5)
    users, items = np.array([[3], [0]]), np.array([5, 79, 5], np.int16)
    found = model.predict(users, items)
    assert found.shape == (2, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, full[users, items], atol=1e-5)
    assert model.predict(7, 9) == pytest.approx(full[7, 9], abs=1e-5)
    assert isinstance(model.predict(7, 9), float)
    assert model.predict([], []).shape == (0,)
    assert model.n_parameters == 200 * 5 + 1
    assert model.user_embedding.shape == (120, 5)
    assert np.shares_memory(model.user_biases, model.user_embedding.detach().numpy())


def test_without_ratings_the_biases_of_the_other_side_are_left():
    model = ExplicitALS(**OPTIONS).fit(random_cells())
    assert model.predict(15, 6) == pytest.approx(model.global_bias)
    assert model.predict(15, 3) == pytest.approx(model.global_bias + model.item_biases[3])


@pytest.mark.parametrize(("clip", "bounds"), [(True, None), ((2, 4.5), (2, 4.5))])
def test_predictions_are_kept_within_bounds(model, clip, bounds):
    train, test = planted()
    clipped = ExplicitALS(**OPTIONS, clip=clip).fit(train, validation=test)
    bounds = bounds or (train.matrix.data.min(), train.matrix.data.max())
    assert clipped.rating_range == pytest.approx((train.matrix.data.min(), train.matrix.data.max()))
    expected = np.clip(ExplicitALS(**OPTIONS).fit(train, test).predict_all(), *bounds)
    np.testing.assert_allclose(clipped.predict_all(), expected, atol=1e-5)
    coo = test.matrix.tocoo()
    found = clipped.predict(coo.row, coo.col)
    np.testing.assert_allclose(found, expected[coo.row, coo.col], atol=1e-5)
    assert min(m["validation_rmse"] for m in clipped.history_) == pytest.approx(
        np.sqrt(np.mean((found - coo.data) ** 2)), rel=1e-4
    )
    if clip is not True:  # ranks are those of what was not cut
        assert (clipped.recommend(np.arange(120), N=5)[1] > bounds[1]).any()


@pytest.mark.parametrize("biases", [False, True])
def test_recommended_items_are_those_of_the_greatest_predictions(biases):
    train, _ = planted()
    model = ExplicitALS(**OPTIONS, biases=biases).fit(train)
    full = model.predict_all()
    ids, scores = model.recommend(np.arange(120), N=5)
    liked = train.matrix.toarray() != 0
    for user in range(120):
        expected, exact = best(full[user], 5, liked[user])
        np.testing.assert_array_equal(ids[user], expected)
        np.testing.assert_allclose(scores[user], exact, rtol=1e-5)
    some = [4, 70, 31]
    ids, scores = model.recommend(3, items=some, filter_already_liked_items=False)
    assert ids.tolist() == sorted(some, key=lambda item: -full[3, item])
    np.testing.assert_allclose(scores, full[3, ids], rtol=1e-5)
    y = model.item_factors.astype(np.float64)
    cosines = y @ y[2] / np.linalg.norm(y, axis=1) / np.linalg.norm(y[2])
    np.testing.assert_array_equal(model.similar_items(2, N=6)[0], np.argsort(-cosines)[:6])


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_new_users_are_what_their_ratings_say(biases, nonnegative):
    train, _ = planted()
    model = ExplicitALS(**OPTIONS, biases=biases, nonnegative=nonnegative, iterations=5).fit(train)
    # The users' factors were solved before the items' last ones: again, now.
    rows = model.recalculate_user([0, 5], train.matrix[[0, 5]])
    np.testing.assert_allclose(model.recalculate_user(9, train.matrix[5]), rows[1], atol=1e-5)
    y = model.item_embedding.detach().numpy().astype(np.float64)
    partners = np.concatenate([y[:, :4], np.ones((80, 1))], axis=1) if biases else y
    cells = train.matrix[5]
    left = cells.data - (model.global_bias + y[cells.indices, 4] if biases else 0)
    p = partners[cells.indices]
    gradient = p.T @ (p @ rows[1] - left) + 0.1 * cells.nnz * rows[1]
    if nonnegative:
        assert (rows[:, :4] >= 0).all()
        free = rows[1] > 0
        if biases:
            free[-1] = True
        assert (gradient[~free] > -1e-3).all()
        gradient = gradient[free]
    np.testing.assert_allclose(gradient, 0, atol=2e-3)
    scores = partners @ rows[1] + (y[:, 4] + model.global_bias if biases else 0)
    ids, found = model.recommend(5, cells, N=3, recalculate_user=True)
    expected, exact = best(scores, 3, cells.toarray()[0] != 0)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    model.interactions = None
    model.partial_fit_users([121], cells)
    assert model.predict(121, 3) == pytest.approx(scores[3], rel=1e-4)
    assert model.predict(120, 3) == pytest.approx(model.global_bias + (y[3, 4] if biases else 0))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.predict(120, 0), IndexError, r"userids in 0\.\.119; got 120"),
        (lambda m: m.predict(0, -1), IndexError, r"itemids in 0\.\.79; got -1"),
        (lambda m: m.predict(0.5, 1), TypeError, "userids"),
        (lambda m: m.predict([0, 1], [1, 2, 3]), ValueError, "shape"),
        (lambda m: m.fit(sparse.csr_matrix((3, 4))), ValueError, "without cells"),
        (lambda m: m.fit(np.eye(3)), TypeError, "scipy.sparse"),
        (lambda m: m.fit(sparse.csr_matrix([[np.nan]])), ValueError, "finite; got nan"),
        (lambda m: m.fit(planted()[0], planted(items=70)[1]), ValueError, r"\[120, 80\].*reindex"),
        (lambda m: m.fit(random_cells(), sparse.csr_matrix((30, 20))), ValueError, "got none"),
        (
            lambda m: m.fit(
                random := Interactions.from_scipy(random_cells()),
                Interactions.from_scipy(random_cells(), users=random.users + 1),
            ),
            ValueError,
            "users of the ratings",
        ),
    ],
)
def test_bad_questions_are_refused(model, call, error, text):
    before = model.item_embedding
    with pytest.raises(error, match=text):
        call(model)
    assert model.item_embedding is before


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("factors", 0, ValueError),
        ("regularization", -1, ValueError),
        ("iterations", 1.5, TypeError),
        ("method", "lu", ValueError),
        ("patience", 0, ValueError),
        ("tolerance", float("nan"), ValueError),
        ("clip", (3, 2), ValueError),
        ("clip", "wide", TypeError),
        ("clip", 3, TypeError),
        ("clip", (1, float("inf")), ValueError),
        ("dtype", int, TypeError),
        ("random_state", "x", TypeError),
        ("device", "tpu", ValueError),
    ],
)
def test_options_out_of_range_are_refused(option, value, error):
    with pytest.raises(error, match=f"expected {option}"):
        ExplicitALS(**{option: value})


def test_nonnegative_factors_have_no_method():
    with pytest.raises(ValueError, match="no method with nonnegative; got 'cg'"):
        ExplicitALS(nonnegative=True, method="cg")


def test_nothing_works_before_fit():
    model = ExplicitALS()
    assert model.user_biases is None
    for call in (lambda: model.predict(0, 0), model.predict_all, lambda: model.n_parameters):
        with pytest.raises(ValueError, match="before fit"):
            call()


def test_ratings_that_are_too_large_are_said_to_be():
    huge = sparse.csr_matrix(np.full((4, 4), 3e38, np.float32))
    with pytest.raises(ValueError, match="finite"):
        ExplicitALS(**OPTIONS, biases=False).fit(huge)
