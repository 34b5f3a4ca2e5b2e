"""Interactions in folders."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interaction_tables import PAIRS, check_canonical, random_interactions, triples
from vecsmith.data import Interactions


@given(PAIRS, st.sampled_from([None, np.int64, np.float64, "M8[us]"]))
@settings(deadline=None, max_examples=30)
def test_what_is_saved_is_loaded(tmp_path_factory, pairs, time):
    folder = tmp_path_factory.mktemp("saved") / "interactions"
    ratings = np.arange(len(pairs)) - 1.5
    times = None if time is None else np.arange(len(pairs))[::-1].astype(time)
    made = Interactions.from_arrays([u for u, _ in pairs], [i for _, i in pairs], ratings, times)
    made.save(folder)
    found = Interactions.load(folder)
    check_canonical(found)
    assert triples(found) == triples(made)
    for ours, theirs in ((found.users, made.users), (found.items, made.items)):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype.kind == theirs.dtype.kind
    if time is None:
        assert found.timestamps is None
    else:
        np.testing.assert_array_equal(found.timestamps, made.timestamps)
        assert found.timestamps.dtype == made.timestamps.dtype


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "down"
    Interactions.from_arrays(["a", "b\n\t\\"], ["x", "y"]).save(folder)
    names = {"config.json", "interactions.safetensors", "items.txt", "users.txt"}
    assert {path.name for path in folder.iterdir()} == names
    assert Interactions.load(folder).users.tolist() == ["a", "b\n\t\\"]
    (folder / "notes.md").write_text("mine")
    made = random_interactions()
    made.save(folder)
    assert {path.name for path in folder.iterdir()} == {*names, "notes.md"} - {
        *("users.txt", "items.txt")
    }
    loaded = Interactions.load(folder)
    made.split_ratio()[0].save(folder)
    np.testing.assert_array_equal(loaded.matrix.toarray(), made.matrix.toarray())
    # Memory is its own: what is changed in it does not reach the files.
    loaded = Interactions.load(folder)
    loaded.matrix.data[:] = 9
    assert 9 not in Interactions.load(folder).matrix.data


def test_folders_that_are_refused(tmp_path):
    folder = tmp_path / "saved"
    made = Interactions.from_arrays([5, 5, 9], ["x", "y", "y"], timestamps=[1, 2, 3])
    made.save(folder)

    def load(error, words):
        with pytest.raises(error, match=words):
            Interactions.load(folder)
        made.save(folder)

    with pytest.raises(FileNotFoundError, match="does not exist"):
        Interactions.load(tmp_path / "none")
    os.unlink(folder / "config.json")
    load(FileNotFoundError, "holds no interactions: it has no config.json")
    os.unlink(folder / "items.txt")
    load(FileNotFoundError, "items.txt")
    os.truncate(folder / "interactions.safetensors", 100)
    load(ValueError, "interactions.safetensors: not a whole safetensors file")
    config = json.loads((folder / "config.json").read_text())
    for changed, words in [
        ({"format": "vecsmith-index"}, "expected vecsmith-interactions of version <= 1"),
        ({"version": 2}, "of version 2"),
        ({"version": None}, "not a config.json of interactions"),
        ({"shape": [2]}, "description is damaged"),
        ({"shape": [2, -1]}, "description is damaged"),
        ({"shape": [3, 2]}, "expected arrays of sizes"),
        ({"shape": [2, 1]}, r"damaged \(indices\)"),
        ({"shape": [2, 3]}, "expected 3 different keys of items"),
        ({"users": "float"}, "description is damaged"),
        ({"timestamps": None}, "expected arrays of sizes"),
        ({"timestamps": "float64"}, r"damaged \(timestamps of int64\)"),
        ({"timestamps": "minutes"}, "description is damaged"),
        ({"cells": 2}, "expected arrays of sizes"),
    ]:
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        load(ValueError, words)
    (folder / "config.json").write_text("{")
    load(ValueError, "not a config.json of interactions")
    (folder / "items.txt").write_text("# vecsmith vocabulary 1 words=2 counts=no\nx\t0\nx\t0\n")
    load(ValueError, "expected 2 different keys of items")
