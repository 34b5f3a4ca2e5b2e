"""What is left of a factorization whose training failed or was stopped: what there was before."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from scipy import sparse

from planted_ratings import random_cells
from vecsmith import ALS, BPR, ExplicitALS, MatrixFactorizationSGD
from vecsmith.data import Interactions
from vecsmith.models._checkpoint import NAME, CheckpointError, TrainingInterrupted

KINDS = [ALS, ExplicitALS, MatrixFactorizationSGD, BPR]
MATRIX = random_cells()
# The second user's row is fine, the first one's is beyond float32.
TOO_LARGE = sparse.csr_matrix(np.array([[1, 1e300], [0, 2]]))


def made(kind, count=4, **options):
    """A model of so many epochs."""
    given = {"factors": 6, "random_state": 5, "num_threads": 1, "progress": False}
    name = "epochs" if kind is MatrixFactorizationSGD else "iterations"
    return kind(**{**given, name: count, **options})


def history(model):
    return model.loss_history_ if isinstance(model, ALS) else model.history_


def state(model):
    """All that a fit sets, copied."""
    tables = [model.user_embedding, model.item_embedding]
    tables = [None if table is None else table.detach().numpy().copy() for table in tables]
    others = [getattr(model, name, None) for name in ("global_bias", "rating_range")]
    return tables, [*others, model.interactions, list(history(model))]


def check_state(model, before):
    tables, others = state(model)
    for mine, theirs in zip(tables, before[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert others == before[1]


def fails_after(count, error):
    def callback(number, *_):
        if number + 1 == count:
            raise error

    return callback


def stop_after(count):
    def callback(number, *_):
        if number + 1 == count:
            signal.raise_signal(signal.SIGINT)

    return callback


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_a_fit_that_fails_leaves_the_model_as_it_was(kind, fitted, error):
    ratings = Interactions.from_scipy(MATRIX)
    model = made(kind)
    if fitted:
        model.fit(ratings)
        users, items = model.user_embedding, model.item_embedding
        listed = model.recommend(np.arange(30), N=5)
    before = state(model)
    with pytest.raises(type(error)):
        model.fit(MATRIX * 3, callback=fails_after(2, error))
    check_state(model, before)
    if fitted:
        assert model.user_embedding is users
        assert model.item_embedding is items
        for mine, theirs in zip(model.recommend(np.arange(30), N=5), listed, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        again, expected = model.fit(ratings), made(kind).fit(ratings)
        expected = expected.fit(ratings) if kind in (ALS, BPR) else expected
        np.testing.assert_array_equal(again.item_factors, expected.item_factors)


@pytest.mark.parametrize("kind", [ALS, ExplicitALS])
def test_values_that_are_too_large_leave_nothing_behind(kind):
    model = made(kind, random_state=0)
    with pytest.raises(ValueError, match="expected"):
        model.fit(TOO_LARGE)
    assert model.user_factors is model.item_factors is None
    good = sparse.csr_matrix(np.eye(2))
    model.fit(good)
    expected = made(kind, random_state=0).fit(good)
    np.testing.assert_array_equal(model.user_factors, expected.user_factors)
    before = state(model)
    for call in (
        lambda: model.fit(TOO_LARGE),
        lambda: model.recalculate_user([0, 1], TOO_LARGE),
        lambda: model.partial_fit_users([0, 1], TOO_LARGE),
        lambda: model.partial_fit_items([1, 0], TOO_LARGE),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
    check_state(model, before)


def test_rows_that_come_to_more_than_float32_are_refused():
    model = made(MatrixFactorizationSGD).fit(MATRIX)
    model.regularization, model.bias_regularization = 0.0, 1e12  # rows are solved in float64
    huge = sparse.csr_matrix(np.full((1, 20), 3e38, np.float32))
    assert model.item_embedding is not None
    with torch.no_grad():
        model.item_embedding.mul_(1e-3)
    before = state(model)
    with pytest.raises(ValueError, match="expected finite factors; got nan or inf for users"):
        model.partial_fit_users([3], huge)
    check_state(model, before)


@pytest.mark.parametrize("kind", [MatrixFactorizationSGD, BPR])
def test_a_refit_that_diverges_keeps_the_good_model(kind):
    model = made(kind).fit(MATRIX)
    before = state(model)
    model.learning_rate = 1e6
    if kind is MatrixFactorizationSGD:
        model.optimizer = "sgd"
    with pytest.raises(ValueError, match="diverged"):
        model.fit(MATRIX)
    check_state(model, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [5, None])
def test_an_interrupted_fit_goes_on_when_it_is_called_again(tmp_path, kind, seed):
    model = made(kind, 6, checkpoint=tmp_path, random_state=seed)
    with pytest.raises(TrainingInterrupted):
        model.fit(MATRIX, callback=stop_after(4))
    assert model.user_factors is None
    assert (tmp_path / NAME).exists()
    seen = []
    model.fit(MATRIX, callback=lambda number, *_: seen.append(number))
    assert seen == [4, 5]
    if seed is not None:
        whole = made(kind, 6).fit(MATRIX)
        np.testing.assert_array_equal(model.item_factors, whole.item_factors)
        assert history(model) == history(whole)
    model.save(tmp_path)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_after_one_that_ended_begins_anew(tmp_path, kind):
    model = made(kind, checkpoint=tmp_path, checkpoint_every=0)
    model.fit(MATRIX)
    seen = []
    model.fit(MATRIX * 2, callback=lambda number, *_: seen.append(number))
    assert seen == [0, 1, 2, 3]
    # The folder holds what those runs have written, not this one, which fails before it writes.
    assert model.checkpoint is not None
    model.checkpoint.every = 1e9
    with pytest.raises(RuntimeError):
        model.fit(MATRIX * 3, callback=fails_after(1, RuntimeError()))
    seen.clear()
    model.fit(MATRIX * 4, callback=lambda number, *_: seen.append(number))
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_another_checkpoint_changes_nothing(tmp_path, kind):
    with pytest.raises(TrainingInterrupted):
        made(kind, checkpoint=tmp_path).fit(MATRIX, callback=stop_after(2))
    model = made(kind).fit(MATRIX)
    before = state(model)
    model.checkpoint = made(kind, checkpoint=tmp_path).checkpoint
    with pytest.raises(CheckpointError):
        model.fit(MATRIX * 2)
    check_state(model, before)
