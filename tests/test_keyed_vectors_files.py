"""KeyedVectors: saved and loaded whole, whatever befalls the program, the disk or the folder."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsmith import KeyedVectors, io
from word_tables import WORDS, table

ODD_WORDS = ["", " ", "\t", "\n", "\\n", "a b", "é", "日本", "\0", "\ud800", "nul\0\r\n", "#"]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("counts", [None, list(range(12))])
def test_save_and_load(tmp_path, mmap, counts):
    kv = KeyedVectors(ODD_WORDS, table(12, 5, 16), counts)
    kv.save(tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == [
        "config.json",
        "model.safetensors",
        "vocab.txt",
    ]
    again = KeyedVectors.load(str(tmp_path / "model"), mmap=mmap)
    assert again.index_to_key == ODD_WORDS
    assert np.array_equal(again.vectors, kv.vectors)
    assert ("count" in again.expandos) == (counts is not None)
    if counts:
        assert again.expandos["count"].tolist() == counts
    again.vectors[0] = 5  # memory only
    assert np.array_equal(KeyedVectors.load(tmp_path / "model").vectors, kv.vectors)
    again.save(tmp_path / "model")  # over the files that it maps
    assert KeyedVectors.load(tmp_path / "model")[""].tolist() == [5] * 5


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(), unique=True, max_size=6), st.integers(1, 4))
def test_any_words_survive(tmp_path_factory, words, dim):
    folder = tmp_path_factory.mktemp("model")
    kv = KeyedVectors(words, table(len(words), dim))
    kv.save(folder)
    again = KeyedVectors.load(folder)
    assert again.index_to_key == words
    assert np.array_equal(again.vectors, kv.vectors)


def test_huge_finite_values_are_not_taken_for_infinite(tmp_path):
    kv = KeyedVectors(["a", "b"], torch.full((2, 3), 3.4e38))
    kv.save(tmp_path)
    assert KeyedVectors.load(tmp_path)["a"][0] == np.float32(3.4e38)


def damage_config(**changes: object):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        config.update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def damage_vectors(value: float):
    def damage(folder):
        vectors = table(12, 5)
        vectors[7, 2] = value
        io.save_safetensors(folder / "model.safetensors", {"vectors": vectors})

    return damage


def cut(name: str):
    def damage(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def tensors(**named: torch.Tensor):
    return lambda folder: io.save_safetensors(folder / "model.safetensors", named)


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "no config.json"),
        (lambda folder: (folder / "vocab.txt").unlink(), FileNotFoundError, "no vocab.txt"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            FileNotFoundError,
            "no model.safetensors",
        ),
        (cut("config.json"), ValueError, r"config\.json: not a model's"),
        (cut("vocab.txt"), ValueError, r"vocab\.txt: "),
        (cut("model.safetensors"), ValueError, r"model\.safetensors: not a whole"),
        (lambda folder: (folder / "config.json").write_text("[]"), ValueError, "config.json"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), ValueError, "config.json"),
        (damage_config(words="many"), ValueError, "config.json"),
        (damage_config(format="other"), ValueError, "expected a vecsmith model"),
        (damage_config(version=99), ValueError, "version 99"),
        (damage_config(words=11), ValueError, "expected 'vectors' as float32"),
        (damage_config(vector_size=4), ValueError, "expected 'vectors' as float32"),
        (damage_vectors(math.nan), ValueError, r"vector of '\\x00\\r' \(row 7\)|row 7"),
        (damage_vectors(math.inf), ValueError, "row 7"),
        (tensors(other=torch.ones(12, 5)), ValueError, "expected a tensor 'vectors'"),
        (tensors(vectors=torch.ones(12, 5).double()), ValueError, "as float32"),
        (tensors(vectors=torch.ones(60)), ValueError, "as float32"),
        (
            lambda folder: io.save_words(folder / "vocab.txt", ["a"] * 12, None),
            ValueError,
            "'a' twice",
        ),
        (
            lambda folder: io.save_words(folder / "vocab.txt", ["a"], None),
            ValueError,
            "expected 12 words, got 1",
        ),
    ],
)
def test_damaged_models_are_refused(tmp_path, damage, error, match):
    KeyedVectors(ODD_WORDS, table(12, 5)).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=match) as caught:
        KeyedVectors.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_or_saved(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        KeyedVectors.load(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        KeyedVectors.load(tmp_path / "file")
    kv = KeyedVectors(["a", "b"], torch.ones(2, 2))
    with pytest.raises(NotADirectoryError):
        kv.save(tmp_path / "file")
    kv.save(tmp_path / "model")
    kv.vectors[1, 1] = math.nan
    with pytest.raises(ValueError, match=r"vector of 'b' \(row 1\)"):
        kv.save(tmp_path / "model")
    assert KeyedVectors.load(tmp_path / "model")["b"].tolist() == [1, 1]


SAVER = """
    import sys, torch
    from vecsmith import KeyedVectors
    words = [f"word{i}" for i in range(20_000)]
    one, two = (KeyedVectors(words, torch.full((20_000, 50), float(x))) for x in (1, 2))
    one.save(sys.argv[1])
    print("ready", flush=True)
    while True:
        two.save(sys.argv[1])
        one.save(sys.argv[1])
"""


def test_sigkill_in_the_middle_of_a_save(tmp_path):
    generator = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path / "model")],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
        kv = KeyedVectors.load(tmp_path / "model")
        assert len(kv) == 20_000
        assert kv["word0"][0] in (1, 2)
        assert (kv.vectors == kv["word0"][0]).all()
    kv.save(tmp_path / "model")
    assert len(os.listdir(tmp_path / "model")) == 3


def test_a_full_disk_leaves_the_old_model(tmp_path):
    kv = KeyedVectors(WORDS, table())
    kv.save(tmp_path)
    script = """
        import resource, sys, torch
        from vecsmith import KeyedVectors
        kv = KeyedVectors([f"w{i}" for i in range(5000)], torch.ones(5000, 50))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            kv.save(sys.argv[1])
        except OSError as error:
            print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "limit reached while writing" in out
    assert len(os.listdir(tmp_path)) == 3
    assert np.array_equal(KeyedVectors.load(tmp_path).vectors, kv.vectors)
