"""Word2Vec: saving and loading; damaged folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from planted_text import MODES, SMALL, planted
from vecsmith import KeyedVectors, Word2Vec
from vecsmith.io import load_safetensors, save_safetensors

gensim = pytest.importorskip("gensim")


@pytest.fixture(scope="module")
def text() -> list[list[str]]:
    return planted()


@pytest.mark.parametrize("mode", [MODES["sg-ns-window"], MODES["cbow-hs-pair"]], ids=["ns", "hs"])
@pytest.mark.parametrize("dim", [16, 13])
def test_save_and_load_go_on(text, tmp_path, mode, dim):
    options = {**SMALL, **mode, "vector_size": dim, "comment": "kept", "seed": 4}
    model = Word2Vec(text, **options)
    model.save(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "config.json",
        "vocab.txt",
        "model.safetensors",
    }
    loaded = Word2Vec.load(tmp_path / "model", workers=1)
    for name in ("sg", "hs", "negative", "alpha", "comment", "seed", "train_count", "epochs"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.wv.index_to_key == model.wv.index_to_key
    assert loaded.vocabulary.raw_words == model.vocabulary.raw_words
    model.train(text)
    loaded.train(text)
    assert np.array_equal(loaded.wv.vectors, model.wv.vectors)
    assert loaded.train_count == model.train_count == 2


def test_other_programs_read_our_folders(text, tmp_path):
    model = Word2Vec(text, **SMALL)
    model.save(tmp_path / "model")
    vectors = KeyedVectors.load(tmp_path / "model")
    assert vectors.index_to_key == model.wv.index_to_key
    assert np.array_equal(vectors.vectors, model.wv.vectors)
    model.wv.save_word2vec_format(tmp_path / "vectors.bin", binary=True)
    theirs = gensim.models.KeyedVectors.load_word2vec_format(tmp_path / "vectors.bin", binary=True)
    assert np.array_equal(theirs.vectors, model.wv.vectors)


def test_no_pickle_is_written(text, tmp_path):
    Word2Vec(text, **SMALL).save(tmp_path / "model")
    for name in os.listdir(tmp_path / "model"):
        assert not (tmp_path / "model" / name).read_bytes().startswith(b"\x80")


def test_numpy_numbers_are_numbers(text, tmp_path):
    model = Word2Vec(text, vector_size=np.int64(8), alpha=np.float32(0.03), min_count=np.int32(1))
    model.save(tmp_path / "model")
    assert Word2Vec.load(tmp_path / "model").vector_size == 8


def damage_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["parameters"]["window"] = 0
    (folder / "config.json").write_text(json.dumps(config))


def cut(name: str):
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_config, ValueError),
        (cut("config.json"), ValueError),
        (cut("vocab.txt"), ValueError),
        (cut("model.safetensors"), ValueError),
        (lambda folder: (folder / "vocab.txt").unlink(), FileNotFoundError),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError),
        (lambda folder: Word2Vec([["x", "y"]], **SMALL).wv.save(folder), ValueError),
    ],
    ids=["option", "config", "vocab", "tensors", "no vocab", "no config", "only vectors"],
)
def test_damaged_folders_are_refused(text, tmp_path, damage, error):
    Word2Vec(text, **SMALL).save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(error):
        Word2Vec.load(tmp_path / "model")


def test_nan_is_not_saved_nor_loaded(text, tmp_path):
    model = Word2Vec(text, **SMALL)
    model.save(tmp_path / "model")
    model.wv.vectors[3, 2] = np.nan
    before = (tmp_path / "model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="nan"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    at = before.index(b"}}") + 200
    data = bytearray(before)
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 4 * (at % 8) :][:4] = b""
    array = np.frombuffer(before[start:], dtype=np.float32).copy()
    array[:] = np.nan
    (tmp_path / "model/model.safetensors").write_bytes(before[:start] + array.tobytes())
    with pytest.raises(ValueError, match="nan"):
        Word2Vec.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("mode", "name", "row"),
    [(MODES["sg-ns-window"], "syn1neg", "vector of '.*' "), (MODES["sg-hs-pair"], "syn1", "row 2")],
    ids=["syn1neg", "syn1"],
)
def test_nan_in_any_table_is_not_saved_nor_loaded(text, tmp_path, mode, name, row):
    model = Word2Vec(text, **{**SMALL, **mode})
    model.save(tmp_path / "model")
    getattr(model, name)[2, 3] = np.inf
    with pytest.raises(ValueError, match=f"{name}: .*{row}.*holds nan or inf.*smaller alpha"):
        model.save(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    tables, _ = load_safetensors(path, mmap=False)
    tables[name][2, 3] = np.nan
    save_safetensors(path, tables)
    with pytest.raises(ValueError, match=f"model: {name}: .*{row}.*holds nan or inf"):
        Word2Vec.load(tmp_path / "model")


BAD_STATES = [
    ("raw_words", None),
    ("raw_words", "many"),
    ("corpus_count", "x"),
    ("corpus_total_words", -1),
    ("train_count", True),
    ("effective_min_count", 1.5),
    ("total_train_time", "long"),
    ("min_alpha_yet_reached", [0.1]),
]


@pytest.mark.parametrize(("name", "value"), BAD_STATES)
def test_a_damaged_state_is_refused(text, tmp_path, name, value):
    Word2Vec(text, **SMALL).save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["state"][name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json: damaged \(expected {name} to be"):
        Word2Vec.load(tmp_path)


def test_a_save_that_fails_leaves_no_folders(text, tmp_path, monkeypatch):
    model = Word2Vec(text, **SMALL)

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(type(model.vocabulary), "save", full)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "a" / "b" / "model")
    assert not list(tmp_path.iterdir())


def test_diverged_training_says_what_helps(text, tmp_path):
    model = Word2Vec(text, **{**SMALL, "alpha": 1e30})
    with pytest.raises(ValueError, match=r"holds nan or inf.*diverged.*smaller alpha"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_load_refuses_options_of_the_model(text, tmp_path):
    Word2Vec(text, **SMALL).save(tmp_path / "model")
    with pytest.raises(TypeError, match="window"):
        Word2Vec.load(tmp_path / "model", window=3)
    with pytest.raises(FileNotFoundError):
        Word2Vec.load(tmp_path / "nowhere")
