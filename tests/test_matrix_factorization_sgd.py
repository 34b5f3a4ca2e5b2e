"""MatrixFactorizationSGD: what is learned, early stopping, minibatches, threads, recommending,
folders, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import sparse

from vecsmith import MatrixFactorizationSGD, ops
from vecsmith.data import Interactions
from vecsmith.eval import evaluate_ratings

TASTES = np.array([[5, 4, 0, 1, 0], [0, 5, 5, 0, 2], [1, 0, 2, 5, 5], [0, 1, 1, 4, 5]])


def planted(users: int = 120, items: int = 80, noise: float = 0.1, scale: float = 1.0, seed=0):
    """Ratings of rank three with biases: (train, validation)."""
    draw = np.random.default_rng(seed)
    p, q = draw.normal(0, 0.7, (users, 3)), draw.normal(0, 0.7, (items, 3))
    values = 3.5 + draw.normal(0, 0.4, (users, 1)) + draw.normal(0, 0.4, items) + p @ q.T
    values = scale * (values + draw.normal(0, noise, values.shape))
    kept = draw.random(values.shape)
    parts = []
    for low, high in ((0.0, 0.4), (0.4, 0.5)):
        at, to = ((kept >= low) & (kept < high)).nonzero()
        parts.append(sparse.csr_matrix((values[at, to].astype(np.float32), (at, to)), values.shape))
    return parts


TRAIN, VALIDATION = planted()


def error(model, matrix=VALIDATION) -> float:
    return evaluate_ratings(model, matrix)["rmse"]


def fitted(train=TRAIN, validation=None, **options) -> MatrixFactorizationSGD:
    options = {"factors": 8, "epochs": 60, "random_state": 0, "num_threads": 1, **options}
    return MatrixFactorizationSGD(**options).fit(train, validation)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.1, "regularization": 0.01},
        {"optimizer": "sgd", "learning_rate": 0.03, "regularization": 0.01, "decay": 0.01},
        {"optimizer": "adam", "minibatch": 64, "learning_rate": 0.02, "regularization": 0.01},
        {"optimizer": "sgd", "minibatch": 16, "learning_rate": 0.02, "regularization": 0.01},
        {"optimizer": "adagrad", "minibatch": 64, "learning_rate": 0.1, "regularization": 0.01},
    ],
    ids=["adagrad", "sgd", "minibatch-adam", "minibatch-sgd", "minibatch-adagrad"],
)
def test_ratings_are_learned(options):
    model = fitted(**options)
    spread = float(VALIDATION.data.std())
    assert error(model) < 0.3 * spread
    errors = [measures["rmse"] for measures in model.history_]
    assert errors[-1] < 0.5 * errors[0]
    assert len(errors) == 60


def test_without_biases_there_is_no_mean():
    model = fitted(biases=False, epochs=100, learning_rate=0.1, regularization=0.01)
    assert model.global_bias == 0
    assert model.user_biases is None
    assert model.item_embedding.shape == (80, 8)
    assert error(model) < 0.4 * float(VALIDATION.data.std())
    assert model.n_parameters == 200 * 8


def test_a_prediction_is_its_formula():
    model = fitted(epochs=5)
    wanted = (
        model.global_bias
        + model.user_biases[:, None]
        + model.item_biases
        + model.user_factors @ model.item_factors.T
    )
    assert model.global_bias == pytest.approx(TRAIN.data.mean(), rel=1e-6)
    found = model.predict(np.arange(120)[:, None], np.arange(80))
    assert found.dtype == np.float32
    assert np.allclose(found, wanted, atol=1e-5)
    assert model.predict(3, 4) == pytest.approx(float(wanted[3, 4]), abs=1e-5)
    assert model.predict([], []).shape == (0,)
    assert model.n_parameters == 200 * 9 + 1


def test_arrays_are_the_memory_of_the_parameters():
    model = fitted(epochs=1)
    assert isinstance(model.user_embedding, torch.nn.Parameter)
    assert model.user_embedding.shape == (120, 9)
    model.user_factors[3] = 7
    model.item_biases[2] = -1
    assert (model.user_embedding[3, :8] == 7).all()
    assert model.item_embedding[2, 8] == -1
    assert not model.user_embedding.isnan().any()


def test_the_textbook_matrix_shows_two_tastes():
    known = sparse.csr_matrix(TASTES.astype(np.float32))
    model = fitted(known, factors=2, epochs=400, regularization=0.005, learning_rate=0.1)
    found = model.predict(np.arange(4)[:, None], np.arange(5))
    assert np.abs(found - TASTES)[TASTES > 0].max() < 0.35
    ids, _ = model.recommend([0, 2], known[[0, 2]], N=2)
    assert ids[0].tolist() == [2, 4]  # what those who like the first two like
    assert ids[1].tolist() == [1, -1]


# --- The number of threads, seeds, scales. --------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}], ids=["adagrad", "sgd"])
def test_the_result_does_not_depend_on_threads(options):
    train, _ = planted(300, 200)
    one, several = (fitted(train, epochs=3, num_threads=n, **options) for n in (1, 3))
    assert ops.factor_blocks(train).bands > 3
    assert np.array_equal(one.user_factors, several.user_factors)
    assert np.array_equal(one.item_biases, several.item_biases)
    assert one.history_ == several.history_


def test_a_seed_chooses_the_result():
    one, again = fitted(epochs=2), fitted(epochs=2)
    assert np.array_equal(one.user_factors, again.user_factors)
    for state in (1, None, np.random.default_rng(0), np.random.RandomState(0)):
        other = fitted(epochs=2, random_state=state)
        equal = np.array_equal(one.user_factors, other.user_factors)
        assert equal == isinstance(state, np.random.Generator)


@pytest.mark.parametrize("scale", [0.01, 20.0])
def test_ratings_of_any_scale_are_learned_by_the_same_rate(scale):
    train, validation = planted(scale=scale)
    options = {"epochs": 30, "learning_rate": 0.1}
    model = fitted(train, regularization=0.01 * scale, bias_regularization=0.01, **options)
    plain = fitted(regularization=0.01, bias_regularization=0.01, **options)
    assert error(model, validation) / scale == pytest.approx(error(plain), rel=0.05)


def test_equal_ratings():
    matrix = TRAIN.copy()
    matrix.data[:] = 4
    model = fitted(matrix, epochs=3)
    assert np.allclose(model.predict(np.arange(5), np.arange(5)), 4, atol=0.05)


# --- Validation. ----------------------------------------------------------------------------------


def test_training_stops_where_the_validation_does_not_fall():
    train, validation = planted(noise=1.0)
    model = fitted(train, validation, factors=16, epochs=200, regularization=0.001, patience=3)
    errors = [measures["validation_rmse"] for measures in model.history_]
    assert len(errors) < 200
    best = int(np.argmin(errors))
    assert best == len(errors) - 4
    assert error(model, validation) == pytest.approx(errors[best], rel=1e-5)


def test_a_callback_sees_each_epoch_and_may_stop():
    seen = []

    def callback(number, seconds, measures):
        seen.append((number, measures))
        assert seconds >= 0
        return number == 2

    model = MatrixFactorizationSGD(4, epochs=9, random_state=0)
    model.fit(TRAIN, VALIDATION, callback=callback)
    assert [number for number, _ in seen] == [0, 1, 2]
    assert [measures for _, measures in seen] == model.history_
    assert set(model.history_[0]) == {"rmse", "validation_rmse"}


def test_predictions_may_be_clipped():
    low, high = float(TRAIN.data.min()), float(TRAIN.data.max())
    plain, clipped, given = (fitted(epochs=3, clip=c) for c in (False, True, (2, 4.5)))
    pairs = np.arange(120)[:, None], np.arange(80)
    wanted = plain.predict(*pairs)
    assert np.allclose(clipped.predict(*pairs), wanted.clip(low, high))
    assert np.allclose(given.predict(*pairs), wanted.clip(2, 4.5))
    assert clipped.rating_range == (low, high)


# --- Recommending. --------------------------------------------------------------------------------


def test_recommended_are_the_best_that_are_not_rated():
    model = fitted(epochs=10)
    scores = model.predict(np.arange(120)[:, None], np.arange(80))
    free = np.where(TRAIN.toarray() != 0, -np.inf, scores)
    ids, found = model.recommend(np.arange(120), TRAIN, N=7)
    assert ids.dtype == np.int32
    assert ids.shape == found.shape == (120, 7)
    assert np.allclose(found, -np.sort(-free, axis=1)[:, :7], atol=1e-5)
    assert np.allclose(np.take_along_axis(scores, ids, 1), found, atol=1e-5)
    one, its = model.recommend(5, TRAIN[5], N=7)
    assert np.array_equal(one, ids[5])
    assert np.allclose(its, found[5])
    every, _ = model.recommend(5, N=80, filter_already_liked_items=False)
    assert sorted(every.tolist()) == list(range(80))
    some, _ = model.recommend(5, TRAIN[5], N=7, filter_items=one[:3])
    assert np.array_equal(some[:4], one[3:])
    among, values = model.recommend([5, 6], N=9, filter_already_liked_items=False, items=[3, 1, 2])
    assert among.shape == (2, 3)
    assert sorted(among[0].tolist()) == [1, 2, 3]
    assert np.allclose(values[0], np.sort(scores[5, 1:4])[::-1], atol=1e-5)
    short, least = model.recommend(5, sparse.csr_matrix(np.ones((1, 80))), N=3)
    assert short.tolist() == [-1] * 3
    assert (least == np.finfo(np.float32).min).all()


def test_interactions_know_their_cells():
    keys = np.arange(120) * 10**10, [f"item {i}" for i in range(80)]
    ratings = Interactions.from_scipy(TRAIN, *keys)
    model = fitted(ratings, epochs=3)
    assert model.interactions is ratings
    ids, _ = model.recommend([4, 9], N=5)
    wanted, _ = model.recommend([4, 9], TRAIN[[4, 9]], N=5)
    assert np.array_equal(ids, wanted)
    held = Interactions.from_scipy(VALIDATION, *keys)
    assert "validation_rmse" in fitted(ratings, held, epochs=1).history_[0]
    other = Interactions.from_scipy(VALIDATION)
    with pytest.raises(ValueError, match="validation of the same users"):
        fitted(ratings, other)


def test_similar_are_the_nearest_by_cosine():
    model = fitted(epochs=10)
    for side in ("item", "user"):
        x = getattr(model, f"{side}_factors").astype(np.float64)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        wanted = x @ x.T
        similar = getattr(model, f"similar_{side}s")
        ids, scores = similar([2, 7], N=4)
        assert ids[:, 0].tolist() == [2, 7]
        assert np.allclose(scores, -np.sort(-wanted[[2, 7]], axis=1)[:, :4], atol=1e-5)
        ids, _ = similar(2, 3, **{f"filter_{side}s": [2]})
        assert 2 not in ids
        ids, _ = similar(2, 9, **{f"{side}s": [5, 2]})
        assert ids.tolist() == [2, 5]


@pytest.mark.parametrize(
    "options",
    [{}, {"bias_regularization": 0.3}, {"bias_regularization": 0.0}, {"biases": False}],
    ids=["one", "two", "free-biases", "no-biases"],
)
def test_new_users_and_items_are_where_the_loss_is_least(options):
    model = fitted(epochs=5, regularization=0.05, **options)
    for side, other, matrix in (
        ("user", "item", TRAIN),
        ("item", "user", sparse.csr_matrix(TRAIN.T)),
    ):
        recalculate = getattr(model, f"recalculate_{side}")
        rows = recalculate([5, 200], matrix[[5, 6]]).astype(np.float64)
        assert np.allclose(recalculate(7, matrix[6]), rows[1], atol=1e-5)
        table = getattr(model, f"{other}_embedding").detach().numpy().astype(np.float64)
        cells = matrix[5]
        ridges = np.full(table.shape[1], 0.05)
        partners, left = table[cells.indices], cells.data - model.global_bias
        if model.biases:
            ridges[-1] = options.get("bias_regularization", 0.05)
            left = left - partners[:, -1]
            partners = np.concatenate([partners[:, :-1], np.ones((cells.nnz, 1))], axis=1)
        gradient = partners.T @ (partners @ rows[0] - left) + cells.nnz * ridges * rows[0]
        assert np.allclose(gradient, 0, atol=2e-3)
        assert not recalculate(0, sparse.csr_matrix((1, matrix.shape[1]))).any()
    row = model.recalculate_user(0, TRAIN[6])
    ids, scores = model.recommend(999, TRAIN[6], N=4, recalculate_user=True)
    model.partial_fit_users([121], TRAIN[6])
    assert np.allclose(model.user_embedding[121].detach(), row, atol=1e-6)
    assert np.array_equal(model.recommend(121, TRAIN[6], N=4)[0], ids)
    assert np.allclose(model.predict(121, ids), scores, atol=1e-5)
    item_users = sparse.csr_matrix(TRAIN.T)[9]
    near, cosines = model.similar_items(0, N=5, recalculate_item=True, item_users=item_users)
    x, y = model.recalculate_item(0, item_users)[:8], model.item_factors
    wanted = y @ x / np.linalg.norm(y, axis=1) / np.linalg.norm(x)
    assert np.array_equal(near, np.argsort(-wanted)[:5])
    assert np.allclose(cosines, wanted[near], atol=1e-5)


def test_the_completed_matrix_is_all_predictions():
    model = fitted(epochs=3, clip=(2, 4.5))
    wanted = model.predict(np.arange(120)[:, None], np.arange(80))
    assert np.allclose(model.predict_all(), wanted, atol=1e-6)


# --- Folders. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["interactions", "matrix"])
def test_a_model_comes_back_from_its_folder(tmp_path, biases, known):
    ratings = Interactions.from_scipy(TRAIN) if known else TRAIN
    model = fitted(ratings, VALIDATION, biases=biases, epochs=3, clip=(1, 5))
    model.save(tmp_path / "model")
    back = MatrixFactorizationSGD.load(tmp_path / "model", num_threads=2)
    for name in ("user_factors", "item_factors", "user_biases", "item_biases"):
        wanted = getattr(model, name)
        assert (
            (getattr(back, name) is None)
            if wanted is None
            else np.array_equal(getattr(back, name), wanted)
        )
    pairs = np.arange(120)[:, None], np.arange(80)
    assert np.array_equal(back.predict(*pairs), model.predict(*pairs))
    assert (back.history_, back.global_bias) == (model.history_, model.global_bias)
    assert (back.rating_range, back.clip) == (model.rating_range, model.clip)
    assert back.num_threads == 2
    assert (back.interactions is None) == (not known)
    assert np.array_equal(back.recommend(1, TRAIN[1])[0], model.recommend(1, TRAIN[1])[0])
    back.user_factors[0] = 0  # what was mapped can be changed
    assert not np.array_equal(back.user_factors, model.user_factors)


def test_damaged_folders_are_refused(tmp_path):
    model = fitted(epochs=1)
    with pytest.raises(FileNotFoundError):
        MatrixFactorizationSGD.load(tmp_path / "nothing")
    for change, words in (
        ({"format": "vecsmith.BPR"}, "expected vecsmith.MatrixFactorizationSGD"),
        ({"users": 7}, "tables of"),
        ({"parameters": []}, "damaged"),
        ({"parameters": {"factors": -1}}, "damaged"),
        ({"parameters": {"factors": 3}}, "tables of 4 columns; got 9"),
        ({"state": {}}, "damaged"),
    ):
        model.save(tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match=words):
            MatrixFactorizationSGD.load(tmp_path / "model")
    model.user_factors[2, 3] = np.nan
    with pytest.raises(ValueError, match="row 2"):
        model.save(tmp_path / "model")


# --- What is refused. -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"factors": 0}, ValueError, "factors >= 1; got 0"),
        ({"factors": 2.5}, TypeError, "factors to be an integer"),
        ({"learning_rate": 0}, ValueError, "learning_rate > 0"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate to be a number"),
        ({"regularization": -1}, ValueError, "regularization to be finite and >= 0"),
        ({"epochs": -1}, ValueError, "epochs >= 0"),
        ({"random_state": "x"}, TypeError, "random_state to be None"),
        ({"random_state": -1}, ValueError, "random_state to be None"),
        ({"num_threads": -1}, ValueError, "num_threads >= 0"),
        ({"optimizer": "adam"}, ValueError, "'adagrad', 'sgd', without a minibatch; got 'adam'"),
        ({"optimizer": "lion", "minibatch": 4}, ValueError, "'rowwise_adam', with a minibatch"),
        ({"minibatch": 0}, ValueError, "minibatch >= 1"),
        ({"minibatch": 8, "bias_learning_rate": 0.1}, ValueError, "no bias_learning_rate"),
        ({"decay": 1.0}, ValueError, "decay below 1"),
        ({"bias_learning_rate": -0.1}, ValueError, "bias_learning_rate > 0"),
        ({"bias_regularization": np.nan}, ValueError, "bias_regularization to be finite"),
        ({"initial_spread": -1.0}, ValueError, "initial_spread to be finite and >= 0"),
        ({"clip": (5, 1)}, ValueError, "least to be at most its greatest"),
        ({"clip": "yes"}, TypeError, "clip to be a bool"),
        ({"patience": 0}, ValueError, "patience >= 1"),
    ],
)
def test_bad_options_are_refused(options, kind, words):
    with pytest.raises(kind, match=words):
        MatrixFactorizationSGD(**options)


def with_value(value: float) -> sparse.csr_matrix:
    matrix = TRAIN.copy()
    matrix.data[5] = value
    return matrix


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ((np.ones((3, 3)),), TypeError, "scipy.sparse matrix"),
        ((with_value(np.nan),), ValueError, "finite; got nan"),
        ((sparse.csr_matrix((3, 3)),), ValueError, "without cells"),
        ((TRAIN, VALIDATION[:, :79]), ValueError, r"validation of shape \[120, 80\]"),
        ((TRAIN, sparse.csr_matrix((120, 80))), ValueError, "validation to have cells"),
    ],
)
def test_bad_ratings_are_refused(given, kind, words):
    model = MatrixFactorizationSGD(4)
    with pytest.raises(kind, match=words):
        model.fit(*given)
    assert model.user_factors is None


def test_bad_questions_are_refused():
    model = MatrixFactorizationSGD(4, epochs=1, random_state=0)
    with pytest.raises(ValueError, match="before fit"):
        model.predict(0, 0)
    with pytest.raises(ValueError, match="before fit"):
        model.save("nowhere")
    assert repr(model) == "MatrixFactorizationSGD<before fit, factors=4>"
    model.fit(TRAIN)
    assert repr(model) == "MatrixFactorizationSGD<120 users, 80 items, factors=4>"
    for call, kind, words in (
        (lambda: model.predict(120, 0), IndexError, r"userids in 0\.\.119; got 120"),
        (lambda: model.predict(0, [-1]), IndexError, r"itemids in 0\.\.79; got -1"),
        (lambda: model.predict(0.5, 1), TypeError, "userids to be an integer"),
        (lambda: model.recommend(120, TRAIN[0]), IndexError, "userid in"),
        (lambda: model.recommend(0), ValueError, "expected user_items"),
        (lambda: model.recommend(0, TRAIN), ValueError, r"user_items of shape \[1, 80\]"),
        (lambda: model.recommend(0, TRAIN[0], N=0), ValueError, "N >= 1"),
        (lambda: model.recommend(0, TRAIN[0], filter_items=[80]), IndexError, "filter_items in"),
        (lambda: model.recommend(0, TRAIN[0], items=[1], filter_items=[2]), ValueError, "both"),
        (lambda: model.similar_items(80), IndexError, "itemid in"),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_training_that_diverges_says_so():
    with pytest.raises(ValueError, match="diverged"):
        fitted(optimizer="sgd", learning_rate=5.0)
    with pytest.raises(ValueError, match=r"diverged|finite"):
        fitted(optimizer="sgd", learning_rate=5.0, minibatch=64)


def test_no_epochs_and_rows_without_ratings():
    model = fitted(epochs=0)
    assert model.history_ == []
    assert np.isfinite(model.predict(0, 0))
    matrix = TRAIN.copy().tolil()
    matrix[3] = 0
    model = fitted(matrix.tocsr(), epochs=20)
    assert model.user_biases[3] == 0
    assert abs(model.predict(3, 2) - model.global_bias - model.item_biases[2]) < 0.3
