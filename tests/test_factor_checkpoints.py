"""Checkpoints of factorizations by gradient descent, runs that go further than they were to go, and
early stopping."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planted_ratings import groups, random_cells
from vecsmith import ALS, BPR, ExplicitALS, MatrixFactorizationSGD
from vecsmith.io import load_safetensors
from vecsmith.models._checkpoint import NAME, CheckpointError, TrainingInterrupted

MATRIX, HELD = random_cells(), random_cells(seed=3)
COUNT = {BPR: "iterations", ALS: "iterations", ExplicitALS: "iterations"}


def made(kind, count=6, **options):
    """A model of so many epochs."""
    given = {"factors": 6, "random_state": 5, "num_threads": 1, "progress": False}
    return kind(**{**given, COUNT.get(kind, "epochs"): count, **options})


def tables(model):
    return model.user_embedding.detach().numpy(), model.item_embedding.detach().numpy()


def history(model):
    return model.loss_history_ if isinstance(model, ALS) else model.history_


def check_same(one, two):
    for mine, theirs in zip(tables(one), tables(two), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert history(one) == history(two)


def stop_after(count):
    """A callback that interrupts training in an epoch, as Ctrl-C does."""

    def callback(number, *_):
        if number + 1 == count:
            signal.raise_signal(signal.SIGINT)

    return callback


def interrupted(folder, kind, *given, after=2, **options):
    model = made(kind, checkpoint=folder, **options)
    with pytest.raises(TrainingInterrupted):
        model.fit(MATRIX, *given, callback=stop_after(after))
    return model


CASES = {
    "adagrad": (MatrixFactorizationSGD, {}),
    "sgd": (MatrixFactorizationSGD, {"optimizer": "sgd", "decay": 0.1, "learning_rate": 0.01}),
    "no biases": (MatrixFactorizationSGD, {"biases": False}),
    "adam": (MatrixFactorizationSGD, {"optimizer": "adam", "minibatch": 16}),
    "rows": (MatrixFactorizationSGD, {"optimizer": "rowwise_adagrad", "minibatch": 7}),
    "bpr": (BPR, {"learning_rate": 0.1}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, name):
    kind, options = CASES[name]
    given = () if kind is BPR else (HELD,)
    options = options if kind is BPR else {**options, "patience": 9}
    interrupted(tmp_path, kind, *given, **options)
    resumed, seen = made(kind, checkpoint=tmp_path, **options), []
    resumed.fit(MATRIX, *given, callback=lambda number, *_: seen.append(number))
    assert seen == [2, 3, 4, 5]
    whole = made(kind, **options).fit(MATRIX, *given)
    check_same(resumed, whole)
    if kind is MatrixFactorizationSGD:
        assert resumed.global_bias == whole.global_bias
        assert resumed.rating_range == whole.rating_range
    assert (tmp_path / NAME).exists()
    resumed.save(tmp_path)
    assert not (tmp_path / NAME).exists()
    check_same(kind.load(tmp_path), whole)


CHILD = """
import sys
import vecsmith
from planted_ratings import random_cells

kind, options = eval(sys.argv[1])
model = getattr(vecsmith, kind)(**options, checkpoint_every=0)
model.fit(random_cells(), callback=lambda *given: print("epoch", flush=True))
"""


@pytest.mark.parametrize("kind", [MatrixFactorizationSGD, BPR])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, kind):
    options = {"factors": 6, "random_state": 5, "num_threads": 1, "checkpoint": str(tmp_path)}
    options |= {COUNT.get(kind, "epochs"): 100_000}
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, repr((kind.__name__, options))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        text=True,
    )
    for _ in range(4):
        assert child.stdout.readline() == "epoch\n", child.stderr.read()
    child.kill()
    child.communicate(timeout=60)
    state = json.loads(load_safetensors(tmp_path / NAME)[1]["state"])
    state, planned = state["cursor"]["steps"], state["settings"]["iterations"]
    assert (state >= 3, planned) == (True, 100_000)
    resumed = made(kind, state + 2, checkpoint=tmp_path).fit(MATRIX)  # fewer than it was to have
    check_same(resumed, made(kind, state + 2).fit(MATRIX))


@pytest.mark.parametrize("kind", [ALS, ExplicitALS, MatrixFactorizationSGD, BPR])
def test_a_run_goes_on_to_more_iterations_but_not_to_fewer_than_it_has(tmp_path, kind):
    measured = {"calculate_training_loss": True} if kind in (ALS, ExplicitALS) else {}
    interrupted(tmp_path, kind, after=3, **measured)
    before = (tmp_path / NAME).read_bytes()
    model = made(kind, 2, checkpoint=tmp_path, **measured)
    unit = "iterations" if measured else "epochs"
    with pytest.raises(CheckpointError, match=f"expected at least 3 {unit}.* got 2"):
        model.fit(MATRIX)
    assert model.user_factors is None
    assert (tmp_path / NAME).read_bytes() == before
    for count in (3, 9):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("3", "9"))
        resumed = made(kind, count, checkpoint=folder, **measured).fit(MATRIX)
        check_same(resumed, made(kind, count, **measured).fit(MATRIX))


@pytest.mark.parametrize("kind", [MatrixFactorizationSGD, BPR])
def test_a_run_without_a_seed_goes_on_with_its_own(tmp_path, kind):
    interrupted(tmp_path / "one", kind, random_state=None)
    state = json.loads(load_safetensors(tmp_path / "one" / NAME)[1]["state"])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (
        made(kind, random_state=None, checkpoint=tmp_path / name).fit(MATRIX)
        for name in ("one", "two")
    )
    check_same(one, two)
    assert history(one)[:2] == state["cursor"]["history"]
    assert len(history(one)) == 6


@pytest.mark.parametrize("kind", [MatrixFactorizationSGD, BPR])
def test_another_run_is_refused(tmp_path, kind):
    interrupted(tmp_path, kind)
    before = (tmp_path / NAME).read_bytes()
    for change, text in (
        ({"regularization": 0.3}, "regularization=0.3"),
        ({"learning_rate": 0.2}, "learning_rate=0.2"),
        ({"random_state": 6}, "seed="),
        ({"factors": 7}, "factors=7"),
    ):
        with pytest.raises(CheckpointError, match=text):
            made(kind, checkpoint=tmp_path, **change).fit(MATRIX)
    with pytest.raises(CheckpointError, match=r"same matrix.*checksum"):
        made(kind, checkpoint=tmp_path).fit(MATRIX * 2)
    if kind is MatrixFactorizationSGD:
        with pytest.raises(CheckpointError, match="same validation"):
            made(kind, checkpoint=tmp_path).fit(MATRIX, HELD)
    other = BPR if kind is MatrixFactorizationSGD else ExplicitALS
    with pytest.raises(CheckpointError, match="model="):
        made(other, checkpoint=tmp_path).fit(MATRIX)
    assert (tmp_path / NAME).read_bytes() == before
    made(kind, checkpoint=tmp_path, num_threads=2).fit(MATRIX)  # those are the machine's
    anew = made(kind, checkpoint=tmp_path, resume=False, random_state=6).fit(MATRIX)
    check_same(anew, made(kind, random_state=6).fit(MATRIX))


def test_bpr_goes_on_from_factors_that_it_has_and_from_its_checkpoint(tmp_path):
    def begun():
        return made(BPR, 2).fit(MATRIX)

    whole = begun()
    whole.iterations = 6
    whole.fit(MATRIX)
    model = begun()
    model.save(tmp_path / "model")
    model = BPR.load(tmp_path / "model", checkpoint=tmp_path / "run", num_threads=1)
    model.iterations = 6
    with pytest.raises(TrainingInterrupted):
        model.fit(MATRIX, callback=stop_after(2))
    again = BPR.load(tmp_path / "model", checkpoint=tmp_path / "run", num_threads=1)
    again.iterations = 6
    check_same(again.fit(MATRIX), whole)


def test_training_stops_where_what_it_lowers_does_not_fall_any_more():
    for kind, measure, matrix in (
        (MatrixFactorizationSGD, "rmse", MATRIX),
        (BPR, "loss", groups()),
    ):
        model = made(kind, 300, learning_rate=0.5, tolerance=0.02).fit(matrix)
        values = [measures[measure] for measures in model.history_]
        falls = 1 - np.array(values[1:]) / values[:-1]
        assert 2 < len(values) < 300
        assert (falls[:-1] >= 0.02).all()
        assert falls[-1] < 0.02


@pytest.mark.parametrize("kind", [MatrixFactorizationSGD, BPR])
def test_options_of_checkpoints_are_checked(kind):
    with pytest.raises(ValueError, match="expected checkpoint_every to be finite and >= 0"):
        kind(checkpoint_every=-1)
    with pytest.raises(ValueError, match="expected tolerance to be finite and >= 0"):
        kind(tolerance=-0.1)
