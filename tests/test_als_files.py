"""ALS in files: saved models, and checkpoints of runs that were stopped."""

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
import torch

from planted_ratings import random_cells
from vecsmith import ALS, ExplicitALS
from vecsmith.data import Interactions
from vecsmith.io import load_safetensors, save_safetensors
from vecsmith.models._checkpoint import NAME, CheckpointError, FolderInUseError, TrainingInterrupted
from vecsmith.models._factor_files import load_any

OPTIONS = {"factors": 6, "random_state": 5, "progress": False, "iterations": 4}
MATRIX = random_cells()
KEYS = [f"item {n}\n" for n in range(20)]


def fitted(kind=ALS, matrix=MATRIX, **more):
    return kind(**{**OPTIONS, **more}).fit(matrix)


def tables(model):
    return model.user_embedding.detach().numpy(), model.item_embedding.detach().numpy()


def check_same(one, two):
    for mine, theirs in zip(tables(one), tables(two), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# --- saved models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [ALS, ExplicitALS])
def test_a_model_comes_back(tmp_path, kind, dtype):
    model = fitted(kind, calculate_training_loss=True, dtype=dtype, regularization=0.2)
    model.save(tmp_path / "deep" / "model")
    assert sorted(os.listdir(tmp_path / "deep" / "model")) == ["config.json", "model.safetensors"]
    for back in (kind.load(tmp_path / "deep/model"), load_any(tmp_path / "deep/model")):
        assert type(back) is kind
        check_same(model, back)
        assert back.dtype == np.dtype(dtype)
        assert back.interactions is None
        for name in ("factors", "regularization", "iterations", "random_state", "method"):
            assert getattr(back, name) == getattr(model, name)
        history = "loss_history_" if kind is ALS else "history_"
        assert getattr(back, history) == getattr(model, history)
        for mine, theirs in zip(
            model.recommend([3, 4], MATRIX[[3, 4]]), back.recommend([3, 4], MATRIX[[3, 4]]),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(mine, theirs)
        if kind is ALS:
            back.iterations = 1
        back.fit(MATRIX)  # the mapped file is not written to
    check_same(model, kind.load(tmp_path / "deep/model"))


@pytest.mark.parametrize("kind", [ALS, ExplicitALS])
def test_keys_and_cells_come_back(tmp_path, kind):
    ratings = Interactions.from_scipy(MATRIX, users=np.arange(30) + 2**40, items=KEYS)
    model = fitted(kind, ratings)
    model.save(tmp_path)
    assert (tmp_path / "items.txt").exists()
    back = kind.load(tmp_path, num_threads=1)
    assert back.num_threads == 1
    assert back.interactions.items.tolist() == KEYS
    user = back.interactions.user_index(2**40 + 7)
    np.testing.assert_array_equal(back.recommend(user)[0], model.recommend(user)[0])
    fitted(kind).save(tmp_path)  # one without keys in its place
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert kind.load(tmp_path).interactions is None


def test_a_model_is_saved_with_the_factors_that_it_has(tmp_path):
    model = ALS(factors=3)
    model.user_factors, model.item_factors = np.ones((2, 5)), np.ones((4, 5))
    model.save(tmp_path)
    assert ALS.load(tmp_path).factors == 5
    model.interactions = Interactions.from_scipy(MATRIX)
    with pytest.raises(ValueError, match="that have keys"):
        model.save(tmp_path)
    model.interactions = None
    model.item_factors[1, 2] = np.nan
    with pytest.raises(ValueError, match="items: row 1 holds nan"):
        model.save(tmp_path)
    assert np.isfinite(ALS.load(tmp_path).item_factors).all()


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def tensors(folder):
    return load_safetensors(folder / "model.safetensors", mmap=False)[0]


def replace(folder, **new):
    save_safetensors(folder / "model.safetensors", {**tensors(folder), **new})


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json"),
    "no tables": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "safetensors"),
    "no cells": (lambda f: (f / "interactions.safetensors").unlink(), FileNotFoundError, "interac"),
    "not json": (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json"),
    "other format": (lambda f: edit(f, lambda c: c.update(format="x")), ValueError, "got 'x'"),
    "later": (lambda f: edit(f, lambda c: c.update(version=9)), ValueError, "version 9"),
    "no users": (lambda f: edit(f, lambda c: c.pop("users")), ValueError, "damaged"),
    "other users": (lambda f: edit(f, lambda c: c.update(users=29)), ValueError, "29"),
    "state": (lambda f: edit(f, lambda c: c.update(state=3)), ValueError, "damaged"),
    "history": (lambda f: edit(f, lambda c: c["state"].update(loss_history_=["x"], history_=3)),
                ValueError, "damaged"),
    "option": (lambda f: edit(f, lambda c: c["parameters"].update(depth=3)), ValueError, "depth"),
    "size": (lambda f: edit(f, lambda c: c["parameters"].update(factors=3)), ValueError, "colu"),
    "interactions": (lambda f: edit(f, lambda c: c.update(interactions=3)), ValueError, "damaged"),
    "width": (lambda f: replace(f, users=torch.zeros(30, 4)), ValueError, "one width"),
    "name": (lambda f: replace(f, more=torch.zeros(30, 6)), ValueError, "expected tables"),
    "half": (lambda f: replace(f, users=torch.zeros(30, 6).half()), ValueError, "width|float16"),
    "nan": (lambda f: replace(f, items=tensors(f)["items"] * np.nan), ValueError, "holds nan"),
    "endless": (lambda f: edit(f, lambda c: c.update(version=np.inf)), ValueError, "config.json"),
    "endless users": (lambda f: edit(f, lambda c: c.update(users=np.inf)), ValueError, "damaged"),
    "endless cells": (lambda f: edit(f, lambda c: c["interactions"].update(cells=np.inf)),
                      ValueError, "config.json: damaged"),
    "huge loss": (lambda f: edit(f, lambda c: c["state"].update(
        loss_history_=[10**400], history_=[{"loss": 10**400}])), ValueError, "damaged"),
    "huge option": (lambda f: edit(f, lambda c: c["parameters"].update(regularization=10**400)),
                    ValueError, "damaged"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 10**6), ValueError, "config.json"),
    "short": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), ValueError, "safet"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("kind", [ALS, ExplicitALS])
def test_a_damaged_folder_is_refused(tmp_path, kind, name):
    damage, error, text = DAMAGE[name]
    fitted(kind, Interactions.from_scipy(MATRIX), iterations=1).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=text):
        kind.load(tmp_path)


@pytest.mark.parametrize("kind", [ALS, ExplicitALS])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "interactions.safetensors", "users.txt", "items.txt"],
)
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, kind, name):
    ratings = Interactions.from_scipy(MATRIX, users=[f"u{n}" for n in range(30)], items=KEYS)
    fitted(kind, ratings, iterations=1).save(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    for load in (kind.load, load_any):
        with pytest.raises(ValueError, match=f"{name}: damaged .*got a folder"):
            load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"global_bias": 10**400}, {"global_bias": np.inf}, {"rating_range": [np.nan, 1]},
     {"rating_range": [0, np.inf]}, {"rating_range": [5, 1]}, {"rating_range": [1]},
     {"rating_range": [1, 2, 3]}, {"rating_range": [1, 10**400]}, {"rating_range": None}],
)  # fmt: skip
def test_damaged_means_and_ranges_are_refused(tmp_path, change):
    fitted(ExplicitALS, iterations=1).save(tmp_path)
    edit(tmp_path, lambda config: config["state"].update(change))
    with pytest.raises(ValueError, match=r"config\.json: damaged"):
        ExplicitALS.load(tmp_path)


def test_a_deep_config_is_refused_by_whoever_reads_it(tmp_path):
    fitted().save(tmp_path)
    (tmp_path / "config.json").write_text("[" * 10**6)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_any(tmp_path)


def test_only_its_own_class_loads_a_model(tmp_path):
    fitted(ExplicitALS).save(tmp_path)
    with pytest.raises(ValueError, match=r"expected vecsmith\.ALS .* got 'vecsmith\.ExplicitALS'"):
        ALS.load(tmp_path)
    edit(tmp_path, lambda config: config.update(format="vecsmith.Word2Vec"))
    with pytest.raises(ValueError, match=r"got 'vecsmith\.Word2Vec'"):
        load_any(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_any(tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"got \['factors'\]"):
        ALS.load(tmp_path, factors=3)


# --- checkpoints ----------------------------------------------------------------------------------

# A run in a process of its own, with a checkpoint after each half-step.
CHILD = """
import sys
import numpy as np
from scipy import sparse
import vecsmith
from planted_ratings import random_cells

kind, folder, options = eval(sys.argv[1])
model = getattr(vecsmith, kind)(**options, checkpoint=folder, checkpoint_every=0)
held = {"validation": random_cells(seed=3)} if kind == "ExplicitALS" else {}
model.fit(random_cells(), callback=lambda *given: print("iteration", flush=True), **held)
"""
LONG = {**OPTIONS, "iterations": 100_000, "num_threads": 1}


def start(kind, folder):
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, repr((kind.__name__, str(folder), LONG))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        text=True,
    )


def state_of(folder):
    return json.loads(load_safetensors(folder / NAME)[1]["state"])["cursor"]


@pytest.mark.parametrize(("kind", "how"), [(ALS, signal.SIGKILL), (ExplicitALS, signal.SIGINT)])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, kind, how):
    child = start(kind, tmp_path)
    for _ in range(3):
        assert child.stdout.readline() == "iteration\n", child.stderr.read()
    child.send_signal(how)
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0
    if how == signal.SIGINT:
        assert "TrainingInterrupted" in errors
    half = state_of(tmp_path)["steps"]
    assert half >= 5  # the third iteration's checkpoint may not have been written
    # The settings of the run say how far it would have gone: this one goes two iterations more.
    options = {**LONG, "iterations": half // 2 + 2}
    rewrite(tmp_path, iterations=options["iterations"])
    held = {"validation": random_cells(seed=3)} if kind is ExplicitALS else {}
    resumed = kind(**options, checkpoint=tmp_path)
    seen = []
    resumed.fit(MATRIX, callback=lambda *given: seen.append(given[0]), **held)
    assert seen[0] == half // 2
    whole = kind(**options).fit(MATRIX, **held)
    check_same(resumed, whole)
    if kind is ExplicitALS:
        assert resumed.history_ == whole.history_
    resumed.save(tmp_path)
    assert not (tmp_path / NAME).exists()


def rewrite(folder, **settings):
    """The same checkpoint, of other settings."""
    from vecsmith.models._factor_training import FactorCheckpoint

    checkpoint = FactorCheckpoint(folder)
    state, found = checkpoint.read()
    state["settings"].update(settings)
    checkpoint.write({name: table.clone() for name, table in found.items()}, state)


def stop_after(count):
    """A callback that interrupts training in an iteration, as Ctrl-C does."""

    def callback(iteration, *_):
        if iteration + 1 == count:
            signal.raise_signal(signal.SIGINT)

    return callback


def interrupted(folder, kind=ALS, **more):
    with pytest.raises(TrainingInterrupted):
        kind(**OPTIONS, checkpoint=folder).fit(MATRIX, callback=stop_after(2), **more)


@pytest.mark.parametrize("kind", [ALS, ExplicitALS])
def test_another_run_is_refused(tmp_path, kind):
    interrupted(tmp_path, kind)
    before = (tmp_path / NAME).read_bytes()
    for change, text in (
        ({"regularization": 0.3}, "regularization=0.3"),
        ({"iterations": 1}, "at least 2 iterations.* got 1"),
        ({"method": "cg"}, "method='cg'"),
        ({"random_state": 6}, "start="),
        ({"weighted_regularization": kind is ALS}, "weighted_regularization"),
    ):
        with pytest.raises(CheckpointError, match=text):
            kind(**{**OPTIONS, **change}, checkpoint=tmp_path).fit(MATRIX)
    with pytest.raises(CheckpointError, match=r"same matrix.*checksum"):
        kind(**OPTIONS, checkpoint=tmp_path).fit(MATRIX * 2)
    other = ExplicitALS if kind is ALS else ALS
    with pytest.raises(CheckpointError, match="model="):
        other(**OPTIONS, checkpoint=tmp_path).fit(MATRIX)
    assert (tmp_path / NAME).read_bytes() == before
    model = kind(**{**OPTIONS, "iterations": 5}, checkpoint=tmp_path, resume=False).fit(MATRIX)
    check_same(model, fitted(kind, iterations=5))


def test_a_run_without_a_seed_goes_on(tmp_path):
    options = {**OPTIONS, "random_state": None}
    model = ALS(**options, checkpoint=tmp_path / "one")
    with pytest.raises(TrainingInterrupted):
        model.fit(MATRIX, callback=stop_after(2))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    model.fit(MATRIX)
    check_same(model, ALS(**options, checkpoint=tmp_path / "two").fit(MATRIX))


def test_the_history_goes_on(tmp_path):
    options = {**OPTIONS, "calculate_training_loss": True}
    whole = ALS(**options).fit(MATRIX)
    model = ALS(**options, checkpoint=tmp_path)
    with pytest.raises(TrainingInterrupted):
        model.fit(MATRIX, callback=stop_after(3))
    assert model.loss_history_ == []
    written = state_of(tmp_path)
    assert written["steps"] == 6
    assert [measures["loss"] for measures in written["history"]] == whole.loss_history_[:3]
    resumed = ALS(**options, checkpoint=tmp_path).fit(MATRIX)
    assert resumed.loss_history_ == whole.loss_history_


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 99},
        {"steps": -1},
        {"steps": "2"},
        {"history": [{"loss": 1.0}]},
        {"best": 3},
        {"more": 3},
        None,
    ],
)
def test_a_checkpoint_with_another_place_is_refused(tmp_path, change):
    from vecsmith.models._factor_training import FactorCheckpoint

    interrupted(tmp_path)
    checkpoint = FactorCheckpoint(tmp_path)
    state, found = checkpoint.read()
    state["cursor"] = None if change is None else {**state["cursor"], **change}
    checkpoint.write({name: table.clone() for name, table in found.items()}, state)
    model = ALS(**OPTIONS, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="expected a place in 4 iterations"):
        model.fit(MATRIX)
    assert model.user_factors is None


def test_two_runs_into_one_folder_are_told_apart(tmp_path):
    def second(*_):
        with pytest.raises(FolderInUseError):
            ALS(**OPTIONS, checkpoint=tmp_path).fit(MATRIX)

    ALS(**OPTIONS, checkpoint=tmp_path).fit(MATRIX, callback=second)


def test_a_checkpoint_needs_float32(tmp_path):
    for kind in (ALS, ExplicitALS):
        with pytest.raises(ValueError, match="float32 with a checkpoint; got float64"):
            kind(checkpoint=tmp_path, dtype=np.float64)


def test_a_full_disk_is_said_once(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vecsmith.models._checkpoint.save_safetensors", fail)
    with pytest.warns(RuntimeWarning, match="could not be written") as said:
        model = ALS(**OPTIONS, checkpoint=tmp_path, checkpoint_every=0).fit(MATRIX)
    assert len(said) == 1
    check_same(model, fitted())
