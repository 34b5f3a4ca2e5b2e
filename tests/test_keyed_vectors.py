"""KeyedVectors: gensim's answers, shared storage, norms that are never stale, whole files."""

from __future__ import annotations

import copy
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
from gensim.models import KeyedVectors as Gensim
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsmith import KeyedVectors, io

WORDS = [f"word{i}" for i in range(300)]
CLOSE = 2e-6


def table(rows: int = 300, dim: int = 20, stride: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, stride or dim, generator=generator)[:, :dim]


@pytest.fixture(scope="module")
def pair() -> tuple[KeyedVectors, Gensim]:
    vectors = table(stride=32)
    theirs = Gensim(20)
    theirs.add_vectors(WORDS, vectors.numpy().copy())
    return KeyedVectors(WORDS, vectors), theirs


def agree(ours: object, theirs: object) -> None:
    """Equal up to rounding; lists of (word, score) in the same order."""
    if isinstance(theirs, list):
        assert isinstance(ours, list)
        assert [word for word, _ in ours] == [word for word, _ in theirs]
        ours, theirs = [score for _, score in ours], [score for _, score in theirs]
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=CLOSE)


VECTOR = table(1, seed=5)[0].numpy()

QUERIES = [
    {"positive": "word3"},
    {"positive": ["word3"]},
    {"positive": ["word3", "word4"], "negative": ["word5"]},
    {"positive": ["word3", "word3"]},
    {"positive": ["word3"], "negative": ["word3", "word7"]},
    {"negative": "word9"},
    {"positive": [("word3", 2.0), "word4"], "negative": [("word5", -0.5)]},
    {"positive": [("word3", 0.0), ("word4", 1)]},
    {"positive": VECTOR},
    {"positive": [VECTOR, "word1"], "negative": [VECTOR * 0.5]},
    {"positive": [(VECTOR, 3.0), ("word8", -1.0)]},
    {"positive": np.stack([VECTOR, VECTOR + 1])},
    {"positive": 7},
    {"positive": [7, np.int64(8), "word2"]},
    {"positive": VECTOR.astype(np.float64)},
]
LIMITS = [
    {},
    {"topn": 1},
    {"topn": 0},
    {"topn": -3},
    {"topn": None},
    {"topn": 298},
    {"topn": 10_000},
    {"restrict_vocab": 50},
    {"restrict_vocab": 5, "topn": 10},
    {"restrict_vocab": 10_000},
    {"restrict_vocab": 0},
    {"clip_start": 100, "clip_end": 200},
    {"clip_start": 100, "topn": None},
    {"clip_end": 7, "topn": 20},
    {"clip_start": 250, "clip_end": 200},
    {"clip_start": -50},
]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("query", range(len(QUERIES)))
def test_most_similar_is_gensims(pair, query, limit):
    ours, theirs = pair
    if limit.get("clip_start", 0) < 0:
        # gensim shifts its rows wrongly here; ours are those of the slice.
        found = ours.most_similar(**QUERIES[query], **limit)
        expected = ours.most_similar(**QUERIES[query], clip_start=len(ours) - 50)
        assert found == expected
        return
    agree(
        ours.most_similar(**QUERIES[query], **limit), theirs.most_similar(**QUERIES[query], **limit)
    )


def test_the_other_neighbor_methods_are_gensims(pair):
    ours, theirs = pair
    agree(ours.similar_by_word("word5", 7), theirs.similar_by_word("word5", 7))
    agree(ours.similar_by_key("word5", None), theirs.similar_by_key("word5", None))
    agree(ours.similar_by_vector(VECTOR, 4, 100), theirs.similar_by_vector(VECTOR, 4, 100))
    agree(
        ours.most_similar_cosmul(["word1", "word2"], ["word3"], topn=12),
        theirs.most_similar_cosmul(["word1", "word2"], ["word3"], topn=12),
    )
    agree(
        ours.most_similar_cosmul("word1", topn=None), theirs.most_similar_cosmul("word1", topn=None)
    )
    assert ours.most_similar_cosmul("word1", topn=0) == []
    assert ours.rank("word1", "word2") == theirs.rank("word1", "word2")
    assert ours.closer_than("word1", "word2") == theirs.closer_than("word1", "word2")
    assert ours.most_similar_to_given("word1", WORDS[2:9]) == theirs.most_similar_to_given(
        "word1", WORDS[2:9]
    )
    agree(
        ours.relative_cosine_similarity("word1", "word2"),
        theirs.relative_cosine_similarity("word1", "word2"),
    )


def test_similarities_are_gensims_to_the_bit(pair):
    ours, theirs = pair
    for i in range(0, 290, 7):
        assert ours.similarity(WORDS[i], WORDS[i + 9]) == theirs.similarity(WORDS[i], WORDS[i + 9])
    assert ours.distance("word1", 2) == pytest.approx(theirs.distance("word1", 2), abs=1e-7)
    for first, second in ((WORDS[:3], WORDS[4:9]), (WORDS[:1], WORDS[:1]), ([0, "x"], ["word4"])):
        assert ours.n_similarity(first, second) == theirs.n_similarity(first, second)
    agree(ours.distances("word1"), theirs.distances("word1"))
    agree(ours.distances(VECTOR, WORDS[:5]), theirs.distances(VECTOR, WORDS[:5]))
    for words in (WORDS[:2], WORDS[3:9], ["word1", 2, "word7"]):
        agree(
            np.array([score for score, _ in ours.rank_by_centrality(words)]),
            np.array([score for score, _ in theirs.rank_by_centrality(words)]),
        )
        assert ours.doesnt_match(words) == theirs.doesnt_match(words)
    agree(ours.get_mean_vector(WORDS[:5]), theirs.get_mean_vector(WORDS[:5]))
    agree(
        ours.get_mean_vector(["word1", "none", VECTOR], [1.0, 2.0, -0.5], post_normalize=True),
        theirs.get_mean_vector(["word1", "none", VECTOR], [1.0, 2.0, -0.5], post_normalize=True),
    )
    agree(ours.get_vector("word8", norm=True), theirs.get_vector("word8", norm=True))
    agree(ours.get_normed_vectors(), theirs.get_normed_vectors())
    agree(ours.norms, np.linalg.norm(theirs.vectors, axis=1))


def test_zero_vectors_come_last_as_in_gensim():
    vectors = table(30)
    vectors[5] = 0
    ours, theirs = KeyedVectors(WORDS[:30], vectors), Gensim(20)
    theirs.add_vectors(WORDS[:30], vectors.numpy())
    found = ours.most_similar("word1", topn=40)
    with np.errstate(invalid="ignore"):
        expected = theirs.most_similar("word1", topn=40)
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert found[-1][0] == "word5"
    assert math.isnan(found[-1][1])
    assert ours.similarity("word1", "word5") == theirs.similarity("word1", "word5") == 0
    assert all(math.isnan(score) for _, score in ours.most_similar("word5"))
    assert np.isnan(ours.get_vector("word5", norm=True)).all()


def test_ties_come_in_the_order_of_rows():
    kv = KeyedVectors(WORDS[:100], torch.ones(100, 3))
    assert [word for word, _ in kv.most_similar(positive=[np.ones(3)], topn=7)] == WORDS[:7]
    assert [word for word, _ in kv.most_similar("word2", topn=3)] == ["word0", "word1", "word3"]


def test_unknown_words_and_wrong_queries(pair):
    ours, _ = pair
    for call in (
        lambda: ours["nobody"],
        lambda: ours[["word1", "nobody"]],
        lambda: ours.get_vector("nobody"),
        lambda: ours.get_index("nobody"),
        lambda: ours.most_similar("nobody"),
        lambda: ours.most_similar(["word1"], ["nobody"]),
        lambda: ours.most_similar([("nobody", 1.0)]),
        lambda: ours.most_similar_cosmul("nobody"),
        lambda: ours.similarity("word1", "nobody"),
        lambda: ours.distances("word1", ["nobody"]),
        lambda: ours.n_similarity(["nobody"], ["word1"]),
        lambda: ours.rank("word1", "nobody"),
        lambda: ours.get_vecattr("nobody", "count"),
        lambda: ours.get_mean_vector(["nobody"], ignore_missing=False),
    ):
        with pytest.raises(KeyError, match="nobody"):
            call()
    with pytest.raises(KeyError, match="300"):
        ours[300]
    with pytest.raises(KeyError, match="-1"):
        ours[-1]
    assert ours.get_index("nobody", 4) == 4
    assert "nobody" not in ours
    assert -1 not in ours
    assert None not in ours
    for call in (
        lambda: ours.most_similar(),
        lambda: ours.most_similar(positive=[]),
        lambda: ours.most_similar_cosmul(negative="word1"),
        lambda: ours.most_similar(np.ones(19)),
        lambda: ours.most_similar(torch.ones(2, 3)),
        lambda: ours.n_similarity([], ["word1"]),
        lambda: ours.get_mean_vector([]),
        lambda: ours.get_mean_vector(["word1"], [1.0, 2.0]),
        lambda: ours.doesnt_match([]),
    ):
        with pytest.raises(ValueError, match=r"expected|cannot compute"):
            call()
    for wrong in ([None], [("word1", "x")], [("word1", 1, 2)], [1.5], [{}]):
        with pytest.raises(TypeError, match="expected"):
            ours.most_similar(wrong)
    with pytest.warns(UserWarning, match="nobody"):
        assert ours.doesnt_match(["word1", "nobody", "word2"]) in ("word1", "word2")
    with pytest.warns(UserWarning, match="nobody"), pytest.raises(ValueError, match="at least one"):
        ours.doesnt_match(["nobody"])


def test_access(pair):
    ours, theirs = pair
    assert len(ours) == 300
    assert ours.vector_size == 20
    assert ours.index_to_key == WORDS
    assert ours.key_to_index["word7"] == 7
    assert repr(ours) == "KeyedVectors<vector_size=20, 300 keys>"
    assert np.array_equal(ours["word7"], theirs["word7"])
    assert np.array_equal(ours[7], theirs[7])
    assert np.array_equal(ours[["word7", 3]], theirs[["word7", 3]])
    assert "word7" in ours
    assert 7 in ours
    with pytest.raises(ValueError, match="read-only"):
        ours["word7"][0] = 1
    assert ours.has_index_for("word7")
    chosen = ours.vectors_for_all(["word9", "nobody", "word9", "word1"])
    assert chosen.index_to_key == ["word9", "word1"]
    assert np.array_equal(chosen.vectors, ours[["word9", "word1"]])


def test_construction_is_checked():
    with pytest.raises(ValueError, match="'a' twice"):
        KeyedVectors(["a", "b", "a"], torch.ones(3, 2))
    for wrong in (torch.ones(3, 2), torch.ones(2), torch.ones(2, 0), torch.ones(2, 2, 2)):
        with pytest.raises(ValueError, match="expected vectors of shape"):
            KeyedVectors(["a", "b"], wrong)
    for wrong in (torch.ones(2, 2, dtype=torch.int64), np.ones((2, 2), int), [[1.0], [2.0]], None):
        with pytest.raises(TypeError, match="expected"):
            KeyedVectors(["a", "b"], wrong)
    for wrong in ("ab", [1, 2], [b"a", "b"]):
        with pytest.raises(TypeError, match="expected"):
            KeyedVectors(wrong, torch.ones(2, 2))
    for wrong in ([1], [1.5, 2.5], [[1, 2]]):
        with pytest.raises(ValueError, match="counts"):
            KeyedVectors(["a", "b"], torch.ones(2, 2), wrong)
    with pytest.raises(ValueError, match="CPU"):
        KeyedVectors(["a"], torch.ones(1, 2, device="meta"))
    with pytest.raises(ValueError, match="vector size"):
        KeyedVectors(0)
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        kv = KeyedVectors(["a", "b"], torch.ones(2, 2, dtype=kind))
        assert kv.weight.dtype == torch.float32
        assert kv.similarity("a", "b") == pytest.approx(1)
    backwards = KeyedVectors(["a", "b"], np.arange(4, dtype=np.float32).reshape(2, 2)[::-1])
    assert backwards["a"].tolist() == [2, 3]
    assert KeyedVectors(["a", "b"], table(2, 4).T[:2]).vectors.shape == (2, 2)
    empty = KeyedVectors([], torch.empty(0, 3))
    assert len(empty) == 0
    assert empty.most_similar(np.ones(3)) == []


def test_attributes():
    kv = KeyedVectors(["a", "b"], torch.eye(2), [3, 9])
    assert kv.get_vecattr("b", "count") == 9
    kv.set_vecattr("a", "count", 4)
    assert kv.get_vecattr("a", "count") == 4
    kv.set_vecattr("a", "tag", "noun")
    assert kv.get_vecattr("a", "tag") == "noun"
    kv.set_vecattr("b", "weight", 0.5)
    assert kv.get_vecattr("b", "weight") == 0.5
    with pytest.raises(KeyError, match="nothing"):
        kv.get_vecattr("a", "nothing")
    kv.sort_by_descending_frequency()
    assert kv.index_to_key == ["b", "a"]
    assert kv["b"].tolist() == [0, 1]
    assert kv.get_vecattr("a", "tag") == "noun"
    with pytest.raises(KeyError, match="counts"):
        KeyedVectors(["a"], torch.ones(1, 1)).sort_by_descending_frequency()


def test_vectors_are_added_and_replaced():
    kv = KeyedVectors(2)
    kv.add_vectors(["a", "b", "a"], [[1, 2], [3, 4], [5, 6]])
    assert kv.vectors.tolist() == [[1, 2], [3, 4]]
    assert kv.add_vector("c", np.array([7, 8])) == 2
    kv["b"] = np.array([0, 1])
    kv[["c", "d"]] = np.array([[9, 9], [1, 1]])
    assert kv.vectors.tolist() == [[1, 2], [0, 1], [9, 9], [1, 1]]
    assert kv.index_to_key == ["a", "b", "c", "d"]
    assert kv.most_similar("c", topn=1)[0][0] == "d"
    with pytest.raises(ValueError, match="expected vectors"):
        kv.add_vectors(["e"], [[1, 2, 3]])
    with pytest.raises(TypeError, match="expected a word"):
        kv.add_vectors([99], [[1, 2]])
    kv = KeyedVectors(["a"], torch.ones(1, 2), [5])
    kv.add_vectors(["b"], [[1, 2]])
    assert kv.get_vecattr("b", "count") == 0
    kv.unit_normalize_all()
    np.testing.assert_allclose(kv.norms, 1, atol=1e-6)


# --- shared storage -------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [20, 32])
def test_everything_is_one_memory(stride):
    vectors = table(stride=stride)
    kv = KeyedVectors(WORDS, vectors)
    assert isinstance(kv.weight, torch.nn.Parameter)
    assert not kv.weight.requires_grad
    frozen, free = kv.to_embedding(), kv.to_embedding(freeze=False)
    assert not frozen.weight.requires_grad
    assert free.weight.requires_grad
    for other in (kv.weight, frozen.weight, free.weight):
        assert other.data_ptr() == vectors.data_ptr()
        assert other.stride() == vectors.stride()
    kv.vectors[3] = 8
    ids = torch.tensor([3, 3, 1])
    for view in (vectors[ids], kv.weight[ids], frozen(ids), free(ids)):
        assert torch.equal(view[0], torch.full((20,), 8.0))
    array = np.zeros((2, 3), dtype=np.float32)
    kv = KeyedVectors(["a", "b"], array)
    array[1] = 5
    assert kv["b"].tolist() == [5, 5, 5]
    frozen_array = array.copy()
    frozen_array.flags.writeable = False
    KeyedVectors(["a", "b"], frozen_array).vectors[0] = 9  # a copy, since torch could write into it
    assert frozen_array[0].tolist() == [0, 0, 0]


def train_step(kv: KeyedVectors, optimizer: type, **options: object) -> None:
    embedding = kv.to_embedding(freeze=False)
    step = optimizer(embedding.parameters(), **options)
    embedding(torch.tensor([0, 4])).square().sum().backward()
    step.step()


class Writers:
    """Every documented way to write into the table."""

    @staticmethod
    def numpy_view(kv: KeyedVectors) -> None:
        kv.vectors[4] *= 3

    @staticmethod
    def numpy_row(kv: KeyedVectors) -> None:
        row = kv.vectors[4:5][0]
        row[:] = 7

    @staticmethod
    def numpy_inplace(kv: KeyedVectors) -> None:
        kv.vectors *= np.linspace(0.5, 2, 300, dtype=np.float32)[:, None]

    @staticmethod
    def weight(kv: KeyedVectors) -> None:
        kv.weight[4] = 3

    @staticmethod
    def detached(kv: KeyedVectors) -> None:
        kv.weight.detach().mul_(torch.linspace(1, 3, 300)[:, None])

    @staticmethod
    def sgd(kv: KeyedVectors) -> None:
        train_step(kv, torch.optim.SGD, lr=0.4)

    @staticmethod
    def adam(kv: KeyedVectors) -> None:
        train_step(kv, torch.optim.Adam, lr=1.0)

    @staticmethod
    def setitem(kv: KeyedVectors) -> None:
        kv["word4"] = np.full(20, 2.0)

    @staticmethod
    def assigned(kv: KeyedVectors) -> None:
        kv.vectors = table(seed=9).numpy()

    @staticmethod
    def kernel(kv: KeyedVectors) -> None:
        # What ops that write through raw pointers do.
        detached = kv.weight.detach()
        detached.data[4] = 6
        torch.autograd.graph.increment_version(detached)


@pytest.mark.parametrize("write", [name for name in vars(Writers) if not name.startswith("_")])
def test_norms_are_right_after_every_way_of_writing(write):
    vectors = table()
    kv = KeyedVectors(WORDS, vectors)
    before = kv.most_similar("word1", topn=300)
    assert kv.norms is kv.norms  # cached
    getattr(Writers, write)(kv)
    fresh = KeyedVectors(WORDS, kv.weight.detach().clone())
    assert kv.most_similar("word1", topn=300) == fresh.most_similar("word1", topn=300)
    assert kv.most_similar("word1", topn=300) != before
    np.testing.assert_array_equal(kv.norms, fresh.norms)


def test_norms_while_a_view_is_alive_and_after():
    kv = KeyedVectors(WORDS, table())
    view = kv.vectors
    part = view[3:5].reshape(-1)
    del view
    kv.fill_norms()
    part[:] = 2  # later than the norms
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 2, rtol=1e-6)
    part[:] = 3
    del part
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 3, rtol=1e-6)
    assert kv.norms is kv.norms


def test_norms_of_a_borrowed_array_and_by_force():
    array = table().numpy().copy()
    kv = KeyedVectors(WORDS, array)
    kv.fill_norms()
    array[3] = 2
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 2, rtol=1e-6)
    kv = KeyedVectors(WORDS, table())
    kv.fill_norms()
    kv.weight.data[3] = 2  # nobody can see this
    kv.fill_norms(force=True)
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 2, rtol=1e-6)
    kv.weight.data[3] = 3
    kv.norms = None
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 3, rtol=1e-6)
    with pytest.raises(ValueError, match="expected None"):
        kv.norms = np.ones(300)


# --- save and load --------------------------------------------------------------------------------

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


def test_huge_finite_values_are_not_taken_for_infinite(tmp_path):
    kv = KeyedVectors(["a", "b"], torch.full((2, 3), 3.4e38))
    kv.save(tmp_path)
    assert KeyedVectors.load(tmp_path)["a"][0] == np.float32(3.4e38)


def test_copies_are_independent():
    kv = KeyedVectors(WORDS, table())
    twin = copy.deepcopy(kv)
    twin.vectors[0] = 1
    assert not np.array_equal(kv["word0"], twin["word0"])


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
