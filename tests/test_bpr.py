"""BPR: what is learned, implicit's conventions, threads, folders, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import sparse

from vecsmith import BPR
from vecsmith.data import Interactions
from vecsmith.eval import evaluate_ranking


def planted(users: int = 240, items: int = 120, kinds: int = 4, seed: int = 0):
    """Users who like items of their own kind: (train, test)."""
    draw = np.random.default_rng(seed)
    of_users, of_items = draw.integers(0, kinds, users), draw.integers(0, kinds, items)
    chance = np.where(of_users[:, None] == of_items, 0.45, 0.02)
    likes = draw.random((users, items)) < chance
    held = likes & (draw.random(likes.shape) < 0.25)
    return tuple(sparse.csr_matrix(m.astype(np.float32)) for m in (likes & ~held, held))


TRAIN, TEST = planted()


def fitted(train=TRAIN, **options) -> BPR:
    given = {"factors": 8, "learning_rate": 0.1, "iterations": 40, "random_state": 0}
    return BPR(**{**given, "num_threads": 1, **options}).fit(train)


def quality(model) -> float:
    return evaluate_ranking(model, TRAIN, TEST, 10)["ndcg@10"]


def test_tastes_are_learned():
    model = fitted()
    losses = [measures["loss"] for measures in model.history_]
    assert len(losses) == 40
    assert losses[0] == pytest.approx(np.log(2), abs=0.02)
    assert losses[-1] < 0.4
    assert model.history_[-1]["train_auc"] > 0.85
    assert quality(model) > 3 * quality(fitted(iterations=0))


def test_several_threads_learn_what_one_does():
    one, several = fitted(), fitted(num_threads=3)
    assert quality(several) == pytest.approx(quality(one), rel=0.1)
    assert several.history_[-1]["loss"] == pytest.approx(one.history_[-1]["loss"], rel=0.05)


def test_deterministic_mode_has_the_same_bits_for_any_number_of_threads():
    torch.use_deterministic_algorithms(True)
    try:
        one, several = (fitted(iterations=3, num_threads=n) for n in (1, 3))
    finally:
        torch.use_deterministic_algorithms(False)
    assert np.array_equal(one.user_factors, several.user_factors)
    assert np.array_equal(one.item_factors, several.item_factors)
    assert one.history_ == several.history_


def test_tables_are_as_in_implicit():
    matrix = TRAIN.copy().tolil()
    matrix[3] = 0
    matrix[:, 5] = 0
    model = fitted(matrix.tocsr(), iterations=4)
    assert model.user_factors.shape == (240, 9)
    assert model.item_factors.shape == (120, 9)
    assert model.user_factors.dtype == np.float32
    assert (model.user_factors[:, 8] == 1).all()
    assert not model.user_factors[3, :8].any()
    assert not model.item_factors[5].any()
    assert model.item_factors[:5, 8].all()
    ids, scores = model.recommend(np.arange(240), matrix.tocsr(), N=6)
    wanted = model.user_factors @ model.item_factors.T
    wanted[matrix.toarray() != 0] = -np.inf
    assert np.allclose(scores, -np.sort(-wanted, axis=1)[:, :6], atol=1e-5)
    assert ids.dtype == np.int32
    model.item_factors[2] = 3
    assert (model.item_embedding[2] == 3).all()
    assert model.n_parameters == 240 * 8 + 120 * 9


def test_values_do_not_count():
    matrix = TRAIN.copy()
    matrix.data[:] = np.random.default_rng(0).normal(size=matrix.nnz)
    matrix.data[::9] = 0  # a stored cell is one that is liked
    assert np.array_equal(
        fitted(matrix, iterations=2).user_factors, fitted(iterations=2).user_factors
    )


def test_a_seed_chooses_the_result():
    one = fitted(iterations=2)
    assert np.array_equal(one.item_factors, fitted(iterations=2).item_factors)
    for state in (1, None, np.random.RandomState(0)):
        other = fitted(iterations=2, random_state=state)
        assert not np.array_equal(one.item_factors, other.item_factors)


def test_what_is_liked_is_skipped_or_not():
    assert fitted(iterations=1).history_[0]["skipped"] > 0.1
    assert fitted(iterations=1, verify_negative_samples=False).history_[0]["skipped"] == 0


def test_fit_goes_on_from_factors_that_are_there():
    model = fitted(iterations=10)
    before = model.history_[-1]["loss"]
    memory = model.user_embedding
    model.fit(TRAIN)
    assert model.user_embedding is memory
    assert model.history_[0]["loss"] < before + 0.02
    with pytest.raises(ValueError, match=r"user_factors of shape \[10, 9\]"):
        model.fit(TRAIN[:10])


def test_a_callback_may_stop():
    model = BPR(4, iterations=9, random_state=0)
    model.fit(TRAIN, callback=lambda number, seconds, measures: number == 2)
    assert len(model.history_) == 3


def test_similar_are_of_one_kind():
    draw = np.random.default_rng(0)
    draw.integers(0, 4, 240)
    kinds = draw.integers(0, 4, 120)
    model = fitted()
    ids, scores = model.similar_items(np.arange(120), N=6)
    assert (ids[:, 0] == np.arange(120)).all()
    assert np.allclose(scores[:, 0], 1, atol=1e-5)
    assert (kinds[ids[:, 1:]] == kinds[:, None]).mean() > 0.9
    ids, _ = model.similar_users(7, N=4, filter_users=[7])
    assert ids.shape == (4,)
    assert 7 not in ids


def test_ranks_are_of_what_is_asked_for():
    model = fitted(iterations=5)
    scores = model.user_factors @ model.item_factors.T
    ids, found = model.rank_items(4, None, [7, 3, 90])
    assert ids.tolist() == sorted([7, 3, 90], key=lambda item: -scores[4, item])
    assert np.allclose(found, scores[4, ids], atol=1e-5)
    every = model.recommend_all(TRAIN, N=3, filter_items=[0, 1])
    assert every.shape == (240, 3)
    assert np.array_equal(every[4], model.recommend(4, TRAIN[4], N=3, filter_items=[0, 1])[0])
    assert not np.isin(every, [0, 1]).any()


def test_what_is_packed_for_searches_follows_training():
    model = fitted(iterations=2)
    before = model.recommend(np.arange(240), TRAIN)[1], model.similar_items(3)[1]
    model.fit(TRAIN)
    again = BPR(8)
    again._users, again._items = (type(t)(t.tensor.clone()) for t in (model._users, model._items))
    assert np.array_equal(
        model.recommend(np.arange(240), TRAIN)[0], again.recommend(np.arange(240), TRAIN)[0]
    )
    assert np.array_equal(model.similar_items(3)[0], again.similar_items(3)[0])
    assert not np.array_equal(model.recommend(np.arange(240), TRAIN)[1], before[0])
    assert not np.array_equal(model.similar_items(3)[1], before[1])


def test_pairs_have_no_exact_rows():
    model = fitted(iterations=1)
    with pytest.raises(NotImplementedError, match="BPR recalculates no users"):
        model.recommend(0, TRAIN[0], recalculate_user=True)
    with pytest.raises(NotImplementedError, match="BPR recalculates no items"):
        model.similar_items(0, recalculate_item=True, item_users=sparse.csr_matrix(TRAIN.T)[0])


@pytest.mark.parametrize("known", [True, False], ids=["interactions", "matrix"])
def test_a_model_comes_back_from_its_folder(tmp_path, known):
    likes = Interactions.from_scipy(TRAIN, np.arange(240) + 2**40) if known else TRAIN
    model = fitted(likes, iterations=3)
    model.save(tmp_path / "model")
    back = BPR.load(tmp_path / "model")
    assert np.array_equal(back.user_factors, model.user_factors)
    assert np.array_equal(back.item_factors, model.item_factors)
    assert back.history_ == model.history_
    assert (back.interactions is not None) == known
    if known:
        assert back.interactions.users[0] == 2**40
        assert np.array_equal(back.recommend(5)[0], model.recommend(5, TRAIN[5])[0])
    back.fit(TRAIN)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": {"factors": 9}}))
    with pytest.raises(ValueError, match="tables of 10 columns; got 9"):
        BPR.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"factors": 0}, ValueError, "factors >= 1"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate > 0"),
        ({"regularization": np.inf}, ValueError, "regularization to be finite"),
        ({"dtype": np.float64}, ValueError, "dtype float32"),
        ({"iterations": -1}, ValueError, "iterations >= 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads to be an integer"),
        ({"random_state": "x"}, TypeError, "random_state to be None"),
    ],
)
def test_bad_options_are_refused(options, kind, words):
    with pytest.raises(kind, match=words):
        BPR(**options)


def test_bad_matrices_are_refused():
    model = BPR(4, iterations=1, random_state=0)
    with pytest.raises(TypeError, match=r"scipy\.sparse"):
        model.fit(TRAIN.toarray())
    broken = TRAIN.copy()
    broken.data[3] = np.nan
    with pytest.raises(ValueError, match="finite; got nan"):
        model.fit(broken)
    with pytest.raises(ValueError, match="before fit"):
        model.recommend(0, TRAIN[0])
    model.fit(TRAIN)
    with pytest.raises(IndexError, match=r"userid in 0\.\.239; got 240"):
        model.recommend(240, TRAIN[0])
    with pytest.raises(ValueError, match=r"diverged|finite"):
        fitted(learning_rate=1e20, iterations=5)


def test_a_matrix_without_cells():
    model = BPR(4, iterations=2, random_state=0).fit(sparse.csr_matrix((3, 5)))
    assert not model.item_factors.any()
    assert model.history_[0] == {"loss": 0, "train_auc": 0, "skipped": 1}
    ids, _ = model.recommend([0, 2], sparse.csr_matrix((2, 5)), N=3)
    assert ids.tolist() == [[0, 1, 2]] * 2
